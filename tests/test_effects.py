"""Effects of a screening: by hand, against statsmodels, and their verdicts over simulated screenings, where the truth is known."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS

from analysis import contrasts
from analysis.effects import Scores, best_set, effects
from analysis.family import Cells, contrast
from analysis.screening_text import depends, text
from analysis.simultaneous import LEVEL, MANY, critical_value, spent, steadied
from analysis.verdicts import kind_of, seeds_to_tell, words
from tests.screenings import Truth, analyse, fill
from tune_spaces import designs

MARGIN = 1.5
COUNT = 600
"""Simulated screenings of a scenario; 5 % of them is known to 0.9 points."""
ALLOWED = LEVEL + 2.5 * np.sqrt(LEVEL * (1 - LEVEL) / COUNT)


def losses(count):
    return [f"loss{i}" for i in range(count)]


def screening(values, design, controls=None, **options):
    return effects(Scores(design, tuple(range(len(values))), np.asarray(values, float), controls or {}), MARGIN, **options)


def test_two_losses_by_hand():
    """Rows: none, a, b, a and b."""
    values = np.array([[10.0, 14, 11, 15.5], [12, 15, 12, 16], [9, 15, 11, 15], [10, 13, 10, 14]])
    control = values[:, [0, 3]] - [[8.0, 5], [7, 4], [10, 3], [6, 4]]
    found = screening(values, designs.screening("ab"), {"noise": control})
    a, _, noise = found.effects
    average = (values[:, 1] + values[:, 3] - values[:, 0] - values[:, 2]) / 2  # 4.25, 3.5, 5, 3.5
    assert np.allclose(a.average.per_seed, [4.25, 3.5, 5, 3.5]) and a.average.mean == pytest.approx(4.0625)
    assert a.beside.mean == pytest.approx(np.mean([4, 3, 6, 3])) and a.in_full.mean == pytest.approx(np.mean([4.5, 4, 4, 4]))
    assert np.allclose(a.change.per_seed, [-0.5, -1, 2, -1]) and np.allclose(found.interactions[0].estimate.per_seed, [0.5, 1, -2, 1])
    assert (noise.beside.mean, noise.in_full.mean) == pytest.approx((-7.75, -4))
    # four effects of losses and two of the control: the losses have four sixths of the 5 %
    change = values[:, 1] - values[:, 0] - values[:, 3] + values[:, 2]
    other = (values[:, 2] + values[:, 3] - values[:, 0] - values[:, 1]) / 2
    in_units = np.array([average.var(ddof=1) / 1, change.var(ddof=1) / 4, other.var(ddof=1) / 1, change.var(ddof=1) / 4])
    variance = (2 * in_units[0] + in_units.mean()) / 3
    assert a.average.half == pytest.approx(critical_value(4, 3.0, 0.05 * 4 / 6) * np.sqrt(variance / 4))
    in_units = noise.beside.per_seed.var(ddof=1) / 2, noise.in_full.per_seed.var(ddof=1) / 2
    variance = 2 * (2 * in_units[0] + np.mean(in_units)) / 3
    assert noise.beside.half == pytest.approx(critical_value(2, 3.0, 0.05 * 2 / 6) * np.sqrt(variance / 4))
    plain = stats.t.interval(0.95, 3, np.mean([0.5, 1, -2, 1]), stats.sem([0.5, 1, -2, 1]))
    assert (found.interactions[0].estimate.low, found.interactions[0].estimate.high) == pytest.approx(plain)
    assert found.few_seeds and found.missing == 0 and (a.kind, noise.judged) == ("helps", "beside")


@pytest.mark.parametrize("count", [3, 5])
def test_effects_are_those_of_least_squares(count):
    """statsmodels' own, with all losses and pairs; with five losses also for the rows that weren't run."""
    design = designs.screening(losses(count))
    signs, scores = design.matrix(), np.random.default_rng(0).normal(size=len(design.rows))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]

    def columns(signs):
        return np.column_stack([np.ones(len(signs)), signs, *(signs[:, i] * signs[:, j] for i, j in pairs)])

    used = designs.balanced(signs)
    fit = OLS(scores[-len(used) :], columns(used)).fit()
    for k, loss in enumerate(design.losses):
        assert contrasts.average(design, loss) @ scores == pytest.approx(2 * fit.params[1 + k])
    for k, (i, j) in enumerate(pairs):
        assert contrasts.interaction(design, (design.losses[i], design.losses[j])) @ scores == pytest.approx(4 * fit.params[1 + count + k])
    if count == 5:
        ends = np.array([[1.0] * 5, [1.0] * 4 + [-1.0]])
        expected = OLS(scores, columns(signs)).fit().t_test(np.subtract(*columns(ends))).effect[0]
        assert contrasts.in_full(design, "loss4") @ scores == pytest.approx(expected) and not contrasts.is_row(design, "loss4")


@pytest.mark.parametrize("missing", [1, 5])
def test_missing_trials_have_the_values_that_least_squares_give(missing):
    """One by hand: (n seed + R row - all) / ((n - 1) (R - 1)) of the sums of what is there (Yates 1933); more, by another way."""
    generator = np.random.default_rng(missing)
    values = generator.normal(size=(6, 8)) + np.arange(8)
    values.ravel()[generator.choice(48, missing, replace=False)] = np.nan
    filled = contrasts.fill(values)
    assert np.allclose(filled, fill(values)) and np.array_equal(filled[~np.isnan(values)], values[~np.isnan(values)])
    if missing == 1:
        (seed,), (row,) = np.where(np.isnan(values))
        expected = (6 * np.nansum(values[seed]) + 8 * np.nansum(values[:, row]) - np.nansum(values)) / (5 * 7)
        assert filled[seed, row] == pytest.approx(expected)


def test_what_missing_trials_cost():
    """One of sixteen rows takes a sixteenth of a seed from an average, and half of one from a difference of two rows."""
    design = designs.screening(losses(4))
    values = np.random.default_rng(0).normal(size=(6, 16))
    whole = screening(values, design)
    values[2, 0] = np.nan
    found = screening(values, design)
    assert found.missing == 1 and all(effect.imputed == 1 for effect in found.effects) and whole.effects[0].imputed == 0
    cells = Cells(contrasts.fill(values), np.isnan(values))
    assert contrast(contrasts.average(design, "loss1"), cells).seeds == pytest.approx(6 - 1 / 16)
    assert (
        contrast(contrasts.beside(design, "loss1"), cells).seeds == 5.5 and contrast(contrasts.in_full(design, "loss1"), cells).seeds == 6
    )
    values[:, 0] = np.nan  # no score of a row at all: what weighs it is not estimated
    found = screening(values, design)
    assert all(effect.average is effect.beside is effect.change is None and effect.in_full for effect in found.effects)
    assert {effect.verdict for effect in found.effects} == {"undecided: too few trials"}


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_too_few_seeds_have_no_interval(seeds):
    design = designs.screening(losses(3))
    values = np.random.default_rng(0).normal(size=(4, 8))
    values[seeds:] = np.nan  # planned, not run
    control = np.full((4, 2), np.nan)
    found = screening(values, design, {"noise": control}, looks=(6, 9))
    assert len(found.seeds) == seeds and {effect.kind for effect in found.effects} <= {"undecided", "none"}
    assert text(found, "accuracy").count("too few trials") == (1 if seeds == 2 else 4)


def test_critical_values():
    """One effect: Student's. Many seeds: near Sidak's. And no pattern of spreads, drawn at random, errs more often than promised."""
    assert critical_value(1, 5.0, 0.05) == pytest.approx(stats.t.ppf(0.975, 5), rel=1e-3)
    assert 1 < critical_value(6, MANY, 0.05) / stats.norm.ppf((1 + 0.95 ** (1 / 6)) / 2) < 1.01
    generator, value = np.random.default_rng(0), critical_value(8, 5.0, 0.05)
    for _ in range(100):
        spreads = np.exp(generator.normal(0, generator.choice([0.3, 1, 2]), 8))
        variances = spreads**2 * generator.chisquare(5, (4000, 8)) / 5
        covered = np.prod(1 - 2 * stats.norm.sf(value * np.sqrt(steadied(variances)) / spreads), axis=1).mean()
        assert covered > 0.95 - 0.01
    assert value < 0.8 * stats.t.ppf((1 + 0.95 ** (1 / 8)) / 2, 5)  # what it is for


def test_looks_spend_no_more_than_one_would():
    looks = (6, 9, 12)
    shares = [spent(looks, at) for at in looks]
    assert spent((), 6) == spent((6,), 6) == pytest.approx(1) and spent(looks, 4) == shares[0] and spent(looks, 7) == shares[1]
    level = LEVEL / 10
    sums = np.random.default_rng(0).normal(size=(400_000, 12)).cumsum(1)
    crossed = np.zeros(len(sums), bool)
    for share, at in zip(shares, looks):
        crossed |= np.abs(sums[:, at - 1]) / np.sqrt(at) > stats.norm.isf(share * level / 2)
    assert crossed.mean() == pytest.approx(level, rel=0.08)


SCENARIOS = {
    "no effect": {"main": 0.0, "control": (0.0, 0.0)},
    "effects of the margin": {"main": MARGIN, "unequal": True, "control": (-MARGIN, MARGIN)},
    "interactions": {"main": 2.0, "pairs": {(0, 1): -4.0}, "unequal": True, "control": (0.0, 0.0)},
}


def simulated(scenario, count, by_seed, looks):
    """Kind of false verdict -> share of screenings in which any look gives one."""
    options = dict(SCENARIOS[scenario])
    main = options.pop("main")
    main = {"interactions": [main, main] + [0.0] * (count - 2)}.get(scenario, [main * (-1) ** i for i in range(count)])
    varying = [by_seed * (i % 2 if scenario == "effects of the margin" else 1) for i in range(count)]
    truth = Truth(designs.screening(losses(count)), main, options.pop("pairs", {}), by_seed=varying, missing=0.05, **options)
    values, control = truth.draw(COUNT, looks[-1], np.random.default_rng(count))
    wrong = [analyse(truth, values[:, :at], control[:, :at], looks).wrong(MARGIN) for at in looks]
    return {kind: np.logical_or.reduce([found[kind] for found in wrong]).mean() for kind in wrong[0]}


@pytest.mark.parametrize("looks", [(6, 9, 12), (6,), (3,)], ids=str)
@pytest.mark.parametrize("by_seed", [0.0, 0.75, 1.5])
@pytest.mark.parametrize("count", [2, 4, 5, 6])
def test_false_verdicts_are_rare(count, by_seed, looks):
    """Family-wise over a whole table and all looks: helps, harms, no difference, depends; and intervals that miss."""
    for scenario in SCENARIOS:
        wrong = simulated(scenario, count, by_seed, looks)
        assert all(share <= ALLOWED for share in wrong.values()), (scenario, wrong)


def test_diverged_trials_make_no_false_verdicts():
    """5 % of trials at a stated score, far below."""
    truth = Truth(designs.screening(losses(4)), [0.0] * 4, {}, by_seed=[0.75] * 4, control=(0.0, 0.0))
    generator = np.random.default_rng(0)
    values, control = truth.draw(COUNT, 6, generator)
    for array in (values, control):
        array[generator.random(array.shape) < 0.05] = -30.0
    wrong = analyse(truth, values, control).wrong(MARGIN)
    assert wrong["helps"].mean() <= ALLOWED and wrong["harms"].mean() <= ALLOWED


GRAIN = 1.25
"""Of an accuracy over 80 examples."""


def test_scores_that_move_in_steps_make_no_false_verdicts():
    """Two seeds often have the same contrast then, to the last digit: that isn't a spread of 0."""
    design, generator, seen = designs.screening(losses(1)), np.random.default_rng(0), []
    for _ in range(COUNT):
        scores = 30 + generator.normal(0, 1, (2, 1)) + generator.normal(0, 0.8, (2, 2))  # no effect
        seen.append(screening(np.round(scores / GRAIN) * GRAIN, design).effects[0].kind)
    assert np.mean([kind in ("helps", "harms") for kind in seen]) <= ALLOWED


