"""Pixels and visual tokens: the authors' own frames and codes, independent arithmetic, damaged and unusual files."""

from __future__ import annotations

import base64
import io
import os
import pickle
import shutil
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.allinone.inputs import AllInOneInputs
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.violet import visual_tokens
from meltr_ray.video.backbones.violet.inputs import VioletInputs
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.backbones.violet.visual_tokens import VisualTokens, ensure_visual_tokens, shrunk_patches, token_grid
from meltr_ray.video.clips import pixels, shards, store
from meltr_ray.video.clips.clip import Clip, Segment
from meltr_ray.video.clips.new_folder import new_folder
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.thumbnails import thumbnails
from meltr_ray.video.clips.video import decode_frames, decode_video, encode_video
from meltr_ray.video.clips.vocabulary import Vocabulary, build_vocabulary
from meltr_ray.video.datasets.pickles import read_pickle
from meltr_ray.video.datasets.probe import probe
from tests.ranks import on_ranks

REAL = Path(__file__).parents[3] / "shared" / "data" / "msrvtt_clips"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"real clips missing: {REAL}")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def panning_video(num_frames: int = 20) -> bytes:
    picture = np.asarray(Image.fromarray(noise(6, 8)).convert("RGB").resize((64 + num_frames, 64)))  # smooth and grey
    return encode_video(np.stack([picture[:, at : at + 64] for at in range(num_frames)]))


