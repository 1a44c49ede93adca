"""A hypergradient that is refused, as a run says it: by the setting, with a mend among settings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from meltr_ray.config import Config
from meltr_ray.errors import ConfigError
from meltr_ray.hypergrad.products import NotAdmitted


@contextmanager
def refused_in_settings(config: Config) -> Iterator[None]:
    """Around meta steps.

    Raises:
        ConfigError: in place of `NotAdmitted`.
    """
    try:
        yield
    except NotAdmitted as error:
        raise ConfigError(line_of(error, config)) from error


def line_of(error: NotAdmitted, config: Config) -> str:
    """`aid.product=forward: rule; mend`."""
    rule, _, mend = str(error).rpartition("; ")
    option = rule.partition("=")[0]
    if option not in ("product", "hessian_product"):
        return f"workload={config.workload.source}: {error}"
    named, sharded = getattr(config.aid, option) != "auto", config.engine.zero_stage == 3
    exact = "engine.zero_stage=2, where exact products are at hand"
    if named:
        mend = f"use aid.{option}=auto" + (f" and {exact}" if sharded else "")
    elif option == "hessian_product":
        mend = "use aid.solver=identity or loss_space, which take no products with H" + (f", or {exact}" if sharded else "")
    elif sharded:
        mend = f"use {exact}"
    return f"aid.{rule}; {mend}"
