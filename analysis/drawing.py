"""What commands share that draw one figure of several folders: `python -m analysis.<name> <path of the figure> <folder> ...`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analysis.plots import DOTS_PER_INCH
from meltr_ray.errors import ConfigError
from meltr_ray.storage import put


def draw(usage: str, arguments: Sequence[str], figure: Callable[[list[str]], Figure]) -> int:
    """Write `figure` of the folders as a PNG. Returns the exit code: 2 for too few arguments (the usage is printed), or a folder that is refused."""
    if len(arguments) < 2:
        print(usage, file=sys.stderr)
        return 2
    path, *folders = arguments
    try:
        drawn = figure(folders)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    put(Path(path), buffer.getvalue())
    return 0
