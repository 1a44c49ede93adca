"""Which settings a configuration makes nothing of: what a way to combine losses or a solver looks at hangs on its class."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from meltr_ray.config.fields import fields
from meltr_ray.config.outer_level import AidConfig, CombinerConfig
from meltr_ray.config.run import Config, to_flat
from meltr_ray.errors import check, shown

HANGS_ON: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "combiner.floor": ("combiner.slopes", lambda slopes: slopes == "simplex"),
    "combiner.passes": ("combiner.gramian", lambda gramian: gramian == "random"),
    "combiner.average_losses": ("train.num_workers", lambda workers: workers > 1),
    "aid.regulariser": ("aid.gamma", lambda gamma: gamma > 0),
    "optimizer.end": ("optimizer.schedule", lambda schedule: schedule in ("cosine", "polynomial")),
    "optimizer.power": ("optimizer.schedule", lambda schedule: schedule == "polynomial"),
    "optimizer.period": ("optimizer.schedule", lambda schedule: schedule.startswith("warmup_")),
    "tuning.lora_rank": ("tuning.lora", bool),
    "tuning.lora_alpha": ("tuning.lora", bool),
    "tuning.lora_dropout": ("tuning.lora", bool),
}
"""Setting -> the other that says whether it counts, and for which values of that."""
COMES_EVERY = ("aid.inner_steps",)
"""Settings that say after how many steps something comes: beyond `train.steps` it never does."""
JUDGED = ("combiner.", "aid.", "optimizer.", "tuning.")
"""Groups of settings some of which count for some configurations alone."""
DECIDERS = ("combiner.name", "aid.solver", *dict.fromkeys(decider for decider, _ in HANGS_ON.values()))
"""Settings that decide whether others count."""


def in_vain(settings: Mapping[str, Any]) -> Mapping[str, str]:
    """Setting -> what makes nothing of it, such as `aid.solver=identity`; `settings`: dotted name -> value, those of `DECIDERS` at least."""
    return _in_vain(*(_plain(settings[name]) for name in DECIDERS))


@functools.lru_cache(maxsize=10_000)
def _in_vain(*values: Any) -> Mapping[str, str]:
    from meltr_ray.combining.named import WAYS  # torch, which --help can do without
    from meltr_ray.hypergrad.named import SOLVERS
    from meltr_ray.hypergrad.solvers import used

    chosen = dict(zip(DECIDERS, values))
    way, solver = WAYS.get(chosen["combiner.name"]), SOLVERS.get(chosen["aid.solver"])
    if way is None or solver is None:  # refused where the configuration is made
        return {}
    found = {name: f"{decider}={shown(chosen[decider])}" for name, (decider, counts) in HANGS_ON.items() if not counts(chosen[decider])}
    of_solvers = {f"aid.{name}" for kind in SOLVERS.values() for name in used(kind)}
    looked_at = way.used()
    if "aid.solver" in looked_at:
        looked_at |= of_solvers
        unused = of_solvers - {f"aid.{name}" for name in used(solver)}
        found |= dict.fromkeys(unused, f"aid.solver={chosen['aid.solver']}")
    if not way.learns and chosen["combiner.gramian"] != "random":
        from meltr_ray.combining.way import PRODUCTS

        found |= dict.fromkeys(PRODUCTS, f"combiner.gramian={chosen['combiner.gramian']}")
    every = {
        f"{group}.{item.name}" for group, kind in (("combiner", CombinerConfig), ("aid", AidConfig)) for item in dataclasses.fields(kind)
    }
    return found | dict.fromkeys(every - looked_at, f"combiner.name={chosen['combiner.name']}")


def _plain(value: Any) -> Any:
    """One that has a hash."""
    return tuple(value) if isinstance(value, (list, tuple)) else value


def check_given(given: Mapping[str, str], config: Config, configs: Iterable[Config]) -> None:
    """Refuse settings on a command line that none of the runs which it asks for makes anything of.

    Args:
        given: setting -> text.
        config: what is asked for as a whole.
        configs: those of the runs; the arms of a sweep may have settings of their own.

    Raises:
        ConfigError: names the setting, and what makes nothing of it.
    """
    asked, defaults = to_flat(config), {item.name: item.default for item in fields(type(config.workload))}
    open_ = [name for name in given if name.startswith(JUDGED) and name in asked and asked[name] != defaults[name]]
    reasons: dict[str, set[str]] = {name: set() for name in open_}
    for one in configs if open_ else []:
        flat = to_flat(one)
        vain = in_vain(flat)
        for name in open_:
            never = f"train.steps={flat['train.steps']}" if name in COMES_EVERY and flat[name] > flat["train.steps"] else ""
            reasons[name].add(vain.get(name, never if flat[name] == asked[name] else "own"))
        open_ = [name for name in open_ if "" not in reasons[name]]
        if not open_:
            return
    for name in open_:
        (why,) = reasons[name] if len(reasons[name]) == 1 else ("",)
        rule = (
            "each arm of this sweep gives its own"
            if why == "own"
            else f"{why} makes nothing of it"
            if why
            else "no arm of this sweep makes anything of it"
        )
        check(False, name, given[name], f"{rule}; leave it out")
