"""Peak memory of this process since a moment of choice: trials of a sweep share a process."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Start measuring anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of an earlier trial
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the high-water mark of resident memory
        except OSError:
            pass  # elsewhere `peak_bytes` falls back on the peak of the whole process


def peak_bytes(device: torch.device) -> int:
    """Largest GPU memory allocated, or resident memory of the process, since `reset_peak` (bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
