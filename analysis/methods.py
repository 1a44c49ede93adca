"""How the numbers of a report were made, in words; every constant is read from where it is used."""

from __future__ import annotations

from analysis import chosen, statistics, tables
from analysis.screening_text import count
from analysis.tables import Sweep

LEVEL = f"{100 * statistics.CONFIDENCE:.0f} %"


def methods(sweep: Sweep) -> list[str]:
    """One paragraph each."""
    if sweep.screened:
        return [
            *([] if sweep.metric.higher else [_lower(sweep)]),
            *_screening(sweep),
            _pairs(sweep),
            _test(sweep),
            _interval(),
            _p_value(),
            _search(sweep),
        ]
    compared = [_pairs(sweep), _test(sweep), _budgets(sweep)]
    side = [] if sweep.metric.higher else [_lower(sweep)]
    return [*side, *compared, _interval(), _p_value(), _verdict(), _contribution(sweep), _controls(), _search(sweep)]


def _lower(sweep: Sweep) -> str:
    return (
        f"Signs: {sweep.label} is shown as it is, and lower is better. A difference is that of the metric, {sweep.ours} minus the "
        "other, so a negative one is in favour of the first; figures of differences have their axis reversed, so that better is on "
        "the right. The best of several evaluations or learning rates is the lowest."
    )


def _screening(sweep: Sweep) -> list[str]:
    known = sweep.about.get("screening") or {}
    helps, harms = ("above", "below") if sweep.metric.higher else ("below", "above")
    return [
        f"Design: {known.get('kind', sweep.plan.design)} of {', '.join(known.get('losses', []))}, every loss at weight 1, the primary loss in every row, "
        "all rows with the same seeds, so that initial weights, data order and masks are paired. A score is the best on validation of a run.",
        "Effect of a loss: in each seed the mean of the rows with it minus that of the rows without it; then the mean over seeds. Its error is the "
        "spread of these over seeds, never the scatter of all runs together: losses help by more with one seed than with another.",
        "Intervals: one family that holds together at 95 %, of every loss's average effect, of its change from beside the primary to the full set, "
        "and of both effects of each control; see docs/screening.md for how, and for what a simulation says of its errors.",
        f"Verdict, from the interval that is shown: {helps} 0 helps, {harms} 0 harms, within {sweep.margin:g} of 0 makes no difference of that size, else "
        "undecided. A loss depends on another where its effect beside the primary and that in the full set differ for sure and by more than the margin.",
        "Best set: the losses that help. It was chosen on the screening's seeds and is judged on fresh ones alone, against each arm in the order "
        "given; Student's interval.",
        "Examples: intervals are over seeds, with the examples of the split held fixed. What other examples would change is said beside them: half of the "
        "95 % interval of an effect over 100 resamples of the sources, alike for all trials, with the seeds held fixed.",
    ]


def _pairs(sweep: Sweep) -> str:
    return (
        f"Pairs: {sweep.ours} minus baseline, over the seeds that both finished; weights, data order, masks and dropout are "
        "drawn from the seed. A seed on which either diverged or failed gives no pair. If one arm diverges more often, leaving "
        "its failures out flatters it, so compare the counts too."
    )


def _test(sweep: Sweep) -> str:
    tested = sweep.rows[sweep.rows.split == "test"].groupby("trial").size()
    twice = int((tested > 1).sum())
    scored = f"Scored so far: {count(len(tested), 'trial')}, {twice or 'none'} of them more than once."
    return f"Test split, equal steps: one score a trial, once, with the weights of its best validation step. {scored}"


def _budgets(sweep: Sweep) -> str:
    return (
        "Validation, equal steps and equal seconds: the budget of a pair is the smaller of the two final step counts or training "
        "times; each side is given its best validation score at or before it. Training time includes meta steps and leaves out "
        "evaluation and checkpoints. The schedule of the learning rate was laid out for the full run, so a side that is cut "
        "short is at a disadvantage."
        + (f" At most {count(sweep.plan.max_concurrent, 'trial')} ran at a time." if sweep.plan.max_concurrent else "")
    )


def _interval() -> str:
    return (
        f"Interval: {LEVEL} bootstrap of the mean difference, BCa, or percentile where BCa is undefined (equal differences); "
        f"{statistics.RESAMPLES} resamples, fixed seed. A bootstrap of a few pairs is too short, as it can't leave the range of "
        "what was seen; Student's t interval, the thin bar in the figures, is given beside it and is the safer one. Both are "
        "over seeds with the examples of the split held fixed: they do not say how another sample of them would differ."
    )


def _p_value() -> str:
    exact = statistics.LARGEST_EXACT
    return (
        f"p: two-sided sign-flip permutation test of the mean, all 2^n sign patterns up to n = {exact}, {2**exact} random ones "
        "beyond. The baselines are tested in the order that the plan names them, within each way of comparing: 'p, in order' is the "
        "largest p up to that place (fixed-sequence testing), so a later verdict needs the earlier ones. The test split leads, the "
        "two on validation are secondary. 'Least p' is the smallest that so many pairs can give."
    )


def _verdict() -> str:
    return (
        f"Verdict: better or worse only if the p in order is below {statistics.SIGNIFICANCE:g} and the interval excludes 0; "
        "otherwise inconclusive, which does not mean equal."
    )


def _contribution(sweep: Sweep) -> str:
    return (
        f"Contribution of a loss: validation score of {sweep.ours} minus that without the loss, at equal steps, over common "
        f"seeds. {'Positive' if sweep.metric.higher else 'Negative'}: leaving it out hurts, so the loss helps. The word "
        "helps or hurts needs what a verdict needs, with p "
        f"not corrected for the number of losses: read it as exploration. "
        f"With fewer than {statistics.LEAST_FOR_INTERVAL} pairs the range is given."
    )


def _controls() -> str:
    return (
        "Controls: slope at the last evaluation over the mean slope of the genuine auxiliary losses, each seed its own ratio. "
        f"Demoted if the upper end of the wider of the two intervals is below {tables.DEMOTED_BELOW:g}. A slope is not an "
        "importance: it multiplies a loss whose gradient may be large, small or, for a constant, zero."
    )


def _search(sweep: Sweep) -> str:
    plan = sweep.plan
    if plan.budget_each:
        text = chosen.in_words(sweep)
    elif not plan.learning_rates:
        text = "No learning rate was searched."
    else:
        rates, seeds = ", ".join(f"{rate:g}" for rate in plan.learning_rates), plan.learning_rate_seeds
        text = (
            f"Searched: the learning rate of w over {rates} for {', '.join(sweep.compared)}, {seeds} seed{'s' * (seeds > 1)} "
            "each, on validation, with seeds apart from those of the comparison; an arm that was not searched takes the one that "
            f"its settings name or that of {plan.ours}."
        )
    return text + (f" Settings searched around {plan.ours}: {', '.join(plan.space)} ({plan.search})." if plan.space else "")
