"""What DeepSpeed imports and compiles that nothing here uses, left out: seconds in every worker of every trial."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import Iterator

NO_COMPILING = "TORCHDYNAMO_DISABLE"


@contextmanager
def without(package: str) -> Iterator[None]:
    """Imports within find no `package`, unless it is imported already.

    DeepSpeed's autotuner imports mlflow wherever it is installed: 1.7 CPU-seconds.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def import_muon_as_it_is() -> None:
    """DeepSpeed compiles its Muon at import: 2.6 CPU-seconds."""
    before = os.environ.get(NO_COMPILING)
    os.environ[NO_COMPILING] = "1"
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        if before is None:
            del os.environ[NO_COMPILING]
        else:
            os.environ[NO_COMPILING] = before
