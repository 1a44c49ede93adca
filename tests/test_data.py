"""Folder, store, vocabulary and video."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meltr_ray.config import ConfigError
from meltr_ray.data import schema, store
from meltr_ray.data.video import decode_video
from meltr_ray.data.vocabulary import SPECIAL, build_vocabulary

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"
ROWS = 3 * store.ROWS_PER_GROUP // 2  # more than one record batch


def make_folder(folder: Path, shift: float = 0.0) -> Path:
    random = np.random.default_rng(0)
    features = [random.normal(shift, 1, (2 + at % 3, 5)) for at in range(ROWS)]
    rows = [schema.row(f"clip{at}", "train", [f"caption {at}", "other"], features[at], video=b"x" * 99) for at in range(ROWS)]
    with store.new_folder(folder) as temporary:
        entry = store.write_split(temporary, "train", rows)
        build_vocabulary(["caption"] * 2, temporary / "vocabulary.txt")
        store.write_manifest(temporary, name="test", splits={"train": entry}, feature_size=5)
    return folder


def test_every_field_says_what_it_means():
    assert all(field.metadata[b"meaning"] for field in schema.SCHEMA)


def test_store_returns_what_the_parquet_holds(tmp_path):
    folder = make_folder(tmp_path / "clips")
    clips = pickle.loads(pickle.dumps(store.ClipStore(folder, "train")))
    assert len(clips) == ROWS and clips.feature_size == 5
    for clip, row in zip(clips, pq.read_table(folder / "train.parquet").to_pylist(), strict=True):
        shape = row["num_frames"], row["feature_size"]
        assert (clip.id, clip.captions) == (row["id"], row["captions"]) and clip.features.dtype == np.float32
        assert np.array_equal(clip.features, np.frombuffer(row["features"], np.float16).reshape(shape))
    assert "video" not in pa.ipc.open_file(folder / "train.arrow").schema.names
    with pytest.raises(IndexError):
        clips[ROWS]


def test_the_arrow_cache_follows_the_parquet(tmp_path):
    old = store.ClipStore(make_folder(tmp_path / "old"), "train")
    new = make_folder(tmp_path / "new", shift=9)
    (tmp_path / "old" / "train.arrow").rename(new / "train.arrow")
    assert store.ClipStore(new, "train")[0].features.mean() > 5 > old[0].features.mean()
    (new / "train.arrow").write_bytes(b"torn")
    assert store.ClipStore(new, "train")[0].features.mean() > 5


def truncate(folder: Path) -> None:
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-100])


def flip(folder: Path) -> None:
    content = bytearray((folder / "train.parquet").read_bytes())
    content[1000] ^= 1
    (folder / "train.parquet").write_bytes(content)


def change_version(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))


@pytest.mark.parametrize("damage, rule", [
    (truncate, "train.parquet has .* bytes where the manifest says"),
    (flip, "differs from the manifest's checksum"),
    (lambda folder: (folder / "train.parquet").unlink(), "lacks train.parquet"),
    (change_version, "has schema version 99, this code reads 1"),
    (lambda folder: (folder / "manifest.json").write_text('{"splits":'), "manifest.json is damaged"),
    (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    (lambda folder: folder.rename(folder.with_name("elsewhere")), "no such folder"),
])  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, damage, rule):
    folder = make_folder(tmp_path / "clips")
    store.check_folder(folder)
    damage(folder)
    with pytest.raises(ConfigError, match=f"^data.folder={folder}: .*{rule}.*; .*prepare") as error:
        store.check_folder(folder)
    assert "\n" not in str(error.value)


def test_an_unreadable_parquet_is_one_line_on_first_open_too(tmp_path):
    folder = make_folder(tmp_path / "clips")
    truncate(folder)
    with pytest.raises(ConfigError, match="^data.folder=.*train.parquet can't be read .*; ") as error:
        store.ClipStore(folder, "train")
    assert "\n" not in str(error.value) and not list(folder.glob("*.arrow*"))


def test_a_folder_in_use_is_never_overwritten(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="^data.folder=.*: is in use; "):
        make_folder(tmp_path / "clips")
    assert (tmp_path / "clips" / "thesis.txt").read_text() == "mine"


def test_vocabulary_encodes_cuts_and_knows_what_it_has_not_seen(tmp_path):
    vocabulary = build_vocabulary(["A red three moves", "a red four moves"], tmp_path / "vocabulary.txt")
    assert [vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id] == list(range(5))
    ids = vocabulary.encode("A RED zebra% moves", 20)
    assert ids[0] == vocabulary.cls_id and ids[-1] == vocabulary.sep_id and vocabulary.unk_id in ids
    assert vocabulary.decode(vocabulary.encode("a RED Moves", 20)) == "a red moves"
    assert vocabulary.encode("a red three moves", 4) == [*vocabulary.encode("a red three moves", 20)[:3], vocabulary.sep_id]
    assert list(vocabulary.random_word_range) == list(range(5, len(vocabulary)))
    assert (tmp_path / "vocabulary.txt").read_text().split()[:5] == SPECIAL


def test_vocabulary_does_not_hang_on_the_order_of_captions(tmp_path):
    captions = [f"a {word} runs and {word}s again" for word in ("zebra", "camel", "horse", "mouse", "tiger", "panda")]
    build_vocabulary(captions, tmp_path / "one.txt", size=60)
    for again in range(3):  # the trainer's own hash maps are seeded anew each time
        build_vocabulary(captions[::-1], tmp_path / "two.txt", size=60)
        assert (tmp_path / "one.txt").read_bytes() == (tmp_path / "two.txt").read_bytes()


def test_unreadable_video_is_one_line(tmp_path):
    for source in (b"not a video", tmp_path / "absent.mp4"):
        with pytest.raises(ConfigError, match="^video=.*; ") as error:
            decode_video(source)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="real clips are not at ../shared/data/clips")
def test_a_real_clip_is_decoded():
    frames = decode_video(min(CLIPS.rglob("*.mkv"), key=lambda path: path.stat().st_size))
    assert frames.shape[1:] == (480, 640, 3) and 1.5 * 30 < len(frames) < 4 * 30 and frames.std() > 10
