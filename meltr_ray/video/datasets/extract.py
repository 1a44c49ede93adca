"""Frame features of videos by a vision model of Hugging Face, over a Ray cluster or two cores: one `.npy` a video.

    <out>/<id>.npy          (frames, D) float16; importers find it by the video's name
    <out>/extraction.json   model and frames; a folder is gone on with by the same alone
    <out>/left_out.csv      id and reason of each video without features

Ray Data streams: tasks decode, an actor pool runs the model, the driver writes. A video that can't be decoded is listed and the
rest goes on; files that are there aren't made again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from torch import nn

from meltr_ray.errors import ConfigError, check, check_at_least
from meltr_ray.storage import put
from meltr_ray.video.clips.clip import Segment
from meltr_ray.video.clips.video import decode_timed_frames, evenly_spaced

VIDEOS_AT_ONCE, FRAMES_AT_ONCE = 4, 64
"""What an actor takes at once, and what its model does."""
REPORT_SECONDS = 5.0
DECODER_CPU, MODEL_CPU = 1.0, 0.99  # unequal, else Ray Data decodes inside the actor, one after the other


@dataclass(frozen=True)
class Video:
    """A video to take features of, or a part of one."""

    id: str
    path: str
    start: float | None = None
    end: float | None = None
    """Seconds; None: of the whole file."""


@dataclass(frozen=True)
class Frames:
    """Which frames: `count` evenly spaced ones of each video, or `per_second`."""

    count: int | None = None
    per_second: float | None = None

    def __post_init__(self):
        check((self.count is None) != (self.per_second is None), "frames", self, "give either count or per_second")
        check_at_least("frames.count", 1 if self.count is None else self.count, 1)
        check(self.per_second is None or self.per_second > 0, "frames.per_second", self.per_second, "must be positive; usual: 1")

    def choose(self, times: np.ndarray) -> np.ndarray:
        """Indices (n,) out of frames shown at `times` (N,) seconds."""
        if self.count is not None:
            return evenly_spaced(len(times), self.count)
        wanted = np.arange(times[0] + 0.5 / self.per_second, max(times[-1], times[0] + 1 / self.per_second), 1 / self.per_second)
        return np.minimum(np.searchsorted(times, wanted), len(times) - 1)


def extract(videos: Iterable[Video], model_folder: str | Path, out: str | Path, frames: Frames, use_gpu: bool = False,
            actors: int = 1, report: Callable[[str], None] = print) -> dict[str, int]:  # fmt: skip
    """Write the features of `videos` to `out`; paths must be reachable by every Ray worker. Connect Ray first, or one is started here.

    Args:
        model_folder: of a model and its image processor, as `save_pretrained` writes them; nothing is downloaded.
        actors: copies of the model that work at once.
        report: takes a line of progress now and then.

    Returns counts: `done`, `there already`, `left out`.

    Raises:
        ConfigError: the model can't be read; `out` is of another model or of other frames; an id can't be a file's name.
    """
    videos, out = list(videos), Path(out)
    check_videos(videos)
    check_extractor(model_folder)
    _claim(out, {"model": _model_checksum(Path(model_folder)), "frames": asdict(frames)})
    waiting = [video for video in videos if not (out / f"{video.id}.npy").is_file()]
    report(f"features: {len(videos)} videos, {len(videos) - len(waiting)} there already")
    left_out = _run(waiting, Path(model_folder).absolute(), out, frames, use_gpu, actors, report)
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("id", "reason"), *left_out.items()])
    put(out / "left_out.csv", table.getvalue())
    counts = {"done": len(waiting) - len(left_out), "there already": len(videos) - len(waiting), "left out": len(left_out)}
    report("features: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts


def _run(videos: list[Video], model_folder: Path, out: Path, frames: Frames, use_gpu: bool, actors: int,
         report: Callable[[str], None]) -> dict[str, str]:  # fmt: skip
    """Write what can be had; id -> reason of the others."""
    if not videos:
        return {}
    missing, left_out, started = {video.id for video in videos}, {}, time.monotonic()
    told = started
    for row in _stream(videos, model_folder, frames, use_gpu, actors).iter_rows():
        missing.discard(row["id"])
        if row["error"]:
            left_out[row["id"]] = row["error"]
        else:
            features = np.frombuffer(row["features"], "<f2").reshape(-1, row["size"])
            put(out / f"{row['id']}.npy", lambda file, features=features: np.save(file, features))
        now, done = time.monotonic(), len(videos) - len(missing)
        if now - told > REPORT_SECONDS or not missing:
            told, left = now, (now - started) / done * len(missing)
            report(f"features: {done}/{len(videos)} videos, {len(left_out)} left out, {left / 60:.1f} minutes left")
    return left_out | dict.fromkeys(sorted(missing), "the process that read it died")


def _stream(videos: list[Video], model_folder: Path, frames: Frames, use_gpu: bool, actors: int) -> ray.data.Dataset:
    """Rows of id, features (bytes), size and error."""
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a decoder that crashes takes its process, and no other video, with it
    context.enable_progress_bars = False
    rows = ray.data.from_items([asdict(video) for video in videos], override_num_blocks=len(videos))
    decoded = rows.map(_Decode(frames), num_cpus=DECODER_CPU, max_retries=1)
    return decoded.map_batches(
        FrameEncoder, fn_constructor_args=(model_folder, use_gpu), batch_size=VIDEOS_AT_ONCE, concurrency=actors,
        num_cpus=MODEL_CPU, num_gpus=1 if use_gpu else 0,
    )  # fmt: skip


@dataclass(frozen=True)
class _Decode:
    frames: Frames

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            chosen = read_frames(Video(**row), self.frames)
        except ConfigError as error:
            return {"id": row["id"], "pixels": b"", "shape": [0, 0, 0, 0], "error": str(error)}
        return {"id": row["id"], "pixels": chosen.tobytes(), "shape": list(chosen.shape), "error": ""}


def read_frames(video: Video, frames: Frames) -> np.ndarray:
    """(n, H, W, 3) uint8. Raises ConfigError where the file can't be decoded, or no frame lies in its part."""
    return decode_timed_frames(video.path, frames.choose, segment=Segment(video.start, video.end, video.id))


