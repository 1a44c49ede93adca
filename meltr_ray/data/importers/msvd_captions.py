"""MSVD (Chen & Dolan, ACL 2011) with the captions and splits of Venugopalan et al. (ICCV 2015).

The source folder holds `sents_train_lc_nopunc.txt`, `sents_val_lc_nopunc.txt` and `sents_test_lc_nopunc.txt` (plain or .gz),
lines of `vid<N>`, a tab and a caption in lower case without punctuation, and `youtube_mapping.txt` as MSVD-QA has it. Some of the
three may be missing; without the mapping, videos are looked for by `vid<N>`.
"""

from __future__ import annotations

from pathlib import Path

from meltr_ray.config import check
from meltr_ray.data.importers.annotations import Annotations
from meltr_ray.data.importers.files import find, read_text
from meltr_ray.data.importers.grouping import gather
from meltr_ray.data.importers.msvd_qa import lacking, read_mapping, youtube_id

LISTS = {"train": "sents_train_lc_nopunc.txt", "validation": "sents_val_lc_nopunc.txt", "test": "sents_test_lc_nopunc.txt"}


def read(folder: Path, variant: str | None) -> Annotations:
    """Clips `vid<N>` with all their captions. Raises ConfigError for files that are missing or damaged."""
    lists = {split: path for split, name in LISTS.items() if (path := find(folder, name))}
    check(bool(lists), "source", folder, f"none of {', '.join(LISTS.values())} there; give the folder that holds them")
    names, files = read_mapping(folder)
    gathered = gather({split: _captions(path) for split, path in lists.items()}, names, youtube_id if names else str)
    gathered["warnings"] += lacking(lists, LISTS, names)
    return Annotations("MSVD captions; validation and test as published (1200 / 100 / 670 clips)",
                       files=[*lists.values(), *files], **gathered)  # fmt: skip


def _captions(path: Path) -> list[tuple[str, str]]:
    listed = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        video, tab, caption = line.rstrip("\r").partition("\t")
        whole = bool(video and tab) or not line.strip()
        check(whole, "source", path, f"line {number} isn't a video, a tab and a caption; mend the line")
        listed += [(video, caption)] if tab else []
    return listed
