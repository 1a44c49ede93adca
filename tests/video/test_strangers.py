"""Files from strangers: nothing of this machine is shown, no size is believed, and each refusal is one line."""

from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from PIL import Image

from meltr_ray.errors import ConfigError
from meltr_ray.training.batches import check_enough
from meltr_ray.video.backbones.violet.visual_tokens import VisualTokens
from meltr_ray.video.clips import containers
from meltr_ray.video.clips.clip import Segment
from meltr_ray.video.clips.store import ClipStore, check_folder
from meltr_ray.video.clips.thumbnails import strip
from meltr_ray.video.clips.video import decode_frames, decode_video, encode_video
from meltr_ray.video.datasets.confined import Confined, NotRead
from meltr_ray.video.datasets.feature_files import find_features
from meltr_ray.video.datasets.importers.joined_images import joined
from meltr_ray.video.datasets.pickles import read_pickle
from meltr_ray.video.datasets.prepare import import_data
from meltr_ray.video.datasets.probe import MEMORY_BYTES, probe, probe_confined
from workloads import checks, cli

ROW = np.ones((3, 4), np.float32)


def one_line(action, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words) and ";" in line, line


@pytest.fixture(scope="module")
def film() -> bytes:
    return encode_video(np.zeros((5, 32, 48, 3), np.uint8))


LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {other}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><BaseURL>{other}</BaseURL></Period></MPD>',
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_no_video(kind, film, tmp_path):
    (tmp_path / "other.mp4").write_bytes(film)
    path = tmp_path / "list.mp4"
    path.write_text(LISTS[kind].format(other=tmp_path / "other.mp4"), encoding="utf-8")
    for source in (path, path.read_bytes()):
        assert probe(source).unreadable.startswith("can't be decoded")
        one_line(lambda source=source: decode_video(source), "can't be decoded", "replace the file")


def test_a_film_of_any_name_is_read_and_probed_alike_in_a_process_of_its_own(film, tmp_path):
    path = tmp_path / "é #,= file:x.mp4"
    path.write_bytes(film)
    with Confined(MEMORY_BYTES) as reader:
        assert probe_confined(reader, path) == probe_confined(reader, film) == probe(path) and probe(path).frames == 5


def test_frames_that_no_film_has_are_refused_by_their_header(film, tmp_path):
    """The sizes in the track header and in the sample description are changed to 30,000 x 30,000."""
    at = film.index(b"mp4v") + 28
    huge = film[:at] + struct.pack(">HH", 30_000, 30_000) + film[at + 4 :]
    assert probe(huge).unreadable or probe(huge).width == 48  # the stream itself may say otherwise, and is believed then
    wide = encode_video(np.zeros((1, 2, 4096, 3), np.uint8))
    assert len(strip(wide)) < 2**20  # a picture 72 rows high would be 147,456 columns wide


def test_pictures_are_joined_or_left_out():
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(jpeg, "JPEG")
    good = jpeg.getvalue()
    at = good.index(b"\xff\xc0") + 5
    huge = good[:at] + struct.pack(">HH", 65_000, 65_000) + good[at + 4 :]
    texts = {name: base64.b64encode(content).decode() for name, content in dict(good=good, huge=huge, half=good[:40], none=b"").items()}
    assert probe(joined([texts["good"]] * 3)).frames == 3
    assert [joined(given) for given in ([texts["good"], texts["huge"]], [texts["half"]], [texts["none"]], [], ["é"], [None])] == [b""] * 6


