"""Which losses are computed, and which of them counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from meltr_ray.errors import check, check_choice
from meltr_ray.workload import Workload


@dataclass(kw_only=True)
class LossesConfig:
    """The losses of the workload that a run trains with."""

    set: Any = None
    """Losses that are computed, the primary included: a list, or `primary` (it alone), `default`, `all`, `controlled` (the default ones and the planted controls) or another set of the workload's; the order is that of the combiner's inputs; default: `default`."""
    primary: Optional[str] = None
    """Primary loss, the one that the outer level lowers; default: the workload's first."""

    def resolve(self, workload: Workload) -> None:
        """Fill what depends on the workload, and check it."""
        offered, planted = workload.offered(), workload.planted()
        primaries = tuple(workload.primaries or (loss for loss in offered if loss not in planted))
        self.primary = primaries[0] if self.primary is None else self.primary
        check_choice("losses.primary", self.primary, primaries)
        named = workload.named_sets(self.primary)
        chosen = named["default"] if self.set is None else self.set
        if isinstance(chosen, str):
            check(
                chosen in named,
                "losses.set",
                chosen,
                f"unknown name; use one of {', '.join(named)}, or a list such as [{self.primary},{offered[-1]}]",
            )
            chosen = named[chosen]
        check(
            isinstance(chosen, (list, tuple)),
            "losses.set",
            chosen,
            f"must be a name or a list; use a list such as [{self.primary},{offered[-1]}]",
        )
        self.set = list(chosen)
        for loss in self.set:
            check_choice("losses.set", loss, offered)
        check(len(set(self.set)) == len(self.set), "losses.set", self.set, "names a loss twice; remove one")
        check(self.primary in self.set, "losses.set", self.set, f"lacks the primary loss; add {self.primary} or change losses.primary")
