"""Run a notebook of `analysis/` as a reader does."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import report


def printed_by(name: str) -> str:
    """What the cells print, executed where the notebook lies; it reads its folder from the environment."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    path = Path(report.__file__).with_name(name)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
