"""BLEU-1 to 4, METEOR, ROUGE-L and CIDEr of captions, as `pycocoevalcap` gives them, with what a bootstrap over videos needs.

Its code for MS COCO (github.com/tylin/coco-caption) is what captioning papers report. It starts Java twice, for the tokens and
for METEOR; where Java is missing or fails, NLTK stands in for both (without_java.py), and the result says which was used.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pycocoevalcap.tokenizer.ptbtokenizer as published
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from meltr_ray.errors import check
from meltr_ray.results import bootstrap
from meltr_ray.video.metrics import meteor, without_java

FAILURES = (OSError, RuntimeError, subprocess.SubprocessError)
"""What Java that is missing or broken raises."""
BLEU = tuple(f"bleu_{n}" for n in range(1, 5))
Result = TypeVar("Result")
METRICS = (*BLEU, "meteor", "rouge_l", "cider")


@dataclass(frozen=True)
class CaptionScores:
    """Scores of N videos, as fractions of 1, not in %; CIDEr, whose scale ends at 10, may be above 1."""

    videos: list[str]
    corpus: dict[str, float]
    """METRICS -> the score over all videos: BLEU and METEOR of summed counts, ROUGE-L and CIDEr means over videos."""
    per_video: dict[str, np.ndarray]
    """METRICS -> (N,), in the order of `videos`. CIDEr's idf is that of all references here."""
    counts: dict[str, np.ndarray]
    """`bleu` (N, 10), `meteor` (N, 23) or (N, 2), `rouge_l` and `cider` (N, 2): what each video adds to the corpus's score."""
    num_distinct: int
    """Predictions that differ, as tokenised."""
    without_reference: list[str]
    """Videos left out, as none of their references has a word."""
    tokenizer: str
    meteor: str
    """How tokens and METEOR came about, for a report."""

    @property
    def share_distinct(self) -> float:
        return self.num_distinct / len(self.videos)

    def interval(self, metric: str, groups: list[str] | None = None, resamples: int = 1000, seed: int = 0) -> bootstrap.Interval:
        """95 % interval of a metric of METRICS over videos, or over `groups` (N,) where several share a source.

        The tokens, each METEOR reference and CIDEr's idf stay as they are; BLEU and METEOR are made anew from summed counts.
        """
        name = "bleu" if metric in BLEU else metric
        score = corpus_score(metric, self.counts[name].shape[1])
        return bootstrap.interval(self.counts[name], groups or self.videos, score, resamples, seed)


def evaluate(
    predictions: dict[str, str], references: dict[str, list[str]], java: bool | None = None, timeout: float = 1800
) -> CaptionScores:
    """Score one caption a video, raw text, against its references.

    java: True asks for it (RuntimeError or OSError where it fails), False does without, None takes it where it works.
    `timeout`: seconds for each of the two Java processes. A prediction without a word scores 0 in all and counts in the
    length of BLEU. A reference without a word is left out (differs from pycocoevalcap, whose ROUGE-L gives 1 to an empty
    prediction for it), and a video with no other one, too. Raises ConfigError where the videos differ or none is left.
    """
    differing = set(predictions) ^ set(references)
    check(not differing, "predictions", sorted(map(str, differing))[:3], "these lack a prediction or references; give both")
    spoken, tokenizer = tokens(predictions, references, java, timeout)
    videos = [video for video, (_, refs) in spoken.items() if refs]
    check(bool(videos), "references", len(references), "no video has a reference with a word; look at the data")
    said, refs = [spoken[video][0] for video in videos], [spoken[video][1] for video in videos]
    counts, how = meteor_counts(said, refs, java, timeout)
    rouge, cider = rouge_l(said, refs), cider_scores(said, refs)
    bleu = bleu_counts(said, refs)
    counts = {"bleu": bleu, "meteor": counts, "rouge_l": bootstrap.with_ones(rouge), "cider": bootstrap.with_ones(cider)}
    per_video = {"meteor": corpus_score("meteor", counts["meteor"].shape[1])(counts["meteor"]), "rouge_l": rouge, "cider": cider}
    per_video = {name: bleu_score(bleu, n) for n, name in enumerate(BLEU, 1)} | per_video
    counts["meteor"] = meteor.addable(counts["meteor"]) if counts["meteor"].shape[1] == meteor.COUNTS else counts["meteor"]
    corpus = {}
    for metric in METRICS:
        added = counts["bleu" if metric in BLEU else metric]
        corpus[metric] = float(corpus_score(metric, added.shape[1])(added.sum(0)[None])[0])
    left_out = [video for video in spoken if video not in set(videos)]
    return CaptionScores(videos, corpus, per_video, counts, len(set(said)), left_out, tokenizer, how)


