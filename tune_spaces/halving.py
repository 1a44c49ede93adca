"""Successive halving: many candidates train briefly, the better half for longer, the best to the end. Numbers alone, no trials.

Each length is a whole run of its own, with its whole schedule: the score of a run that is cut short before its learning rate has fallen says
little of where it would end.
"""

from __future__ import annotations

from collections.abc import Mapping

RUNGS = {4: "quarter", 2: "half", 1: "full"}
"""The lengths: train.steps over the number; and their names in names of trials."""
KEPT = 2
"""One of so many goes on to the next length."""
LAST = 2
"""Candidates that train to the end at least, so that the choice is made at full length."""

Scores = Mapping[int, Mapping[int, float]]
"""Rung -> candidate -> score, higher is better; minus infinity where it diverged; those that haven't ended are absent."""


def sizes(count: int) -> dict[int, int]:
    """Rung -> how many of `count` candidates train there. Rungs from which all would go on are left out: they choose nothing."""
    planned = {rung: max(min(count, LAST), -(-count // KEPT**place)) for place, rung in enumerate(RUNGS)}
    going_on = [*planned.values()][1:] + [0]
    return {rung: size for (rung, size), after in zip(planned.items(), going_on) if size > after}


def cost(count: int, costs: Mapping[int, float]) -> float:
    """Device-seconds of a search with `count` candidates; `costs`: rung -> those of a run there."""
    return sum(size * costs[rung] for rung, size in sizes(count).items())


def affordable(budget: float, costs: Mapping[int, float]) -> int:
    """The most candidates that `budget` device-seconds buy; 0: not one run at full length."""
    count = 0
    while cost(count + 1, costs) <= budget:
        count += 1
    return count


def best(candidates: list[int], scores: Mapping[int, float]) -> list[int]:
    """Best first; of equal ones, the earlier."""
    return sorted(candidates, key=lambda candidate: (-scores[candidate], candidate))


def course(count: int, scores: Scores) -> dict[int, list[int]]:
    """Rung -> candidates that train there, up to the first rung where one has not ended."""
    found: dict[int, list[int]] = {}
    going = list(range(count))
    for rung, size in sizes(count).items():
        found[rung] = going[:size]
        if any(candidate not in scores.get(rung, {}) for candidate in found[rung]):
            break
        going = best(found[rung], scores[rung])
    return found


def winner(count: int, scores: Scores) -> int | None:
    """The best at full length: None while one of them has not ended, and the first candidate, the arm as configured, where all diverged."""
    last = course(count, scores).get(1, [])
    known = scores.get(1, {})
    if not last or any(candidate not in known for candidate in last):
        return None
    first = best(last, known)[0]
    return 0 if known[first] == float("-inf") else first