def triangle_scaled(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) to (side, side, 3) float64: a triangle as wide as two new pixels, or two old ones when enlarging."""

    def weights(length: int) -> np.ndarray:
        scale = length / side
        centre, old = (np.arange(side)[:, None] + 0.5) * scale, np.arange(length) + 0.5
        triangle = np.maximum(0, 1 - np.abs(old - centre) / max(scale, 1))
        return triangle / triangle.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0]), weights(image.shape[1])
    return np.einsum("rh,hwc,sw->rsc", rows, image.astype(float), columns, optimize=True)


@real
def test_violet_frames_are_those_of_its_own_file():
    theirs = read_pickle(REAL / "violet_frames_msrvtt.pkl")
    assert len(theirs) == 10
    for video, jpegs in theirs.items():
        want = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg)))) for jpeg in jpegs]).astype(int)
        errors = {shift: np.abs(decode_frames(
            REAL / f"{video}.mp4", lambda available: pixels.violet_frames(available, len(want)) + shift) - want).mean()
            for shift in (-1, 0, 1)}  # fmt: skip
        assert errors[0] == min(errors.values()) < 3.5, (video, errors)  # JPEG loss; the neighbours are further away


@pytest.mark.parametrize("height, width", [(48, 80), (80, 48), (57, 100), (1, 40), (20, 20), (9, 9)])
def test_violet_pixels_are_the_padded_frame_scaled_by_a_triangle(height, width):
    frames = noise(2, height, width, 3)
    black = np.zeros((2, 2 * (abs(height - width) // 2) + min(height, width), max(height, width), 3), np.uint8)
    if height > width:
        black = black.swapaxes(1, 2)
    top, left = max(width - height, 0) // 2, max(height - width, 0) // 2
    black[:, top : top + height, left : left + width] = frames
    got = pixels.violet_pixels(frames, 32)
    want = np.stack([triangle_scaled(frame, 32) for frame in black]).transpose(0, 3, 1, 2)
    assert got.shape == (2, 3, 32, 32) and got.dtype == np.uint8
    assert np.abs(got - want).max() < 1.1  # two roundings to whole numbers: after the rows, after the columns


@given(st.integers(1, 400), st.integers(1, 16))
def test_frame_rules(available, n):
    violet = pixels.violet_frames(available, n)
    assert violet.tolist() == [available * (i + 1) // (n + 1) for i in range(n)]
    middle, drawn = pixels.allinone_frames(available, n), pixels.allinone_frames(available, n, np.random.default_rng(available))
    assert len(middle) == len(drawn) == n
    for index in (violet, middle, drawn):
        assert (np.diff(index) >= 0).all() and 0 <= index.min() and index.max() < available
    if available >= n:
        edges = np.linspace(0, available, n + 1).astype(int)
        assert middle.tolist() == [(a + b - 1) // 2 for a, b in zip(edges, edges[1:], strict=False)]
        assert all(i in range(a, max(b - 1, a + 1)) for i, a, b in zip(drawn, edges, edges[1:], strict=False))


def test_random_frames_are_all_but_the_last_of_a_stretch():
    generator = np.random.default_rng(0)
    drawn = np.stack([pixels.allinone_frames(12, 3, generator) for _ in range(200)])
    assert [set(column) for column in drawn.T.tolist()] == [{0, 1, 2}, {4, 5, 6}, {8, 9, 10}]


@pytest.mark.parametrize("size, spare", [(32, 6), (224, 44)])
def test_allinone_pixels_are_a_window_of_the_frame_scaled_by_a_triangle(size, spare):
    frame = noise(90, 120, 3)
    frames = np.stack([frame, frame])
    scaled = triangle_scaled(frame, size + spare).transpose(2, 0, 1)
    assert np.abs(pixels.allinone_pixels(frames, size)[0] - scaled[:, spare // 2 :, spare // 2 :][:, :size, :size]).max() < 1.1
    places = set()
    for seed in range(6):
        first, second = pixels.allinone_pixels(frames, size, np.random.default_rng(seed))
        assert np.array_equal(first, second)
        corners = np.lib.stride_tricks.sliding_window_view(scaled[0, : spare + 4, : spare + 4], (4, 4))
        (top, left), *others = np.argwhere(np.abs(first[0, :4, :4] - corners).max((2, 3)) < 1.1).tolist()
        assert not others and np.abs(first - scaled[:, top : top + size, left : left + size]).max() < 1.1
        places.add((top, left))
    assert len(places) > 3


def test_models_get_floats():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (2, 3, 16, 16))
    assert pixels.unit_range(ramp).dtype == pixels.normalised(ramp).dtype == np.float32
    assert pixels.unit_range(ramp).min() == 0 and pixels.unit_range(ramp).max() == 1
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.allclose(pixels.normalised(ramp).swapaxes(1, 3) * deviation + mean, ramp.swapaxes(1, 3) / 255, atol=1e-6)


@real
def test_clips_of_any_length_and_shape():
    content = (REAL / "video24.mp4").read_bytes()  # 22 frames of 640 x 360
    assert pixels.violet_clip(content, 5, 32).shape == pixels.violet_clip(REAL / "video24.mp4", 5, 32).shape == (5, 3, 32, 32)
    generators = np.random.default_rng(0), np.random.default_rng(1)
    assert pixels.allinone_clip(content, 40, 32, *generators).shape == (40, 3, 32, 32)
    single = encode_video(noise(1, 16, 16, 3))
    for clip in (pixels.violet_clip(single, 4, 16), pixels.allinone_clip(single, 4, 16)):
        assert (clip == clip[0]).all()


def test_chosen_frames_are_those_of_the_whole_video():
    video = panning_video()
    whole, wanted = decode_video(video), np.array([19, 0, 7, 7])
    assert np.array_equal(decode_frames(video, lambda available: wanted % available), whole[wanted])
    squares = decode_frames(video, lambda available: wanted, side=40)
    assert squares.shape == (4, 40, 40, 3)
    errors = np.abs(squares - np.stack([triangle_scaled(frame, 40) for frame in whole[wanted]]))
    assert errors.mean() < 1.5  # the library scales before it turns colours to RGB


def with_empty_pictures(video: bytes) -> bytes:
    """The video with two packets more that hold no picture: MPEG-4's `vop_coded` is 0."""
    memory = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(memory, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.stream = stream
            target.mux(packet)
            if number in (4, 9):
                empty = av.Packet(bytes.fromhex("000001b6509f"))
                empty.stream, empty.time_base = stream, packet.time_base
                empty.pts = empty.dts = packet.pts + packet.duration // 2
                target.mux(empty)
    return memory.getvalue()


def test_frames_are_counted_by_decoding():
    told = []
    video = with_empty_pictures(panning_video())
    got = decode_frames(video, lambda available: np.array([told.append(available) or available - 1]))
    assert told == [22, 20] and np.array_equal(got, decode_video(video)[-1:])


def turned(video: bytes) -> bytes:
    """The video with a quarter turn, clockwise, in its track header."""
    one, minus, zero, end = "00010000", "ffff0000", "00000000", "40000000"
    upright = bytes.fromhex(one + 3 * zero + one + 3 * zero + end)
    at = video.rindex(upright)
    return video[:at] + bytes.fromhex(zero + one + zero + minus + 4 * zero + end) + video[at + len(upright) :]


def test_pictures_stand_upright():
    video = encode_video(noise(3, 32, 64, 3))
    want = np.rot90(decode_video(video), -1, axes=(1, 2))
    assert np.array_equal(decode_video(turned(video)), want)
    assert np.array_equal(decode_frames(turned(video), np.arange), want)


def encoded(
    codec: str, container: str, moments: list[int], base: int = 120, colours: str = "yuv420p", sound_seconds: int = 0,
    **options: str,
) -> bytes:  # fmt: skip
    """A video of frames that all differ, shown at `moments` (1/base s), a key frame every eight, and sound of its own length."""
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as target:
        stream = target.add_stream(codec, rate=12, options={"g": "8"} | options)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 48, 32, colours, Fraction(1, base)
        stream.codec_context.time_base = Fraction(1, base)
        speech = target.add_stream("aac", rate=8000, layout="mono") if sound_seconds else None
        for number, moment in enumerate(moments):
            squares = np.kron(noise(4, 6, 3, seed=number), np.ones((8, 8, 1), np.uint8))
            picture = av.VideoFrame.from_ndarray(squares, format="rgb24")
            picture.pts, picture.time_base = moment, Fraction(1, base)
            target.mux(stream.encode(picture))
        target.mux(stream.encode())
        if speech:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * sound_seconds), np.float32), format="fltp", layout="mono")
            samples.sample_rate = 8000
            target.mux(speech.encode(samples))
            target.mux(speech.encode())
    return memory.getvalue()


