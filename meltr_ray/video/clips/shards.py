"""Writing a data folder: a split's clips to Parquet in shards, and the manifest. A shard that is there already is kept."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from meltr_ray.storage import put
from meltr_ray.storage.sealed import sha256
from meltr_ray.video.clips import schema
from meltr_ray.video.clips.clip import Clip

ROWS_PER_GROUP = 128
ROWS_PER_SHARD = 256
BYTES_PER_SHARD = 64 * 2**20
"""A shard ends at whichever comes first; the clip that reaches the limit is its last."""


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
    """Write the next shard, and then what there is to know of it."""
    given, rows, size = [], [], 0
    for clip in clips:
        given.append(_checksum(split, clip))
        rows.append(schema.row(split, load(clip) if load else clip))
        size += sum(len(rows[-1][name] or b"") for name in ("features", "video", "audio"))
        if len(rows) == ROWS_PER_SHARD or size >= BYTES_PER_SHARD:
            break
    table = schema.table(rows)
    # No dictionary on binary data; nothing here depends on time or place: the same rows give the same bytes.
    put(path, lambda file: pq.write_table(table, file, row_group_size=ROWS_PER_GROUP, compression="zstd", use_dictionary=["split"]))
    captions, questions = (sum(len(row[name]) for row in rows) for name in ("captions", "questions"))
    shard = dict(file=path.name, rows=len(rows), captions=captions, questions=questions, bytes=path.stat().st_size,
                 sha256=sha256(path), fingerprint=_joined(given))  # fmt: skip
    put(_record(path), json.dumps(shard))
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
    """Write the manifest: after all other files of the folder, whose checksums it takes.

    `content` must hold name, description, source, splits (split -> entry of `write_split`), feature_size (0: no features) and
    feature_extractor.
    """
    rows = {split: entry["rows"] for split, entry in content["splits"].items()}
    known = {"schema_version": schema.VERSION, "rows": rows, "files": _other_files(Path(folder)), "baselines": {}, "warnings": []}
    manifest = known | content
    put(Path(folder) / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _other_files(folder: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of what importers write beside the shards."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return [dict(file=path.name, bytes=path.stat().st_size, sha256=sha256(path)) for path in found
            if path.suffix not in (".parquet", ".arrow") and path.name != "manifest.json"]  # fmt: skip
