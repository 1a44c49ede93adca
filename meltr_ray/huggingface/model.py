"""A model of transformers, made from its configuration or from a folder of weights. Nothing is downloaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from meltr_ray.errors import ConfigError, check

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.json"
"""What `save_pretrained` always writes."""
SHOWN = 4
"""Names in a message."""


def transformers() -> ModuleType:
    """The library, which takes seconds to import.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(f"workload: a Hugging Face model needs transformers ({error}); pip install meltr-ray[huggingface]") from error


def class_of(architecture: str | type, source: str) -> type:
    """The model's class, which transformers has under this name.

    Raises:
        ConfigError: no name, or one that transformers doesn't have.
    """
    check(bool(architecture), "workload", source, "names no architecture; give the model's class, such as 'FlavaForPreTraining'")
    if isinstance(architecture, type):
        return architecture
    found = getattr(transformers(), architecture, None)
    check(isinstance(found, type), "workload", source, f"transformers has no class {architecture}; give the name of a model's class")
    return found


def check_folder(pretrained: str) -> None:
    """Raises ConfigError: `pretrained` is no folder of this machine that holds a model, such as a name on a hub."""
    check(
        (Path(pretrained) / CONFIG).is_file(),
        "workload.pretrained",
        pretrained,
        f"is no local folder with a {CONFIG}, and nothing is downloaded; give a folder that save_pretrained wrote",
    )


def configuration_of(cls: type, given: Any, pretrained: str | None, source: str) -> Any:
    """The configuration in the folder `pretrained`, else `given`: an object, or its arguments by name.

    Raises:
        ConfigError: neither is there.
    """
    if pretrained:
        check_folder(pretrained)
        return cls.config_class.from_pretrained(pretrained, local_files_only=True)
    check(given is not None, "workload", source, "has neither configuration() nor workload.pretrained; give one of them")
    return cls.config_class(**given) if isinstance(given, dict) else given


def drawn(cls: type, configuration: Any) -> nn.Module:
    """A model whose weights come from torch's generator, in float32."""
    return cls(configuration).float()


def loaded(cls: type, pretrained: str) -> tuple[nn.Module, list[str]]:
    """The model in a folder, in float32, and the names of weights that the folder lacks, which are drawn.

    Raises:
        ConfigError: none of the model's weights is there, or some have other shapes.
    """
    import torch

    check_folder(pretrained)
    model, found = cls.from_pretrained(pretrained, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    other, lacking = (sorted(str(each) for each in found[kind]) for kind in ("mismatched_keys", "missing_keys"))
    check(not other, "workload.pretrained", pretrained, f"has weights of other shapes: {', '.join(other[:SHOWN])}; give a model that fits")
    check(
        len(lacking) < len(list(model.state_dict())),
        "workload.pretrained",
        pretrained,
        f"holds no weight of {cls.__name__}; give the folder of such a model",
    )
    return model.float(), lacking


def drops_layers(configuration: Any) -> str | None:
    """The first setting by which a training forward leaves out layers at random, such as `layerdrop=0.1`."""

    def search(values: dict[str, Any], prefix: str) -> str | None:
        for name, value in values.items():
            if isinstance(value, dict):
                if found := search(value, f"{prefix}{name}."):
                    return found
            elif str(name).endswith("layerdrop") and isinstance(value, (int, float)) and value > 0:
                return f"{prefix}{name}={value:g}"
        return None

    return search(configuration.to_dict(), "")
