"""Bouncing digits, the embedded data set: real handwriting moves in real encoded video under a grammar of captions.

scikit-learn's 8 x 8 handwritten digits are enlarged, coloured and moved over a 64 x 64 canvas, one to three a clip;
splits share no handwriting sample. A caption names only some of what happens, in its own words and order, so several
clips can fit it: what a method gains is in reading all of the sentence and following the motion. Questions and what is
said before a clip come from grammars of their own (questions.py, utterances.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from meltr_ray.errors import check
from meltr_ray.video.clips import shards, store
from meltr_ray.video.clips.answers import build_answers
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.features import DESCRIPTION, FrameFeatures, shrink
from meltr_ray.video.clips.new_folder import new_folder
from meltr_ray.video.clips.video import decode_video, encode_video, evenly_spaced
from meltr_ray.video.clips.vocabulary import build_vocabulary
from meltr_ray.video.datasets.digits.captions import describe_clip
from meltr_ray.video.datasets.digits.questions import ask
from meltr_ray.video.datasets.digits.scene import Digit, draw_clip, paint
from meltr_ray.video.datasets.digits.utterances import utter

CLIPS = {"train": 1700, "meta": 250, "validation": 250, "test": 300}
GENERATOR_VERSION = 2
SAMPLED_FRAMES = 12
VOCABULARY_SIZE = 400
ABOUT = (
    "Bouncing digits: scikit-learn's handwritten digits move in encoded video (28 frames, 64 x 64), with five captions, five "
    "questions and an utterance with its sentiment a clip from small grammars; splits share no handwriting sample"
)


def source(clips: dict[str, int] | None = None, seed: int = 0) -> dict[str, Any]:
    """What the clips follow from; two folders with equal sources hold the same clips."""
    return dict(generator_version=GENERATOR_VERSION, seed=seed, clips=clips or CLIPS)


def make_digits(folder: str | Path, report: Callable[[str], None] = print, clips: dict[str, int] | None = None,
                seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """Make the data set in `folder` unless it is there already; returns the manifest. About half a minute on one core.

    `clips` gives the clips of each split (default: 2,500 in all), `report` takes a line of progress now and then.
    """
    folder, clips = Path(folder), clips or CLIPS
    if (folder / "manifest.json").is_file():
        manifest = store.check_folder(folder)
        check(
            manifest["name"] == "digits" and manifest["source"] == source(clips, seed),
            "data.folder",
            folder,
            f"holds {manifest['name']} from another source; choose another folder or delete it",
        )
        return manifest
    shares = _share_handwriting(clips, seed)
    splits, features = {}, None
    with new_folder(folder) as temporary:
        for at, split in enumerate(clips):  # train first: the extractor is fitted on it
            # what is asked and said has a generator of its own, so that videos and captions don't depend on it
            random, words = np.random.default_rng([seed, at]), np.random.default_rng([seed, at, 1])
            made, sampled = [], []
            for number in range(clips[split]):
                digits = draw_clip(*shares[split], random)
                video = encode_video(paint(digits, random))
                frames = decode_video(video)  # features come from what the codec left of the frames
                sampled.append(shrink(frames[evenly_spaced(len(frames), SAMPLED_FRAMES)]))
                made.append(_clip(f"{split}{number:05d}", digits, video, random, words))
                if (number + 1) % 500 == 0 or number + 1 == clips[split]:
                    report(f"digits: {split} {number + 1}/{clips[split]} clips")
            if split == "train":
                features = FrameFeatures.fit(np.concatenate(sampled))
                features.save(temporary / "features.npz")
                _write_words(temporary, made)
            for clip, frames in zip(made, sampled):
                clip.features = features(frames)
            splits[split] = shards.write_split(temporary, split, made)
        return shards.write_manifest(temporary, name="digits", description=ABOUT, source=source(clips, seed),
                                    splits=splits, feature_size=len(features.mean), feature_extractor=DESCRIPTION)  # fmt: skip


def _clip(name: str, digits: list[Digit], video: bytes, random: np.random.Generator, words: np.random.Generator) -> Clip:
    """A clip without its features; `random` draws its captions, `words` the rest."""
    questions, (transcript, score) = ask(name, digits, words), utter(digits, words)
    return Clip(name, describe_clip(digits, random), video=video, questions=questions, transcript=transcript, score=score)


def _write_words(folder: Path, train: list[Clip]) -> None:
    """Vocabulary and answers, of train clips alone."""
    questions = [question for clip in train for question in clip.questions]
    texts = [text for clip in train for text in (*clip.captions, clip.transcript)]
    texts += [text for question in questions for text in (question.question, question.answer, *question.options)]
    build_vocabulary(texts, folder / "vocabulary.txt", size=VOCABULARY_SIZE)
    build_answers([question.answer for question in questions if not question.options], folder / "answers.txt")


def _share_handwriting(clips: dict[str, int], seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> handwriting (N, 8, 8) in 0 to 1 and values (N,): disjoint shares, each at least a tenth."""
    from sklearn.datasets import load_digits  # takes seconds, and every command that checks a folder imports this file

    bunch = load_digits()
    order = np.random.default_rng([seed, 99]).permutation(len(bunch.images))
    shares = np.array([max(clips[split], 0.1 * sum(clips.values())) for split in clips])
    cuts = np.cumsum(shares / shares.sum() * len(order)).astype(int)[:-1]
    return {split: (bunch.images[part] / 16, bunch.target[part]) for split, part in zip(clips, np.split(order, cuts))}
