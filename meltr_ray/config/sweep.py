"""Settings of a sweep: a screening of the losses by a design, or a comparison of arms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from meltr_ray.bounds import bounded, check_distinct, check_finite, check_settings
from meltr_ray.config.duration import seconds
from meltr_ray.config.paths import check_name
from meltr_ray.errors import check, check_choice

DESIGNS = ("full", "half", "leave_one_out", "add_one_in")
"""Of a screening; tune_spaces/designs.py makes them."""


@dataclass(kw_only=True)
class SweepConfig:
    """Which configurations are compared, and how often each is repeated."""

    design: str = "none"
    """Screening of the auxiliary losses: `full` (every loss in or out, in a balanced design), `half` (of four losses: half of its rows), `leave_one_out`, `add_one_in`, or `none`: the arms are compared."""
    looks: list[int] = bounded([], 1, 1000)
    """Numbers of seeds at which a screening may be read, planned beforehand, such as [6,9,12]; resume= with sweep.seeds=9 goes on. Empty: `seeds` alone, with intervals a tenth shorter."""
    margin: Optional[float] = bounded(None, 1e-9, 1e9)
    """Difference that counts as one, in the metric's unit; default: the metric's own, else 1.5 of % and 0.05 of other units."""
    confirm: list[str] = field(default_factory=lambda: ["primary_only"])
    """Arms that the best set of a screening is compared with, in this order, on fresh seeds; empty: no confirmation."""
    confirmation_seeds: int = bounded(6, 1, 1000)
    """Fresh seeds of the confirmation, or of the `leaders`."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Configurations: name -> dotted settings that differ from the rest of this configuration. Of a screening: trained on its seeds too, with all of `losses.set`."""
    ours: str = "meltr"
    """Arm that the report is about, named before any result is seen."""
    baselines: list[str] = field(default_factory=lambda: ["uniform", "primary_only"])
    """Arms that `ours` is compared with, pair by pair over the same seeds; the first leads the report."""
    charged: dict[str, str] = field(default_factory=dict)
    """Compared arm -> device time, such as `16m`, that its settings took before this sweep, such as the screening that chose its losses; the report adds it to the arm's tuning."""
    seeds: int = bounded(6, 1, 1000)
    """Seeds of `ours` and of each baseline; 6 is the least with which a two-sided sign test can reach 0.05."""
    other_seeds: int = bounded(2, 1, 1000)
    """Seeds of every other arm."""
    learning_rates: list[float] = bounded([], 1e-12, 10, most=100)
    """Learning rates of w tried for `ours` and each baseline before the comparison, each the same way; empty: none. With `budget_each`: the range that it draws from."""
    learning_rate_seeds: int = bounded(1, 1, 1000)
    """Seeds of the learning-rate search, apart from those of the comparison."""
    leave_one_out: bool = True
    """Add an arm for every auxiliary loss of `ours`, without it."""
    add_one_in: bool = False
    """Add an arm for every auxiliary loss of `ours`, with the primary loss and it alone."""
    tuned_weights: int = bounded(0, 0, 10_000)
    """Runs that look for the fixed weights of an arm `tuned`, half of them at random and half where a fit to the others has its best; 0: no such arm. To be compared, name `tuned` among the baselines."""
    budget_each: Optional[str] = None
    """Device time, such as `20m`, in which `ours` and each baseline search settings of their own by successive halving, in place of a grid of learning rates and of `tuned_weights`: learning rate (between the least and the greatest of `learning_rates`), weight decay, and what belongs to the way to combine; of an arm `tuned`, the fixed weights. Default: no such search."""
    leaders: int = bounded(0, 0, 1000)
    """Compared arms, the best by their mean on validation, that run again on `confirmation_seeds` fresh seeds beside the first baseline; the test split is scored in these runs alone. 0: none, it is scored in the comparison."""
    space: Any = None
    """Settings to search over as variations of `ours`, any of them: setting -> a list of values, or a range such as {low: 0.001, high: 1, log: true}; or names alone of those of `aid` that have a range of their own, such as [aid.damping,aid.inner_steps] (docs/search.md). Default: none."""
    search: str = "random"
    """How `space` is searched: `grid` (every combination), `random`, or `tpe` (Optuna's, which learns from the trials before; on a seed apart, and the best becomes an arm). A setting that a configuration makes nothing of isn't varied, and no two configurations are equal (docs/search.md)."""
    samples: int = bounded(8, 1, 10_000)
    """Different configurations that a `random` search or `tpe` tries."""
    asha: Optional[int] = bounded(None, 2, 100)
    """Stop trials of `space` early: at the last step over this, over its square and so on, one in this many goes on (ASHA, docs/search.md). Default: none is stopped."""
    budget: Optional[str] = None
    """Device time that all trials may take, such as `2h`, `90m` or `1h30m`: each trial's time times its workers. A trial that doesn't fit isn't started; resume= with more goes on."""
    max_concurrent: Optional[int] = bounded(None, 1, 1024)
    """Trials that run at the same time; default: as many as the cluster has place for when the sweep begins, with the machines that it may start."""
    progress_every: float = bounded(10.0, 0.1, 86_400)
    """Seconds between two progress lines where the output is not a terminal."""

    @property
    def budget_seconds(self) -> Optional[float]:
        return None if self.budget is None else seconds("sweep.budget", self.budget)

    @property
    def budget_each_seconds(self) -> Optional[float]:
        return None if self.budget_each is None else seconds("sweep.budget_each", self.budget_each)

    @property
    def charged_seconds(self) -> dict[str, float]:
        """Compared arm -> device-seconds before this sweep."""
        return {arm: seconds(f"sweep.charged.{arm}", text) for arm, text in self.charged.items()}

    @property
    def weighs(self) -> bool:
        """Whether there is an arm `tuned`, whose fixed weights are searched for."""
        return self.tuned_weights > 0 or self.budget_each is not None

    def __post_init__(self):
        check_settings("sweep", self)
        for arm in self.arms:
            check_name("sweep.arms", str(arm))
        self.space = self.space or None  # older files have an empty list
        good = self.space is None or (isinstance(self.space, (list, dict)) and all(isinstance(name, str) for name in self.space))
        check(good, "sweep.space", self.space, "is no space; give names of settings in a list, or such as {aid.damping: [0.1,1]}")
        check_finite("sweep.space", self.space)
        for name in ("learning_rates", "baselines", "confirm", *(["space"] if isinstance(self.space, list) else [])):
            check_distinct(f"sweep.{name}", getattr(self, name))
        check(
            self.tuned_weights == 0 or self.tuned_weights >= 4,
            "sweep.tuned_weights",
            self.tuned_weights,
            "a fit needs more runs; give at least 4, better four a loss",
        )
        check(
            "tuned" not in self.arms or not self.weighs,
            "sweep.arms",
            "tuned",
            "is the arm whose weights are searched for; call it otherwise",
        )
        check_choice("sweep.design", self.design, ("none", *DESIGNS))
        looks = self.looks
        check(looks == sorted(set(looks)), "sweep.looks", looks, "must grow from look to look; use such as [6,9,12]")
        check(not looks or self.seeds in looks, "sweep.seeds", self.seeds, f"is no planned look; use one of {', '.join(map(str, looks))}")
        _ = self.budget_seconds, self.budget_each_seconds, self.charged_seconds  # refused where they are no lengths of time
        check_choice("sweep.search", self.search, ("grid", "random", "tpe"))
        for arm in [self.ours, *self.baselines] if self.arms and self.design == "none" else []:
            check(
                arm in self.arms or (arm == "tuned" and arm != self.ours and self.weighs),
                "sweep.ours" if arm == self.ours else "sweep.baselines",
                arm,
                f"no such arm; use one of {', '.join(self.arms)}",
            )
        for arm in self.charged:
            check(
                arm in [self.ours, *self.baselines],
                "sweep.charged",
                arm,
                f"is not compared; use one of {', '.join([self.ours, *self.baselines])}",
            )
        check(
            self.ours not in self.baselines,
            "sweep.baselines",
            self.baselines,
            f"names {self.ours}, which is sweep.ours; remove it, nothing is compared with itself",
        )
