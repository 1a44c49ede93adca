"""What is to be known of the names in a backbone's checkpoint files: a class for each backbone, which its model knows nothing of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Where an initialisation, such as BERT, goes in a backbone."""

    places: dict[str, str]
    """Beginning of its names -> beginning of the backbone's."""
    uncovered: tuple[str, ...] = ()
    """Beginnings of the backbone's names there that may be missing all the same."""


class Naming:
    """Names of a backbone; what a subclass doesn't say has the default here."""

    title: ClassVar[str]
    words: ClassVar[str]
    """The word embeddings, which tell the size of the vocabulary."""
    width: ClassVar[str]
    """Beginning of the names of an entry as long as the transformers are wide."""
    may_be_missing: ClassVar[tuple[str, ...]]
    """Parts, by the beginning of their names, that its own checkpoint may lack, each wholly."""
    may_be_unexpected: ClassVar[tuple[str, ...]]
    """Entries that its own checkpoint may have for nothing."""
    answer_heads: ClassVar[tuple[str, ...]] = ()
    """Heads with one row for each answer of a data set: with other answers they are made anew."""
    frame_features: ClassVar[str | None] = None
    """The entry whose last dimension is the size of frame features."""
    wrapper: ClassVar[str | None] = None
    """Key under which the authors' code looks for the entries; None: it takes the file itself."""
    parts: ClassVar[dict[str, Part]]
    """Initialisations that cover a part of it, by their kind in checkpoints/naming.py."""

    def is_own(self, beginnings: Collection[str]) -> bool:
        """Whether a file whose names begin so, up to the first dot, is one of this backbone."""
        raise NotImplementedError

    def empty(self, config: Any, state: State, num_words: int) -> tuple[Any, nn.Module]:
        """(`config` with the lengths of tables that `state` has, a module with its features and heads)."""
        raise NotImplementedError

    def own(self, state: State) -> State:
        """Its own checkpoint, as this project's module has its names."""
        return state

    def fit(self, state: State, config: Any) -> State:
        """Initialisations, under the backbone's names, with the sizes of `config`."""
        return state

    def fit_start(self, state: State, model: nn.Module) -> State:
        """An imported checkpoint, to start `model` from."""
        return state

    def complete(self, model: nn.Module, copied: Collection[str], left: list[str]) -> list[str]:
        """Start what follows from `copied` weights of `model`; what is left of the names that stay as drawn."""
        return left
