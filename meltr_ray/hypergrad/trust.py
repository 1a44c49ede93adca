"""`auto` trusts nothing untested: once per module and graph of its losses, products are compared with independent ones.

What is right is what training follows, the gradient that ordinary backward passes give. For J v that is <gradient of each loss, v>:
T backward passes. For H u, exact products (of autograd's second derivatives) and differences of gradients judge each other: they
err by different faults. A stop-gradient, a gradient reversal or a wrong backward makes the gradient another than that of the
function; a backward without a derivative, or a weight read past the module, makes an exact product lose a part.

The verdict lasts as long as the module: problems are made anew for every meta step.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Optional, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.generators import get_generators, set_generators
from meltr_ray.hypergrad.products import Choice, NotAdmitted

ALLOWED = {torch.float64: 1e-3, torch.float32: 3e-2}
"""Relative error, by the type of the passes, up to which a product passes; what a named one may have is twice that."""
ALLOWED_IN_HALF = 0.2
MOST_GRAPHS = 8
"""Graphs of one module that are tested; where there are more, as of loops as long as the batch, the later ones are taken to be alike."""
SEED = 20230613


@dataclass
class Verdict:
    """What tests of one module's products found, by option and name."""

    passed: set[tuple[str, str]] = field(default_factory=set)
    struck: dict[tuple[str, str], str] = field(default_factory=dict)
    follows: bool = True
    """Whether the gradient that training follows is that of the losses as a function of w."""


@dataclass
class Book:
    """Verdicts of one kind of losses of one module, by the signature of their graph."""

    by_graph: dict[int, Verdict] = field(default_factory=dict)
    last: Optional[Verdict] = None
    needs_graph: bool = False
    """Whether these losses take gradients of their own, so that they can't be had without a graph."""


_BOOKS: WeakKeyDictionary[nn.Module, dict[Any, Book]] = WeakKeyDictionary()

_FITTING: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()
"""Shapes and types of losses that a combiner has been seen to take."""


class Trust:
    """What one problem knows of its products, and where that is kept.

    Args:
        owner: the module.
        passes: functions whose products are tested; others of the same module are tested again.
        kind: what else a verdict hangs on: type of the passes, number of micro-batches.
    """

    def __init__(self, owner: nn.Module, passes: Sequence[Callable[..., Any]], kind: tuple[Any, ...]):
        key = (*(_code(function) for function in passes), *kind)
        self.book = _BOOKS.setdefault(owner, {}).setdefault(key, Book())
        self.verdict = self.book.last or Verdict()
        self.assumed = True
        """Whether the verdict is that of the last losses of this kind, and these haven't been looked at."""
        self.asked = self.doubted = False

    def is_settled(self, choice: Choice) -> bool:
        """Whether the product that `choice` takes next, but for those struck off already, has passed."""
        self.asked = True
        while not self.doubted and len(choice.candidates) > 1 and (choice.option, choice.candidates[0]) in self.verdict.struck:
            choice.candidates.pop(0)
        return not self.doubted and (choice.option, choice.candidates[0]) in self.verdict.passed

    def look(self, signature: Callable[[], int], choices: Sequence[Choice]) -> None:
        """Before a test: the verdict is that of the losses as they are now. `signature`: of their graph, a forward pass."""
        if not self.assumed:
            return
        found = self.book.by_graph.setdefault(signature(), Verdict())
        if found is not self.verdict:
            for choice in choices:
                choice.reset()
        self.verdict = self.book.last = found
        self.assumed = self.doubted = False

    def settle(self, choice: Choice, test: Callable[[str], Optional[str]]) -> None:
        """Strike off candidates until one passes: `test` gives the reason why a product is wrong, or None.

        Raises:
            NotAdmitted: none is left, or the one that was asked for by name is wrong.
        """
        while not self.is_settled(choice):
            key = choice.option, choice.candidates[0]
            if key not in self.verdict.struck:
                try:
                    reason = test(key[1])
                except NotAdmitted as refusal:
                    reason = str(refusal).split(": ", 1)[-1].split("; ")[0]
                if reason is None:
                    self.verdict.passed.add(key)
                    break
                self.verdict.struck[key] = reason
            choice.strike(key[1], self.verdict.struck[key])

    def fit(self, combiner: Any, l: Tensor, test: Callable[[], None]) -> None:
        """Test once that `combiner` takes such losses."""
        known = _FITTING.setdefault(combiner, set()) if isinstance(combiner, nn.Module) else set()
        if (l.shape, l.dtype) in known:
            return
        states = get_generators(l.device)
        try:
            test()
        finally:
            set_generators(states, l.device)
        known.add((l.shape, l.dtype))

    def knows(self, signature: int) -> bool:
        """Whether the verdict that a hypergradient went by is that of the graph that it turned out to be of; else it is looked for anew."""
        graphs = self.book.by_graph
        found = graphs.get(signature)
        if not self.asked:
            return True
        if found is None and self.assumed and len(graphs) < MOST_GRAPHS:
            self.doubted = True
            return False
        if found is None and len(graphs) < 2 * MOST_GRAPHS:  # of the inner step's own forward, which an engine may wrap
            graphs[signature] = self.verdict
        if found is None or found is self.verdict:
            return True
        held = found.struck == self.verdict.struck and found.passed >= self.verdict.passed
        self.verdict = self.book.last = found
        return held


def _code(function: Callable[..., Any]) -> Any:
    """What a function does, whichever closure made it."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return function.__code__ if isinstance(function, types.FunctionType) else type(function)


def allowed(choice: Choice, arithmetic: torch.dtype, radius: Optional[float] = None) -> float:
    """Relative error that a test lets pass; of a length that somebody has chosen, no less than in float32."""
    own = ALLOWED.get(arithmetic, ALLOWED_IN_HALF)
    return (own if radius is None else max(own, ALLOWED[torch.float32])) * (1 if choice.is_auto else 2)


def far(a: Tensor, b: Tensor, scale: float) -> float:
    """|a - b| / scale, or infinite where it isn't a number."""
    found = float((a.double() - b.double()).norm()) / scale if scale else float((a.double() - b.double()).norm() > 0)
    return found if found == found else float("inf")
