"""The seam: all that a run knows of model, data and metric.

A workload is one class in one file, anywhere on disk:

    class Primes(Workload):
        losses = ("prime", "digit", "norm", "permuted")   # the first is the primary
        metrics = {"accuracy": Metric("%")}                # the first is the score
        width: int = 32
        "Hidden units."                                    # a setting: workload.width=64

        def module(self): ...
        def examples(self, split): ...
        def batch(self, examples, generator): ...
        def evaluate(self, module, examples, device): ...

Everything else follows: masks and dropout, resumable order, loader workers, ZeRO 0 to 3, sweeps, report, export.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a workload measures, as tables, plots and the report show it."""

    unit: str = ""
    """`%`, `s`; empty: none."""
    higher: bool = True
    """Whether higher is better."""
    digits: int = 1
    """Decimals shown."""
    label: str = ""
    """Name shown; default: the metric's own, underscores as blanks."""
    meaning: str = ""
    """One line for the results table."""
