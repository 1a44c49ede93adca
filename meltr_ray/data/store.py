"""A data set's folder: written once, checked once on the driver, then read by random access from memory-mapped Arrow.

    <folder>/manifest.json          what is in it; written last, so a folder without one isn't finished
    <folder>/<split>-00000.parquet  the clips, media included, in shards
    <folder>/<split>.arrow          cache made on first open: the same rows without their video, for memory-mapping
    <folder>/<split>.videos.arrow   cache made on first use: the videos alone
    <folder>/vocabulary.txt         word pieces of the train captions

docs/data.md describes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meltr_ray.config import ConfigError, check
from meltr_ray.data import schema
from meltr_ray.data.clip import Clip

ROWS_PER_GROUP = 128
ROWS_PER_SHARD = 256
BYTES_PER_SHARD = 64 * 2**20
"""A shard ends at whichever comes first; the clip that reaches the limit is its last."""
VIDEO_COLUMNS = ("id", "video", "video_path")
AGAIN = "delete the folder and prepare it again (workloads/prepare.py)"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ClipStore:
    """Random access to the clips of one split. Trusts the folder: run `check_folder` on the driver first.

    With `videos`, to their encoded videos too; with `features`, every clip must have frame features: raises ConfigError where
    one hasn't. Pickles as its arguments, so a worker process maps the files anew instead of receiving the data.
    """

    def __init__(self, folder: str | Path, split: str, videos: bool = False, features: bool = False):
        self.folder, self.split, self.videos, self.features = Path(folder), split, videos, features
        manifest = load_manifest(folder)
        check(split in manifest["splits"], "data.folder", folder,
              f"has no split {split}; it has {', '.join(manifest['splits'])}")
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

    def video(self, index: int) -> bytes | Path:
        """The encoded video of clip `index`, or the file that holds it. For a store opened with `videos`."""
        batch, at = self._videos.locate(index)
        embedded = batch["video"][at].as_py()
        return self.folder / batch["video_path"][at].as_py() if embedded is None else embedded

    def check_files(self) -> None:
        """Raises ConfigError where the file of a video that isn't embedded is gone. For a store opened with `videos`."""
        paths = {path for batch in self._videos.batches for path in batch["video_path"].unique().to_pylist() if path is not None}
        lost = sorted(path for path in paths if not (self.folder / path).is_file())
        check(not lost, "data.folder", self.folder, f"{len(lost)} of {len(paths)} video files of {self.split} are gone, {lost[:1]} first; "
              "put them back or prepare the folder anew")  # fmt: skip

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
    check(isinstance(manifest, dict) and "splits" in manifest, "data.folder", folder,
          f"its manifest.json is damaged; {AGAIN}")
    check(manifest.get("schema_version") == schema.VERSION, "data.folder", folder,
          f"has schema version {manifest.get('schema_version')}, this code reads {schema.VERSION}; {AGAIN}")
    return manifest


def check_folder(folder: str | Path) -> dict[str, Any]:
    """The manifest, after every file that it names was found whole (size and SHA-256): once, on the driver, not in workers."""
    manifest = load_manifest(folder)
    shards = [shard for entry in manifest["splits"].values() for shard in entry["shards"]]
    for entry in shards + manifest["files"]:
        path = Path(folder) / entry["file"]
        check(path.is_file(), "data.folder", folder, f"lacks {path.name}; {AGAIN}")
        size = path.stat().st_size
        check(size == entry["bytes"], "data.folder", folder,
              f"{path.name} has {size} bytes where the manifest says {entry['bytes']}; {AGAIN}")
        check(sha256(path) == entry["sha256"], "data.folder", folder,
              f"{path.name} differs from the manifest's checksum; {AGAIN}")
    check((Path(folder) / "vocabulary.txt").is_file(), "data.folder", folder, f"lacks vocabulary.txt; {AGAIN}")
    return manifest