EVEN = range(0, 400, 10)
UNEVEN = np.random.default_rng(0).integers(3, 30, 40).cumsum()
UNEVEN = (UNEVEN - UNEVEN[0]).tolist()
OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}


@pytest.mark.parametrize("codec, container, moments, options", [
    ("libx264", "mp4", EVEN, OPEN_GROUPS), ("libx264", "matroska", UNEVEN, {}), ("libx264", "mp4", UNEVEN, OPEN_GROUPS),
    ("libx264", "mpegts", EVEN, {}), ("libx264", "avi", range(40), {"base": 12}), ("mpeg4", "mp4", range(40), {"base": 12}),
    ("gif", "gif", EVEN, {"colours": "rgb8"})],
    ids=["open groups", "variable rate", "variable, open", "first frame late", "times of decoding", "mpeg4", "gif"])  # fmt: skip
def test_a_segment_has_those_frames_of_the_whole_video_that_begin_in_it(codec, container, moments, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg lacks {codec}")
    video = encoded(codec, container, list(moments), **options)
    whole, seconds = decode_video(video), np.array(moments) / options.get("base", 120)
    assert len(whole) == len(seconds)
    last = float(seconds[-1])
    spans = np.sort(np.random.default_rng(0).uniform(0, last, (12, 2))).tolist()
    for start, end in [(None, last / 2), (last / 2, None), (0.0, None), (last - 0.01, last + 9), *spans]:
        begun = np.flatnonzero((seconds > (start or 0) - 2e-3) & (seconds < (end or np.inf) - 2e-3))  # Matroska rounds to 1 ms
        shown = np.flatnonzero(seconds <= (start or 0))[-1:]
        got = decode_frames(video, np.arange, segment=Segment(start, end))
        assert np.array_equal(got, whole[begun if len(begun) else shown]), (start, end)


def test_a_segment_of_a_turned_video_stands_upright():
    video = turned(encode_video(noise(24, 32, 64, 3)))
    assert np.array_equal(decode_frames(video, np.arange, segment=Segment(0.5, 1.0)), decode_video(video)[6:12])


def test_a_segment_beyond_the_pictures_is_one_line_and_one_between_two_has_what_is_shown():
    slides = encoded("mpeg4", "mp4", [0, 600], sound_seconds=30)  # 0 and 5 s, and no word on how long the last stays
    assert np.array_equal(decode_frames(slides, np.arange, segment=Segment(2, 3)), decode_video(slides)[:1])
    end = probe(slides).seconds
    assert 5 < end <= 10  # what an import goes by is what decoding goes by
    assert np.array_equal(decode_frames(slides, np.arange, segment=Segment(end - 0.01, 99)), decode_video(slides)[1:])
    with pytest.raises(ConfigError, match="^clip=talk: no frame lies between .* and 99 s of .*; correct start and end ") as error:
        decode_frames(slides, np.arange, segment=Segment(end, 99, "talk"))
    assert "\n" not in str(error.value)


def halves_folder(folder: Path) -> Path:
    """One video of two red seconds and two blue ones: train is the red half, test the blue one, meta the whole."""
    red, blue = (np.broadcast_to(np.array(colour, np.uint8), (24, 64, 64, 3)) for colour in ([250, 10, 10], [10, 10, 250]))
    halves = {"train": (0.0, 2.0), "test": (2.0, 4.0), "meta": (None, None)}
    with new_folder(folder) as temporary:
        (temporary / "video.mp4").write_bytes(encode_video(np.concatenate([red, blue])))
        build_vocabulary(["a caption"] * 2, temporary / "vocabulary.txt")
        video = Path("video.mp4")
        clips = [Clip(split, ["a caption"], video=video, start=start, end=end) for split, (start, end) in halves.items()]
        entries = {clip.id: shards.write_split(temporary, clip.id, [clip]) for clip in clips}
        shards.write_manifest(temporary, name="halves", splits=entries, feature_size=0)
    return folder


def test_backbones_tokens_and_thumbnails_see_a_clip_within_its_segment(tmp_path):
    folder = halves_folder(tmp_path / "halves")
    clips = [store.ClipStore(folder, split, videos=True)[0] for split in ("train", "test", "meta")]
    tokens = ensure_visual_tokens(folder, 32, 8, 1, num_frames=2, report=lambda line: None)
    assert tokens.centroids.reshape(3, -1).mean(1) == pytest.approx([250, 10, 10], abs=6)  # fitted to train, which is red
    vocabulary, data = Vocabulary(folder / "vocabulary.txt"), DataConfig()
    violet = VioletInputs(vocabulary, data, VioletConfig(num_frames=3, image_size=32), tokens)
    (frames,) = violet.videos(clips)
    blueness = frames[:, :, 2].mean((2, 3)) > 0.5
    assert blueness.tolist() == [[False] * 3, [True] * 3, [False, True, True]]
    allinone = AllInOneInputs(vocabulary, data, AllInOneConfig(num_frames=3, image_size=32))
    for frames in (allinone.videos(clips)[0], allinone.batch(clips, 0).video):
        blueness = (frames[:, :, 2] > frames[:, :, 0]).float().mean((2, 3)) > 0.5
        assert blueness[:2].tolist() == [[False] * 3, [True] * 3]
    for split, blue in (("train", False), ("test", True)):
        picture = np.asarray(Image.open(io.BytesIO(thumbnails(folder, split)[split]))).astype(int)
        assert ((picture[..., 2] > picture[..., 0]) == blue).all()


def sound() -> bytes:
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000), file.writeframes(bytes(16000))
    return memory.getvalue()


