"""Every setting of the project: declared, documented, typed and checked here and nowhere else.

The text under a field is its documentation: `--help` prints it. Units stand in it; a default that is derived says from
what. Checks run when a configuration object is made, that is on the driver, before any worker starts.
"""

from meltr_ray.config.outer_level import ADAM_USES, REGULARISERS, AidConfig, CombinerConfig
from meltr_ray.config.run import ABOUT_THE_COMMAND, Config, SweepConfig, to_flat
from meltr_ray.config.training import DataConfig, EngineConfig, OptimizerConfig, TrainConfig, TuningConfig
from meltr_ray.errors import ConfigError, check, check_at_least, check_choice
from meltr_ray.video.backbones.settings import BACKBONES, AllInOneConfig, BackboneConfig, UniVLConfig, VioletConfig
from meltr_ray.video.tasks.settings import (
    ALLINONE_LOSSES,
    CONTROL_LOSSES,
    EVERY_LOSS,
    LOSSES,
    PAIR_LOSSES,
    TASKS,
    UNIVL_LOSSES,
    VIOLET_LOSSES,
    TaskConfig,
    losses_of,
)

__all__ = [
    "ABOUT_THE_COMMAND",
    "ADAM_USES",
    "ALLINONE_LOSSES",
    "AidConfig",
    "AllInOneConfig",
    "BACKBONES",
    "BackboneConfig",
    "CONTROL_LOSSES",
    "CombinerConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EVERY_LOSS",
    "EngineConfig",
    "LOSSES",
    "OptimizerConfig",
    "PAIR_LOSSES",
    "REGULARISERS",
    "SweepConfig",
    "TASKS",
    "TaskConfig",
    "TrainConfig",
    "TuningConfig",
    "UNIVL_LOSSES",
    "UniVLConfig",
    "VIOLET_LOSSES",
    "VioletConfig",
    "check",
    "check_at_least",
    "check_choice",
    "losses_of",
    "to_flat",
]