def write_split(folder: Path, split: str, clips: Iterable[Clip], load: Callable[[Clip], Clip] | None = None) -> dict[str, Any]:
    """Write one split in shards and return its entry for the manifest; holds one shard at a time.

    Shards that an interrupted import left whole in the same `new_folder` are kept, where they were made of the same `clips`.

    Args:
        clips: in the order of the split, as the annotation has them.
        load: adds a clip's media, for each clip of a shard that is written and no other; default: `clips` hold theirs.
    """
    folder, rest, shards = Path(folder), _Ahead(clips), []
    while rest.peek(1):
        path = folder / f"{split}-{len(shards):05d}.parquet"
        shards.append(_kept_shard(path, split, rest) or _write_shard(path, split, rest, load))
    for stale in set(folder.glob(f"{split}-*.parquet")) - {folder / shard["file"] for shard in shards}:
        stale.unlink()
    totals = {name: sum(shard[name] for shard in shards) for name in ("rows", "captions", "questions", "bytes")}
    listed = [{name: shard[name] for name in ("file", "rows", "bytes", "sha256")} for shard in shards]
    return totals | {"sha256": _joined(shard["sha256"] for shard in shards), "shards": listed}


class _Ahead(Iterator[Clip]):
    """Clips that can be looked at before they are taken."""

    def __init__(self, clips: Iterable[Clip]):
        self.clips, self.seen = iter(clips), deque()

    def __next__(self) -> Clip:
        return self.seen.popleft() if self.seen else next(self.clips)

    def peek(self, count: int) -> list[Clip]:
        """The next `count`, as far as there are so many."""
        self.seen.extend(islice(self.clips, max(0, count - len(self.seen))))
        return list(islice(self.seen, count))


def _kept_shard(path: Path, split: str, clips: _Ahead) -> dict[str, Any] | None:
    """What is recorded of the shard at `path`, where it is whole and made of the next clips; these are then taken."""
    try:
        shard = json.loads(_record(path).read_text(encoding="utf-8"))
        whole = path.stat().st_size == shard["bytes"] and sha256(path) == shard["sha256"]
    except (OSError, ValueError, KeyError):
        return None
    if not whole or _fingerprint(split, clips.peek(shard["rows"])) != shard["fingerprint"]:
        return None
    for _ in range(shard["rows"]):
        next(clips)
    return shard


def _write_shard(path: Path, split: str, clips: _Ahead, load: Callable[[Clip], Clip] | None) -> dict[str, Any]:
    """Write the next shard, under another name until it is whole, and then what there is to know of it."""
    given, rows, size = [], [], 0
    for clip in clips:
        given.append(_checksum(split, clip))
        rows.append(schema.row(split, load(clip) if load else clip))
        size += sum(len(rows[-1][name] or b"") for name in ("features", "video", "audio"))
        if len(rows) == ROWS_PER_SHARD or size >= BYTES_PER_SHARD:
            break
    table, temporary = schema.table(rows), path.with_name(f".{path.name}")
    # No dictionary on binary data; nothing here depends on time or place: the same rows give the same bytes.
    pq.write_table(table, temporary, row_group_size=ROWS_PER_GROUP, compression="zstd", use_dictionary=["split"])
    captions, questions = (sum(len(row[name]) for row in rows) for name in ("captions", "questions"))
    shard = dict(file=path.name, rows=len(rows), captions=captions, questions=questions, bytes=temporary.stat().st_size,
                 sha256=sha256(temporary), fingerprint=_joined(given))  # fmt: skip
    os.replace(temporary, path)
    _write_text(_record(path), json.dumps(shard))
    return shard


def _record(shard: Path) -> Path:
    return shard.with_name(f".{shard.name}.json")


def _fingerprint(split: str, clips: Iterable[Clip]) -> str:
    return _joined(_checksum(split, clip) for clip in clips)


def _checksum(split: str, clip: Clip) -> str:
    """SHA-256 of all that the clip holds."""
    def plain(value: Any) -> str:
        return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)

    return hashlib.sha256(json.dumps(schema.row(split, clip), default=plain).encode()).hexdigest()


def _joined(checksums: Iterable[str]) -> str:
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


