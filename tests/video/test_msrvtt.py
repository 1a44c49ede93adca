"""The MSR-VTT importer and the closed-form baseline, on real captions and features."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from meltr_ray.config import ConfigError
from meltr_ray.video.baselines.retrieval import Ridge, chance, score_ridge
from meltr_ray.video.clips import store
from meltr_ray.video.clips.vocabulary import Vocabulary
from meltr_ray.video.datasets.prepare import ensure_prepared, import_data, prepare
from meltr_ray.video.metrics.retrieval import rank_metrics, ranks

REAL = Path(__file__).parents[3] / "shared" / "data" / "msrvtt"
FORMATS = REAL.parent / "formats"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="real MSR-VTT data is not at ../shared/data/msrvtt")


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("msrvtt") / "clips"
    import_data("msrvtt", REAL, folder, lambda line: None)
    return folder


def make_source(folder: Path, num_videos: int = 40, official=lambda at: "train" if at < 30 else "validate") -> Path:
    """A source in the original format; two videos each share a URL; the last one lacks features."""
    folder.mkdir()
    videos = [dict(video_id=f"video{at}", url=f"https://example.org/{at // 2}", split=official(at)) for at in range(num_videos)]
    sentences = [dict(video_id=v["video_id"], sen_id=-at, caption=f"a thing number {at}") for at, v in enumerate(videos * 2)]
    (folder / "MSRVTT_data.json").write_text(json.dumps(dict(videos=videos, sentences=sentences)))
    features = np.random.default_rng(0).normal(size=(num_videos - 1, 3, 4)).astype(np.float16)
    np.savez(folder / "features.npz", video_id=[v["video_id"] for v in videos[:-1]], feat=features)
    return folder


@real_data
def test_published_figures_of_ridge_are_reproduced(imported):
    official_train = [clip for split in ("train", "meta", "validation") for clip in store.ClipStore(imported, split)]
    scores = score_ridge(Ridge.fit(official_train, strength=300), list(store.ClipStore(imported, "test")))
    expected = dict(recall_at_1=17.9, recall_at_5=45.6, recall_at_10=57.7, median_rank=7.2)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=0.5)


@real_data
def test_imported_splits_keep_source_videos_apart(imported):
    manifest = store.check_folder(imported)
    assert manifest["rows"] == {"train": 560, "meta": 70, "validation": 70, "test": 96}
    urls = {video["video_id"]: video["url"] for video in json.loads((REAL / "MSRVTT_data.json").read_text())["videos"]}
    held = {split: {urls[clip.id] for clip in store.ClipStore(imported, split)} for split in manifest["rows"]}
    assert not held["train"] & (held["meta"] | held["validation"] | held["test"])
    assert [clip.id for clip in store.ClipStore(imported, "test")] == json.loads((REAL / "split.json").read_text())["val"]
    with np.load(REAL / "features_vgg_ae128.npz", allow_pickle=False) as source:
        clip = store.ClipStore(imported, "train")[123]
        assert np.array_equal(clip.features, source["feat"][source["video_id"] == clip.id][0].astype(np.float32))
        assert len(clip.captions) == 20
    assert len(Vocabulary(imported / "vocabulary.txt")) <= 4000


@pytest.mark.parametrize("has_test", (False, True))
def test_official_splits_of_the_annotation_are_kept(tmp_path, has_test):
    lines: list[str] = []

    def official(at: int) -> str:
        return "train" if at < 30 else "validate" if at < 36 or not has_test else "test"

    manifest = import_data("msrvtt", make_source(tmp_path / "source", official=official), tmp_path / "clips", lines.append)
    # A tenth of 30 is 3, and two videos share each URL: one URL is held out for meta, one for validation if need be.
    expected = dict(train=28, meta=2, validation=6, test=3) if has_test else dict(train=26, meta=2, validation=2, test=9)
    assert manifest["rows"] == expected
    assert any("without features: 1" in line for line in lines) and "1 clips without features" in manifest["warnings"]
    assert (tmp_path / "clips" / "left_out.csv").read_text() == "split,id,reason\ntest,video39,no features\n"


def test_a_truncated_source_is_refused_in_one_line_and_leaves_nothing_behind(tmp_path):
    source = make_source(tmp_path / "source")
    for name in ("features.npz", "MSRVTT_data.json"):
        damaged = tmp_path / f"damaged_{name}"
        shutil.copytree(source, damaged)
        (damaged / name).write_bytes((source / name).read_bytes()[:-200])
        with pytest.raises(ConfigError, match=rf"^source=.*{name}: .*; fetch the file again$"):
            import_data("msrvtt", damaged, tmp_path / "clips", lambda line: None)
    with pytest.raises(ConfigError, match="^source=.*: no such folder; correct the path$"):
        import_data("msrvtt", tmp_path / "absent", tmp_path / "clips", lambda line: None)
    (source / "MSRVTT_data.json").unlink()
    with pytest.raises(
        ConfigError, match="^source=.*: no MSRVTT_data.json or train_val_videodatainfo.json or test_videodatainfo.json there; "
    ):
        import_data("msrvtt", source, tmp_path / "clips", lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged_MSRVTT_data.json", "damaged_features.npz", "source"]


def test_prepare_refuses_an_unknown_name_and_another_data_set_in_the_folder(tmp_path):
    with pytest.raises(ConfigError, match="^data.name=movies: unknown; use one of digits, msrvtt, "):
        prepare("movies", None, tmp_path / "clips")
    import_data("msrvtt", make_source(tmp_path / "source"), tmp_path / "clips", lambda line: None)
    before = (tmp_path / "clips" / "manifest.json").read_bytes()
    for refuse in (lambda: prepare("digits", None, tmp_path / "clips"), lambda: ensure_prepared("digits", tmp_path / "clips")):
        with pytest.raises(ConfigError, match="^data.folder=.*: holds msrvtt.*; choose another folder"):
            refuse()
    with pytest.raises(ConfigError, match="^source=.*; "):
        prepare("msrvtt", None, tmp_path / "other")
    assert (tmp_path / "clips" / "manifest.json").read_bytes() == before


@real_data
@pytest.mark.parametrize("variant, listed", (("9k", 9000), ("7k", 7010)))
def test_the_splits_of_the_field_take_their_lists_and_test_sentences(tmp_path, variant, listed):
    source = make_source(tmp_path / "source", num_videos=4)
    for path in (REAL / "MSRVTT_data.json", REAL / "features_vgg_ae128.npz"):
        shutil.copy(path, source)
    (source / "features.npz").unlink()
    for path in FORMATS.glob("MSRVTT_*.csv"):
        shutil.copy(path, source)
    with open(source / "MSRVTT_JSFUSION_test.csv", "a", encoding="utf-8") as file:  # none of its videos is among the 796
        file.write("ret1000,msr795,video795,a sentence of its own\n")
    manifest = import_data("msrvtt", source, tmp_path / "clips", lambda line: None, variant)
    counts = manifest["counts"]
    assert (counts["clips annotated, train"], counts["clips annotated, test"], counts["duplicate ids"]) == (listed, 1001, 1)
    assert manifest["rows"]["test"] == 1 and sum(manifest["rows"].values()) == 796  # video795 tests, so it doesn't train
    assert counts["clips left out"] == listed + 1001 - 796
    (clip,) = store.ClipStore(tmp_path / "clips", "test")
    assert clip.id == "video795" and clip.captions == ["a sentence of its own"]


def test_a_constant_score_does_not_look_good():
    right = np.arange(51)
    scores = rank_metrics(ranks(np.zeros((51, 51)), right))
    assert (scores["recall_at_10"], scores["median_rank"], scores["mean_rank"]) == (0, 26, chance(51)["mean_rank"])
    assert rank_metrics(ranks(np.eye(51), right))["recall_at_1"] == 100
