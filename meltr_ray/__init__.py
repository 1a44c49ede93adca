"""Learning how to combine losses: MELTR's meta-loss and its hypergradient, trained and swept on Ray.

`from meltr_ray import MELTR, hypergradient` works with any torch module that returns several losses, and imports neither
Ray nor DeepSpeed. `from meltr_ray import Workload, Metric` is for a model, losses and data of your own under `sweep`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from meltr_ray.extras import PACKAGE, lacking, needs

if TYPE_CHECKING:  # what `_WHERE` says, for type checkers
    from meltr_ray.combining.fixed import FixedWeights as FixedWeights
    from meltr_ray.combining.meltr import MELTR as MELTR
    from meltr_ray.combining.slopes import slopes as slopes
    from meltr_ray.errors import ConfigError as ConfigError
    from meltr_ray.hypergrad import AdamRule as AdamRule
    from meltr_ray.hypergrad import BilevelProblem as BilevelProblem
    from meltr_ray.hypergrad import ModuleProblem as ModuleProblem
    from meltr_ray.hypergrad import hypergradient as hypergradient
    from meltr_ray.hypergrad import training_gradient as training_gradient
    from meltr_ray.hypergrad import unrolled_hypergradient as unrolled_hypergradient
    from meltr_ray.workload import Metric as Metric
    from meltr_ray.workload import Workload as Workload
    from workloads.from_python import sweep as sweep

_WHERE = {
    "MELTR": "meltr_ray.combining.meltr",
    "FixedWeights": "meltr_ray.combining.fixed",
    "slopes": "meltr_ray.combining.slopes",
    "AdamRule": "meltr_ray.hypergrad",
    "BilevelProblem": "meltr_ray.hypergrad",
    "ModuleProblem": "meltr_ray.hypergrad",
    "hypergradient": "meltr_ray.hypergrad",
    "training_gradient": "meltr_ray.hypergrad",
    "unrolled_hypergradient": "meltr_ray.hypergrad",
    "ConfigError": "meltr_ray.errors",
    "Metric": "meltr_ray.workload",
    "Workload": "meltr_ray.workload",
    "sweep": "workloads.from_python",
}
"""Name -> module; imported when it is asked for, since torch takes seconds."""
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(PACKAGE)
    if name == "sweep" and (missing := lacking("sweep")):
        raise ImportError(f"meltr_ray.sweep {needs('sweep', missing)}")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
