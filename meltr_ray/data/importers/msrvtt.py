"""MSR-VTT (Xu et al., CVPR 2016): original annotation and a file of frame features in, this project's Parquet out.

The source folder holds `MSRVTT_data.json` (`videos`, `sentences`), one `*.npz` with `video_id` (N,) and `feat`
(N, frames, D), and perhaps `split.json` (`train` and `val` lists), which then stands in for the annotation's own split.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from meltr_ray.config import check
from meltr_ray.data import store
from meltr_ray.data.schema import SPLITS, row
from meltr_ray.data.vocabulary import build_vocabulary

HELD_OUT = 0.1  # share of the official train videos that each of our meta and validation splits takes
ABOUT = "MSR-VTT; test: official validation (or test) videos, scored once; meta, validation: train videos, apart by URL"


def source(folder: Path) -> dict[str, Any]:
    """SHA-256 of every file the import reads; two folders with equal sources hold the same clips."""
    return {path.name: store.sha256(path) for path in _files(folder)}


def import_msrvtt(source_folder: Path, folder: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Write the data set to `folder` and return its manifest. Raises ConfigError for a missing or truncated source."""
    annotation_file, feature_file, *split_file = _files(source_folder)
    annotation = _read_json(annotation_file, ("videos", "sentences"))
    video_ids, values = _read_features(feature_file)
    at = {video: index for index, video in enumerate(video_ids)}
    captions: dict[str, list[str]] = defaultdict(list)
    for sentence in sorted(annotation["sentences"], key=lambda sentence: sentence["sen_id"]):
        captions[sentence["video_id"]].append(sentence["caption"])
    urls = {video["video_id"]: video["url"] for video in annotation["videos"]}
    official = _official_split(annotation, split_file)
    named = [video for videos in official.values() for video in videos]
    usable = at.keys() & captions.keys() & urls.keys()
    official = {split: [video for video in videos if video in usable] for split, videos in official.items()}
    check(bool(official["train"] and official["test"]), "source", source_folder,
          "no train or no test video has both captions and features; check the ids in the files")
    splits = _hold_out(official, urls)
    train_urls = {urls[video] for video in splits["train"]}
    per_video = [len(captions[video]) for videos in splits.values() for video in videos]
    counts = {"videos named": len(named), "videos without features": sum(video not in at for video in named),
              "videos found": len(per_video), "videos without captions": sum(video not in captions for video in named),
              "least captions a video": min(per_video), "most captions a video": max(per_video)}  # fmt: skip
    for split in SPLITS[1:]:
        counts[f"{split} videos that share a source URL with train"] = sum(urls[video] in train_urls for video in splits[split])
    warnings = [f"{count} {name}" for name, count in counts.items() if count and ("without" in name or "share" in name)]
    for name, count in counts.items():
        report(f"msrvtt: {name}: {count}")
    with store.new_folder(folder) as temporary:
        entries = {split: store.write_split(temporary, split, (row(v, split, captions[v], values[at[v]]) for v in videos))
                   for split, videos in splits.items()}  # fmt: skip
        report("msrvtt: rows: " + ", ".join(f"{split} {entry['rows']}" for split, entry in entries.items()))
        build_vocabulary((caption for video in splits["train"] for caption in captions[video]), temporary / "vocabulary.txt")
        return store.write_manifest(
            temporary, name="msrvtt", description=ABOUT, source=source(source_folder), splits=entries, counts=counts,
            feature_size=values.shape[2], feature_extractor=feature_file.name, warnings=warnings)  # fmt: skip


def _hold_out(official: dict[str, list[str]], urls: dict[str, str]) -> dict[str, list[str]]:
    """Our splits: what is held out is taken by whole source URL, in an order that hangs on the URL's checksum alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for video in official["train"]:
        groups[urls[video]].append(video)
    splits = official | {"train": [], "meta": []}
    fill = ["meta"] if official["validation"] else ["meta", "validation"]
    for url in sorted(groups, key=lambda url: hashlib.sha256(url.encode()).digest()):
        room = [split for split in fill if len(splits[split]) + len(groups[url]) <= round(HELD_OUT * len(official["train"]))]
        splits[room[0] if room else "train"] += groups[url]
    return {split: splits[split] for split in SPLITS}


def _official_split(annotation: dict[str, Any], split_file: list[Path]) -> dict[str, list[str]]:
    """Lists named train, validation and test; with no test of its own, the official validation is the test."""
    given = _read_json(split_file[0], ("train", "val")) if split_file else defaultdict(list)
    for video in () if split_file else annotation["videos"]:
        given["val" if video["split"] == "validate" else video["split"]].append(video["video_id"])
    held_out = dict(validation=given["val"], test=given["test"]) if given.get("test") else dict(validation=[], test=given["val"])
    return {"train": given["train"]} | held_out


def _files(folder: Path) -> list[Path]:
    """Annotation, features, and the split file if there is one."""
    check((folder / "MSRVTT_data.json").is_file(), "source", folder, "no MSRVTT_data.json there; give the folder that holds it")
    features = sorted(folder.glob("*.npz"))
    check(len(features) == 1, "source", folder, f"holds {len(features)} *.npz files; leave one, with the features")
    return [folder / "MSRVTT_data.json", features[0], *folder.glob("split.json")]


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        content = {}
    check(set(keys) <= set(content), "source", path, f"is no whole JSON file with {' and '.join(keys)}; fetch the file again")
    return content


def _read_features(path: Path) -> tuple[list[str], np.ndarray]:
    """Video ids and their features (N, frames, D)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            video_ids, values = stored["video_id"].tolist(), stored["feat"]
            whole = values.ndim == 3 and len(values) == len(video_ids)
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        whole = False
    check(whole, "source", path, "is no whole .npz file with video_id (N,) and feat (N, frames, D); fetch the file again")
    return video_ids, values
