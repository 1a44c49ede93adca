"""METEOR 1.5 for English as `pycocoevalcap` gives it, by its jar."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pycocoevalcap.meteor.meteor as published

COUNTS = 23
"""Numbers that the jar prints of a caption."""
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
"""METEOR 1.5's English parameters (its task "rank", the default)."""
WEIGHTS = (1.0, 0.6, 0.8, 0.6)
"""Of a match: exact, stem, synonym, paraphrase."""


def scores(counts: np.ndarray) -> np.ndarray:
    """METEOR (N,), from 0 to 1, of counts (N, 23) in the order in which the jar prints them.

    Denkowski and Lavie, WMT 2014, section 2: weighted precision and recall, their harmonic mean, a penalty for chunks.
    """
    n, m = counts[:, 0], counts[:, 1]
    function, other_function = counts[:, 2], counts[:, 3]
    kinds = counts[:, 4:20].reshape(-1, 4, 4)  # kind; content and function words of the prediction and of the reference
    length = DELTA * (n - function) + (1 - DELTA) * function
    other_length = DELTA * (m - other_function) + (1 - DELTA) * other_function
    matched, other_matched = np.zeros(len(counts)), np.zeros(len(counts))
    for column, share in ((0, DELTA), (2, 1 - DELTA)):
        for kind, weight in enumerate(WEIGHTS):
            matched += kinds[:, kind, column] * weight * share
            other_matched += kinds[:, kind, column + 1] * weight * share
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = matched / length, other_matched / other_length
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        whole = perfect(counts)
        fragmentation = np.where(whole, 0, counts[:, 20] / ((counts[:, 21] + counts[:, 22]) / 2))
        score = mean * (1 - GAMMA * fragmentation**BETA)
    return np.where(np.isnan(score), 0, np.maximum(score, 0))


def perfect(counts: np.ndarray) -> np.ndarray:
    """Where all words match in one chunk, (N,) bool: such captions have no penalty, and add no chunk to a corpus."""
    kinds = counts[:, 4:20].reshape(-1, 4, 4).sum(1)
    return (kinds[:, 0] + kinds[:, 2] == counts[:, 0]) & (kinds[:, 1] + kinds[:, 3] == counts[:, 1]) & (counts[:, 20] == 1)


def addable(counts: np.ndarray) -> np.ndarray:
    """Counts (N, 23) whose sum over captions has the corpus's METEOR as its score."""
    out = counts.copy()
    out[perfect(counts), 20] = 0
    return out


def counts_by_jar(predictions: list[str], references: list[list[str]], timeout: float = 3600) -> np.ndarray:
    """METEOR's counts (N, 23), each prediction against the one of its references that scores highest.

    Raises RuntimeError where the jar doesn't answer as it should (`OSError` where Java can't be started). `timeout` in seconds.
    """
    command = ["java", "-jar", "-Xmx2G", published.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    lines = ["SCORE ||| " + " ||| ".join([*map(guarded, refs), guarded(text)]) for text, refs in zip(predictions, references)]
    text = "\n".join([*lines, ""]).encode(errors="replace")
    done = subprocess.run(command, cwd=Path(published.__file__).parent, input=text, capture_output=True, timeout=timeout)
    rows = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
    if done.returncode or len(rows) != len(lines) or any(len(row) != 23 for row in rows):
        raise RuntimeError(f"METEOR's jar: {(done.stderr or done.stdout).decode(errors='replace').strip()[-300:] or 'no answer'}")
    return np.array(rows, dtype=float).reshape(-1, 23)


def guarded(text: str) -> str:
    """`text` on one line, without the jar's separator; a blank where nothing is left, as the jar skips an empty last field."""
    return " ".join(text.replace("|||", " ").split()) or " "
