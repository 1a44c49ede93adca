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
        f"Signs: lower {sweep.label} is better. A difference is {sweep.ours} minus the other arm, so a negative difference is in favour of "
        f"{sweep.ours}. Figures of differences have their axis reversed, so that better is on "
        "the right. The best of several evaluations or learning rates is the lowest."
    )


def _screening(sweep: Sweep) -> list[str]:
    known = sweep.about.get("screening") or {}
    helps, harms = ("above", "below") if sweep.metric.higher else ("below", "above")
    return [
        f"Design: {known.get('kind', sweep.plan.design)} of {', '.join(known.get('losses', []))}. A row of the design is a set of losses; every loss has weight 1, and the "
        "primary loss is in every row. All rows have the same seeds, so that initial weights, data order and masks are paired. The score of a run is its best on validation.",
        "Average effect of a loss: for each seed, the mean score of the rows with the loss minus the mean score of the rows without it; then the mean over seeds. Its error "
        "comes from the spread of these differences over seeds, not from the scatter of all runs together, since a loss helps more with one seed than with another.",
        "Intervals: simultaneous at 95 %: with 95 % confidence all of them are right. There is one for every loss's average effect, one for its change from beside the primary "
        "to the full set, and two for the effects of each control. docs/screening.md explains the method and has its simulated errors.",
        f"Verdict, from the interval in the table: {helps} 0, the loss helps; {harms} 0, it harms; within {sweep.margin:g} of 0, it makes no difference of that size; otherwise "
        "undecided. A loss depends on another if its effect beside the primary and its effect in the full set differ for sure and by more than the margin.",
        "Best set: the losses that help. It was chosen on the screening's seeds and is judged only on fresh seeds, against each arm in the order "
        "given, by Student's interval.",
        "Examples: intervals are over seeds, with the examples of the split held fixed. A line under the table says how much other examples would move an effect: half of the "
        "95 % interval of the effect over 100 resamples of the sources, the same for all trials, with the seeds held fixed.",
    ]


def _pairs(sweep: Sweep) -> str:
    return (
        f"Pairs: {sweep.ours} minus baseline, over the seeds that both finished. Weights, data order, masks and dropout are "
        "drawn from the seed. A seed on which one of the two diverged or failed gives no pair. Leaving out failures flatters an arm that "
        "diverges more often, so compare the numbers of diverged trials too."
    )


def _test(sweep: Sweep) -> str:
    tested = sweep.rows[sweep.rows.split == "test"].groupby("trial").size()
    twice = int((tested > 1).sum())
    scored = f"Scored so far: {count(len(tested), 'trial')}, {twice or 'none'} of them more than once."
    return f"Test split, equal steps: each trial is scored once, with the weights of its best validation step. {scored}"


def _budgets(sweep: Sweep) -> str:
    return (
        "Validation, equal steps and equal seconds: the budget of a pair is the smaller of the two final step counts, or of the two training "
        "times. Each arm has its best validation score within this budget. Training time includes meta steps, but not "
        "evaluation and checkpoints. The schedule of the learning rate was planned for the full run, so an arm that is cut "
        "short is at a disadvantage."
        + (f" At most {count(sweep.plan.max_concurrent, 'trial')} ran at a time." if sweep.plan.max_concurrent else "")
    )


def _interval() -> str:
    return (
        f"Interval: {LEVEL} bootstrap of the mean difference, BCa, or percentile where BCa is undefined (equal differences); "
        f"{statistics.RESAMPLES} resamples, fixed seed. A bootstrap interval of a few pairs is too short, since it can't leave the range of "
        "the observed differences. Student's t interval, the thin bar in the figures, is the safer one; the tables have both. Both are "
        "over seeds, with the examples of the split held fixed: they do not say how the result would differ with other examples."
    )


def _p_value() -> str:
    exact = statistics.LARGEST_EXACT
    return (
        f"p: two-sided sign-flip permutation test of the mean, with all 2^n sign patterns up to n = {exact} pairs, and {2**exact} random patterns "
        "for more. Within each way of comparing, the baselines are tested in the order of the plan: 'p, in order' is the "
        "largest p up to that place (fixed-sequence testing), so a later verdict needs the earlier ones. The comparison on the test split is the main one; the "
        "two on validation are secondary. 'Least p' is the smallest p that this number of pairs can give."
    )


def _verdict() -> str:
    return (
        f"Verdict: better or worse only if the p in order is below {statistics.SIGNIFICANCE:g} and the interval excludes 0; "
        "otherwise inconclusive, which does not mean equal."
    )


def _contribution(sweep: Sweep) -> str:
    return (
        f"Contribution of a loss: validation score of {sweep.ours} minus that without the loss, at equal steps, over common "
        f"seeds. {'Positive' if sweep.metric.higher else 'Negative'}: leaving it out hurts, so the loss helps. The verdict helps or "
        "hurts has the same conditions as better or worse, but its p is "
        f"not corrected for the number of losses: read it as exploration. "
        f"With fewer than {statistics.LEAST_FOR_INTERVAL} pairs the range is given instead of an interval."
    )


def _controls() -> str:
    return (
        "Controls: a control's ratio is its slope at the last evaluation divided by the mean slope of the genuine auxiliary losses, for each seed. "
        f"A control is demoted if the upper end of the wider of the two intervals is below {tables.DEMOTED_BELOW:g}. A slope is not an "
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
            f"Searched: the learning rate of w over {rates} for {', '.join(sweep.compared)}, with {seeds} seed{'s' * (seeds > 1)} "
            "each, on validation. These seeds are not used in the comparison. An arm that was not searched takes the learning rate of "
            f"its own settings, or that of {plan.ours}."
        )
    return text + (f" Settings searched around {plan.ours}: {', '.join(plan.space)} ({plan.search})." if plan.space else "")
