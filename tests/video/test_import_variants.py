"""Files as users have them: other delimiters, paths and layouts are imported; what doesn't fit is refused in one line, or counted."""

import json
import os
import pickle
import re
import resource

import h5py
import numpy as np
import pytest

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.named import losses_of
from meltr_ray.video.backbones.univl.features import AudioScale
from meltr_ray.video.backbones.univl.inputs import UniVLInputs
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.clips.answers import build_answers
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.clips.vocabulary import SPECIAL, Vocabulary, build_vocabulary
from meltr_ray.video.datasets.importers.files import read_csv
from meltr_ray.video.datasets.prepare import import_data, prepare
from meltr_ray.video.tasks.settings import TaskConfig
from tests.video.settings import vector
from tests.video.test_importers import clips_of, left_out, make_features, make_video, quiet, write_table

IDS = [f"video{number}" for number in range(8)]
INFO = "train_val_videodatainfo.json"


def refused(data: str, source, variant: str | None = None) -> str:
    """The one line with which an import ends."""
    with pytest.raises(ConfigError) as caught:
        import_data(data, source, source / "out", quiet, variant)
    assert re.fullmatch(r"[\w.]+=[^\n]+: [^\n]+; [^\n]+", str(caught.value))
    return str(caught.value)


def write_json(path, content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def msrvtt(**changed) -> dict:
    videos = [dict(video_id=name, category=3, url=name, split="train" if at < 6 else "test") for at, name in enumerate(IDS)]
    sentences = [dict(video_id=name, caption=f"caption of {name}", sen_id=at) for at, name in enumerate(IDS)]
    return dict(videos=videos, sentences=sentences) | changed


def one_changed(rows: list[dict], **changed) -> list[dict]:
    return [rows[0] | changed, *rows[1:]]


@pytest.mark.parametrize("delimiter", (",", ";", "\t"))
def test_tables_are_read_with_the_delimiter_that_they_have(tmp_path, delimiter):
    rows = [("video", "caption"), ("v0", '"a; b,\tc"'), ("v1", "d")]
    (tmp_path / "a.csv").write_text("\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8-sig")
    assert read_csv(tmp_path / "a.csv") == [dict(video="v0", caption="a; b,\tc"), dict(video="v1", caption="d")]


@pytest.mark.parametrize(
    "text, rule", (('video,caption\nv0,"a\nv1,b\n', "line 3 is no CSV"), ("video,caption,caption\nv0,a,b\n", "two columns"))
)
def test_a_quote_that_never_ends_swallows_no_row_and_equal_columns_no_column(tmp_path, text, rule):
    (tmp_path / "captions.csv").write_text(text)
    assert rule in refused("videos", tmp_path)


def test_a_word_too_long_to_be_read_teaches_no_pieces(tmp_path):
    for length in (100, 101):
        build_vocabulary([*["a cat"] * 3, "x" * length], tmp_path / "words")
        pieces = (tmp_path / "words").read_text().split()
        assert "cat" in pieces and ("##xx" in pieces) == (length == 100)


def test_answers_that_differ_in_spaces_are_one(tmp_path):
    assert build_answers(["red  car", "red car", "dog"], tmp_path / "answers.txt") == ["red car", "dog"]


VIDEOS, SENTENCES = msrvtt()["videos"], msrvtt()["sentences"]
WRONG = {
    "category": (dict(videos=one_changed(VIDEOS, category=20)), "category 20 of video0"),
    "no split": (dict(videos=one_changed(VIDEOS, split=None)), "video 1 has no split"),
    "no id": (dict(videos=[{}]), "video 1 has no video_id"),
    "no caption": (dict(sentences=one_changed(SENTENCES, caption=None)), "sentence 1 has no caption"),
    "no list": (dict(videos={"video0": {}}), "holds no list of videos"),
}


@pytest.mark.parametrize("changed, rule", WRONG.values(), ids=WRONG)
def test_a_wrong_row_of_msrvtt_is_refused_with_its_place(tmp_path, changed, rule):
    write_json(tmp_path / INFO, msrvtt(**changed))
    assert rule in refused("msrvtt", tmp_path, "full")


def test_what_no_split_of_msrvtt_names_is_counted(tmp_path):
    """A video of another split, and a caption of no video; the order of captions may be missing."""
    lost = dict(video_id="video999", caption="of no video")
    write_json(tmp_path / INFO, msrvtt(videos=one_changed(VIDEOS, split="other"), sentences=[*SENTENCES, lost]))
    make_features(tmp_path, IDS)
    manifest = import_data("msrvtt", tmp_path, tmp_path / "out", quiet, "full")
    assert "2 annotated videos in no split, dropped" in manifest["warnings"] and sum(manifest["rows"].values()) == 7


def test_both_sentences_of_a_test_video_are_kept(tmp_path):
    write_json(tmp_path / INFO, msrvtt())
    make_features(tmp_path, IDS)
    write_table(tmp_path, [dict(video_id=name) for name in IDS[:6]], "MSRVTT_train.9k.csv")
    write_table(tmp_path, [dict(video_id=IDS[at], sentence=f"sentence {at}") for at in (6, 7, 7)], "MSRVTT_JSFUSION_test.csv")
    import_data("msrvtt", tmp_path, tmp_path / "out", quiet, "9k")
    assert clips_of(tmp_path / "out")["video7"].captions == ["sentence 7", "sentence 7"]


def test_questions_of_one_id_are_renamed_and_answers_that_are_missing_refused(tmp_path):
    make_features(tmp_path, IDS)
    rows = [dict(video_id=name, question="who\u2028is it?", answer="Man", id=1) for name in IDS]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)  # a line end that isn't one of the file
    (tmp_path / "msrvtt_qa_train.jsonl").write_text(text, encoding="utf-8")
    manifest = import_data("msrvtt_qa", tmp_path, tmp_path / "out", quiet)
    asked = [question for clip in clips_of(tmp_path / "out").values() for question in clip.questions]
    assert len({question.id for question in asked}) == 8 and {question.answer for question in asked} == {"man"}
    assert manifest["counts"]["questions with the id of another, renamed"] == 7
    (tmp_path / "msrvtt_qa_train.jsonl").write_text(json.dumps(rows[0] | dict(answer=None)))
    assert "question 1 has no answer" in refused("msrvtt_qa", tmp_path)


