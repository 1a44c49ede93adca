"""Designs: balance, orthogonality, corners, and what can't be told apart, against columns of interactions formed here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from meltr_ray.errors import ConfigError
from tune_spaces import designs

ROWS = {1: 2, 2: 4, 3: 8, 4: 16, 5: 17, 6: 16, 7: 16, 8: 24, 11: 24, 12: 32, 15: 32, 19: 40, 23: 48}


def names(count):
    return [f"loss{i}" for i in range(count)]


def all_designs():
    for count in ROWS:
        yield pytest.param(designs.screening(names(count)), id=f"full-{count}")
    yield pytest.param(designs.screening(names(4), "half"), id="half-4")
    for count in (1, 2, 3, 6):
        yield pytest.param(designs.leave_one_out(names(count)), id=f"leave-{count}")
        yield pytest.param(designs.add_one_in(names(count)), id=f"add-{count}")


def orthogonal_designs():
    return [param for param in all_designs() if not param.id.startswith(("leave", "add"))]


@pytest.mark.parametrize("design", all_designs())
def test_corners_are_rows_and_no_row_comes_twice(design):
    assert design.rows[0] == () and design.rows[-1] == design.losses and len(set(design.rows)) == len(design.rows)
    assert all(row == tuple(loss for loss in design.losses if loss in row) for row in design.rows)
    assert design.matrix().shape == (len(design.rows), len(design.losses))


@pytest.mark.parametrize("design", orthogonal_designs())
def test_main_effects_are_balanced_orthogonal_and_clear_of_pairs(design):
    signs = design.matrix()
    if len(design.losses) == 5:  # the corner that its half lacks
        signs = signs[1:]
    assert np.array_equal(signs.T @ signs, len(signs) * np.eye(len(design.losses))) and not signs.sum(0).any()
    for one, other in itertools.combinations(range(len(design.losses)), 2):
        if len(design.losses) > 1:
            assert not ((signs[:, one] * signs[:, other]) @ signs).any()


@pytest.mark.parametrize("design", all_designs())
def test_aliased_pairs_are_those_whose_columns_correlate(design):
    """Groups are the connected parts of the graph of correlated pairs."""
    signs = design.matrix()[1:] if len(design.rows) == 17 else design.matrix()
    if len(design.losses) < 3:
        assert design.aliased == ()
        return
    pairs = list(itertools.combinations(range(len(design.losses)), 2))
    correlated = np.abs(np.nan_to_num(np.corrcoef([signs[:, i] * signs[:, j] for i, j in pairs]))) > 1e-9
    reached = correlated | np.eye(len(pairs), dtype=bool)
    for _ in pairs:
        reached = reached @ reached
    groups = {tuple((design.losses[i], design.losses[j]) for k, (i, j) in enumerate(pairs) if row[k]) for row in reached}
    assert {frozenset(group) for group in groups if len(group) > 1} == {frozenset(group) for group in design.aliased}


@pytest.mark.parametrize("count, rows", ROWS.items())
def test_sizes(count, rows):
    assert len(designs.of("full", names(count)).rows) == rows


def test_what_is_aliased():
    def sizes(design):
        return [len(group) for group in design.aliased]

    assert all(not designs.screening(names(count)).aliased for count in range(1, 6))
    assert sizes(designs.screening(names(4), "half")) == [2] * 3
    assert sorted(sizes(designs.screening(names(6)))) == [2] * 6 + [3]
    assert sizes(designs.screening(names(7))) == [3] * 7
    assert sizes(designs.screening(names(8))) == [28]


def test_one_at_a_time():
    leave, add = designs.of("leave_one_out", "abc"), designs.of("add_one_in", "abc")
    assert leave.rows == ((), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"))
    assert add.rows == ((), ("a",), ("b",), ("c",), ("a", "b", "c"))
    assert designs.leave_one_out("ab").rows == designs.add_one_in("ab").rows == ((), ("a",), ("b",), ("a", "b"))


@pytest.mark.parametrize("kind, count, named", [
    ("full", 0, "losses.set="), ("leave_one_out", 0, "losses.set="), ("full", designs.MOST + 1, "losses.set="),
    ("half", 5, "sweep.design=half"), ("quarter", 3, "sweep.design=quarter"),
])  # fmt: skip
def test_designs_that_can_not_be(kind, count, named):
    with pytest.raises(ConfigError, match=named) as error:
        designs.of(kind, names(count))
    assert "\n" not in str(error.value) and ";" in str(error.value)