@pytest.mark.parametrize("seeds, kind", [(2, "undecided"), (12, "none")])
def test_equal_contrasts_have_the_spread_of_rounding(seeds, kind):
    scores = GRAIN * np.random.default_rng(0).integers(20, 30, (seeds, 1)) * np.ones((1, 2))
    (effect,) = screening(scores, designs.screening(losses(1))).effects
    assert effect.kind == kind and effect.average.mean == 0 and effect.average.half > GRAIN / np.sqrt(6 * seeds)


@pytest.mark.parametrize("count, missing", [(2, 0.0), (4, 0.1), (5, 0.1), (6, 0.1)])
def test_many_at_once_are_analysed_as_one(count, missing):
    """The simulation's intervals are those of the function that users get."""
    truth = Truth(designs.screening(losses(count)), [2.0] * count, {(0, 1): -4.0}, by_seed=[1.0] * count, missing=missing)
    values, control = truth.draw(3, 6, np.random.default_rng(1))
    found = analyse(truth, values, control, (6, 9))
    for k in range(len(values)):
        one = screening(values[k], truth.design, {"noise": control[k]}, looks=(6, 9))
        estimates = [effect.average for effect in one.effects[:-1]]
        estimates += [effect.change for effect in one.effects[:-1] if effect.change] + [one.effects[-1].beside, one.effects[-1].in_full]
        assert np.allclose(found.low[k], [estimate.low for estimate in estimates])
        assert np.allclose(found.high[k], [estimate.high for estimate in estimates])