class FrameEncoder:
    """The model, in an actor: decoded videos to features."""

    def __init__(self, model_folder: Path, use_gpu: bool):
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.model, self.processor = _load_model(model_folder)
        self.model.to(self.device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"id": list(batch["id"]), "features": [], "size": [], "error": list(batch["error"])}
        for at, (pixels, shape) in enumerate(zip(batch["pixels"], batch["shape"])):
            features = np.zeros((0, 0), "<f2")
            if not found["error"][at]:
                features = self.encode(np.frombuffer(pixels, np.uint8).reshape(tuple(shape))).astype("<f2")
                if not np.isfinite(features).all():
                    features, found["error"][at] = features[:0], "the model's features are not finite in float16"
            found["features"].append(features.tobytes())
            found["size"].append(features.shape[1])
        return found

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 to (n, D) float32."""
        parts = []
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            part = self.processor(images=list(frames[start : start + FRAMES_AT_ONCE]), return_tensors="pt").to(self.device)
            parts.append(frame_features(self.model, part["pixel_values"]).float().cpu().numpy())
        return np.concatenate(parts)


def frame_features(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """One vector (n, D) for each image (n, 3, rows, columns).

    Of CLIP and its kin, the projected image features; of a transformer with a class token, that token of the last layer; else
    the mean over places. `pooler_output` isn't asked: checkpoints such as DINO's lack its weights.
    """
    if hasattr(model, "get_image_features"):
        found = model.get_image_features(pixel_values=pixels)
        return found if isinstance(found, torch.Tensor) else found.pooler_output
    hidden = model(pixel_values=pixels).last_hidden_state
    if hidden.dim() == 4:  # (n, D, rows, columns)
        return hidden.mean((2, 3))
    has_class_token = any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters())
    return hidden[:, 0] if has_class_token else hidden.mean(1)


def check_videos(videos: Sequence[Video]) -> None:
    """Raises ConfigError where an id can't name a file of features, or names two."""
    counts = Counter(video.id for video in videos)
    for video in videos:
        check(video.id not in ("", ".", "..") and "/" not in video.id, "id", video.id, "can't be the name of a file; rename the video")
        check(counts[video.id] == 1, "id", video.id, f"is that of {counts[video.id]} videos, {video.path} among them; give each its own")


def check_extractor(folder: str | Path) -> None:
    """Raises ConfigError, in one line, where a worker couldn't load this model."""
    _load_model(Path(folder))


def _load_model(folder: Path) -> tuple[nn.Module, Any]:
    """The model and its image processor, from the folder alone."""
    from transformers import AutoImageProcessor, AutoModel  # seconds to import, and of use here alone

    check(folder.is_dir(), "extractor", folder, "no such folder; give that of a saved Hugging Face model")
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        return model.eval(), AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"extractor={folder}: can't be read ({reason}); give the folder of a vision model with its image processor "
                          "and model.safetensors") from None  # fmt: skip


def _model_checksum(folder: Path) -> str:
    """SHA-256 over the model's files."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    lines = []
    for path in files:
        with open(path, "rb") as file:
            lines.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make `out` the folder of these settings; one of others is refused."""
    out.mkdir(parents=True, exist_ok=True)
    known = out / "extraction.json"
    if known.is_file():
        check(json.loads(known.read_text(encoding="utf-8")) == settings, "export", out,
              "holds features of another model or of other frames; choose another folder")  # fmt: skip
    else:
        check(not any(out.glob("*.npy")), "export", out, "holds .npy files of something else; choose another folder")
        put(known, json.dumps(settings) + "\n")
