"""Lines for whoever watches a command that trains."""

from __future__ import annotations

import os
from contextlib import suppress


def tell(descriptor: int, text: str) -> None:
    """Write now, in a signal's handler too. Where the reader has gone (`| head`), training goes on without being watched."""
    with suppress(BrokenPipeError):
        os.write(descriptor, text.encode(errors="backslashreplace"))