@pytest.mark.parametrize("low, high, kind, said", [
    (0.1, 2.0, "helps", "helps"), (0.1, 1.4, "helps", "helps, by less than 1.5"), (-2.0, -0.1, "harms", "harms"),
    (-1.0, -0.1, "harms", "harms, by less than 1.5"), (-1.4, 1.4, "none", "makes no difference of 1.5 or more"),
    (-1.5, 1.4, "undecided", "undecided: about 4 more seeds would tell"), (-np.inf, np.inf, "undecided", "undecided: too few trials"),
])  # fmt: skip
def test_verdicts_are_read_from_the_interval(low, high, kind, said):
    assert kind_of(low, high, MARGIN) == kind and words(kind, low, high, MARGIN, 4 if np.isfinite(low) else None) == said


def test_seeds_to_tell():
    """With that many the interval, from the same mean and spread, is just short enough."""
    more = seeds_to_tell(0.2, 2.0, 6, 3.7, 2.8, MARGIN)
    half = [2.0 * np.sqrt(6 / n) * (2.8 + 0.9 * 5 / (n - 1)) / 3.7 for n in (6 + more - 1, 6 + more)]
    assert half[0] >= MARGIN - 0.2 > half[1]
    assert seeds_to_tell(0.1, 90.0, 6, 3.7, 2.8, MARGIN) == 51 and words("undecided", -9, 9, MARGIN, 51).endswith(
        "more than 50 more seeds would tell"
    )
    assert words("undecided", -2, 2, MARGIN, 1) == "undecided: about 1 more seed would tell"


