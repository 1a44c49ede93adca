"""Python's garbage collector in a process that runs one trial after another."""

from __future__ import annotations

import gc
from functools import cache


@cache
def keep_imports() -> None:
    """Tell it, once, that what is imported stays: else it walks through 450,000 objects after each trial, and again in training."""
    gc.freeze()


def collect() -> None:
    """After a trial. Twice: DeepSpeed's engines, which hold themselves in cycles, have a finaliser, and so are freed by the second."""
    gc.collect()
    gc.collect()
    _keep_late_imports()


@cache
def _keep_late_imports() -> None:
    """Those of the first trial; what was in its engines is gone by now."""
    gc.freeze()
