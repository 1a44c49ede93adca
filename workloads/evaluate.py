"""Score the best weights of a run or a trial on a split.

    python workloads/evaluate.py checkpoint=outputs/sweeps/digits/best split=validation
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig  # noqa: E402

from meltr_ray import config_file  # noqa: E402
from meltr_ray.config import Config, ConfigError, check  # noqa: E402
from workloads import cli  # noqa: E402


def evaluate(settings: DictConfig, config: Config) -> int:
    """Print the split's metrics as JSON. Returns the exit code."""
    if config.checkpoint is None:
        raise ConfigError("checkpoint=None: a run to score is needed; give its folder, such as outputs/sweeps/digits/best")
    check(isinstance(config.checkpoint, str), "checkpoint", config.checkpoint, "one run is scored at a time; give its folder")
    folder = Path(config.checkpoint).absolute()
    if not (folder / "best.safetensors").exists():
        raise ConfigError(f"checkpoint={config.checkpoint}: holds no best.safetensors; give the folder of a run that was evaluated")
    trained = config_file.read(folder / "config.yaml")
    if any(argument.startswith("data.folder=") for argument in sys.argv[1:]):
        trained.data.folder = config.data.folder
    from meltr_ray.data.store import check_folder
    from meltr_ray.model import score

    check_folder(Path(trained.data.folder))
    print(json.dumps({"split": config.split} | score(trained, folder / "best.safetensors", config.split), indent=1))
    return 0


if __name__ == "__main__":
    cli.main(evaluate, __doc__)
