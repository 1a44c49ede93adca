"""A data set's folder as it is read: checked once on the driver, then by random access from memory-mapped Arrow.

    <folder>/manifest.json          what is in it; written last, so a folder without one isn't finished
    <folder>/<split>-00000.parquet  the clips, media included, in shards
    <folder>/<split>.arrow          cache made on first open: the same rows without their video, for memory-mapping
    <folder>/<split>.videos.arrow   cache made on first use: the videos alone
    <folder>/linked_videos.json     sizes of video files that stay where they are, if any do
    <folder>/vocabulary.txt         word pieces of the train captions

docs/data.md describes it; shards.py and new_folder.py write it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meltr_ray.errors import check
from meltr_ray.storage import put
from meltr_ray.storage.sealed import sha256
from meltr_ray.video.clips import schema
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.disk import DISK_FULL, disk_full_is_one_line

ROWS_AT_ONCE = 128
"""Rows of a record batch of the cache, and what making it holds."""
LINKED = "linked_videos.json"
"""Sizes of the videos that aren't embedded."""
VIDEO_COLUMNS = ("id", "video", "video_path")
AGAIN = "delete the folder and prepare it again (workloads/prepare.py)"


class ClipStore:
    """Random access to the clips of one split. Trusts the folder: run `check_folder` on the driver first.

    With `videos`, to their encoded videos too; with `features`, every clip must have frame features: raises ConfigError where
    one hasn't. Pickles as its arguments, so a worker process maps the files anew instead of receiving the data.
    """

    def __init__(self, folder: str | Path, split: str, videos: bool = False, features: bool = False):
        self.folder, self.split, self.videos, self.features = Path(folder), split, videos, features
        manifest = load_manifest(folder)
        check(split in manifest["splits"], "data.folder", folder, f"has no split {split}; it has {', '.join(manifest['splits'])}")
        self.feature_size: int = manifest["feature_size"] or 0
        """Columns of frame features; 0 where there are none."""
        entry = manifest["splits"][split]
        self.checksum: str = entry["sha256"]
        """SHA-256 over those of the split's shards: what else is derived from the split can name it."""
        columns = [name for name in schema.SCHEMA.names if name != "video"]
        self._rows = Rows(_cache(self.folder, f"{split}.arrow", entry, columns))
        if features:
            lacking = self._rows.first_without("features")
            check(lacking is None, "data.folder", folder, "has clips without frame features, which this backbone needs "
                  f"(clip {lacking} of {split}); import features or choose a backbone that reads pixels (violet, allinone)")  # fmt: skip
        if videos:
            self._videos = Rows(_cache(self.folder, f"{split}.videos.arrow", entry, VIDEO_COLUMNS))
            lacking = self._videos.first_without("video", "video_path")
            check(lacking is None, "data.folder", folder, "has clips without a video, which backbones that read pixels need "
                  f"(clip {lacking} of {split}); prepare it with videos or choose backbone.name=univl")  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Clip:
        clip = schema.clip(*self._rows.locate(index))
        if self.videos:
            clip.video = self.video(index)
        return clip

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all clips, as `schema.SCHEMA` has it; nothing else is read. Not that of the videos."""
        return pa.chunked_array([batch[name] for batch in self._rows.batches], schema.SCHEMA.field(name).type)

    def video(self, index: int) -> bytes | Path:
        """The encoded video of clip `index`, or the file that holds it. For a store opened with `videos`."""
        batch, at = self._videos.locate(index)
        embedded = batch["video"][at].as_py()
        return self.folder / batch["video_path"][at].as_py() if embedded is None else embedded

    def check_files(self) -> None:
        """Raises ConfigError where the file of a video that isn't embedded is gone, or isn't the one that was looked into at the import.

        For a store opened with `videos`.
        """
        paths = {path for batch in self._videos.batches for path in batch["video_path"].unique().to_pylist() if path is not None}
        sizes = {path: os.stat(self.folder / path).st_size if (self.folder / path).is_file() else None for path in sorted(paths)}
        lost = [path for path, size in sizes.items() if size is None]
        check(not lost, "data.folder", self.folder, f"{len(lost)} of {len(paths)} video files of {self.split} are gone, {lost[:1]} first; "
              "put them back or prepare the folder anew")  # fmt: skip
        imported = linked_sizes(self.folder)
        other = [path for path, size in sizes.items() if imported.get(path, size) != size]
        check(not other, "data.folder", self.folder, f"{len(other)} of {len(paths)} video files of {self.split} have another size than at the "
              f"import, {other[:1]} first; put those back or prepare the folder anew")  # fmt: skip

    def __reduce__(self):
        return ClipStore, (self.folder, self.split, self.videos, self.features)


class Rows:
    """Rows of a memory-mapped Arrow file, found by number."""

    def __init__(self, path: Path):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.starts = np.cumsum([0] + [batch.num_rows for batch in self.batches])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The record batch that holds row `index`, and its place there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.batches[group], index - int(self.starts[group])

    def first_without(self, *columns: str) -> str | None:
        """`id` of the first row in which all `columns` are null; None where every row has one of them."""
        for batch in self.batches:
            empty = np.all([batch[name].is_null() for name in columns], axis=0)
            if empty.any():
                return batch["id"][int(empty.argmax())].as_py()
        return None


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """The folder's manifest. Raises ConfigError where there is none, or one of another schema version."""
    path = Path(folder) / "manifest.json"
    check(Path(folder).is_dir(), "data.folder", folder, "no such folder; prepare it with workloads/prepare.py")
    check(path.is_file(), "data.folder", folder, f"has no manifest.json, so it isn't finished; {AGAIN}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    check(isinstance(manifest, dict) and "splits" in manifest, "data.folder", folder, f"its manifest.json is damaged; {AGAIN}")
    check(
        manifest.get("schema_version") == schema.VERSION,
        "data.folder",
        folder,
        f"has schema version {manifest.get('schema_version')}, this code reads {schema.VERSION}; {AGAIN}",
    )
    return manifest


def linked_sizes(folder: Path) -> dict[str, int]:
    """Video file that isn't embedded -> its bytes at the import; empty of a folder of an earlier version."""
    path = Path(folder) / LINKED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def check_folder(folder: str | Path) -> dict[str, Any]:
    """The manifest, after every file that it names was found whole (size and SHA-256): once, on the driver, not in workers."""
    manifest = load_manifest(folder)
    shards = [shard for entry in manifest["splits"].values() for shard in entry["shards"]]
    for entry in shards + manifest["files"]:
        path = Path(folder) / entry["file"]
        check(path.is_file(), "data.folder", folder, f"lacks {path.name}; {AGAIN}")
        size = path.stat().st_size
        check(
            size == entry["bytes"], "data.folder", folder, f"{path.name} has {size} bytes where the manifest says {entry['bytes']}; {AGAIN}"
        )
        check(sha256(path) == entry["sha256"], "data.folder", folder, f"{path.name} differs from the manifest's checksum; {AGAIN}")
    check((Path(folder) / "vocabulary.txt").is_file(), "data.folder", folder, f"lacks vocabulary.txt; {AGAIN}")
    for cache in Path(folder).glob("*.arrow"):
        mark = _checksum_of(cache)
        if not mark.is_file() or mark.read_bytes().strip() != sha256(cache).encode():
            cache.unlink()  # made anew from the shards, which are whole, by who needs it first
    return manifest


def _cache(folder: Path, name: str, entry: dict[str, Any], columns: Sequence[str]) -> Path:
    """Arrow file `name` of a split's columns; made anew, a row group at a time, unless it is there and from Parquet of this checksum.

    `entry`: the split's, of the manifest.
    """
    path, mark = folder / name, {b"parquet_sha256": entry["sha256"].encode()}
    try:
        with pa.memory_map(str(path)) as file:
            if (pa.ipc.open_file(file).schema.metadata or {}).items() >= mark.items():
                return path
    except (OSError, pa.ArrowInvalid):
        pass  # not there yet, or not an Arrow file: written below
    kept = pa.schema([schema.SCHEMA.field(column) for column in columns], metadata=schema.SCHEMA.metadata | mark)

    def copy(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, kept) as writer:
            for shard in entry["shards"]:
                _copy_columns(folder / shard["file"], writer, kept)

    with disk_full_is_one_line(folder):
        put(path, copy)  # workers may do this at once: the last rename wins, all equal
        put(_checksum_of(path), sha256(path))
    return path


def _checksum_of(cache: Path) -> Path:
    return cache.with_suffix(".sha256")


def _copy_columns(shard: Path, writer: pa.RecordBatchFileWriter, kept: pa.Schema) -> None:
    try:
        with pq.ParquetFile(shard) as parquet:
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=kept.names):
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=kept))
    except (OSError, pa.ArrowInvalid) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        check(False, "data.folder", shard.parent, f"{shard.name} can't be read ({str(error).splitlines()[0]}); {AGAIN}")
