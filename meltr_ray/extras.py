"""The parts that an installation may lack, and the command that adds them: the extras of pyproject.toml."""

from __future__ import annotations

import re
from importlib import metadata

PACKAGE = "meltr-ray"
SHOWN = 3
"""Packages that a message names."""


def lacking(extra: str) -> list[str]:
    """Packages that `meltr-ray[extra]` asks for and that aren't installed; none where no installation says what it asks for."""
    try:
        required = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    asked = [line.partition(";") for line in required]
    names = [re.split(r"[^\w.-]", text.strip())[0] for text, _, marker in asked if re.search(rf"""extra\s*==\s*["']{extra}["']""", marker)]
    return [name for name in names if not _is_installed(name)]


def needs(extra: str, missing: list[str]) -> str:
    """`needs ray and deepspeed; pip install 'meltr-ray[sweep]'`."""
    names = missing[:SHOWN] + [f"{len(missing) - SHOWN} more packages"] * (len(missing) > SHOWN)
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"needs {listed}; pip install '{PACKAGE}[{extra}]'"


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
