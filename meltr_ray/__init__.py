"""Learning how to combine losses: MELTR's meta-loss and its hypergradient, trained and swept on Ray.

`from meltr_ray import MELTR, hypergradient` works with any torch module that returns several losses, and imports neither
Ray nor DeepSpeed. Names are imported when they are asked for: settings and `--help` do without torch.
"""

from importlib import import_module
from typing import Any

MODULES = {
    "MELTR": "meltr_ray.combining.combiners",
    "BilevelProblem": "meltr_ray.hypergrad",
    "FixedWeights": "meltr_ray.combining.combiners",
    "ModuleProblem": "meltr_ray.hypergrad",
    "hypergradient": "meltr_ray.hypergrad",
    "slopes": "meltr_ray.combining.combiners",
    "unrolled_hypergradient": "meltr_ray.hypergrad",
}
"""Name of the library's face -> where it is."""
__all__ = [*MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
