"""Folder, store, vocabulary and video."""

import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meltr_ray.config import ConfigError
from meltr_ray.video.clips import schema, shards, store
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.new_folder import new_folder
from meltr_ray.video.clips.video import decode_video
from meltr_ray.video.clips.vocabulary import SPECIAL, build_vocabulary

ROOT = Path(__file__).parents[2]
CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"
ROWS = shards.ROWS_PER_SHARD + shards.ROWS_PER_GROUP + 9  # more than one shard, more than one record batch


def make_folder(folder: Path, shift: float = 0.0) -> Path:
    random = np.random.default_rng(0)
    features = [random.normal(shift, 1, (2 + at % 3, 5)) for at in range(ROWS)]
    rows = [Clip(f"clip{at}", [f"caption {at}", "other"], features[at], video=b"x" * 99) for at in range(ROWS)]
    with new_folder(folder) as temporary:
        entry = shards.write_split(temporary, "train", rows)
        build_vocabulary(["caption"] * 2, temporary / "vocabulary.txt")
        shards.write_manifest(temporary, name="test", splits={"train": entry}, feature_size=5)
    return folder


def test_every_field_says_what_it_means():
    assert all(field.metadata[b"meaning"] for field in schema.SCHEMA)


def test_store_returns_what_the_parquet_holds(tmp_path):
    folder = make_folder(tmp_path / "clips")
    clips = pickle.loads(pickle.dumps(store.ClipStore(folder, "train")))
    assert len(clips) == ROWS and clips.feature_size == 5
    assert [entry["rows"] for entry in store.load_manifest(folder)["splits"]["train"]["shards"]] == [256, 137]
    rows = [row for path in sorted(folder.glob("train-*.parquet")) for row in pq.read_table(path).to_pylist()]
    for clip, row in zip(clips, rows, strict=True):
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


def test_a_cache_that_is_damaged_is_made_anew(tmp_path):
    """A bit of a feature, where Arrow has no checksum: the driver looks before any worker maps the file."""
    folder = make_folder(tmp_path)

    def features() -> np.ndarray:
        return np.concatenate([clip.features for clip in store.ClipStore(folder, "train")])

    whole, cache = features(), folder / "train.arrow"
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)
    assert not np.array_equal(features(), whole)
    store.check_folder(folder)
    assert not cache.exists() and np.array_equal(features(), whole)
    store.check_folder(folder)
    assert cache.exists()


def truncate(folder: Path) -> None:
    (folder / "train-00000.parquet").write_bytes((folder / "train-00000.parquet").read_bytes()[:-100])


def flip(folder: Path) -> None:
    content = bytearray((folder / "train-00000.parquet").read_bytes())
    content[1000] ^= 1
    (folder / "train-00000.parquet").write_bytes(content)


def change_version(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))


