"""DeepSpeed's own settings: those that ours decide, and the user's beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meltr_ray.config import Config
from meltr_ray.errors import ConfigError, check

OWNED = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "engine.gradient_accumulation",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer.name",
    "scheduler": "optimizer.schedule",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "amp": "engine.precision",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_allow_untested_optimizer": "optimizer.name",
}
"""DeepSpeed's setting -> ours, which decides it."""


def deepspeed_settings(config: Config) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Raises:
        ConfigError: the file `engine.deepspeed` isn't JSON, or has a setting that ours decide.
    """
    ours = {
        "train_micro_batch_size_per_gpu": config.train.batch_size,
        "gradient_accumulation_steps": config.engine.gradient_accumulation,
        "gradient_clipping": config.optimizer.clip,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
    }
    if config.engine.deepspeed is None:
        return ours
    theirs = _read(Path(config.engine.deepspeed))
    zero = theirs.pop("zero_optimization", {})
    check(
        isinstance(zero, dict),
        "engine.deepspeed",
        config.engine.deepspeed,
        "zero_optimization must be an object; see DeepSpeed's documentation",
    )
    return ours | theirs | {"zero_optimization": zero | ours["zero_optimization"]}


LARGEST = 2**20
"""Bytes."""


def _read(path: Path) -> dict[str, Any]:
    try:
        check(
            path.stat().st_size <= LARGEST, "engine.deepspeed", path, "is too large for a file of settings; give a JSON file of DeepSpeed's"
        )
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"engine.deepspeed={path}: {str(error).splitlines()[0]}; give a JSON file of DeepSpeed's settings") from None
    check(isinstance(found, dict), "engine.deepspeed", path, f"holds a {type(found).__name__}; give a JSON object of DeepSpeed's settings")
    zero = found.get("zero_optimization")
    names = [*found, *(f"zero_optimization.{name}" for name in (zero if isinstance(zero, dict) else {}))]
    for name in names:
        check(name not in OWNED, "engine.deepspeed", path, f"has {name}, which {OWNED.get(name)} decides; set that, and leave it out there")
    return found
