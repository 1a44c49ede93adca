"""A data set's folder: written once, checked once on the driver, then read by random access from memory-mapped Arrow.

    <folder>/manifest.json      what is in it; written last, so a folder without one isn't finished
    <folder>/<split>.parquet    the clips, video included
    <folder>/<split>.arrow      cache made on first open: the same rows without their video, for memory-mapping
    <folder>/<split>.videos.arrow   cache made on first use: the videos alone
    <folder>/vocabulary.txt     word pieces of the train captions
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meltr_ray.config import check
from meltr_ray.data import schema

ROWS_PER_GROUP = 128
VIDEO_COLUMNS = ("id", "video", "video_path")
AGAIN = "delete the folder and prepare it again (workloads/prepare.py)"


@dataclass
class Clip:
    """One clip as training reads it."""

    id: str
    captions: list[str]
    features: np.ndarray
    """(frames, D) float32."""
    video: bytes | Path | None = None
    """The encoded video, or its file; None where the store was opened without videos."""
    vq_tokens: np.ndarray | None = None
    """Visual tokens that came with the clip, row-major (frames x rows x columns,) int16; read where videos are."""


class ClipStore:
    """Random access to the clips of one split. Trusts the folder: run `check_folder` on the driver first.

    With `videos`, to their encoded videos too; raises ConfigError where a clip has none. Pickles as its arguments, so a worker
    process maps the files anew instead of receiving the data.
    """

    def __init__(self, folder: str | Path, split: str, videos: bool = False):
        self.folder, self.split, self.videos = Path(folder), split, videos
        manifest = load_manifest(folder)
        check(split in manifest["splits"], "data.folder", folder,
              f"has no split {split}; it has {', '.join(manifest['splits'])}")
        self.feature_size: int = manifest["feature_size"]
        self.checksum: str = manifest["splits"][split]["sha256"]
        """SHA-256 of the split's Parquet file: what else is derived from the split can name it."""
        columns = [name for name in schema.SCHEMA.names if name != "video"]
        self._rows = Rows(_cache(self.folder, split, f"{split}.arrow", self.checksum, columns))
        if videos:
            self._videos = Rows(_cache(self.folder, split, f"{split}.videos.arrow", self.checksum, VIDEO_COLUMNS))
            lacking = self._videos.first_without("video", "video_path")
            check(lacking is None, "data.folder", folder, "has clips without a video, which backbones that read pixels need "
                  f"(clip {lacking} of {split}); prepare it with videos or choose backbone.name=univl")  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Clip:
        batch, at = self._rows.locate(index)
        features = schema.unpack_features(
            batch["features"][at].as_buffer(), batch["num_frames"][at].as_py(), batch["feature_size"][at].as_py()
        )
        clip = Clip(batch["id"][at].as_py(), batch["captions"][at].as_py(), features)
        if self.videos:
            clip.video, clip.vq_tokens = self.video(index), self.vq_tokens(index)
        return clip

    def video(self, index: int) -> bytes | Path:
        """The encoded video of clip `index`, or the file that holds it. For a store opened with `videos`."""
        batch, at = self._videos.locate(index)
        embedded = batch["video"][at].as_py()
        return self.folder / batch["video_path"][at].as_py() if embedded is None else embedded

    def vq_tokens(self, index: int) -> np.ndarray | None:
        """Visual tokens stored with clip `index`, row-major (frames x rows x columns,) int16; None where it has none."""
        batch, at = self._rows.locate(index)
        tokens = batch["vq_tokens"][at].as_py()
        return None if tokens is None else np.array(tokens, np.int16)

    def __reduce__(self):
        return ClipStore, (self.folder, self.split, self.videos)


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
    check(isinstance(manifest, dict) and "splits" in manifest, "data.folder", folder,
          f"its manifest.json is damaged; {AGAIN}")
    check(manifest.get("schema_version") == schema.VERSION, "data.folder", folder,
          f"has schema version {manifest.get('schema_version')}, this code reads {schema.VERSION}; {AGAIN}")
    return manifest


def check_folder(folder: str | Path) -> dict[str, Any]:
    """The manifest, after every Parquet file was found whole (size and SHA-256): once, on the driver, not in workers."""
    manifest = load_manifest(folder)
    for split, entry in manifest["splits"].items():
        path = Path(folder) / f"{split}.parquet"
        check(path.is_file(), "data.folder", folder, f"lacks {path.name}; {AGAIN}")
        size = path.stat().st_size
        check(size == entry["bytes"], "data.folder", folder,
              f"{path.name} has {size} bytes where the manifest says {entry['bytes']}; {AGAIN}")
        check(sha256(path) == entry["sha256"], "data.folder", folder,
              f"{path.name} differs from the manifest's checksum; {AGAIN}")
    check((Path(folder) / "vocabulary.txt").is_file(), "data.folder", folder, f"lacks vocabulary.txt; {AGAIN}")
    return manifest


def write_split(folder: Path, split: str, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write one split and return its entry for the manifest."""
    path = Path(folder) / f"{split}.parquet"
    table = schema.table(rows)
    # A fixed writer version and no dictionary on binary data: the same rows give the same bytes.
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="zstd", use_dictionary=["split"])
    captions = sum(len(captions) for captions in table["captions"].to_pylist())
    return dict(rows=table.num_rows, captions=captions, bytes=path.stat().st_size, sha256=sha256(path))


def write_manifest(folder: Path, **content: Any) -> dict[str, Any]:
    """Write the manifest, to a temporary name first.

    `content` must hold name, description, source, splits (split -> entry of `write_split`), feature_size and
    feature_extractor.
    """
    rows = {split: entry["rows"] for split, entry in content["splits"].items()}
    manifest = {"schema_version": schema.VERSION, "rows": rows, "baselines": {}, "warnings": []} | content
    temporary = Path(folder) / f"manifest.json.{os.getpid()}"
    temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, Path(folder) / "manifest.json")
    return manifest


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when all went well, and is removed when not."""
    folder = Path(folder)
    check(not folder.exists() or (folder.is_dir() and not any(folder.iterdir())), "data.folder", folder,
          "is in use; choose another folder or delete it")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            os.rename(temporary, folder)
        except OSError:
            check(False, "data.folder", folder, "was made by another process meanwhile; start again to use it")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache(folder: Path, split: str, name: str, checksum: str, columns: Sequence[str]) -> Path:
    """Arrow file `name` of a split's columns; made anew unless the one that is there came from Parquet of this checksum."""
    path, mark = folder / name, {b"parquet_sha256": checksum.encode()}
    try:
        with pa.memory_map(str(path)) as file:
            if (pa.ipc.open_file(file).schema.metadata or {}).items() >= mark.items():
                return path
    except (OSError, pa.ArrowInvalid):
        pass  # not there yet, or not an Arrow file: written below
    kept = pa.schema([schema.SCHEMA.field(column) for column in columns], metadata=schema.SCHEMA.metadata | mark)
    temporary = folder / f".{name}.{os.getpid()}"  # workers may do this at once: the last rename wins, all equal
    try:
        with pq.ParquetFile(folder / f"{split}.parquet") as parquet, pa.ipc.new_file(str(temporary), kept) as writer:
            for batch in parquet.iter_batches(ROWS_PER_GROUP, columns=list(columns)):
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=kept))
        os.replace(temporary, path)
    except (OSError, pa.ArrowInvalid) as error:
        check(False, "data.folder", folder, f"{split}.parquet can't be read ({str(error).splitlines()[0]}); {AGAIN}")
    finally:
        temporary.unlink(missing_ok=True)
    return path