@pytest.mark.parametrize("damage, rule", [
    (truncate, "train-00000.parquet has .* bytes where the manifest says"),
    (flip, "differs from the manifest's checksum"),
    (lambda folder: (folder / "train-00001.parquet").unlink(), "lacks train-00001.parquet"),
    (lambda folder: (folder / "vocabulary.txt").write_text("[PAD]"), "vocabulary.txt has .* bytes"),
    (change_version, "has schema version 99, this code reads 2"),
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
    with pytest.raises(ConfigError, match="^data.folder=.*train-00000.parquet can't be read .*; ") as error:
        store.ClipStore(folder, "train")
    assert "\n" not in str(error.value) and not list(folder.glob("*.arrow*"))


IMPORT = """
import sys, time
from pathlib import Path
import numpy as np
from meltr_ray.config import ConfigError
from meltr_ray.video.clips import shards
from meltr_ray.video.clips.new_folder import new_folder
from meltr_ray.video.clips.clip import Clip

def load(clip):
    print(clip.id, flush=True)
    if sys.argv[2] == "stop":
        time.sleep(0.01 if clip.id < "clip20" else 60)
    clip.features = np.random.default_rng(int(clip.id[4:])).normal(size=(64, 64))
    return clip

shards.ROWS_PER_SHARD = 8
try:
    with new_folder(Path(sys.argv[1]), source="these") as folder:
        (folder / "vocabulary.txt").write_text("a")
        clips = [Clip(f"clip{at:02d}", [f"caption {at}"]) for at in range(30)]
        entry = shards.write_split(folder, "train", clips, load)
        shards.write_manifest(folder, name="test", splits={"train": entry}, feature_size=64)
except ConfigError as error:
    print(error)
    sys.exit(2)
"""


def run_import(folder: Path, how: str = "", **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", IMPORT, str(folder), how], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_killed_import_goes_on_and_gives_the_same_bytes(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "clips"
    assert run_import(whole).wait(60) == 0
    process = run_import(folder, "stop")
    while process.stdout.readline() != "clip20\n":
        pass
    assert not folder.exists()
    second = run_import(folder)  # at the same time
    assert second.wait(60) == 2 and "is being prepared by another process; " in second.stdout.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    torn = tmp_path / ".clips.partial" / "train-00001.parquet"
    torn.write_bytes(torn.read_bytes()[:-1])
    again = run_import(folder)
    loaded = again.communicate(timeout=60)[0].split()
    assert again.returncode == 0 and loaded == [f"clip{at:02d}" for at in range(8, 30)]  # the first shard is kept
    assert contents(folder) == contents(whole) and store.check_folder(folder)["rows"] == {"train": 30}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "whole"]


def test_another_source_starts_anew(tmp_path):
    for source, kept in (("one", False), ("one", True), ("two", False)):
        with pytest.raises(KeyError), new_folder(tmp_path / "clips", source) as folder:
            assert (folder / "train-00000.parquet").exists() == kept
            shards.write_split(folder, "train", [Clip("a", ["b"])])
            raise KeyError
    with pytest.raises(KeyError), new_folder(tmp_path / "clips") as folder:
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_changed_clips_are_written_again(tmp_path):
    first, second = ([Clip(f"clip{at}", [text]) for at in range(count)] for text, count in (("old", 300), ("new", 3)))
    old = shards.write_split(tmp_path, "train", first)
    assert len(old["shards"]) == 2
    new = shards.write_split(tmp_path, "train", second)
    assert [path.name for path in tmp_path.glob("*.parquet")] == [new["shards"][0]["file"]]
    assert pq.read_table(tmp_path / "train-00000.parquet")["captions"].to_pylist() == [["new"]] * 3


def test_a_full_disk_is_one_line_and_the_import_goes_on_later(tmp_path):
    """A limit on file size stands in for a full disk: the writer sees the same kind of error."""
    folder, limit = tmp_path / "clips", 40_000  # below a shard of 64 KB
    full = run_import(folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    *_, line = full.communicate(timeout=60)[0].splitlines()
    assert full.returncode == 2 and line.startswith(f"data.folder={folder}: can't be written (file too large); free some space")
    assert not folder.exists() and not list(tmp_path.glob(".*/train-*.parquet"))
    assert run_import(folder).wait(60) == 0 and store.check_folder(folder)["rows"] == {"train": 30}


def test_a_folder_without_features_is_refused_in_one_line(tmp_path):
    with new_folder(tmp_path / "clips") as folder:
        entry = shards.write_split(folder, "train", [Clip("a", ["b"], video=b"x")])
        shards.write_manifest(folder, name="test", splits={"train": entry}, feature_size=0)
    clips = store.ClipStore(tmp_path / "clips", "train", videos=True)
    assert clips.feature_size == 0 and clips[0].features is None and clips.video(0) == b"x"
    with pytest.raises(ConfigError, match="^data.folder=.*: has clips without frame features.* a of train.*; ") as error:
        store.ClipStore(tmp_path / "clips", "train", features=True)
    assert "\n" not in str(error.value)


def test_the_document_lists_every_field():
    described = (ROOT / "docs" / "data.md").read_text()
    for field in [*schema.SCHEMA, *schema.QUESTION]:
        assert f"| `{field.name}` | {field.type if field.name != 'questions' else 'list of questions'} " in described, field.name
        assert f"| {field.metadata[b'meaning'].decode()} |" in described, field.name
    assert f"Version {schema.VERSION}" in described


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
    for _again in range(3):  # the trainer's own hash maps are seeded anew each time
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