def test_a_whole_path_comes_before_a_name_and_may_be_written_in_other_ways(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, frames in {"a.mp4": 2, "sub/a.mp4": 3, "u\u0308.mp4": 4, "b.1.mp4": 5, "b.2.mp4": 6}.items():
        make_video(tmp_path / name, times=list(range(frames)))
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    names = ["a.mp4", ".\\sub\\a.mp4", "\u00fc", "b.1", "b.2", "b.2.mp4", "gone.mp4"]
    write_table(tmp_path, [dict(video=name, caption=f"caption {at}") for at, name in enumerate(names)])
    manifest = import_data("videos", tmp_path, tmp_path / "out", quiet)
    clips = clips_of(tmp_path / "out")
    assert clips["b.2"].captions == ["caption 4", "caption 5"] and len(clips) == 5
    assert left_out(tmp_path / "out") == {"gone": "no video"}
    assert manifest["counts"]["frames of a video, mean"] == 4  # of 2, 3, 4, 5 and 6: each its own file


def test_json_has_texts_where_texts_belong(tmp_path):
    make_features(tmp_path, IDS)
    asked = dict(question="how many?", answer=0, options="0|1")
    write_json(tmp_path / "captions.json", [dict(video=f"sub/{name}.mp4", captions="one string", qa=[asked], transcript=5) for name in IDS])
    import_data("videos", tmp_path, tmp_path / "out", quiet)
    clip = clips_of(tmp_path / "out")["video0"]
    assert (clip.captions, clip.transcript, clip.questions[0].right, len(clip.features)) == (["one string"], "5", 0, 3)


REFUSED = {
    "question of no object": (dict(questions=["what?"]), "object 1's question 1 is no object"),
    "question without text": (dict(questions=[dict(answer="a")]), "object 1's question 1 has no question"),
    "caption of no text": (dict(captions=[dict(caption="a")]), "captions that are no text"),
    "another score": (dict(caption="a", score=1), "another transcript or score"),
}


@pytest.mark.parametrize("row, rule", REFUSED.values(), ids=REFUSED)
def test_what_json_can_hold_and_a_clip_cannot_is_refused(tmp_path, row, rule):
    write_json(tmp_path / "captions.json", [dict(video="v") | row, dict(video="v", caption="b", score=2)])
    assert rule in refused("videos", tmp_path)


def save_rows(folder):
    np.savez(folder / "f.npz", video_id=np.array(["a", "a"]), feat=np.ones((2, 3, 4)))


def save_names(folder):
    np.savez(folder / "f.npz", **{"a": np.ones((3, 4)), "a.mp4": np.zeros((3, 4))})


def save_groups(folder):
    with h5py.File(folder / "f.h5", "w") as file:
        for place in ("a/rgb", "a/flow", "b/rgb", "b/flow"):
            file[place] = np.ones((3, 4))


@pytest.mark.parametrize("save, rule", ((save_rows, "twice"), (save_names, "a twice"), (save_groups, "several arrays in a group")))
def test_two_arrays_of_one_video_are_refused(tmp_path, save, rule):
    write_table(tmp_path, [dict(video=name, caption="text") for name in "ab"])
    save(tmp_path)
    assert rule in refused("videos", tmp_path)


def test_features_beside_a_number_in_hdf5_and_features_without_one_good_value(tmp_path):
    write_table(tmp_path, [dict(video=name, caption="text") for name in IDS])
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in IDS:
            file[f"{name}/features"], file[f"{name}/fps"] = np.full((3, 4), np.nan), 25.0
            make_video(tmp_path / f"{name}.mp4")
    manifest = import_data("videos", tmp_path, tmp_path / "out", quiet)
    assert "8 clips with unreadable features" in manifest["warnings"] and manifest["media"]["video"] == 8


def test_sentences_of_youcook2_that_are_no_text(tmp_path):
    """None and NaN are no sentence; bytes are their text; a segment has two ends."""
    texts = dict(start=[0, 2], end=[1, 3], text=[b"add salt", float("nan")], transcript=[None, "NONE"])
    (tmp_path / "youcookii_data.pickle").write_bytes(pickle.dumps(dict.fromkeys(IDS, texts)))
    for split, names in {"train": IDS[:6], "val": IDS[6:]}.items():
        write_table(tmp_path, [dict(video_id=name) for name in names], f"youcookii_{split}.csv")
    make_features(tmp_path, IDS)
    manifest = import_data("youcook2", tmp_path, tmp_path / "out", quiet)
    clip = clips_of(tmp_path / "out")["video0_0"]
    assert (clip.captions, clip.transcript, manifest["counts"]["segments without a sentence"]) == (["add salt"], None, 8)
    entry = dict(subset="training", annotations=[dict(id=0, segment=[1, 2, 3], sentence="cut")])
    write_json(tmp_path / "youcookii_annotations_trainval.json", dict(database=dict(v=entry)))
    assert "video v has an annotation without id, segment" in refused("youcook2", tmp_path)


def test_an_utterance_that_lasts_no_time_is_left_out(tmp_path):
    rows = [dict(video_id=name, clip_id=1, text="good", score=1, split="train", start=0, end=2) for name in IDS]
    write_table(tmp_path, [rows[0] | dict(start=2), rows[1] | dict(end="nan"), *rows[2:]], "mosi_meta.csv")
    import_data("mosi", tmp_path, tmp_path / "out", quiet, "table")
    assert left_out(tmp_path / "out") == {name: f"no stretch of time ({ends} s)" for name, ends in
                                          (("video0_1", "2 to 2"), ("video1_1", "0 to nan"))}  # fmt: skip


@pytest.mark.parametrize("changed", (dict(audio_lengths=[3]), dict(audio_lengths=None), dict(vision=["a", "b"])), ids=str)
def test_arrays_of_a_sentiment_pickle_that_do_not_fit_are_refused(tmp_path, changed):
    values = np.ones((2, 5, 3))
    split = dict(id=["v$_$1", "w$_$2"], raw_text=["a", "b"], vision=values, audio=values, regression_labels=np.ones(2)) | changed
    (tmp_path / "unaligned_50.pkl").write_bytes(pickle.dumps(dict(train=split)))
    assert "isn't (rows, D) numbers" in refused("mosi", tmp_path, "unaligned")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    make_features(tmp_path, IDS)
    write_table(tmp_path, [dict(video=name, caption="text") for name in IDS])
    with pytest.raises(ConfigError, match=r"^data\.folder=.*can't be made \(not a directory\); choose another folder$"):
        import_data("videos", tmp_path, tmp_path / "captions.csv" / "out", quiet)


def test_msvd_captions_of_the_corpus_and_of_a_pickle(tmp_path):
    """Numbers of the clips say the splits; what no split has is counted."""
    names = {f"vid{number}": f"abc{number}_0_9" for number in (1, 2, 3, 4, 1200, 1201, 1301)}
    corpus, lists = tmp_path / "corpus", tmp_path / "lists"
    for folder in (corpus, lists):
        folder.mkdir()
        make_features(folder, list(names.values()))
    (corpus / "youtube_mapping.txt").write_text("".join(f"{name} {clip}\n" for clip, name in names.items()))
    lines = ["# comment", "", *(f"{name} A man, {clip}" for clip, name in names.items()), "other_0_1 A cat"]
    (corpus / "AllVideoDescriptions.txt").write_text("\r\n".join(lines))
    (lists / "raw-captions.pkl").write_bytes(pickle.dumps({name: [["a", "man"], "a dog"] for name in [*names.values(), "other_0_1"]}))
    for split, clips in {"train": list(names)[:5], "val": ["vid1201"], "test": ["vid1301"]}.items():
        (lists / f"{split}_list.txt").write_text("\n".join(names[clip] for clip in clips))
    for folder, dropped, clip, captions in ((corpus, 1, "vid1301", ["A man, vid1301"]), (lists, 2, "abc1301_0_9", ["a man", "a dog"])):
        manifest = import_data("msvd_captions", folder, folder / "out", quiet)
        assert manifest["rows"] == {"train": 4, "meta": 1, "validation": 1, "test": 1}
        assert f"{dropped} captions of clips in no split, dropped" in manifest["warnings"]
        assert clips_of(folder / "out")[clip].captions == captions


def test_absolute_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    """Also outside the source folder, also where that is given by a relative path; a clip that is whole, and a segment."""
    source, other = tmp_path / "source", tmp_path / "other"
    for folder in (source, other):
        folder.mkdir()
    videos = [other / "a.mp4", other / "b.mp4", source / "c.mp4", source / "d.mp4"]
    for frames, path in enumerate(videos, 2):
        make_video(path, times=list(range(frames)))
    rows = [dict(video=str(path), caption="text", end=end) for path, end in zip(videos, ("", 9, "", ""))]
    write_table(source, [*rows, dict(video=str(other / "gone.mp4"), caption="text")])
    monkeypatch.chdir(tmp_path)
    manifest = import_data("videos", source.relative_to(tmp_path), tmp_path / "out", quiet)
    assert left_out(tmp_path / "out") == {"gone": "no video"} and manifest["counts"]["videos that no clip names"] == 0
    clips = {clip.id: clip for split in manifest["splits"] for clip in ClipStore(tmp_path / "out", split, videos=True)}
    assert clips["a"].video == videos[0].read_bytes() and clips["b_0_9"].video == videos[1] and clips["c"].video == videos[2].read_bytes()
    videos[0].write_bytes(videos[1].read_bytes())
    with pytest.raises(ConfigError, match="from another source"):
        import_data("videos", source, tmp_path / "out", quiet)


def save_one_npz(path, values):
    np.savez(path.with_suffix(".npz"), features=values)


def save_one_hdf5(path, values):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["features"], file["fps"] = values, 25.0


@pytest.mark.parametrize("save", (save_one_npz, save_one_hdf5))
def test_files_of_one_array_of_one_name_are_named_by_their_video(tmp_path, save):
    """More of them than a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = [f"v{at}" for at in range(100)]
    for at, name in enumerate(names):
        save(tmp_path / name, np.full((3, 4), at, np.float32))
    write_table(tmp_path, [dict(video=f"{name}.mp4", caption="text") for name in names])
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, hard))
    try:
        manifest = import_data("videos", tmp_path, tmp_path / "out", quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    clips = clips_of(tmp_path / "out")
    assert all((clips[name].features == at).all() for at, name in enumerate(names)) and manifest["feature_extractor"] == ""


@pytest.mark.parametrize("form", ("ids", "columns", "npy"))
def test_integers_are_features_and_objects_are_called_what_they_are(tmp_path, form):
    values = np.arange(8 * 12).reshape(8, 3, 4)

    def save(values, ids):
        if form == "columns":
            np.savez(tmp_path / "f.npz", id=ids, number=np.arange(8), feat=values)
        elif form == "ids":
            np.savez(tmp_path / "f.npz", **dict(zip(IDS, values)))
        else:
            np.save(tmp_path / "video0.npy", values[0])

    write_table(tmp_path, [dict(video=name, caption="text") for name in IDS])
    if form == "npy":
        make_features(tmp_path, IDS[1:])
    save(values, np.array(IDS))
    import_data("videos", tmp_path, tmp_path / "integers", quiet)
    assert (clips_of(tmp_path / "integers")["video0"].features == values[0]).all()
    save(values.astype(object), np.array(IDS, object))
    line = refused("videos", tmp_path)
    assert "holds an array of Python objects" in line and "whole" not in line


def mult_pickle(count: int) -> dict:
    generator = np.random.default_rng(count)
    vision, audio = generator.normal(size=(count, 4, 3)), generator.normal(size=(count, 4, 2))
    return dict(id=np.array([[f"v{count}_{at // 2}", str(at), "99.0"] for at in range(count)]), text=np.ones((count, 4, 300)), vision=vision,
                audio=audio, labels=vision.mean(1)[:, :1, None])  # fmt: skip


def test_utterances_without_words_are_rated(tmp_path):
    """MulT's pickles: a batch is made and scored, with nothing to mask and no word to put in its place."""
    content = {split: mult_pickle(count) for split, count in (("train", 16), ("valid", 4), ("test", 6))}
    (tmp_path / "mosi_data.pkl").write_bytes(pickle.dumps(content))
    manifest = prepare("mosi", tmp_path, tmp_path / "out", quiet, "aligned")
    assert sum(manifest["rows"].values()) == 26 and manifest["counts"]["clips left out"] == 0
    vocabulary = Vocabulary(tmp_path / "out" / "vocabulary.txt")
    assert len(vocabulary) == len(SPECIAL)
    clips = list(ClipStore(tmp_path / "out", "train"))[:4]
    task = TaskConfig(name="sentiment", primary="sentiment", loss_set=list(losses_of("univl", "sentiment").offered))
    inputs = UniVLInputs(vocabulary, DataConfig(max_words=6, max_frames=4), task, feature_size=3, audio=AudioScale.of(clips))
    config = UniVLConfig(hidden_size=16, num_heads=2, feed_forward_size=16)
    losses = UniVLLosses(UniVL(config, len(vocabulary), 3, "sentiment", audio_size=2), task)
    assert vector(losses(inputs.batch(clips, seed=0))).isfinite().all() and losses.rate(inputs.evaluation(clips)).isfinite().all()


def test_too_few_videos_say_how_many_were_left_out_and_why(tmp_path):
    make_features(tmp_path, IDS[5:])
    write_table(tmp_path, [dict(video=name, caption="text") for name in IDS])
    assert "source=3 videos to train on (5 of 8 clips were left out, the first, video0: no features): meta" in refused("videos", tmp_path)


def test_repeats_and_captions_without_a_letter_go_and_are_counted(tmp_path):
    make_features(tmp_path, IDS)
    asked = dict(caption=" A cat. ", question="what?", answer="cat")
    rows = [
        dict(video=IDS[0]) | asked | dict(options="dog|cat|cat"),
        dict(video=IDS[0]) | asked | dict(options="dog|cat"),
        dict(video=IDS[1]) | asked | dict(caption="?!"),
        *(dict(video=name) | asked | dict(caption="\u732b 2") for name in IDS[2:]),
    ]
    write_table(tmp_path, rows)
    manifest = import_data("videos", tmp_path, tmp_path / "out", quiet)
    clip = clips_of(tmp_path / "out")["video0"]
    assert clip.captions == ["A cat."] and [question.options for question in clip.questions] == [["dog", "cat"]]
    assert left_out(tmp_path / "out") == {"video0-0": "question with equal options"} and manifest["counts"]["clips left out"] == 0
    assert clips_of(tmp_path / "out")["video1"].captions == [] and clips_of(tmp_path / "out")["video2"].captions == ["\u732b 2"]
    for name in ("repeated captions", "empty captions", "questions with equal options"):
        assert f"1 {name}, dropped" in manifest["warnings"]