def test_what_a_reader_does_ends_as_a_line_and_the_next_call_finds_another():
    with Confined(3 * 2**30) as reader:
        for function, argument, words in [("time:sleep", 60, "more than 1 s"), ("os:_exit", 3, "code -3"), ("os:abort", None, "SIGABRT"),
                                          ("builtins:bytearray", 2**40, "GiB of memory"), ("builtins:int", "x", "invalid literal")]:  # fmt: skip
            with pytest.raises(NotRead, match=words.replace("code -3", "code")):
                reader.call(function, *([] if argument is None else [argument]), seconds=1 if "sleep" in function else 30)
        assert reader.call("builtins:abs", -4, seconds=30) == 4


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def shared_tuples(depth: int) -> bytes:
    """A dictionary of which the one key is a tuple of 2^depth parts, each two times the same object."""
    content = b"\x80\x04})\x940"
    for at in range(depth):
        content += b"h" + bytes([at]) + b"h" + bytes([at]) + b"\x86\x940"
    return content + b"h" + bytes([depth]) + b"K\x01s."


HOSTILE = {
    "a set of a range": (pickle.dumps(Call(set, range(10**9))), "asks for set of a range"),
    "a frozenset of a range": (pickle.dumps(Call(frozenset, range(10**9))), "asks for frozenset"),
    "bytes of a number": (pickle.dumps(Call(bytes, 10**12)), "asks for bytes of a int"),
    "a bytearray of a number": (pickle.dumps(Call(bytearray, 10**12)), "asks for bytearray"),
    "a command": (pickle.dumps(Call(os.system, "true")), "may run code"),
    "a far place": (b"\x80\x04]r\xff\xff\xff\x7f.", "keeps an object at place 2147483647"),
    "a far place in text": (b"(lp99999999999\n.", "keeps an object at place"),
    "long bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "claims 1099511627784 bytes"),
    "BUILD of a function": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}X\x08\x00\x00\x00functionK\x01s\x86b.",
        "a change of a function",
    ),
    "BUILD of a type": (b"\x80\x02cbuiltins\nset\nN}X\x01\x00\x00\x00xK\x01s\x86b.", "asks for a change of a function"),
    "INST": (b"(ibuiltins\nset\n.", "uses INST"),
    "another process's object": (b"\x80\x04\x8c\x01xQ.", "uses BINPERSID"),
    "no pickle": (b"hello", "plain data doesn't need"),
    "half a pickle": (pickle.dumps({"a": ROW})[:-20], "fetch the file again"),
    "nothing": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_at_once(name, tmp_path):
    content, words = HOSTILE[name]
    path, began = tmp_path / "x.pkl", time.monotonic()
    path.write_bytes(content)
    one_line(lambda: read_pickle(path), words)
    assert time.monotonic() - began < 30


def test_a_key_that_takes_ages_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("meltr_ray.video.datasets.pickles.SECONDS", 2.0)
    (tmp_path / "x.pkl").write_bytes(shared_tuples(40))
    one_line(lambda: read_pickle(tmp_path / "x.pkl"), "takes more than 2 s")
    monkeypatch.undo()
    (tmp_path / "y.pkl").write_bytes(shared_tuples(3))
    assert list(read_pickle(tmp_path / "y.pkl").values()) == [1]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_in_every_protocol(protocol, tmp_path):
    given = {
        "a": ROW,
        "s": {1, 2},
        "f": frozenset([1]),
        "b": b"xx",
        "m": bytearray(b"zz"),
        "o": np.array(["x", None], object),
        "i": np.int64(4),
        "c": 1 + 2j,
        "n": "é",
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(given, protocol=protocol))
    found = read_pickle(tmp_path / "x.pkl")
    assert all(np.array_equal(found[key], given[key]) if key in "ao" else found[key] == given[key] for key in given)


def hdf5(path: Path, write) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        write(file, h5py)
    return path


def virtual(file, h5py) -> None:
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "v0", (3, 4))
    file.create_virtual_dataset("v0", layout)


