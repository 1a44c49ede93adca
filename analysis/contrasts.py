"""From the rows of a design to what a loss gives: weights of the rows, and values for trials that are missing."""

from __future__ import annotations

from functools import cache

import numpy as np

from tune_spaces.designs import Design, Pair, balanced, is_clear


def average(design: Design, loss: str) -> np.ndarray | None:
    """(R,) weights: in minus out, on average over the other losses; None where a design doesn't separate it from pairs."""
    signs = balanced(design.matrix())
    if not is_clear(signs):
        return None
    return _on_all_rows(design, 2 * signs[:, design.losses.index(loss)] / len(signs))


def beside(design: Design, loss: str) -> np.ndarray | None:
    """(R,) weights: the row of this loss alone minus the row of none."""
    return _difference(design, (loss,), ())


def in_full(design: Design, loss: str) -> np.ndarray | None:
    """(R,) weights: the row of all minus the row of all but this one."""
    return _difference(design, design.losses, tuple(other for other in design.losses if other != loss))


def change(design: Design, loss: str) -> np.ndarray | None:
    """(R,) weights: `beside` minus `in_full`, where a design has both and there is another loss."""
    alone, full = beside(design, loss), in_full(design, loss)
    return None if alone is None or full is None or len(design.losses) == 1 else alone - full


def judged(design: Design, loss: str) -> str:
    """The effect that a verdict is read from: `average` where the design has it, else `in_full` or `beside`."""
    if average(design, loss) is not None:
        return "average"
    return "in_full" if in_full(design, loss) is not None else "beside"


def interaction(design: Design, pair: Pair) -> np.ndarray | None:
    """(R,) weights: what either loss gives with the other in, minus what it gives with the other out.

    Of pairs that are wholly aliased it is the sum of theirs ("all" is a row, so no sign is turned); None where pairs are
    partly aliased.
    """
    signs = balanced(design.matrix())
    if not is_clear(signs):
        return None
    one, other = (signs[:, design.losses.index(loss)] for loss in pair)
    group = next((group for group in design.aliased if pair in group), (pair,))
    if not all(np.array_equal(one * other, np.prod([signs[:, design.losses.index(loss)] for loss in tied], axis=0)) for tied in group):
        return None
    return _on_all_rows(design, 4 * one * other / len(signs))


def is_row(design: Design, loss: str) -> bool:
    """Whether "all but this one" was run: else its effect in the full set comes from a model."""
    return tuple(other for other in design.losses if other != loss) in design.rows


def _on_all_rows(design: Design, weights: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(len(design.rows) - len(weights)), weights])  # the corner that isn't averaged over is first


def _difference(design: Design, plus: tuple[str, ...], minus: tuple[str, ...]) -> np.ndarray | None:
    """Of two rows; where one wasn't run, of what least squares with all losses and all pairs say of it, if they can."""
    if plus in design.rows and minus in design.rows:
        weights = np.zeros(len(design.rows))
        weights[design.rows.index(plus)], weights[design.rows.index(minus)] = 1, -1
        return weights
    columns = _losses_and_pairs(design.matrix())
    if np.linalg.matrix_rank(columns) < columns.shape[1]:
        return None
    ends = np.array([[1.0 if loss in row else -1.0 for loss in design.losses] for row in (plus, minus)])
    return np.subtract(*_losses_and_pairs(ends)) @ np.linalg.pinv(columns)


def _losses_and_pairs(signs: np.ndarray) -> np.ndarray:
    """(R, T) -> (R, 1 + T + T (T - 1) / 2)."""
    one, other = np.triu_indices(signs.shape[1], 1)
    return np.column_stack([np.ones(len(signs)), signs, signs[:, one] * signs[:, other]])


def fill(values: np.ndarray) -> np.ndarray:
    """(n, R) scores, NaN = missing -> the same with the values that least squares with rows and seeds give for them.

    These leave the residuals of the others as they are (Yates, Empire Journal of Experimental Agriculture 1, 1933). A row or a
    seed without any score stays NaN.
    """
    missing = np.isnan(values)
    if not missing.any():
        return values
    from statsmodels.regression.linear_model import OLS  # takes a second to import

    seeds, rows = np.flatnonzero(~missing.all(1)), np.flatnonzero(~missing.all(0))
    held = values[np.ix_(seeds, rows)]
    absent = np.isnan(held)
    columns = _rows_and_seeds(*held.shape)
    fitted = OLS(held[~absent], columns[~absent.ravel()]).fit().predict(columns[absent.ravel()]) if absent.any() else []
    held[absent] = fitted
    filled = values.copy()
    filled[np.ix_(seeds, rows)] = held
    return filled


@cache
def _rows_and_seeds(seeds: int, rows: int) -> np.ndarray:
    """(seeds * rows, seeds + rows - 1): the additive model's columns, a cell a line."""
    of_seed = np.repeat(np.eye(seeds), rows, axis=0)
    return np.column_stack([of_seed, np.tile(np.eye(rows), (seeds, 1))[:, 1:]])
