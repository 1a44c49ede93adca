"""Importers on a few lines of ours in their authors' forms: what a clone without the original files can still run.

`test_annotation_formats.py`, `test_msrvtt.py` and `test_pixels.py` read the originals, where they are.
"""

import base64
import gzip
import io
import json
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.violet.visual_tokens import read_dalle_tokens
from meltr_ray.video.clips import pixels
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.clips.video import decode_frames, decode_video, encode_video
from meltr_ray.video.clips.vocabulary import Vocabulary
from meltr_ray.video.datasets.importers import mosi, msvd_captions, msvd_qa, tgif_qa, violet_files, youcook2
from meltr_ray.video.datasets.prepare import import_data, prepare


def silent(line: str) -> None:
    pass


def write(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """Smooth grey ones of 48 x 32, as JPEG in colour."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        picture = Image.fromarray(random.integers(0, 256, (4, 6), np.uint8)).resize((48, 32)).convert("RGB")
        picture.save(buffer := io.BytesIO(), "JPEG", quality=95)
        found.append(buffer.getvalue())
    return found


def test_youcook2_without_lists_takes_the_subsets(tmp_path):
    part = dict(id=7, segment=[2, 5.5], sentence=" cut it ")
    database = dict(a=dict(subset="training", annotations=[part]), b=dict(subset="validation", annotations=[part, dict(part, id=8)]))
    write(tmp_path / "youcookii_annotations_trainval.json.gz", json.dumps(dict(database=database)))
    annotations = youcook2.read(tmp_path, None)
    assert {split: [clip.id for clip in clips] for split, clips in annotations.splits.items()} == {"train": ["a_7"], "test": ["b_7", "b_8"]}
    (clip,) = annotations.splits["train"]
    assert (clip.source, clip.start, clip.end, clip.captions) == ("a", 2.0, 5.5, ["cut it"]) and annotations.media["b_8"] == "b"


@pytest.fixture
def msvd(tmp_path) -> Path:
    asked = [dict(video_id=3, id=number, question=" who runs? ", answer="A  Dog") for number in (10, 11)]
    write(
        tmp_path / "msvdqa_val_qa.json.gz",
        json.dumps([*asked, *(dict(asked[0], video_id=number, id=8 + number) for number in range(4, 9))]),
    )
    write(
        tmp_path / "youtube_mapping.txt",
        "x_y_0_9 vid3\nx_y_9_20 vid4\n" + "".join(f"z{number}_0_9 vid{number}\n" for number in range(5, 9)),
    )
    write(tmp_path / "sents_val_lc_nopunc.txt.gz", "vid3\ta dog runs\nvid4\ta cat\nvid3\ta dog runs\nvid3\tit runs\n")
    return tmp_path


def test_msvd_gathers_questions_and_captions_by_clip(msvd):
    asked, told = msvd_qa.read(msvd, None), msvd_captions.read(msvd, None)
    first, second, *_ = asked.splits["validation"]
    assert (first.id, first.source, asked.media["vid3"]) == ("vid3", "x_y", "x_y_0_9") and (second.id, second.source) == ("vid4", "x_y")
    assert [(q.id, q.question, q.answer, q.kind, q.right) for q in first.questions] == [
        (n, "who runs?", "a dog", "who", None) for n in ("10", "11")
    ]
    assert {clip.id: clip.captions for clip in told.splits["validation"]} == {
        "vid3": ["a dog runs", "a dog runs", "it runs"],
        "vid4": ["a cat"],
    }
    assert told.counts == {"captions": 4, "captions listed twice for a clip": 1}


@pytest.mark.parametrize("variant, name, columns, row, expected", [
    ("action", "action", "a1\ta2\ta3\ta4\ta5\tanswer", "run\tJump  up\tsit\teat\tlie\t1", ("jump up", 1, "action")),
    ("transition", "transition", "a1\ta2\ta3\ta4\ta5\tanswer", "run\tjump\tsit\teat\tlie\t4", ("lie", 4, "transition")),
    ("frame", "frameqa", "answer\ttype", "Two\t1", ("two", None, "number")),
])  # fmt: skip
def test_tgif_qa_in_its_three_forms(variant, name, columns, row, expected, tmp_path):
    write(tmp_path / f"Test_{name}_question.csv.gz", f"gif_name\tquestion\t{columns}\tvid_id\tkey\ng\t What ?\t{row}\tQ1\t2\n")
    annotations = tgif_qa.read(tmp_path, variant)
    (clip,) = annotations.splits["test"]
    (question,) = clip.questions
    assert (clip.id, question.id, question.question) == ("g", "Q1", "What ?") and "no Train" in annotations.warnings[0]
    assert (question.answer, question.right, question.kind) == expected


def test_mosi_joins_its_table_with_its_audio(tmp_path):
    rows = "a,1,a_1,oh good ,2.5,train,0.5,2\nb,3,b_3,,-1,valid,1,3\n"
    write(tmp_path / "mosi_meta.csv", f"video_id,clip_id,id,text,score,split,start,end\n{rows}")
    audio = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    np.savez(tmp_path / "mosi_audio.npz", id=["b_3", "a_1"], audio=audio)
    splits = mosi.read(tmp_path, "table").splits
    (first,), (second,) = splits["train"], splits["validation"]
    assert (first.id, first.source, first.transcript, first.score, first.start, first.end) == ("a_1", "a", "oh good", 2.5, 0.5, 2.0)
    assert second.transcript is None and np.array_equal(first.audio, audio[1:]) and np.array_equal(second.audio, audio[:1])


def test_two_imports_are_byte_identical(msvd, tmp_path):
    for name in "ab":
        manifest = prepare("msvd_qa", msvd, tmp_path / name, silent)
        assert sum(manifest["rows"].values()) == 6
    assert [path.name for path in (tmp_path / "a").iterdir()]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_violets_images_keep_their_bytes():
    """As `test_annotation_formats.py` has it for theirs: packets are the images, and frames what libjpeg makes of them."""
    jpegs = pictures(3)
    video = violet_files.joined([base64.b64encode(jpeg).decode() for jpeg in jpegs])
    with av.open(io.BytesIO(video)) as container:
        assert [bytes(packet) for packet in container.demux(video=0) if packet.size] == jpegs
    expected = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])
    assert np.abs(decode_video(video).astype(int) - expected).mean() < 2
    assert np.array_equal(decode_frames(video, lambda available: pixels.violet_frames(available, 3)), decode_video(video))


def test_violets_files_become_clips_with_images_tokens_and_answers(tmp_path):
    names = [f"v{at}" for at in range(5)]
    images = {name: [base64.b64encode(jpeg).decode() for jpeg in pictures(2, at)] for at, name in enumerate(names)}
    codes = {name: np.full((2, 7, 7), at, np.int16) for at, name in enumerate(names)}
    for file, content in {"img_msvd.pkl": images, "msvd_vq.pkl": codes}.items():
        (tmp_path / file).write_bytes(pickle.dumps(content))
    rows = [dict(video=name, question="What is it ?", answer=at % 2) for at, name in enumerate(names[:4])]
    text = dict(train=rows[:3], test=[rows[3], dict(video="gone", question="who ?", answer=1)], vocab=["dog", "cat"])
    (tmp_path / "txt_msvd-qa.json").write_text(json.dumps(text))
    manifest = prepare("violet_files", tmp_path, tmp_path / "out", silent, "msvd-qa")
    assert sum(manifest["rows"].values()) == 4 and manifest["counts"]["videos of img_msvd.pkl that no clip names"] == 1
    assert "test,gone,no video" in (tmp_path / "out" / "left_out.csv").read_text()
    (clip,) = ClipStore(tmp_path / "out", "test", videos=True)
    assert (clip.id, clip.questions[0].question, clip.questions[0].answer) == ("v3", "What is it ?", "cat")
    assert np.array_equal(clip.vq_tokens, codes["v3"].ravel()) and decode_video(clip.video).shape == (2, 32, 48, 3)
    assert all(np.array_equal(read_dalle_tokens(tmp_path / "msvd_vq.pkl")[name], codes[name]) for name in names)
    with pytest.raises(ConfigError, match="^pickle=.*: holds no int16 codes"):
        read_dalle_tokens(tmp_path / "img_msvd.pkl")


@pytest.mark.parametrize("variant", ("9k", "7k"))
def test_msrvtts_splits_of_the_field_take_their_lists_and_test_sentences(tmp_path, variant):
    names = [f"video{at}" for at in range(30)]
    annotation = dict(videos=[dict(video_id=name, url=name) for name in names],
                      sentences=[dict(video_id=name, sen_id=1, caption=f"it is {name}") for name in names])  # fmt: skip
    write(tmp_path / "MSRVTT_data.json", json.dumps(annotation))
    np.savez(tmp_path / "features.npz", video_id=names, feat=np.ones((30, 2, 4), np.float32))
    write(tmp_path / f"MSRVTT_train.{variant}.csv", "video_id\n" + "\n".join(names[:25]))
    write(tmp_path / "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr24,video24,its own\nret1,msr99,video99,unknown\n")
    manifest = import_data("msrvtt", tmp_path, tmp_path / "clips", silent, variant)
    assert manifest["counts"]["duplicate ids"] == 1 and manifest["rows"]["test"] == 1  # video24 tests, so it doesn't train
    assert sum(manifest["rows"].values()) == 25 and manifest["counts"]["annotated videos in no split, dropped"] == 5
    (clip,) = ClipStore(tmp_path / "clips", "test")
    assert clip.id == "video24" and clip.captions == ["its own"]


def test_clips_are_read_from_bytes_and_files_at_any_length(tmp_path):
    content = encode_video(np.random.default_rng(0).integers(0, 256, (22, 18, 32, 3), np.uint8))
    (tmp_path / "clip.mp4").write_bytes(content)
    assert np.array_equal(pixels.violet_clip(content, 5, 32), pixels.violet_clip(tmp_path / "clip.mp4", 5, 32))
    generators = np.random.default_rng(0), np.random.default_rng(1)
    assert pixels.violet_clip(content, 5, 32).shape == (5, 3, 32, 32)
    assert pixels.allinone_clip(content, 40, 32, *generators).shape == (40, 3, 32, 32)


def test_ids_are_lines_of_the_vocabulary(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "play", "##ing", "'", "t", "isn", "日"]
    write(tmp_path / "vocab.txt", "\n".join(words) + "\n")
    vocabulary = Vocabulary(tmp_path / "vocab.txt")
    assert (len(vocabulary), vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id) == (
        12,
        0,
        1,
        2,
        3,
        4,
    )
    for text, ids in {"Café playing": [5, 6, 7], "isn't日😀": [10, 8, 9, 11, 1], "a" * 101: [1], "": []}.items():
        assert vocabulary.encode(text, max_words=64) == [2, *ids, 3] and vocabulary.encode(text, max_words=4) == [2, *ids[:2], 3]