def write_manifest(folder: Path, **content: Any) -> dict[str, Any]:
    """Write the manifest, to a temporary name first: after all other files of the folder, whose checksums it takes.

    `content` must hold name, description, source, splits (split -> entry of `write_split`), feature_size (0: no features) and
    feature_extractor.
    """
    rows = {split: entry["rows"] for split, entry in content["splits"].items()}
    known = {"schema_version": schema.VERSION, "rows": rows, "files": _other_files(Path(folder)), "baselines": {}, "warnings": []}
    manifest = known | content
    _write_text(Path(folder) / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _other_files(folder: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of what importers write beside the shards."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return [dict(file=path.name, bytes=path.stat().st_size, sha256=sha256(path)) for path in found
            if path.suffix not in (".parquet", ".arrow") and path.name != "manifest.json"]  # fmt: skip


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, source: Any = None) -> Iterator[Path]:
    """The folder `.<name>.partial` beside `folder`, which takes its name when all went well.

    Args:
        source: what the content follows from, as JSON. Where an interrupted import of an equal source left a partial folder, that
            one is gone on with; any other is deleted. None: one that fails leaves nothing.

    Raises:
        ConfigError: `folder` is in use; another process writes it; the disk is full.
    """
    folder = Path(folder)
    check(not folder.exists() or (folder.is_dir() and not any(folder.iterdir())), "data.folder", folder,
          "is in use; choose another folder or delete it")
    partial = folder.with_name(f".{folder.name}.partial")
    with _disk_full_is_one_line(folder, partial if source is not None else None):
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            check(error.errno in DISK_FULL, "data.folder", folder, f"can't be made ({error.strerror.lower()}); choose another folder")
            raise
        with _locked(partial, folder):
            _start_or_go_on(partial, source)
            try:
                yield partial
                _finish(partial, folder)
            except BaseException:
                if source is None:
                    shutil.rmtree(partial, ignore_errors=True)
                raise


def _start_or_go_on(partial: Path, source: Any) -> None:
    """Empty the partial folder unless it was begun for the same source."""
    begun, mark = partial / ".source.json", json.dumps([schema.VERSION, source], sort_keys=True)
    if source is not None and begun.is_file() and begun.read_text(encoding="utf-8") == mark:
        return
    for path in partial.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _write_text(begun, mark)


def _finish(partial: Path, folder: Path) -> None:
    """Drop what is only of use for going on, and give the folder its name."""
    for path in partial.glob(".*"):
        if path.name != ".lock":
            path.unlink()
    try:
        os.rename(partial, folder)
    except OSError:
        check(False, "data.folder", folder, f"was made by another process meanwhile; delete {partial} and use that one")
    (folder / ".lock").unlink()  # not before: another process could take it and begin in this folder


@contextmanager
def _locked(partial: Path, folder: Path) -> Iterator[None]:
    """Hold the partial folder's lock, which the system sets free when its process ends, however that happens."""
    with open(partial / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(lock.fileno()), os.stat(partial / ".lock"))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            same = False  # held by another process, or just finished by it
        check(same, "data.folder", folder, "is being prepared by another process; wait for it and start again")
        yield


@contextmanager
def _disk_full_is_one_line(folder: Path, kept: Path | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        rest = f", what is whole stays in {kept}" if kept else ""
        reason = os.strerror(error.errno).lower()
        raise ConfigError(f"data.folder={folder}: can't be written ({reason}); free some space and start again{rest}") from None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    temporary = folder / f".{name}.{os.getpid()}"  # workers may do this at once: the last rename wins, all equal
    try:
        with _disk_full_is_one_line(folder), pa.ipc.new_file(str(temporary), kept) as writer:
            for shard in entry["shards"]:
                _copy_columns(folder / shard["file"], writer, kept)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _copy_columns(shard: Path, writer: pa.RecordBatchFileWriter, kept: pa.Schema) -> None:
    try:
        with pq.ParquetFile(shard) as parquet:
            for batch in parquet.iter_batches(ROWS_PER_GROUP, columns=kept.names):
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=kept))
    except (OSError, pa.ArrowInvalid) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        check(False, "data.folder", shard.parent, f"{shard.name} can't be read ({str(error).splitlines()[0]}); {AGAIN}")
