"""What importers share, on real videos and features, whole and damaged: each bad input has its stated outcome."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from meltr_ray.config import ConfigError
from meltr_ray.video.clips import store
from meltr_ray.video.clips.video import decode_video
from meltr_ray.video.datasets.importers.files import read_csv, read_json, read_text
from meltr_ray.video.datasets.importers.msrvtt import CATEGORIES
from meltr_ray.video.datasets.prepare import ensure_prepared, import_data
from meltr_ray.video.datasets.probe import probe

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
CLIPS, MSRVTT_CLIPS, FORMATS = SHARED / "clips", SHARED / "msrvtt_clips", SHARED / "formats"
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real data is not at ../shared/data")


def quiet(line: str) -> None:
    pass


def clips_of(folder: Path) -> dict[str, object]:
    return {clip.id: clip for split in store.load_manifest(folder)["splits"] for clip in store.ClipStore(folder, split)}


def left_out(folder: Path) -> dict[str, str]:
    with open(folder / "left_out.csv", encoding="utf-8", newline="") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def write_table(folder: Path, rows: list[dict], name: str = "captions.csv") -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def make_features(folder: Path, ids: list[str], rows: int = 3, size: int = 4, **changed: np.ndarray) -> None:
    """features.npz: one array an id."""
    values = {name: np.random.default_rng(at).normal(size=(rows, size)).astype(np.float32) for at, name in enumerate(ids)}
    np.savez(folder / "features.npz", **(values | changed))


def make_video(path: Path, sizes: tuple[int, int] = (64, 48), times: list[int] | None = None, rotation: int = 0,
               codec: str = "mpeg4") -> None:  # fmt: skip
    """Of noise; `times`: the frames' times in tenths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = sizes
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 10)
        stream.codec_context.time_base = Fraction(1, 10)
        for number, time in enumerate(times or range(10)):
            image = np.random.default_rng(number).integers(0, 255, (sizes[1] // 8, sizes[0] // 8, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.kron(image, np.ones((8, 8, 1), np.uint8)), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rotation:  # the matrix of the track's header, from the identity to a quarter turn
        content, one = path.read_bytes(), (1 << 16).to_bytes(4, "big")
        identity = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4, "big")
        minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
        turned = bytes(4) + one + bytes(4) + minus + bytes(16) + (1 << 30).to_bytes(4, "big")
        at = content.index(identity, content.index(b"tkhd"))
        path.write_bytes(content[:at] + turned + content[at + len(turned) :])


def make_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module", params=[pytest.param("real", marks=real_data), "ours"])
def videos(request, tmp_path_factory) -> Callable[[str], Path]:
    """From a name to its H.264, in Matroska of sign language or in MP4 of MSR-VTT; ours are small ones of noise."""
    if request.param == "real":
        return lambda name: (CLIPS if name.startswith("asl_") else MSRVTT_CLIPS) / name
    folder = tmp_path_factory.mktemp("ours")

    def ours(name: str) -> Path:
        if not (folder / name).exists():
            make_video(folder / name, times=list(range(80)), codec="libx264")
        return folder / name

    return ours


@pytest.fixture(scope="module")
def odd_videos(videos, tmp_path_factory) -> Path:
    """Videos good and bad, ten clips in all that are good, and what was imported of them."""
    source = tmp_path_factory.mktemp("odd")
    for name in ("again", "bird", "book", "brother", "eat"):
        shutil.copy(videos(f"asl_{name}.mkv"), source)
    mkv, mp4 = videos("asl_again.mkv").read_bytes(), videos("video24.mp4").read_bytes()
    (source / "zero.mp4").touch()
    (source / "cut.mkv").write_bytes(mkv[: len(mkv) // 2])
    (source / "cut.mp4").write_bytes(mp4[: len(mp4) // 2])
    (source / "text.mp4").write_text("no video")
    (source / "codec.mkv").write_bytes(mkv.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVC"))
    make_sound(source / "sound.mp4")
    make_video(source / "one.mp4", times=[0])
    make_video(source / "large.mp4", (3840, 2160), times=[0, 1])
    make_video(source / "turned.mp4", rotation=90)
    make_video(source / "rate.mkv", times=[0, 1, 2, 9, 40, 41])
    rows = [dict(video=path.name, caption=f"caption of {path.name}") for path in sorted(source.iterdir())]
    write_table(source, [*rows, dict(video="absent", caption="no such video"), dict(video="one.mp4", caption=" ")])
    shutil.copy(videos("asl_yes.mkv"), source / "unnamed.mkv")
    return source


def test_bad_videos_are_left_out_with_a_reason_and_odd_ones_are_kept_as_they_were(request, odd_videos, tmp_path):
    lines: list[str] = []
    manifest = import_data("videos", odd_videos, tmp_path / "clips", lines.append)
    reasons, clips = left_out(tmp_path / "clips"), clips_of(tmp_path / "clips")
    cut = {"real": "video can't be decoded", "ours": "video is truncated"}[request.node.callspec.params["videos"]]
    expected = {"zero": "video has no bytes", "cut": cut, "cut.mp4": "video can't be decoded", "text": "video can't be decoded",
                "codec": "video has an unknown codec", "sound": "video holds no video", "absent": "no video",
                "unnamed.mkv": "no clip names this video"}  # fmt: skip
    assert {name: reason.split(" (")[0] for name, reason in reasons.items()} == expected
    assert set(clips) == {"asl_again", "asl_bird", "asl_book", "asl_brother", "asl_eat", "one", "large", "turned", "rate"}
    counts = manifest["counts"]
    assert counts["clips with video"] == 9 and counts["clips without video"] == 1 and counts["clips with unreadable video"] == 6
    assert (
        counts["videos that no clip names"] == 1
        and counts["empty captions, dropped"] == 1
        and clips["one"].captions == ["caption of one.mp4"]
    )
    assert counts["frames of a video, least"] == 1 and any("warning: left out" in line for line in lines)
    for split in manifest["splits"]:
        clip_store = store.ClipStore(tmp_path / "clips", split, videos=True)
        for clip in clip_store:
            assert clip.video == next(path for path in odd_videos.glob(f"{clip.id}.m*")).read_bytes()
            shape = decode_video(clip.video).shape
            assert probe(clip.video).frames == len(decode_video(clip.video)), clip.id
            assert clip.id != "turned" or shape[1:3] == (64, 48)  # upright


def test_a_truncated_video_is_seen_wherever_it_ends(videos, tmp_path):
    fast = tmp_path / "fast.mp4"  # its index first, so that it opens without its end
    with av.open(str(videos("video7011.mp4"))) as whole, av.open(str(fast), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    for path in (fast, videos("video7010.mp4"), videos("asl_book.mkv")):
        content = path.read_bytes()
        assert not probe(content).unreadable
        for share in (0.01, 0.3, 0.6, 0.85):
            assert probe(content[: int(share * len(content))]).unreadable, (path.name, share)


def test_a_video_that_ends_within_its_first_frame_holds_none(tmp_path):
    make_video(tmp_path / "whole.mkv", codec="libx264")
    with av.open(str(tmp_path / "whole.mkv")) as container:
        first = next(container.demux(video=0))
    content = (tmp_path / "whole.mkv").read_bytes()[: first.pos + first.size // 2]
    assert probe(content).unreadable == "holds no video frame"


def write_sources(folder: Path) -> Path:
    """Small ones of ours with the names of the real ones: ten videos with captions, with questions, and features in three splits."""
    ids = [f"video{at}" for at in range(10)]
    for name in ("clips", "msrvtt_clips", "msrvtt"):
        (folder / name).mkdir()
    for at, name in enumerate(ids):
        make_video(folder / "clips" / f"{name}.mp4", times=list(range(at + 2)))
        shutil.copy(folder / "clips" / f"{name}.mp4", folder / "msrvtt_clips")
    rows = [dict(file=f"{name}.mp4", label=f"noise number {at % 5} of ten", caption=None) for at, name in enumerate(ids)]
    (folder / "clips" / "captions.json").write_text(json.dumps(rows))
    rows = [dict(video_id=name, captions=[f"noise {at}", f"no {at}"], category=at,
                 qa=[dict(question="what is it?", answer=f"number {at}", qid=at)]) for at, name in enumerate(ids)]  # fmt: skip
    (folder / "msrvtt_clips" / "clips.json").write_text(json.dumps(rows))
    annotation = dict(videos=[dict(video_id=name, url=f"of {at // 2}", category=at) for at, name in enumerate(ids)],
                      sentences=[dict(video_id=name, sen_id=-at, caption=f"noise {at}") for at, name in enumerate(ids * 3)])  # fmt: skip
    (folder / "msrvtt" / "MSRVTT_data.json").write_text(json.dumps(annotation))
    (folder / "msrvtt" / "split.json").write_text(json.dumps(dict(train=ids[:7], val=ids[7:])))
    make_features(folder / "msrvtt", ids)
    return folder


IMPORTS = [("videos", "held_out", "clips"), ("videos", "overfit", "clips"), ("msrvtt_clips", "held_out", "msrvtt_clips"),
           ("msrvtt", "full", "msrvtt")]  # fmt: skip
ROWS = {"real": (20, 80, 14, 796), "ours": (10, 40, 10, 10)}


@pytest.fixture(scope="module", params=[pytest.param("real", marks=real_data), "ours"])
def imported_twice(request, tmp_path_factory) -> tuple[str, Path, Path, Path]:
    """Whose, where they come from, and all of IMPORTS by this process and by another one (whose strings have other hashes)."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    sources = SHARED if request.param == "real" else write_sources(tmp_path_factory.mktemp("sources"))
    arguments = [[name, str(sources / source), f"{name}_{variant}", variant] for name, variant, source in IMPORTS]
    script = "import json, sys; from pathlib import Path; from meltr_ray.video.datasets.prepare import import_data; " \
             "[import_data(n, Path(s), Path(sys.argv[1]) / f, print, v) for n, s, f, v in json.loads(sys.argv[2])]"  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", script, str(there), json.dumps(arguments)], cwd=ROOT, stdout=subprocess.DEVNULL)
    for name, source, folder, variant in arguments:
        import_data(name, Path(source), here / folder, quiet, variant)
    assert other.wait() == 0
    return request.param, sources, here, there


@pytest.mark.parametrize("at", range(len(IMPORTS)), ids=[f"{name}-{variant}" for name, variant, _ in IMPORTS])
def test_two_imports_of_real_data_are_equal_byte_for_byte(imported_twice, at):
    whose, _, *both = imported_twice
    name, variant, _ = IMPORTS[at]
    here, there = (folder / f"{name}_{variant}" for folder in both)
    manifest = store.check_folder(here)
    files = sorted(path.name for path in there.iterdir())
    assert {"manifest.json", "left_out.csv", "vocabulary.txt", "train-00000.parquet"} <= set(files)
    assert all((here / file).read_bytes() == (there / file).read_bytes() for file in files)
    assert sum(manifest["rows"].values()) == manifest["media"]["features" if name == "msrvtt" else "video"] == ROWS[whose][at]


def test_real_clips_have_their_official_questions(imported_twice):
    _, sources, here, _ = imported_twice
    official = {clip["video_id"]: clip for clip in json.loads((sources / "msrvtt_clips" / "clips.json").read_text())}
    for clip in clips_of(here / "msrvtt_clips_held_out").values():
        asked = [question for question in clip.questions if question.right is None and question.kind != "category"]
        assert [question.answer for question in asked] == [asked["answer"] for asked in official[clip.id]["qa"]]
        assert clip.questions[0].answer == CATEGORIES[official[clip.id]["category"]]


def save_npz(path, ids, values):
    np.savez(path / "f.npz", video_id=ids, feat=values)


def save_npz_each(path, ids, values):
    np.savez(path / "f.npz", **dict(zip(ids, values)))


def save_npy(path, ids, values):
    (path / "features").mkdir()
    for name, value in zip(ids, values):
        np.save(path / "features" / f"{name}.npy", value)


def save_hdf5(path, ids, values):
    with pytest.importorskip("h5py").File(path / "f.h5", "w") as file:
        for name, value in zip(ids, values):
            file[name] = value


def save_hdf5_columns(path, ids, values):
    with pytest.importorskip("h5py").File(path / "f.hdf5", "w") as file:
        file["video_id"], file["feat"] = [name.encode() for name in ids], values


def save_pickle(path, ids, values):
    (path / "msrvtt_videos_features.pickle").write_bytes(pickle.dumps({f"{name}.mp4": value for name, value in zip(ids, values)}, 2))


@pytest.mark.parametrize("save", (save_npz, save_npz_each, save_npy, save_hdf5, save_hdf5_columns, save_pickle))
def test_features_are_read_from_every_kind_of_file(tmp_path, save):
    ids, values = [f"v{at}" for at in range(12)], np.random.default_rng(0).normal(size=(12, 3, 4)).astype(np.float32)
    save(tmp_path, ids, values)
    write_table(tmp_path, [dict(video=name, caption=f"number {name}") for name in ids])
    manifest = import_data("videos", tmp_path, tmp_path / "clips", quiet)
    clips = clips_of(tmp_path / "clips")
    assert manifest["feature_size"] == 4 and sorted(clips) == sorted(ids)
    for name, value in zip(ids, values):
        assert np.array_equal(clips[name].features, value.astype(np.float16).astype(np.float32))


def test_features_that_cannot_be_stored_are_left_out_and_other_sizes_are_refused(tmp_path):
    ids = [f"v{at}" for at in range(12)]
    write_table(tmp_path, [dict(video=name, caption="a thing") for name in ids])
    bad = dict(v3=np.full((3, 4), np.nan, np.float32), v4=np.full((3, 4), 7e4, np.float32), v5=np.zeros((0, 4), np.float32))
    make_features(tmp_path, ids, **bad)
    import_data("videos", tmp_path, tmp_path / "clips", quiet)
    assert left_out(tmp_path / "clips") == dict(
        v3="features with NaN or infinity", v4="features beyond float16's 65504", v5="features of no frame"
    )
    make_features(tmp_path, ids, v7=np.zeros((3, 5), np.float32))
    with pytest.raises(ConfigError, match="^source=.*: features of v7 have 5 columns and those of v0 4; "):
        import_data("videos", tmp_path, tmp_path / "other", quiet)
    make_features(tmp_path, ids)
    np.save(tmp_path / "v2.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(ConfigError, match="^source=.*: features.npz and v2.npy both hold features of v2; leave one of them"):
        import_data("videos", tmp_path, tmp_path / "other", quiet)
    (tmp_path / "v2.npy").unlink()
    (tmp_path / "evil.pickle").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ConfigError, match="^pickle=.*evil.pickle: names os.system"):
        import_data("videos", tmp_path, tmp_path / "other", quiet)
    assert not (tmp_path / "other").exists()


def test_odd_text_is_kept_and_bad_text_is_refused_in_one_line(tmp_path):
    ids = [f"v{at}" for at in range(12)]
    make_features(tmp_path, ids)
    long = " ".join(f"word{at}" for at in range(10_000))
    rows = [dict(video=name, caption="a thing", score="") for name in ids[:-2]]
    rows[0]["caption"], rows[1]["caption"], rows[2]["score"] = "a cat \U0001f408\u200d\u2b1b, \u4e2d\u6587", long, "3.5"
    write_table(tmp_path, [*rows, dict(video="v10", caption="  ")])
    manifest = import_data("videos", tmp_path, tmp_path / "clips", quiet)
    clips = clips_of(tmp_path / "clips")
    assert clips["v0"].captions == [rows[0]["caption"]] and clips["v1"].captions == [long]
    assert left_out(tmp_path / "clips") == dict(
        v2="score 3.5 isn't in -3 to 3", v10="no caption, question, transcript or score", v11="no clip names these features"
    )
    assert manifest["counts"]["empty captions, dropped"] == 1

    def refused(content: bytes, message: str, name: str = "captions.csv"):
        (tmp_path / "captions.csv").unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message) as error:
            import_data("videos", tmp_path, tmp_path / "other", quiet)
        assert "\n" not in str(error.value)
        (tmp_path / name).unlink()

    refused(b"video,caption\nv0,fine\nv1,caf\xe9\n", r"^source=.*captions.csv: line 3 \(byte 28\) isn't UTF-8; ")
    refused(b"caption\na thing\n", "^source=.*captions.csv: has no column video, it has caption; add it$")
    refused(b"video,text\nv0,a thing\n", "^source=.*captions.csv: has no column caption, question, transcript; ")
    refused(b"video,caption\nv0,a,b\n", "^source=.*captions.csv: line 2 has more or fewer fields than the 2 columns; ")
    refused(b"video,caption,start\nv0,a,soon\n", "^source=.*: row 1 has start soon, which is no number; ")
    refused(b"video,caption,start,end\nv0,a,9,8\n", "^source=.*: row 1 lies between 9.0 and 8.0 s, which is no stretch of time; ")
    refused(b"video,caption,split\nv0,a,exam\n", "^source=.*: row 1: split=exam: unknown; ")
    refused(
        b"video,question,answer,options\nv0,a?,no,yes|maybe\n", r"^source=.*: row 1 has an answer \(no\) that isn't among its options; "
    )
    refused(b'[{"video": "v0", "caption": "half \\ud83d"}]', "^source=.*captions.json: is no whole JSON file; ", "captions.json")
    refused(b"", "^source=.*captions.csv: has no column video, it has none; ")


def test_segments_keep_their_file_and_rows_of_a_video_are_gathered(tmp_path):
    source = tmp_path / "source"
    (source / "videos").mkdir(parents=True)
    for at in range(5):
        make_video(source / "videos" / f"film{at}.mp4")
    rows = [dict(video=f"film{at}.mp4", caption=f"part {part}", start=part / 2, end=part / 2 + 0.5) for at in range(5) for part in (0, 1)]
    write_table(source, [*rows, dict(rows[0], caption="told again"), dict(rows[0], start=7, end=8)])
    manifest = import_data("videos", source, tmp_path / "clips", quiet)
    clips = clips_of(tmp_path / "clips")
    assert clips["film0_0_0.5"].captions == ["part 0", "told again"] and sum(manifest["rows"].values()) == 10
    assert left_out(tmp_path / "clips") == {"film0_7_8": "video ends at 1.0 s, before the clip begins (7.0 s)"}
    sources = [{clip.source for clip in store.ClipStore(tmp_path / "clips", split)} for split in manifest["splits"]]
    assert sum(map(len, sources)) == 5  # a film's parts stay together
    clip = store.ClipStore(tmp_path / "clips", "train", videos=True)[0]
    assert clip.video == source / "videos" / f"{clip.source}.mp4" and (clip.start, clip.end) in ((0, 0.5), (0.5, 1))


def test_a_split_of_its_own_is_kept_and_shared_sources_are_reported(tmp_path):
    ids = [f"v{at}" for at in range(20)]
    make_features(tmp_path, ids)
    split = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    rows = [dict(video=name, caption="a thing", split=part, source=f"film{at // 2}") for at, (name, part) in enumerate(zip(ids, split))]
    rows[-1]["source"] = "film0"
    write_table(tmp_path, rows)
    manifest = import_data("videos", tmp_path, tmp_path / "clips", quiet)
    assert manifest["rows"] == dict(train=10, meta=2, validation=4, test=4)
    shared = (
        manifest["counts"]["test clips that share a source with train"] + manifest["counts"]["meta clips that share a source with train"]
    )
    assert shared in (0, 1)  # film0 may be the one that is held out for meta
    write_table(tmp_path, [*rows, dict(rows[0], split="test")])
    with pytest.raises(ConfigError, match="^source=.*: row 21 puts v0 into test, an earlier one into train; "):
        import_data("videos", tmp_path, tmp_path / "other", quiet)


def test_annotations_alone_are_kept_and_refused_for_training(tmp_path):
    write_table(tmp_path, [dict(video=f"v{at}", caption="a thing") for at in range(8)])
    manifest = import_data("videos", tmp_path, tmp_path / "clips", quiet)
    assert sum(manifest["rows"].values()) == 8 and any(text.startswith("no video and no features") for text in manifest["warnings"])
    with pytest.raises(ConfigError, match="^data.folder=.*: holds annotations alone"):
        ensure_prepared("videos", tmp_path / "clips", quiet)


def test_a_wrong_variant_is_one_line_and_another_variant_keeps_its_folder(tmp_path):
    make_features(tmp_path, [f"v{at}" for at in range(8)])
    write_table(tmp_path, [dict(video=f"v{at}", caption="a thing") for at in range(8)])
    with pytest.raises(ConfigError, match="^data.variant=9k: unknown; use one of held_out, overfit$"):
        import_data("videos", tmp_path, tmp_path / "clips", quiet, "9k")
    with pytest.raises(ConfigError, match="^data.variant=small: msrvtt_qa has none; leave it out$"):
        import_data("msrvtt_qa", tmp_path, tmp_path / "clips", quiet, "small")
    import_data("videos", tmp_path, tmp_path / "clips", quiet)
    with pytest.raises(ConfigError, match=r"^data.folder=.*: holds videos \(held_out\) from another source; "):
        import_data("videos", tmp_path, tmp_path / "clips", quiet, "overfit")


QUESTIONS = [dict(video_id=at, question=f"what is number {at}?", answer=("cat", "dog")[at % 2], id=at, category_id=1) for at in range(30)]


def plain_qa(folder: Path, split: str, rows: list[dict]) -> None:
    (folder / f"{split}_qa.json").write_text(json.dumps(rows))


def lines_qa(folder: Path, split: str, rows: list[dict]) -> None:
    text = "".join(json.dumps(dict(row, video_id=f"video{row['video_id']}")) + "\n" for row in rows)
    (folder / f"msrvtt_qa_{split}.jsonl").write_text(text)


def table_qa(folder: Path, split: str, rows: list[dict]) -> None:
    write_table(folder, [dict(video=r["video_id"], question=r["question"], answer=r["answer"], qid=r["id"], type=1) for r in rows],
                f"msrvttqa_{split}.hqga.csv")  # fmt: skip


@pytest.mark.parametrize("save", (plain_qa, lines_qa, table_qa))
def test_msrvtt_qa_in_its_three_forms(tmp_path, save):
    for split, rows in dict(train=QUESTIONS[:20], val=QUESTIONS[20:25], test=[*QUESTIONS[25:], dict(QUESTIONS[29], answer="emu")]).items():
        save(tmp_path, split, rows)
    make_features(tmp_path, [f"video{at}" for at in range(30)])
    manifest = import_data("msrvtt_qa", tmp_path, tmp_path / "clips", quiet)
    assert manifest["rows"] == dict(train=18, meta=2, validation=5, test=5)
    assert (tmp_path / "clips" / "answers.txt").read_text().split() in (["cat", "dog"], ["dog", "cat"])
    assert manifest["counts"]["test questions of other answers, counted as wrong"] == 1
    last = clips_of(tmp_path / "clips")["video29"]
    assert [asked.answer for asked in last.questions] == ["dog", "emu"]
    assert {(asked.question, asked.kind) for asked in last.questions} == {("what is number 29?", "what")}


@real_data
def test_official_questions_of_msrvtt_qa_are_read(tmp_path):
    manifest = import_data("msrvtt_qa", FORMATS, tmp_path / "clips", quiet)
    assert manifest["counts"]["open questions"] == 12278 and manifest["counts"]["clips annotated, validation"] == 497
    assert manifest["warnings"][0].startswith("no train split")


@pytest.mark.parametrize("form", ("csv", "jsonl"))
def test_msrvtt_multiple_choice_trains_on_the_captions_of_other_videos(tmp_path, form):
    videos = [dict(video_id=f"video{at}", url=str(at), split="train" if at < 20 else "test", category=1) for at in range(24)]
    sentences = [dict(video_id=video["video_id"], sen_id=at, caption=f"thing {at}") for at, video in enumerate(videos * 3)]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(dict(videos=videos, sentences=sentences)))
    make_features(tmp_path, [video["video_id"] for video in videos])
    options = [f"choice {number}" for number in range(5)]
    if form == "csv":
        rows = [[f"ret{at}", f"msr{at}", *options, at % 5] for at in range(20, 24)]
        lines = ["key\tvid_key\ta1\ta2\ta3\ta4\ta5\tanswer", *("\t".join(map(str, row)) for row in rows)]
        (tmp_path / "MSR_MC_test.csv").write_text("\n".join(lines))
    else:
        rows = [dict(clip_name=f"video{at}", options=options, answer=at % 5) for at in range(20, 24)]
        (tmp_path / "msrvtt_mc_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = import_data("msrvtt_mc", tmp_path, tmp_path / "clips", quiet)
    assert manifest["rows"] == dict(train=16, meta=2, validation=2, test=4)
    for clip in store.ClipStore(tmp_path / "clips", "test"):
        (asked,) = clip.questions
        assert asked.options == options and asked.right == int(clip.id.removeprefix("video")) % 5
    captions = {clip.id: clip.captions for clip in store.ClipStore(tmp_path / "clips", "train")}
    owner = {text: name for name, texts in captions.items() for text in texts}
    for clip in store.ClipStore(tmp_path / "clips", "train"):
        assert len(clip.questions) == 3
        for asked in clip.questions:
            owners = [owner[option] for option in asked.options]  # all of train: nothing that is held out is shown
            assert owners[asked.right] == clip.id and len(set(owners)) == 5 and asked.options[asked.right] == asked.answer


def test_text_files_are_read_plain_and_gzipped(tmp_path):
    import gzip

    (tmp_path / "a.csv.gz").write_bytes(gzip.compress('\ufeffvideo,caption\nv0,"two\nlines"\n'.encode()))
    assert read_csv(tmp_path / "a.csv.gz", ("video",)) == [dict(video="v0", caption="two\nlines")]
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'{"a": 1}')[:-6])
    with pytest.raises(ConfigError, match="^source=.*b.json.gz: is no whole gzip file; "):
        read_text(tmp_path / "b.json.gz")
    (tmp_path / "c.json").write_text('{"a": 1')
    with pytest.raises(ConfigError, match="^source=.*c.json: is no whole JSON file with a; "):
        read_json(tmp_path / "c.json", ("a",))
