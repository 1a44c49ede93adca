"""Importers of YouCook2, MSVD, TGIF-QA, CMU-MOSI and VIOLET's files, on the original files of their authors."""

import base64
import csv
import gzip
import io
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from meltr_ray.config import ConfigError
from meltr_ray.video.clips.pixels import violet_frames
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.clips.video import decode_frames, decode_video
from meltr_ray.video.datasets.importers import mosei, mosi, msvd_captions, msvd_qa, tgif_qa, violet_files, youcook2
from meltr_ray.video.datasets.pickles import read_pickle
from meltr_ray.video.datasets.prepare import prepare

SHARED = Path(__file__).parents[3] / "shared" / "data"
FORMATS, MOSI, CLIPS = SHARED / "formats", SHARED / "mosi", SHARED / "msrvtt_clips"
real_data = pytest.mark.skipif(not FORMATS.is_dir(), reason="original annotation files are not at ../shared/data")


def silent(line: str) -> None:
    pass


def message(call) -> str:
    with pytest.raises(ConfigError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def questions(clips) -> list:
    return [question for clip in clips for question in clip.questions]


@real_data
def test_youcook2_has_every_segment_of_its_authors():
    database = json.loads(gzip.open(FORMATS / "youcookii_annotations_trainval.json.gz").read())["database"]
    annotations = youcook2.read(FORMATS, None)
    for split, subset in {"train": "training", "test": "validation"}.items():
        rows = [(f"{video}_{part['id']}", video, *map(float, part["segment"]), [part["sentence"].strip()])
                for video, entry in database.items() if entry["subset"] == subset for part in entry["annotations"]]  # fmt: skip
        assert [(c.id, c.source, c.start, c.end, c.captions) for c in annotations.splits[split]] == rows
    assert {split: len(clips) for split, clips in annotations.splits.items()} == {"train": 10337, "test": 3492}
    assert annotations.media["GLd3aX16zBg_0"] == "GLd3aX16zBg"


@real_data
def test_msvd_has_every_question_and_caption_of_its_authors():
    rows = json.loads(gzip.open(FORMATS / "msvdqa_val_qa.json.gz").read())
    mapping = {number: name for name, number in map(str.split, open(FORMATS / "youtube_mapping.txt"))}
    asked = msvd_qa.read(FORMATS, None)
    assert Counter(question.id for question in questions(asked.splits["validation"])) == Counter(str(row["id"]) for row in rows)
    assert len(rows) == 6415 and asked.num_answers == 1000 and list(asked.splits) == ["validation"]
    first = asked.splits["validation"][0]
    assert (first.id, first.source, asked.media[first.id]) == ("vid1201", "bQJQGoJF7_k", mapping["vid1201"])
    assert (first.questions[0].answer, first.questions[0].kind, first.questions[0].right) == ("someone", "who", None)

    lines = gzip.open(FORMATS / "sents_val_lc_nopunc.txt.gz", "rt").read().splitlines()
    told = msvd_captions.read(FORMATS, None)
    assert sorted(f"{c.id}\t{caption}" for c in told.splits["validation"] for caption in c.captions) == sorted(lines)
    assert told.counts == {"captions": 4290, "captions listed twice for a clip": 4290 - len(set(lines))}


@real_data
@pytest.mark.parametrize(
    "variant, name, clips", [("action", "action", 2274), ("transition", "transition", 3116), ("frame", "frameqa", 7132)]
)
def test_tgif_qa_has_every_question_of_its_authors(variant, name, clips):
    with gzip.open(FORMATS / f"Test_{name}_question.csv.gz", "rt", newline="") as file:
        rows = {row["vid_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    annotations = tgif_qa.read(FORMATS, variant)
    assert len(annotations.splits["test"]) == clips and "no Train" in annotations.warnings[0]
    for clip in annotations.splits["test"]:
        for question in clip.questions:
            row = rows.pop(question.id)
            assert (clip.id, question.question) == (row["gif_name"], row["question"].strip())
            answer = row["answer"] if variant == "frame" else row[f"a{int(row['answer']) + 1}"]
            assert question.answer == " ".join(answer.lower().split())
            assert question.right == (None if variant == "frame" else int(row["answer"]))
            kinds = ("object", "number", "color", "location")
            assert question.kind == (kinds[int(row["type"])] if variant == "frame" else variant)
    assert not rows


@real_data
def test_mosi_has_every_utterance_and_its_audio():
    with open(MOSI / "mosi_meta.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    annotations = mosi.read(MOSI, "table")
    clips = {clip.id: clip for split in annotations.splits.values() for clip in split}
    assert {split: len(part) for split, part in annotations.splits.items()} == {"train": 1284, "validation": 229}
    with np.load(MOSI / "mosi_audio.npz", allow_pickle=False) as stored:
        audio = dict(zip(stored["id"].tolist(), stored["audio"]))
    for row in rows:
        clip = clips.pop(row["id"])
        assert (clip.source, clip.transcript, clip.score) == (row["video_id"], row["text"].strip(), float(row["score"]))
        assert (clip.start, clip.end) == (float(row["start"]), float(row["end"]))
        assert clip.audio.dtype == np.float32 and np.array_equal(clip.audio, audio[row["id"]][None])
    assert not clips


@real_data
@pytest.mark.parametrize("data, variant, rows", [("msvd_qa", None, 245), ("tgif_qa", "action", 2274)])
def test_two_imports_of_real_files_are_byte_identical(data, variant, rows, tmp_path):
    for name in "ab":
        manifest = prepare(data, FORMATS, tmp_path / name, silent, variant)
        assert sum(manifest["rows"].values()) == rows
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_youcook2_as_univl_has_it_takes_its_lists_transcripts_and_seconds_of_features(tmp_path):
    """Lists name fewer videos than the annotation; a segment has the seconds that it touches, as UniVL's loader cuts them."""
    database = {f"v{n}": dict(subset="training", annotations=[dict(id=0, segment=[2, 5], sentence=f"cut {n}")]) for n in range(9)}
    (tmp_path / "youcookii_annotations_trainval.json").write_text(json.dumps({"database": database}))
    univl = dict(start=[1.5, 4], end=[3.2, 90], text=["add salt", "stir"], transcript=["now salt", "NONE"])
    (tmp_path / "youcookii_data.pickle").write_bytes(pickle.dumps({f"v{n}": univl for n in range(8)}))
    for split, numbers in {"train": range(6), "val": (6, 7)}.items():
        (tmp_path / f"youcookii_{split}.csv").write_text("video_id,feature_file\n" + "".join(f"v{n},v{n}\n" for n in numbers))
    seconds = {f"v{n}": np.random.default_rng(n).normal(size=(8, 3)).astype(np.float32) for n in range(8)}
    (tmp_path / "youcookii_videos_features.pickle").write_bytes(pickle.dumps(seconds))
    manifest = prepare("youcook2", tmp_path, tmp_path / "out", silent)
    assert manifest["rows"] == {"train": 8, "meta": 2, "validation": 2, "test": 4}
    first, second = list(ClipStore(tmp_path / "out", "test"))[:2]
    assert (first.id, first.captions, first.transcript, second.transcript) == ("v6_0", ["add salt"], "now salt", None)
    assert np.array_equal(first.features, seconds["v6"][1:4].astype(np.float16)) and len(second.features) == 4


def test_sentiment_pickles_of_mmsa_and_mult(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 6, 3))
    padded = values * (np.arange(6) < 4)[:, None]
    split = dict(id=["ab_c$_$11", "ab_c$_$2"], raw_text=np.array(["so good", "meh"]), vision=padded, audio=padded,
                 regression_labels=np.array([2.4, -1]), vision_lengths=[3, 4])  # fmt: skip
    (tmp_path / "unaligned_50.pkl").write_bytes(pickle.dumps(dict.fromkeys(("train", "valid", "test"), split), protocol=4))
    clip = mosei.read(tmp_path, "unaligned").splits["validation"][0]
    assert (clip.id, clip.source, clip.transcript, clip.score) == ("ab_c_11", "ab_c", "so good", 2.4)
    assert np.array_equal(clip.features, padded[0, :3].astype(np.float32)) and clip.audio.shape == (4, 3)

    padded[0, 1, 2] = -np.inf
    split = dict(id=np.array([["v", "1.5", "2"], ["w", "0", "9"]], "S"), vision=padded, audio=padded, labels=np.zeros((2, 1, 1)))
    (tmp_path / "mosi_data.pkl").write_bytes(pickle.dumps(dict(train=split), protocol=2))
    annotations = mosi.read(tmp_path, "aligned")
    clip = annotations.splits["train"][0]
    assert (clip.id, clip.source, clip.start, clip.end) == ("v_1.5", "v", 1.5, 2.0) and clip.audio[1, 2] == 0
    infinite, no_words = annotations.warnings
    assert infinite.startswith("2 values of minus infinity") and no_words.startswith("mosi_data.pkl has no raw_text")


def test_mosi_transcripts_of_the_corpus_and_videos_whole_or_cut(tmp_path):
    rows = "a,1,1,train,5,6\nb,1,-3,valid,7,8\nb,2,4.2,test,8,9\n"
    (tmp_path / "label.csv").write_text(f"video_id,clip_id,label,mode,start,end\n{rows}")
    for video in "ab":
        (tmp_path / f"{video}.annotprocessed").write_text(f"1_DELIM_FINE {video}\n2_DELIM_ODD\n")
    for name in ("a_1.mp4", "b.mp4"):  # a clip that was cut, and a whole video
        (tmp_path / name).write_bytes(b"")
    annotations = mosi.read(tmp_path, "table")
    first, second, third = (annotations.splits[split][0] for split in ("train", "validation", "test"))
    assert (first.transcript, first.start, second.start, annotations.media) == ("FINE a", None, 7.0, {"b_1": "b", "b_2": "b"})
    assert third.score == 4.2 and annotations.warnings == ["b_2: score 4.2 isn't in -3 to 3"]


@real_data
def test_violets_images_keep_their_bytes_and_its_frames():
    """Brightness agrees to rounding; colour, which libjpeg smooths and FFmpeg doesn't, up to 60 of 255 at edges."""
    for images in list(read_pickle(CLIPS / "violet_frames_msrvtt.pkl").values())[:4]:
        video, jpegs = violet_files.joined(images), [base64.b64decode(image) for image in images]
        assert video == violet_files.joined(images)
        with av.open(io.BytesIO(video)) as container:
            assert [bytes(packet) for packet in container.demux(video=0) if packet.size] == jpegs
        with av.open(io.BytesIO(video)) as container:
            brightness = [frame.to_ndarray()[: frame.height].astype(int) for frame in container.decode(video=0)]
        for got, jpeg in zip(brightness, jpegs, strict=True):
            image = Image.open(io.BytesIO(jpeg))
            image.draft("YCbCr", None)
            assert np.abs(got - np.asarray(image.convert("YCbCr"))[..., 0]).max() <= 1
        decoded = decode_video(video)
        expected = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])
        assert np.abs(decoded.astype(int) - expected).mean() < 2
        assert np.array_equal(decode_frames(video, lambda available: violet_frames(available, 5)), decoded)


@real_data
def test_violets_files_become_clips_with_its_tokens(tmp_path):
    """Real images, tokens and captions; the authors' list that lies beside them names one of these ten videos."""
    captions = {row["video_id"]: row["captions"] for row in json.loads((CLIPS / "clips.json").read_text())}
    for name in ("violet_frames_msrvtt.pkl", "violet_dalle_vq_msrvtt.pkl"):
        shutil.copy(CLIPS / name, tmp_path)
    videos = sorted(read_pickle(tmp_path / "violet_frames_msrvtt.pkl"))
    rows = [dict(video=video, caption=caption) for video in videos[:9] for caption in captions[video][:2]]
    missing = dict(video="video1", caption="a thing")
    (tmp_path / "txt_msrvtt-retrieval.json").write_text(json.dumps(dict(train=[*rows[:14], missing], test=rows[14:])))
    manifest = prepare("violet_files", tmp_path, tmp_path / "out", silent, "msrvtt-retrieval")
    assert sum(manifest["rows"].values()) == 9
    assert manifest["counts"]["videos of violet_frames_msrvtt.pkl that no clip names"] == 1
    assert "train,video1,no video" in (tmp_path / "out" / "left_out.csv").read_text()
    clip = ClipStore(tmp_path / "out", "test", videos=True)[0]
    assert clip.id == videos[7] and clip.captions == [caption.strip() for caption in captions[clip.id][:2]]
    assert np.array_equal(clip.vq_tokens, read_pickle(tmp_path / "violet_dalle_vq_msrvtt.pkl")[clip.id].ravel())
    assert decode_video(clip.video).shape == (5, 240, 320, 3)


@real_data
def test_violets_answers_are_words_of_its_vocabulary():
    content = json.loads((CLIPS / "violet_txt_msvd-qa.json").read_text())
    annotations = violet_files.read(CLIPS, "msvd-qa")
    asked = Counter((row["video"], row["question"], content["vocab"][row["answer"]]) for row in content["test"])
    assert Counter((clip.id, q.question, q.answer) for clip in annotations.splits["test"] for q in clip.questions) == asked
    assert annotations.num_answers == 1000 and annotations.splits["train"][0].source == "7xNG7qGY9rw"


def test_multiple_choice_of_violet_and_a_clip_in_two_splits(tmp_path):
    row = dict(video="g", question="What does it do ?", option_0="Run", option_1="jump", answer=1)
    (tmp_path / "txt_tgif-action.json").write_text(json.dumps(dict(train=[row, row], test=[row])))
    annotations = violet_files.read(tmp_path, "tgif-action")
    first, again = annotations.splits["train"][0].questions
    assert (first.options, first.right, first.answer, first.kind) == (["run", "jump"], 1, "jump", "action")
    assert first.id != again.id
    assert annotations.splits["test"][0].id == "g@test" and annotations.splits["test"][0].source == "g"
    assert annotations.media == {"g@test": "g"} and annotations.warnings == ["1 clips in more than one split"]


TGIF = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\n"
SEGMENT = '{"database": {"v": {"subset": "training", "annotations": [{"id": 3, "segment": [9, 9], "sentence": "cut"}]}}}'
CHOICE = '{"train": [{"video": "g", "question": "?", "option_0": "a", "answer": 1}]}'
ASKED = '[{"video_id": 1, "id": 2, "question": "who?"}]'
SCORED = "video_id,clip_id,text,score,split\n"
BAD = [
    (youcook2, None, "youcookii_annotations_trainval.json", SEGMENT, "segment 3 of video v lasts from 9 to 9 s"),
    (youcook2, None, "youcookii_annotations_trainval.json", SEGMENT.replace("segment", "part"), "video v has an annotation"),
    (youcook2, None, "youcookii_annotations_trainval.json", SEGMENT[:40], "is no whole JSON file"),
    (msvd_qa, None, "val_qa.json", ASKED, "question 1 has no answer"),
    (msvd_qa, None, "val_qa.json", ASKED.replace("}", ', "answer": "a", "category_id": 3}'), "use data=msrvtt_qa"),
    (msvd_captions, None, "sents_val_lc_nopunc.txt", "vid1\ta man\nvid2 a dog\n", "line 2 isn't a video, a tab and a caption"),
    (msvd_captions, None, "sents_val_lc_nopunc.txt", b"vid1\ta man\nvid2\ta caf\xe9\n", "line 2 .* isn't UTF-8"),
    (tgif_qa, "action", "Test_action_question.csv", TGIF.replace("\ta5", ""), "has no column a5"),
    (tgif_qa, "action", "Test_action_question.csv", TGIF + "g\tWhat ?\ta\tb\tc\td\te\t5\tA1\t2\n", r"A1\) has answer '5'"),
    (tgif_qa, "action", "Test_action_question.csv.gz", gzip.compress(TGIF.encode())[:-9], "is no whole gzip file"),
    (mosi, "table", "mosi_meta.csv", SCORED + "a,1,hm,much,train\n", "row 1 has score 'much'"),
    (mosi, "table", "mosi_meta.csv", SCORED + "a,1,hm,1,dave\n", r"row 1 \(a_1\) has split 'dave'"),
    (mosi, "table", "mosi_meta.csv", "video_id,clip_id,text,split\na,1,hm,train\n", "has no column score or label"),
    (mosi, "aligned", "mosi_data.pkl", pickle.dumps(dict(train=dict(labels=[1.0], audio=[]))), "its train lacks vision"),
    (violet_files, "tgif-action", "txt_tgif-action.json", CHOICE, "row 0 of train"),
]  # fmt: skip


@pytest.mark.parametrize("importer, variant, name, content, expected", BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_file_is_refused_in_one_line_with_its_place(importer, variant, name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=expected) as error:
        importer.read(tmp_path, variant)
    assert str(error.value).startswith(f"source={tmp_path / name}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("importer", [youcook2, msvd_qa, msvd_captions, tgif_qa, mosi, mosei, violet_files])
def test_an_empty_folder_is_refused_with_the_names_that_are_looked_for(importer, tmp_path):
    for variant in getattr(importer, "VARIANTS", (None,)):
        assert message(lambda: importer.read(tmp_path, variant)).startswith(f"source={tmp_path}: no")