def tokens(
    predictions: dict[str, str], references: dict[str, list[str]], java: bool | None, timeout: float
) -> tuple[dict[str, tuple[str, list[str]]], str]:
    """Video -> its prediction's tokens and those of its references that have any; and how they were made."""
    lines = [text for video in references for text in [predictions[video], *references[video]]]
    found, how = either(
        java, lambda: tokens_by_java(lines, timeout), lambda: [without_java.tokenize(line, published.PUNCTUATIONS) for line in lines]
    )
    ours = iter(found)
    out = {}
    for video, refs in references.items():
        out[video] = next(ours), [text for text in [next(ours) for _ in refs] if text.split()]
    return out, {"java": "PTBTokenizer (Stanford CoreNLP 3.4.1)"}.get(how, f"{without_java.TOKENIZER}{how}")


def meteor_counts(said: list[str], refs: list[list[str]], java: bool | None, timeout: float) -> tuple[np.ndarray, str]:
    """METEOR's counts (N, 23), or of its substitute's mean (N, 2), and how they were made."""
    by_jar, substitute = (
        lambda: meteor.counts_by_jar(said, refs, timeout),
        lambda: bootstrap.with_ones(without_java.meteor_scores(said, refs)),
    )
    found, how = either(java, by_jar, substitute)
    return found, {"java": "METEOR 1.5 (jar)"}.get(how, f"{without_java.METEOR}{how}")


def either(java: bool | None, by_java: Callable[[], Result], in_python: Callable[[], Result]) -> tuple[Result, str]:
    """The result, and "java" or why it wasn't Java."""
    if java is False:
        return in_python(), ""
    try:
        return by_java(), "java"
    except FAILURES as error:
        if java:
            raise
        return in_python(), f" (no Java: {' '.join(str(error).split())[:120]})"


def tokens_by_java(lines: list[str], timeout: float) -> list[str]:
    """As pycocoevalcap's PTBTokenizer, which would write a file beside its code. Raises RuntimeError where Java fails."""
    jar = published.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    # a line break of any kind inside a caption would shift all that follow
    text = "\n".join(" ".join(line.splitlines()) for line in lines)
    done = subprocess.run(
        command, cwd=Path(published.__file__).parent, input=text.encode(errors="replace"), capture_output=True, timeout=timeout
    )
    found = done.stdout.decode(errors="replace").split("\n")[: len(lines)]
    if done.returncode or len(found) != len(lines):
        raise RuntimeError(f"PTBTokenizer: {done.stderr.decode(errors='replace').strip()[-300:] or 'lines are missing'}")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in published.PUNCTUATIONS) for line in found]


def bleu_counts(said: list[str], refs: list[list[str]]) -> np.ndarray:
    """(N, 10): words, words of the reference closest in length, n-grams (n = 1 to 4), those of them that match (clipped)."""
    scorer = BleuScorer(n=4)
    for text, others in zip(said, refs):
        scorer += (text, others)
    rows = []
    for found in scorer.ctest:
        closest = min((abs(length - found["testlen"]), length) for length in found["reflen"])[1]
        rows.append([found["testlen"], closest, *found["guess"], *found["correct"]])
    return np.array(rows, dtype=float)


def bleu_score(sums: np.ndarray, n: int) -> np.ndarray:
    """BLEU-n (R,) of summed counts (R, 10), with pycocoevalcap's small constants against division by zero."""
    words, closest = sums[:, 0], sums[:, 1]
    precision = np.prod((sums[:, 6 : 6 + n] + 1e-15) / (sums[:, 2 : 2 + n] + 1e-9), axis=1)
    ratio = (words + 1e-15) / (closest + 1e-9)
    with np.errstate(over="ignore"):
        return precision ** (1 / n) * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1)


def corpus_score(metric: str, num_counts: int) -> Callable[[np.ndarray], np.ndarray]:
    """What takes summed counts (R, K), K = `num_counts`, to the metric (R,)."""
    if metric in BLEU:
        return lambda sums: bleu_score(sums, BLEU.index(metric) + 1)
    return meteor.scores if num_counts == meteor.COUNTS else bootstrap.ratio


def rouge_l(said: list[str], refs: list[list[str]]) -> np.ndarray:
    """ROUGE-L (N,)."""
    return np.array([Rouge().calc_score([text], others) for text, others in zip(said, refs)])


def cider_scores(said: list[str], refs: list[list[str]]) -> np.ndarray:
    """CIDEr (N,), idf over the references of these N videos; 0 for a single video, whose idf is log 1."""
    scorer = CiderScorer(n=4, sigma=6.0)
    for text, others in zip(said, refs):
        scorer += (text, others)
    return scorer.compute_score()[1]
