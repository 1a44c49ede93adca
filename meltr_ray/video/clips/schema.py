"""The Arrow schema of a data set: one row a clip. Every field says in its metadata what it means.

Raise `VERSION` whenever a field changes its name, its type or its meaning: folders of another version are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meltr_ray.video.clips.clip import Clip, Question

VERSION = 2
SPLITS = ("train", "meta", "validation", "test")
"""train: steps on w; meta: held-out meta batches; validation: early stopping and sweeps; test: scored once."""


def _field(name: str, kind: pa.DataType, meaning: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


QUESTION = pa.struct(
    [
        _field("id", pa.string(), "name of the question, unique in the data set", nullable=False),
        _field("question", pa.string(), "a question about the clip", nullable=False),
        _field("answer", pa.string(), "the right answer; with options, the text of the right one", nullable=False),
        _field("options", pa.list_(pa.string()), "answers to choose from; none for an open question", nullable=False),
        _field("right", pa.int32(), "which of the options is right, from 0; null for an open question"),
        _field("kind", pa.string(), "type by which accuracy is told apart", nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        _field("id", pa.string(), "name of the clip, unique in the data set", nullable=False),
        _field("split", pa.string(), f"one of {', '.join(SPLITS)}", nullable=False),
        _field("source", pa.string(), "the video that the clip was cut from", nullable=False),
        _field("captions", pa.list_(pa.string()), "sentences that describe the clip", nullable=False),
        _field("features", pa.large_binary(), "frame features, float16, row-major (num_frames, feature_size)"),
        _field("num_frames", pa.int32(), "rows of features"),
        _field("feature_size", pa.int32(), "columns of features"),
        _field("video", pa.large_binary(), "the encoded video file itself (container and stream), for PyAV"),
        _field("video_path", pa.string(), "file of the video, absolute or relative to the folder, where it isn't embedded"),
        _field("start", pa.float64(), "where the clip begins in its video file (s); null: at its start"),
        _field("end", pa.float64(), "where the clip ends in its video file (s); null: at its end"),
        _field("transcript", pa.string(), "what is said in the clip"),
        _field("audio", pa.large_binary(), "audio features, float32, row-major (rows, audio_size)"),
        _field("audio_size", pa.int32(), "columns of audio"),
        _field("questions", pa.list_(QUESTION), "questions about the clip", nullable=False),
        _field("score", pa.float32(), "sentiment, -3 (negative) to 3 (positive)"),
        _field("vq_tokens", pa.list_(pa.int16()), "visual tokens of a vector-quantised encoder, row-major"),
    ],
    metadata={"meltr_ray.schema_version": str(VERSION)},
)


def row(split: str, clip: Clip) -> dict[str, Any]:
    """One row of a table."""
    assert split in SPLITS, split
    plain = ("id", "source", "captions", "start", "end", "transcript", "score")
    values: dict[str, Any] = {"split": split} | {name: getattr(clip, name) for name in plain}
    if clip.features is not None:
        num_frames, feature_size = clip.features.shape
        values |= dict(features=clip.features.astype("<f2").tobytes(), num_frames=num_frames, feature_size=feature_size)
    if clip.audio is not None:
        values |= dict(audio=clip.audio.astype("<f4").tobytes(), audio_size=clip.audio.shape[1])
    if clip.video is not None:
        values["video_path" if isinstance(clip.video, Path) else "video"] = str(clip.video) if isinstance(clip.video, Path) else clip.video
    values["questions"] = [dataclasses.asdict(question) for question in clip.questions]
    values["vq_tokens"] = None if clip.vq_tokens is None else clip.vq_tokens.ravel().tolist()
    return dict.fromkeys(SCHEMA.names) | values


def table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows made by `row`, in their order."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def clip(batch: pa.RecordBatch, at: int) -> Clip:
    """Row `at` of a record batch, without its video."""
    value = {name: batch[name][at] for name in batch.schema.names}
    features = audio = None
    if value["features"].is_valid:
        shape = value["num_frames"].as_py(), value["feature_size"].as_py()
        features = unpack(value["features"].as_buffer(), "<f2", shape)
    if value["audio"].is_valid:
        audio = unpack(value["audio"].as_buffer(), "<f4", (-1, value["audio_size"].as_py()))
    tokens = value["vq_tokens"].as_py()
    plain = {name: value[name].as_py() for name in ("id", "captions", "source", "start", "end", "transcript", "score")}
    questions = [Question(**question) for question in value["questions"].as_py()]
    return Clip(**plain, features=features, audio=audio, questions=questions,
                vq_tokens=None if tokens is None else np.array(tokens, np.int16))  # fmt: skip


def unpack(values: bytes | pa.Buffer, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """float32, a copy."""
    return np.frombuffer(values, kind).reshape(shape).astype(np.float32)
