"""The answers that an open-ended question is answered with: a list, one a line, in `answers.txt` of the data folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from meltr_ray.errors import check


def build_answers(answers: Iterable[str], path: Path, size: int | None = None) -> list[str]:
    """Write the most frequent answers (those of train questions alone), the most frequent first, equals by their letters.

    `size`: at most so many; None: all.
    """
    counts = Counter(" ".join(answer.split()) for answer in answers)
    chosen = sorted(counts, key=lambda answer: (-counts[answer], answer))[:size]
    path.write_text("".join(f"{answer}\n" for answer in chosen), encoding="utf-8")
    return chosen


class Answers:
    """Answer <-> its number, which is that of the backbone's score."""

    def __init__(self, path: str | Path):
        check(
            Path(path).is_file(),
            "data.folder",
            Path(path).parent,
            "has no answers.txt, so no open question was imported; choose another task",
        )
        self.words = Path(path).read_text(encoding="utf-8").splitlines()
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def number(self, answer: str) -> int | None:
        """Number of `answer`; None where it isn't in the list, so that no prediction can be right."""
        return self.numbers.get(" ".join(answer.split()))
