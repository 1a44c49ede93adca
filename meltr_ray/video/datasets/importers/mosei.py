"""CMU-MOSEI (Zadeh et al., ACL 2018): utterances with a sentiment score in [-3, 3], in the layouts of CMU-MOSI (see `mosi.py`).

The source folder holds, by variant:

    table       MMSA's `label.csv` or a `mosei_meta.csv`, and perhaps `mosei_audio.npz`
    unaligned   `unaligned_50.pkl` (MMSA), `mosei_senti_data_noalign.pkl` or `mosei_raw.pkl` (MulT)
    aligned     `aligned_50.pkl` (MMSA) or `mosei_senti_data.pkl` (MulT)
"""

from __future__ import annotations

from pathlib import Path

from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import find, need
from meltr_ray.video.datasets.importers.mosi import read_table
from meltr_ray.video.datasets.importers.sentiment_pickles import read_pickled

VARIANTS = ("table", "unaligned", "aligned")
TABLES = ("mosei_meta.csv", "label.csv")
AUDIO = "mosei_audio.npz"
PICKLES = {"unaligned": ("unaligned_50.pkl", "mosei_senti_data_noalign.pkl", "mosei_raw.pkl"),
           "aligned": ("aligned_50.pkl", "mosei_senti_data.pkl")}  # fmt: skip


def read(folder: Path, variant: str) -> Annotations:
    """Clips `<video>_<clip>` with transcript, score and audio. Raises ConfigError for files that are missing or damaged."""
    if variant == "table":
        return read_table("CMU-MOSEI", folder, need(folder, *TABLES), find(folder, AUDIO))
    return read_pickled("CMU-MOSEI", need(folder, *PICKLES[variant]))
