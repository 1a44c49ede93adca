"""Bouncing digits: what splits share, that bytes repeat, and that the videos hold what the captions say."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from meltr_ray.config import ConfigError
from meltr_ray.data import digits, store
from meltr_ray.data.features import FrameFeatures
from meltr_ray.data.prepare import ensure_prepared
from meltr_ray.data.video import decode_video, encode_video, evenly_spaced
from meltr_ray.data.vocabulary import Vocabulary

CLIPS = {"train": 30, "meta": 4, "validation": 4, "test": 5}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("digits") / "clips"
    digits.make_digits(made, quiet, CLIPS)
    return made


def test_splits_share_no_handwriting():
    shares = digits._share_handwriting(digits.CLIPS, seed=0)
    samples = [{image.tobytes() for image in images} for images, _ in shares.values()]
    assert len(set.union(*samples)) == sum(map(len, samples))
    assert all(set(values) == set(range(10)) for _, values in shares.values())


def test_two_generations_are_equal_byte_by_byte(folder, tmp_path):
    digits.make_digits(tmp_path / "again", quiet, CLIPS)
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == ["features.npz", "manifest.json", "meta.parquet", "test.parquet", "train.parquet",
                     "validation.parquet", "vocabulary.txt"]  # fmt: skip
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_features_come_from_the_decoded_video(folder):
    extractor = FrameFeatures.load(folder / "features.npz")
    row = pq.read_table(folder / "test.parquet").to_pylist()[2]
    frames = decode_video(row["video"])
    assert frames.shape == (digits.FRAMES, 64, 64, 3)
    expected = extractor(frames[evenly_spaced(len(frames), digits.SAMPLED_FRAMES)])
    assert np.array_equal(store.ClipStore(folder, "test")[2].features, expected.astype(np.float16).astype(np.float32))


def test_train_features_are_standardised(folder):
    features = np.concatenate([clip.features for clip in store.ClipStore(folder, "train")])
    assert np.allclose(features.mean(0), 0, atol=1e-2) and np.allclose(features.std(0), 1, atol=1e-2)


@pytest.mark.parametrize("event", digits.EVENTS)
@pytest.mark.parametrize("direction", digits.DIRECTIONS)
def test_a_digit_stays_on_the_canvas_and_moves_as_it_says(event, direction):
    turn = "up" if direction in ("left", "right") else "left"
    digit = digits.Digit(np.ones((8, 8)), 1, "white", "large", direction, "fast", event, turn, np.zeros(2), 14)
    digit.centre = digits._place(digit, np.random.default_rng(0))
    path, slack = digit.centre + digit.offsets(), 3  # pixels that may stick out of the canvas at most
    assert (path >= 13 - slack).all() and (path <= digits.SIDE - 13 + slack).all()
    way = (path[13] - path[0]) @ digits.DIRECTIONS[direction]
    assert way == 0 if event == "wait" else way > 10
    shown = digits.paint([digit], np.random.default_rng(0)).astype(int).sum((1, 2, 3))
    assert not (event == "vanish" and shown[-1] > 0.5 * shown[0]) and not (event == "appear" and shown[0] > 0.5 * shown[-1])


def test_captions_use_only_words_of_the_train_vocabulary(folder):
    vocabulary = Vocabulary(folder / "vocabulary.txt")
    for clip in store.ClipStore(folder, "test"):
        assert 1 <= len(clip.captions) <= digits.CAPTIONS == 5
        assert all(vocabulary.unk_id not in vocabulary.encode(caption, 60) for caption in clip.captions)


def test_a_finished_folder_is_left_alone_and_another_one_never_overwritten(folder):
    before = (folder / "manifest.json").stat().st_mtime_ns
    digits.make_digits(folder, quiet, CLIPS)
    with pytest.raises(ConfigError, match="^data.folder=.*: holds digits from another source; "):
        digits.make_digits(folder, quiet, CLIPS, seed=1)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_an_interrupted_generation_leaves_no_folder(tmp_path):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digits.make_digits(tmp_path / "clips", interrupt, CLIPS)
    assert list(tmp_path.iterdir()) == []


def test_baselines_are_added_for_training_where_they_are_missing(tmp_path):
    digits.make_digits(tmp_path / "clips", quiet, CLIPS)
    baselines = ensure_prepared("digits", tmp_path / "clips", quiet)["baselines"]
    assert baselines["validation"]["chance"]["recall_at_1"] == 25 and set(baselines["test"]) == {"chance", "ridge"}
    assert store.check_folder(tmp_path / "clips")["baselines"] == baselines


def test_encoding_keeps_colours_and_frame_count():
    frames = np.zeros((7, 64, 64, 3), np.uint8)
    frames[:, 16:48, 16:48] = (230, 40, 40)
    decoded = decode_video(encode_video(frames))
    assert decoded.shape == frames.shape and np.abs(decoded[:, 20:44, 20:44].astype(int) - (230, 40, 40)).mean() < 8
