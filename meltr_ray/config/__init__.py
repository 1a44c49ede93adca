"""Every setting of the machine: declared, documented, typed and checked here; a workload brings its own.

The text under a field is its documentation: `--help` prints it. Units stand in it; a default that is derived says from
what. Checks run when a configuration object is made, that is on the driver, before any worker starts.
"""

from meltr_ray.config.losses import LossesConfig
from meltr_ray.config.outer_level import AidConfig, CombinerConfig
from meltr_ray.config.run import ABOUT_THE_COMMAND, Config, recorded, to_flat, workload_settings
from meltr_ray.config.sweep import SweepConfig
from meltr_ray.config.training import EngineConfig, OptimizerConfig, TrainConfig, TuningConfig
from meltr_ray.errors import ConfigError, check, check_at_least, check_choice

__all__ = [
    "ABOUT_THE_COMMAND",
    "AidConfig",
    "CombinerConfig",
    "Config",
    "ConfigError",
    "EngineConfig",
    "LossesConfig",
    "OptimizerConfig",
    "SweepConfig",
    "TrainConfig",
    "TuningConfig",
    "check",
    "check_at_least",
    "check_choice",
    "recorded",
    "to_flat",
    "workload_settings",
]