@functools.cache
def interacting():
    """`a` helps; `b` does alone and harms beside `a`; `c` does nothing."""
    design = designs.screening("abc")
    there = (design.matrix() + 1) / 2
    generator = np.random.default_rng(3)
    values = 30 + there @ [6.0, 3, 0] - 5 * there[:, 0] * there[:, 1] + generator.normal(0, 1, (6, 1)) + generator.normal(0, 0.3, (6, 8))
    return design, values, {"noise": values[:, [0, -1]] - [12, 6] + generator.normal(0, 1, (6, 2))}


def test_a_loss_depends_on_another():
    design, values, controls = interacting()
    found = screening(values, design, controls)
    a, b, c, noise = found.effects
    assert (b.kind, b.partner, b.verdict) == ("depends", "a", "depends on a") and (c.kind, noise.kind) == ("none", "harms")
    assert b.without_partner.mean == pytest.approx(3, abs=0.4) and b.with_partner.mean == pytest.approx(-2, abs=0.4)
    assert depends(b).startswith("b: +") and depends(c) == ""
    assert a.kind == "depends" and a.partner == "b"  # 6 alone and 1 in the full set, which is less than the margin
    assert best_set(found) == ("a",)  # first as it gives most; with it in, b harms
    strong = screening(values + 3 * (design.matrix()[:, 0] > 0), design)
    assert strong.effects[0].kind == "helps"  # by the margin or more at both ends
    assert best_set(strong) == ("a",)


def test_the_table_reads_as_text():
    design, values, controls = interacting()
    lines = text(screening(values, design, controls), "R@10").split("\n")
    assert lines[0] == "R@10, 6 seeds" and lines[1].split("   ")[0].strip() == "loss" and lines[1].endswith("verdict")
    assert len({line.index(word) for line, word in zip(lines[2:6], ("depends", "depends", "makes", "harms"))}) == 1
    assert lines[5].startswith("noise (control)") and "-0.0" not in "".join(lines)
    a, upside_down = (text(screening(sign * values, design), "error", higher=sign > 0) for sign in (1, -1))
    assert upside_down.startswith("error (lower is better), 6 seeds") and "+" in upside_down
    mirrored = text(screening(values, design), "error", higher=False).split("\n")

    def numbers(line):
        return [float(word.strip("[,]")) for word in line.split()[1:6]]

    assert numbers(mirrored[2])[:3] == [-number for number in numbers(a.split("\n")[2])[:3]]
    assert numbers(mirrored[2])[3:] == [-number for number in numbers(a.split("\n")[2])[:2:-1]]


@pytest.mark.parametrize("kind, judged", [("half", "average"), ("leave_one_out", "in_full"), ("add_one_in", "beside")])
def test_designs_that_lack_rows_say_so(kind, judged):
    design = designs.of(kind, losses(4))
    found = screening(np.random.default_rng(0).normal(size=(6, len(design.rows))), design)
    for effect in found.effects:
        assert effect.judged == judged and effect.change is None and effect.shown.half > 0
        assert [name for name in ("beside", "average", "in_full") if getattr(effect, name)] == [judged]
    assert [len(one.pairs) for one in found.interactions] == ([2, 2, 2] if kind == "half" else [])
    assert "can't be told from this design" in text(found, "accuracy")