ELSEWHERE = {
    "external storage": (
        lambda file, h5py: file.create_dataset("v0", (1, 100), "f4", external=[("/etc/passwd", 0, 400)]),
        "stored in another file",
    ),
    "an external link": (lambda file, h5py: file.__setitem__("v0", h5py.ExternalLink("/etc/passwd", "/x")), "a link to another file"),
    "one in a group": (
        lambda file, h5py: file.create_group("g").__setitem__("v0", h5py.ExternalLink("x.h5", "/x")),
        "g/v0 is a link to another file",
    ),
    "a virtual dataset": (virtual, "made of other files"),
    "terabytes": (lambda file, h5py: file.create_dataset("v0", (10**9, 10**4), "f4", chunks=(1, 10**4)), "claims 37252.9 GiB"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_hdf5_shows_what_is_inside_alone(name, tmp_path):
    write, words = ELSEWHERE[name]
    path = hdf5(tmp_path / "x.h5", write)
    one_line(lambda: find_features([path], tmp_path), words)


def test_whole_hdf5_is_read_and_a_group_that_holds_itself_ends(tmp_path):
    path = hdf5(
        tmp_path / "x.h5",
        lambda file, h5py: (file.__setitem__("a/v0", ROW), file.__setitem__("a/v1", ROW), file.__setitem__("a/self", file["a"])),
    )
    assert find_features([path], tmp_path)["v1"].shape == (3, 4)
    path.write_bytes(path.read_bytes()[:600])
    one_line(lambda: find_features([path], tmp_path), "is no whole .h5 file")


def header(shape: tuple[int, ...]) -> bytes:
    memory = io.BytesIO()
    npy.write_array_header_1_0(memory, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return memory.getvalue()


def test_headers_of_numpy_are_compared_with_their_files(tmp_path):
    (tmp_path / "v0.npy").write_bytes(header((10**9, 10**6)) + bytes(64))
    one_line(lambda: find_features([tmp_path / "v0.npy"], tmp_path)["v0"], "claims 3725290.3 GiB and has")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("v0.npy", header((10**9, 10**6)) + bytes(64))
    one_line(lambda: find_features([tmp_path / "z.npz"], tmp_path), "v0.npy claims 3725290.3 GiB")
    np.savez(tmp_path / "good.npz", v0=ROW)
    assert find_features([tmp_path / "good.npz"], tmp_path)["v0"].shape == (3, 4)


def table(folder: Path, content: str, ids: list[str], name: str = "captions.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    for key in ids:
        np.save(folder / f"{key}.npy", ROW)
    return folder


IDS = [f"film{at}" for at in range(11)]


def test_features_that_no_clip_names_are_counted_and_listed(tmp_path):
    source = table(tmp_path / "src", "video,caption\n" + "".join(f"{key},a red boat number {key}\n" for key in IDS[:9]), IDS)
    manifest = import_data("videos", source, tmp_path / "d", lambda line: None)
    assert manifest["counts"]["features that no clip names"] == 2
    assert (tmp_path / "d" / "left_out.csv").read_text(encoding="utf-8").splitlines()[1:] == [
        f",{key},no clip names these features" for key in ("film10", "film9")
    ]


def test_one_of_two_kinds_of_features_is_chosen(tmp_path):
    source = table(tmp_path / "src", "video_id,caption\n" + "".join(f"{key},a boat\n" for key in IDS), [])
    for kind, size in (("wide", 8), ("narrow", 4)):
        (source / kind).mkdir()
        for key in IDS:
            np.save(source / kind / f"{key}.npy", np.ones((2, size), np.float32))
    one_line(
        lambda: import_data("videos", source, tmp_path / "d"),
        "narrow/film0.npy and wide/film0.npy both hold features of film0",
        "data.features=narrow",
    )
    one_line(lambda: import_data("videos", source, tmp_path / "d", features="none"), "data.features=none: no such folder")
    one_line(lambda: import_data("videos", source, tmp_path / "d", features=".."), "data.features=..: no such folder")
    assert import_data("videos", source, tmp_path / "d", lambda line: None, features="wide")["feature_size"] == 8


def test_the_share_held_out_is_a_setting_and_a_small_split_is_told(tmp_path):
    source, told = table(tmp_path / "src", "file,label\n" + "".join(f"{key},a boat\n" for key in IDS), IDS), []
    assert import_data("videos", source, tmp_path / "d", told.append)["rows"] == dict(train=8, meta=1, validation=1, test=1)
    assert any("data.held_out=0.15" in line for line in told)
    assert import_data("videos", source, tmp_path / "e", lambda line: None, held_out=0.15)["rows"]["meta"] == 2
    one_line(lambda: import_data("videos", source, tmp_path / "d", held_out=0.15), "from another source")


FORMS = {
    "by video": '{{{}}}'.format(",".join(f'"{key}": {{"captions": ["a boat", "a ship"]}}' for key in IDS)),
    "by video, lists": '{{{}}}'.format(",".join(f'"{key}": ["a boat", "a ship"]' for key in IDS)),
    "coco": '{{"images": [{}], "annotations": [{}]}}'.format(",".join(f'{{"id": {at}, "file_name": "{key}.mp4"}}' for at, key in enumerate(IDS)),
                                                      ",".join(f'{{"image_id": {at % 11}, "id": {at}, "caption": "boat {at}"}}' for at in range(22))),
    "ids": "[{}]".format(",".join(f'{{"id": "{key}", "caption": ["a boat", "a ship"]}}' for key in IDS)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_commonest_forms_of_captions_are_read(form, tmp_path):
    source = table(tmp_path / "src", FORMS[form], IDS, "captions.json")
    manifest = import_data("videos", source, tmp_path / "d", lambda line: None)
    assert sum(manifest["rows"].values()) == 11 and manifest["counts"]["captions a clip, least"] == 2


@pytest.mark.parametrize("row, words", [
    ('{"video": "film0", "question": "who?", "answer": ["x"]}', "object 1 has answer that is no text"),
    ('{"video": "film0", "caption": "x", "transcript": [{"text": "x"}]}', "object 1 has transcript that is no text"),
    ('{"video": "film0", "caption": "x", "source": {"a": 1}}', "object 1 has source that is no text"),
    ('{"video": ["film0"], "caption": "x"}', "object 1 has video that is no text"),
    ('{"video": "film0", "qa": [{"question": "x", "answer": "a", "options": [["a"], "b"]}]}', "has options that are no text"),
    ('{"video": "film0", "qa": [{"question": "x", "answer": {"a": 1}}]}', "object 1 has answer that is no text"),
])  # fmt: skip
def test_what_is_no_text_is_refused_with_its_object(row, words, tmp_path):
    source = table(tmp_path / "src", f"[{row}]", IDS, "captions.json")
    one_line(lambda: import_data("videos", source, tmp_path / "d"), words, "mend it")


@pytest.mark.parametrize("content, words", [('"text"', "holds no list of objects but a text"), ('{"video": "film0", "caption": "x"}', "holds no list of objects but an object"),
                                            ("[" * 100_000, "is no whole JSON file")])  # fmt: skip
def test_advice_says_what_is_read(content, words, tmp_path):
    source = table(tmp_path / "src", content, IDS, "captions.json")
    one_line(lambda: import_data("videos", source, tmp_path / "d"), words)


def test_msvd_questions_are_read_from_tables_too(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    for split, videos in {"train": range(1, 9), "val": (11,), "test": (21,)}.items():
        rows = "".join(f"{video},480,360,what is this,boat,{video}\n" for video in videos)
        (source / f"msvdqa_{split}.csv").write_text(f"video,width,height,question,answer,qid\n{rows}", encoding="utf-8")
    for video in (*range(1, 9), 11, 21):
        np.save(source / f"vid{video}.npy", ROW)
    assert import_data("msvd_qa", source, tmp_path / "d", lambda line: None)["rows"] == dict(train=7, meta=1, validation=1, test=1)


def test_sizes_of_splits_are_checked_before_what_takes_minutes(digits_folder, monkeypatch):
    """And the mend isn't a batch of one, which no run takes."""

    def begun(*arguments):
        raise AssertionError("visual tokens are fitted")

    monkeypatch.setattr("meltr_ray.video.backbones.violet.settings.VioletConfig.prepare", begun)
    config = cli.configure(["backbone=violet", f"data.folder={digits_folder}", "train.batch_size=41", "aid.meta_batch=held_out"]).config
    one_line(lambda: checks.prepare(config), "the meta split has 40; lower it")
    with pytest.raises(ConfigError, match="the meta split has 1; no batch is that small, so give the split more examples .*data.held_out"):
        check_enough(config.workload, "meta", 1, 2, 1)


# --- what training decodes


@pytest.fixture
def limits(monkeypatch):
    def set_to(frames: int = 10, seconds: float = 60.0) -> None:
        monkeypatch.setattr(containers, "MOST_FRAMES", frames)
        monkeypatch.setattr(containers, "MOST_SECONDS", seconds)

    return set_to


READINGS = {
    "whole": lambda path: decode_video(path),
    "some": lambda path: decode_frames(path, lambda count: np.arange(count)),
    "a segment": lambda path: decode_frames(path, lambda count: np.arange(count), segment=Segment(0.0, 0.3)),
    "a strip": lambda path: strip(path, 3),
}


@pytest.mark.parametrize("name", READINGS)
def test_decoding_ends(name, film, tmp_path, limits):
    """As many frames, and as long, as no film of a data set takes; the line names the file."""
    path = tmp_path / "film.mp4"
    path.write_bytes(film)
    limits(frames=6)  # and an empty packet at the end
    READINGS[name](path)
    limits(frames=3)
    one_line(lambda: READINGS[name](path), "film.mp4", "it has more than 3 frames", "replace the file")
    limits(seconds=0.0)
    one_line(lambda: READINGS[name](path), "film.mp4", "takes more than 0 s", "replace the file")


def test_frames_of_a_segment_are_kept_within_memory_too(film, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MOST_BYTES", 3 * 32 * 48 * 3)
    one_line(lambda: decode_frames(film, lambda count: np.arange(4), segment=Segment(0.0, 9.0)), "4 frames of 48 x 32 take")
    assert len(decode_frames(film, lambda count: np.arange(3), segment=Segment(0.0, 9.0))) == 3


def test_a_linked_film_is_the_one_that_was_imported(film, tmp_path):
    """Segments stay in their files, whose sizes the folder knows."""
    source = tmp_path / "src"
    source.mkdir()
    for number in range(4):
        (source / f"film{number}.mp4").write_bytes(film)
    rows = "".join(f"film{at % 4},boat number {at},{0.03 * at:.2f},{0.03 * at + 0.1:.2f}\n" for at in range(10))
    (source / "captions.csv").write_text(f"video,caption,start,end\n{rows}", encoding="utf-8")
    import_data("videos", source, tmp_path / "d", lambda line: None)
    check_folder(tmp_path / "d")
    store = ClipStore(tmp_path / "d", "train", videos=True)
    store.check_files()
    trained = Path(store[0].video)
    trained.write_bytes(film + b"more")
    one_line(store.check_files, "1 of 1 video files of train have another size than at the import", trained.name)
    trained.unlink()
    one_line(store.check_files, "1 of 1 video files of train are gone", trained.name)


def test_visual_tokens_that_were_changed_are_made_anew(tmp_path):
    path = tmp_path / "visual_tokens.npz"
    VisualTokens(np.zeros((4, 192), np.uint8), 8).save(path, "these")
    assert VisualTokens.load(path, "these") is not None
    np.savez(path, centroids=np.ones((4, 192), np.uint8), patch_pixels=8, made_from="these")
    assert VisualTokens.load(path, "these") is None
