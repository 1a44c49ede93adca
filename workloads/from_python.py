"""The main job from Python: `meltr_ray.sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meltr_ray.config import ABOUT_THE_COMMAND
from meltr_ray.config.workload_file import source_of
from meltr_ray.workload import Workload
from workloads import cli
from workloads import sweep as command


def sweep(workload: type[Workload], settings: dict[str, Any] | None = None) -> Path:
    """`meltr_ray.sweep(Primes, {"workload.width": 64, "train.steps": 200})`: the same as the command; returns the folder.

    The class must stand in a file, from which workers make it again; a script calls this under `if __name__ == "__main__"`.

    Raises:
        ConfigError: whatever the command would end with.
        KeyboardInterrupt: Ctrl-C, after what was finished was saved and reported. SIGTERM: SystemExit, of code 143.
    """
    given = [f"{key}={_as_text(value)}" for key, value in (settings or {}).items() if not (value is None and key in ABOUT_THE_COMMAND)]
    request = cli.configure([f"workload={source_of(workload)}", *given])
    request.config.name = request.settings.name = cli.new_folder(request.config, "sweeps", chosen="name" in request.given).name
    if code := command.sweep(request):
        raise KeyboardInterrupt if code == 130 else SystemExit(code)
    return request.config.local_output.absolute() / "sweeps" / request.config.name


def _as_text(value: Any) -> str:
    """A Python value as it is written on a command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_as_text(each) for each in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_as_text(each)}" for key, each in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