@pytest.mark.parametrize("content", [b"", b"no video at all", sound(), panning_video()[:-200]],
                         ids=["empty", "text", "sound", "truncated"])  # fmt: skip
def test_unreadable_videos_are_one_line(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    for source in (content, tmp_path / "clip.mp4"):
        for clip in (lambda s: pixels.violet_clip(s, 5, 32), lambda s: pixels.allinone_clip(s, 3, 32), decode_video):
            with pytest.raises(ConfigError, match="^video=.*; replace the file$") as error:
                clip(source)
            assert "\n" not in str(error.value)


def test_store_hands_out_videos(digits_folder):
    rows = pq.read_table(digits_folder / "meta-00000.parquet", columns=["id", "video"]).to_pylist()
    clips = pickle.loads(pickle.dumps(store.ClipStore(digits_folder, "meta", videos=True)))
    assert [clips.video(at) for at in range(len(clips))] == [row["video"] for row in rows]
    assert clips[3].id == rows[3]["id"] and clips[3].vq_tokens is None
    with pytest.raises(IndexError):
        clips.video(len(clips))


def small_folder(folder: Path, **fields) -> Path:
    rows = [Clip(f"clip{at}", ["a caption"], np.zeros((2, 3)), **fields) for at in range(2)]
    with new_folder(folder) as temporary:
        entry = shards.write_split(temporary, "train", rows)
        build_vocabulary(["a caption"] * 2, temporary / "vocabulary.txt")
        shards.write_manifest(temporary, name="test", splits={"train": entry}, feature_size=3)
    return folder


def test_store_finds_video_files_and_stored_tokens(tmp_path):
    codes = np.arange(18, dtype=np.int16)
    folder = small_folder(tmp_path / "clips", video=Path("videos/clip.mp4"), vq_tokens=codes)
    (folder / "videos").mkdir()
    (folder / "videos" / "clip.mp4").write_bytes(panning_video())
    clips = store.ClipStore(folder, "train", videos=True)
    assert pixels.violet_clip(clips.video(1), 2, 32).shape == (2, 3, 32, 32)
    assert np.array_equal(token_grid(clips[1].vq_tokens, 2, 3, 3), codes.reshape(2, 3, 3))
    with pytest.raises(ConfigError, match="^vq_tokens=<18>: the model takes 5 frames of 3 x 3 patches; "):
        token_grid(clips[1].vq_tokens, 5, 3, 3)


def test_a_folder_without_videos_is_refused_in_one_line(tmp_path):
    folder = small_folder(tmp_path / "clips")
    with pytest.raises(ConfigError, match="^data.folder=.*: has clips without a video.* clip0 of train.*; ") as error:
        store.ClipStore(folder, "train", videos=True)
    assert "\n" not in str(error.value) and len(store.ClipStore(folder, "train")) == 2


def test_patches_are_block_means_place_by_place():
    frames = noise(2, 3, 32, 48)[..., :32]
    got = shrunk_patches(frames, 16)
    assert got.shape == (2, 2, 2, 192)
    for row, column in np.ndindex(2, 2):
        patch = frames[1, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].astype(float)
        means = patch.reshape(3, 8, 2, 8, 2).mean((2, 4))
        assert np.array_equal(got[1, row, column], np.floor(means + 0.5).ravel())


def test_tokens_are_the_nearest_centroids_exactly():
    frames = noise(3, 2, 3, 64, 64)
    tokens = VisualTokens(noise(500, 192, seed=1), 32)
    patches = shrunk_patches(frames, 32).astype(np.int64)
    distances = ((patches[..., None, :] - tokens.centroids.astype(np.int64)) ** 2).sum(-1)
    assert tokens(frames).dtype == np.int64 and np.array_equal(tokens(frames), distances.argmin(-1))
    extreme = VisualTokens(np.repeat(np.array([[0], [255]], np.uint8), 192, axis=1), 32)  # the largest sums there can be
    greys = np.broadcast_to(np.array([0, 127, 128, 255], np.uint8)[:, None, None, None], (4, 3, 32, 32))
    assert extreme(greys).ravel().tolist() == [0, 0, 1, 1]


def test_fitted_tokens_tell_kinds_of_patches_apart(tmp_path):
    kinds = noise(6, 3, 8, 8)
    which = np.random.default_rng(2).integers(0, 6, (40, 2, 2))
    frames = kinds[which].transpose(0, 3, 1, 4, 2, 5).reshape(40, 3, 16, 16)
    frames = np.clip(frames + np.random.default_rng(3).normal(0, 4, frames.shape), 0, 255).astype(np.uint8)
    tokens = VisualTokens.fit([frames[:25], frames[25:]], patch_pixels=8, num_tokens=6)
    pairs = set(zip(which.ravel().tolist(), tokens(frames).ravel().tolist(), strict=True))
    assert len(pairs) == 6  # one token a kind
    assert np.array_equal(VisualTokens.fit([frames], 8, 6).centroids, tokens.centroids)
    tokens.save(tmp_path / "tokens.npz", "here")
    assert np.array_equal(VisualTokens.load(tmp_path / "tokens.npz", "here")(frames), tokens(frames))
    assert VisualTokens.load(tmp_path / "tokens.npz", "elsewhere") is None
    with pytest.raises(ConfigError, match="^num_tokens=161: needs as many patches and there are 160; "):
        VisualTokens.fit([frames], 8, 161)


def fit_digits(folder: Path) -> np.ndarray:
    return ensure_visual_tokens(folder, 32, 8, 16, num_frames=2, clips=40, report=lambda line: None).centroids


def test_tokens_of_a_folder_are_fitted_once(digits_folder, tmp_path):
    folder = shutil.copytree(digits_folder, tmp_path / "digits")
    first, second = on_ranks(fit_digits, 2, folder)
    assert np.array_equal(first, second) and len(np.unique(first, axis=0)) > 8
    lines, path = [], folder / "visual_tokens-2x32-8-16.npz"
    again = ensure_visual_tokens(folder, 32, 8, 16, num_frames=2, clips=40, report=lines.append)
    assert np.array_equal(again.centroids, first) and not lines and not list(folder.glob(".visual_tokens*"))
    path.write_bytes(path.read_bytes()[:300])  # torn
    assert np.array_equal(fit_digits(folder), first)
    before = path.stat().st_mtime_ns
    ensure_visual_tokens(folder, 32, 8, 16, num_frames=2, clips=30, report=lines.append)  # other clips: fitted anew
    assert len(lines) == 1 and path.stat().st_mtime_ns > before


@real
def test_violets_own_codes_are_read():
    codes = visual_tokens.read_dalle_tokens(REAL / "violet_dalle_vq_msrvtt.pkl")
    assert codes.keys() == read_pickle(REAL / "violet_frames_msrvtt.pkl").keys()
    assert all(grid.shape == (5, 7, 7) and 0 <= grid.min() and grid.max() < 8192 for grid in codes.values())
    assert len({grid.tobytes() for grid in codes.values()}) == 10
    with pytest.raises(ConfigError, match="^pickle=.*: holds no int16 codes"):
        visual_tokens.read_dalle_tokens(REAL / "violet_frames_msrvtt.pkl")


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_plain_data_alone_are_read(tmp_path, protocol):
    plain = {"a": noise(2, 3).astype(np.int16), "b": [1, 2.5, None, b"\x00\xff", {3}], "c": np.float32(1.5), "d": np.array(["é"])}
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(plain, protocol))
    got = read_pickle(path)
    assert np.array_equal(got["a"], plain["a"]) and got["a"].dtype == np.int16
    assert (got["b"], got["c"], got["d"].tolist()) == (plain["b"], plain["c"], ["é"])
    path.write_bytes(pickle.dumps({"a": Hostile(tmp_path / "made")}, protocol))
    with pytest.raises(ConfigError, match=r"^pickle=.*: names \w+.mkdir, which is no builtin or numpy array and may run code; "):
        read_pickle(path)
    assert not (tmp_path / "made").exists()
    path.write_bytes(pickle.dumps(np.array([{"text": "é"}, None]), protocol))  # UniVL's transcripts are arrays of objects
    assert read_pickle(path).tolist() == [{"text": "é"}, None]
    path.write_bytes(pickle.dumps(plain, protocol)[:-20])
    with pytest.raises(ConfigError, match="^pickle=.*: can't be read as a pickle of "):
        read_pickle(path)


def test_a_hostile_type_does_not_reach_numpy(tmp_path):
    """A state that names fields of a plain type made numpy read memory that isn't the pickle's, and crash."""
    path = tmp_path / "file.pkl"
    state = b"(K\x03X\x01\x00\x00\x00|(X\x01\x00\x00\x00ateX\x01\x00\x00\x00a}NJ\xff\xff\xff\xffK\x01K\x00tb."
    path.write_bytes(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R" + state)
    with pytest.raises(ConfigError, match="^pickle=.*: can't be read as a pickle of "):
        read_pickle(path)
