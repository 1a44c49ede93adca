"""MSVD (Chen & Dolan, ACL 2011) with the captions and splits of Venugopalan et al. (ICCV 2015).

The source folder holds one of these, plain or .gz, of which some splits may be missing:

    sents_train_lc_nopunc.txt, sents_val_lc_nopunc.txt, sents_test_lc_nopunc.txt
        lines of `vid<N>`, a tab and a caption in lower case without punctuation; and `youtube_mapping.txt` as MSVD-QA has it,
        without which videos are looked for by `vid<N>`
    raw-captions.pkl with train_list.txt, val_list.txt, test_list.txt
        name of the video file -> captions, each a text or a list of words; the names of each split (CLIP4Clip)
    AllVideoDescriptions.txt with youtube_mapping.txt
        the corpus' own lines of a video file's name, a space and a caption; vid1 to vid1200 train, up to vid1300 validate
"""

from __future__ import annotations

from pathlib import Path

from meltr_ray.errors import check
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import find, read_text
from meltr_ray.video.datasets.importers.grouping import gather, text_of
from meltr_ray.video.datasets.importers.msvd_qa import lacking, read_mapping, youtube_id
from meltr_ray.video.datasets.pickles import read_pickle

LISTS = {"train": "sents_train_lc_nopunc.txt", "validation": "sents_val_lc_nopunc.txt", "test": "sents_test_lc_nopunc.txt"}
PICKLE, NAMES = "raw-captions.pkl", {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}
CORPUS = "AllVideoDescriptions.txt"
LAST = {"train": 1200, "validation": 1300, "test": 1970}
"""Number of the last clip of each split."""
DROPPED = "captions of clips in no split, dropped"
ABOUT = "MSVD captions; validation and test as published (1200 / 100 / 670 clips)"


def read(folder: Path, variant: str | None) -> Annotations:
    """Clips `vid<N>`, or by their files' names, with all their captions. Raises ConfigError for files that are missing or damaged."""
    lists = {split: path for split, name in LISTS.items() if (path := find(folder, name))}
    if not lists and (pickled := find(folder, PICKLE)):
        return _of_pickle(folder, pickled)
    corpus = find(folder, CORPUS)
    check(bool(lists or corpus), "source", folder,
          f"none of {', '.join(LISTS.values())} there, nor {PICKLE} or {CORPUS}; give the folder that holds them")  # fmt: skip
    names, files = read_mapping(folder)
    if lists:
        listed, dropped = {split: _captions(path) for split, path in lists.items()}, 0
    else:
        listed, dropped = _of_corpus(corpus, names)
    gathered = gather(listed, names, youtube_id if names else str)
    gathered["warnings"] += lacking(listed, LISTS, names)
    gathered["counts"] |= {DROPPED: dropped} if dropped else {}
    return Annotations(ABOUT, files=[*(lists.values() or [corpus]), *files], **gathered)


def _captions(path: Path) -> list[tuple[str, str]]:
    listed = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        video, tab, caption = line.rstrip("\r").partition("\t")
        whole = bool(video and tab) or not line.strip()
        check(whole, "source", path, f"line {number} isn't a video, a tab and a caption; mend the line")
        listed += [(video, caption)] if tab else []
    return listed


def _of_corpus(path: Path, names: dict[str, str]) -> tuple[dict[str, list[tuple[str, str]]], int]:
    """Captions by split, and how many are of clips that `names` lacks. Comments begin with #."""
    check(bool(names), "source", path, "needs youtube_mapping.txt, by which clips are in splits; put it beside the file")
    numbers = {name: clip for clip, name in names.items()}
    listed, dropped = {split: [] for split in LAST}, 0
    for line in read_text(path).split("\n"):
        name, _, caption = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        number = numbers.get(name, "").removeprefix("vid")
        split = next((split for split, last in LAST.items() if number.isdecimal() and int(number) <= last), None)
        dropped += split is None
        if split:
            listed[split].append((numbers[name], caption))
    return {split: captions for split, captions in listed.items() if captions}, dropped


def _of_pickle(folder: Path, path: Path) -> Annotations:
    content, lists = read_pickle(path), {split: file for split, name in NAMES.items() if (file := find(folder, name))}
    check(isinstance(content, dict) and all(isinstance(value, list) for value in content.values()), "source", path,
          "is no dictionary of lists of captions; fetch the file again")  # fmt: skip
    check(bool(lists), "source", folder, f"no {', '.join(NAMES.values())} beside {path.name}; put them there")
    named = {split: [line.strip() for line in read_text(file).split("\n") if line.strip()] for split, file in lists.items()}
    listed = {
        split: [(name, _joined(caption)) for name in names for caption in content.get(name) or [""]] for split, names in named.items()
    }
    gathered = gather(listed, source=youtube_id)
    gathered["warnings"] += lacking(listed, NAMES, content)
    outside = content.keys() - {name for names in named.values() for name in names}
    gathered["counts"] |= {DROPPED: sum(len(content[name]) for name in outside)} if outside else {}
    return Annotations(ABOUT, files=[path, *lists.values()], **gathered)


def _joined(caption: object) -> str:
    return " ".join(map(text_of, caption)) if isinstance(caption, (list, tuple)) else text_of(caption)
