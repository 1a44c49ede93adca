"""The Arrow schema of a data set: one row a clip. Every field says in its metadata what it means.

Raise `VERSION` whenever a field changes its name, its type or its meaning: folders of another version are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

VERSION = 1
SPLITS = ("train", "meta", "validation", "test")
"""train: steps on w; meta: held-out meta batches; validation: early stopping and sweeps; test: scored once."""


def _field(name: str, kind: pa.DataType, meaning: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


SCHEMA = pa.schema(
    [
        _field("id", pa.string(), "name of the clip, unique in the data set", nullable=False),
        _field("split", pa.string(), f"one of {', '.join(SPLITS)}", nullable=False),
        _field("captions", pa.list_(pa.string()), "sentences that describe the clip, at least one", nullable=False),
        _field("features", pa.large_binary(), "frame features, float16, row-major (num_frames, feature_size)"),
        _field("num_frames", pa.int32(), "rows of features"),
        _field("feature_size", pa.int32(), "columns of features"),
        _field("video", pa.large_binary(), "the encoded video file itself (container and stream), for PyAV"),
        _field("video_path", pa.string(), "file of the video, relative to the folder, where it isn't embedded"),
        _field("question", pa.string(), "a question about the clip"),
        _field("answer", pa.string(), "the right answer; with options, the text of the right one"),
        _field("options", pa.list_(pa.string()), "answers to choose from, the right one among them"),
        _field("score", pa.float32(), "sentiment, -3 (negative) to 3 (positive)"),
        _field("vq_tokens", pa.list_(pa.int16()), "visual tokens of a vector-quantised encoder, row-major"),
    ],
    metadata={"meltr_ray.schema_version": str(VERSION)},
)


def row(id: str, split: str, captions: list[str], features: np.ndarray, **others: Any) -> dict[str, Any]:
    """One row of a table from features (frames, D) and any other field by its name; what isn't given stays null."""
    assert split in SPLITS and captions and features.ndim == 2, id
    unknown = set(others) - set(SCHEMA.names)
    assert not unknown, unknown
    num_frames, feature_size = features.shape
    values = dict(id=id, split=split, captions=captions, features=features.astype("<f2").tobytes(),
                  num_frames=num_frames, feature_size=feature_size)  # fmt: skip
    return dict.fromkeys(SCHEMA.names) | values | others


def table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows made by `row`, in their order."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def unpack_features(features: bytes | pa.Buffer, num_frames: int, feature_size: int) -> np.ndarray:
    """(frames, D) float32, a copy."""
    return np.frombuffer(features, "<f2").reshape(num_frames, feature_size).astype(np.float32)
