"""Frame features over Ray Data: a real (tiny, random) vision transformer of Hugging Face on real encoded video."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from meltr_ray.config import ConfigError
from meltr_ray.video.clips.video import decode_video, encode_video, evenly_spaced
from meltr_ray.video.datasets import extract
from meltr_ray.video.datasets.extract import Frames, Video

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8)
    transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ray_here():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}})  # fmt: skip
    yield
    ray.shutdown()


def make_video(path: Path, num_frames: int, seed: int) -> Video:
    path.write_bytes(encode_video(np.random.default_rng(seed).integers(0, 256, (num_frames, 48, 64, 3)).astype(np.uint8)))
    return Video(path.stem, str(path))


def expected(model_folder: Path, frames: np.ndarray) -> np.ndarray:
    """By the model's own pieces: scaled, normalised to -1..1, the class token after the last layer norm."""
    from PIL import Image

    small = [np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR)) for frame in frames]
    pixels = torch.from_numpy(np.stack(small).transpose(0, 3, 1, 2) / 127.5 - 1).float()
    with torch.no_grad():
        return transformers.ViTModel.from_pretrained(model_folder)(pixels).last_hidden_state[:, 0].numpy()


class CrashingFrames(Frames):
    """Kills the process that decodes a video of 7 frames."""

    def choose(self, times):
        if len(times) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().choose(times)


def test_features_are_those_of_the_class_token(model_folder, tmp_path):
    videos = [make_video(tmp_path / f"clip{at}.mp4", 4 + at, at) for at in range(2)]
    videos.append(Video("part", videos[1].path, 0.15, 0.34))  # 12 frames a second: frames 2, 3 and 4
    encoder = extract.FrameEncoder(model_folder, use_gpu=False)
    for video in videos:
        frames = decode_video(video.path)
        frames = frames[2:5] if video.id == "part" else frames[evenly_spaced(len(frames), 3)]
        found = encoder.encode(extract.read_frames(video, Frames(count=3)))
        assert np.abs(found - expected(model_folder, frames)).max() < 0.01


@pytest.mark.slow
def test_features_bad_videos_and_going_on(ray_here, model_folder, tmp_path):
    source, out, lines = tmp_path / "videos", tmp_path / "features", []
    source.mkdir()
    videos = [make_video(source / f"clip{at}.mp4", 4 + at, at) for at in range(4)]  # clip3 has 7 frames
    videos.append(Video("part", videos[2].path, 0.15, 0.34))  # 12 frames a second: frames 2, 3 and 4
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("no video")
    bad = [Video("empty", str(source / "empty.mp4")), Video("text", str(source / "text.mp4")), Video("gone", "nowhere.mp4"),
           Video("late", videos[0].path, 99.0)]  # fmt: skip
    counts = extract.extract(videos + bad, model_folder, out, CrashingFrames(count=3), report=lines.append)
    assert counts == {"done": 4, "there already": 0, "left out": 5}
    reasons = dict(csv.reader((out / "left_out.csv").open()))
    assert reasons.keys() == {"id", "empty", "text", "gone", "late", "clip3"} and "can't be decoded" in reasons["text"]
    assert "died" in reasons["clip3"] and "no frame lies" in reasons["late"] and "minutes left" in lines[-2]
    for video in (videos[0], videos[1], videos[4]):
        frames = decode_video(video.path)
        frames = frames[2:5] if video.id == "part" else frames[evenly_spaced(len(frames), 3)]
        found = np.load(out / f"{video.id}.npy")
        assert found.dtype == np.float16 and np.abs(found - expected(model_folder, frames)).max() < 0.02

    before = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    counts = extract.extract(videos + bad, model_folder, out, Frames(count=3), report=lines.append)  # whose decoder doesn't crash
    assert counts == {"done": 1, "there already": 4, "left out": 4}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()) and (out / "clip3.npy").is_file()
    with pytest.raises(ConfigError, match="^export=.*: holds features of another model or of other frames; "):
        extract.extract(videos, model_folder, out, Frames(count=2))


def test_what_cannot_be_done_is_one_line(model_folder, tmp_path):
    for videos, model, rule in (([Video("a/b", "x")], model_folder, "^id=a/b: can't be the name of a file"),
                                ([Video("a", "x")] * 2, model_folder, "^id=a: is that of 2 videos"),
                                ([], tmp_path / "none", "^extractor=.*: no such folder"),
                                ([], tmp_path, "^extractor=.*: can't be read")):  # fmt: skip
        with pytest.raises(ConfigError, match=rule) as error:
            extract.extract(videos, model, tmp_path / "out", Frames(count=1))
        assert "\n" not in str(error.value)


def test_frames_by_the_second():
    times = np.arange(25) / 12  # two seconds and a frame
    assert Frames(per_second=1).choose(times).tolist() == [6, 18]
    assert Frames(per_second=1).choose(times[12:]).tolist() == [6]
    assert Frames(per_second=1).choose(times[:3]).tolist() == [2]  # shorter than a second: one all the same
    assert Frames(count=2).choose(times[6:12]).tolist() == [1, 4]


def test_a_part_has_its_own_frames_by_the_second(tmp_path):
    video = make_video(tmp_path / "clip.mp4", 48, 0)  # four seconds
    frames, part = decode_video(video.path), Video("part", video.path, 1.0, 3.0)
    assert np.array_equal(extract.read_frames(part, Frames(per_second=1)), frames[[18, 30]])
    assert np.array_equal(extract.read_frames(video, Frames(per_second=1)), frames[[6, 18, 30, 42]])
    with pytest.raises(ConfigError, match="^clip=late: no frame lies between 4.0 and None s of .*, which lasts 4.000 s; "):
        extract.read_frames(Video("late", video.path, 4.0), Frames(count=1))
