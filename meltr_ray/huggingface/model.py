"""A model of transformers, made from its configuration or from a folder of weights. Nothing is downloaded."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import pickle
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from meltr_ray.config.user_code import in_words
from meltr_ray.errors import ConfigError, check, first_line
from meltr_ray.storage.sealed import check_file, listed, sha256
from meltr_ray.storage.sealed import differing as differing_file
from meltr_ray.storage.whole import put, stamp

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.json"
"""What `save_pretrained` always writes."""
WEIGHTS = (".safetensors", ".bin", ".json")
"""Ends of names of files that hold weights, or say which file holds them."""
SUMS = "SHA256"
"""Name -> checksum of the files that a run of ours has written; a folder of others has none."""
_CHECKSUMS: dict[tuple[Any, ...], str] = {}
FLOATS = ("F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
"""Types of weights in files, by safetensors' and by torch's names."""
LIKE = 0.85
"""From 0 to 1: how alike a misspelt name and the right one are; models have names of arguments that their configurations don't know."""
SHOWN = 4
"""Names in a message."""
WRITTEN = ("transformers_version", "architectures", "dtype", "_name_or_path")
"""What `save_pretrained` adds to a configuration."""


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
    found = architecture if isinstance(architecture, type) else getattr(transformers(), str(architecture), None)
    check(isinstance(found, type), "workload", source, f"transformers has no class {architecture}; give the name of a model's class")
    model = issubclass(found, transformers().PreTrainedModel) and found.config_class is not None
    check(model, "workload", source, f"{found.__name__} is no model of transformers; give the class of one, such as 'FlavaForPreTraining'")
    return found


def check_folder(pretrained: str) -> None:
    """Raises ConfigError: `pretrained` is no folder of this machine that holds a model, such as a name on a hub, or a run of ours wrote other files."""
    check(
        (Path(pretrained) / CONFIG).is_file(),
        "workload.pretrained",
        pretrained,
        f"is no local folder with a {CONFIG}, and nothing is downloaded; give a folder that save_pretrained wrote",
    )
    wrong = _differing(pretrained, tuple((path.name, *stamp(path)) for path in sorted(Path(pretrained).iterdir())))
    check(
        wrong is None,
        "workload.pretrained",
        pretrained,
        f"{wrong} isn't as a run wrote it; restore it from a copy, or delete {SUMS} in the folder if it was changed on purpose",
    )


@functools.lru_cache(8)
def _differing(pretrained: str, versions: tuple[Any, ...]) -> str | None:
    """The first file that isn't as a run of ours has written it, computed anew for other versions of the folder's files."""
    sums = Path(pretrained) / SUMS
    check_file(sums)
    if not sums.exists():
        return None
    return differing_file(Path(pretrained), sums.read_text(encoding="utf-8", errors="replace")) if sums.stat().st_size else SUMS


def save(model: nn.Module, folder: Path) -> None:
    """`save_pretrained`, and the checksums of what it wrote."""
    (folder / SUMS).unlink(missing_ok=True)  # of an earlier model, which would be held against half of this one
    model.save_pretrained(folder)
    put(folder / SUMS, listed(folder, [path.name for path in folder.iterdir() if path.name == CONFIG or path.suffix in WEIGHTS]))


def configuration_of(cls: type, given: Any, pretrained: str | None, source: str) -> Any:
    """The configuration in the folder `pretrained`, else `given`: an object, or its arguments by name.

    Raises:
        ConfigError: neither is there, or the name of an argument is misspelt.
    """
    if pretrained is not None:
        check_folder(pretrained)
        try:
            return cls.config_class.from_pretrained(pretrained, local_files_only=True)
        except Exception as error:  # whatever its class makes of what isn't its configuration
            raise ConfigError(
                f"workload.pretrained={pretrained}: {CONFIG} isn't that of a {cls.__name__} ({first_line(error)}); restore it from a copy"
            ) from None
    check(given is not None, "workload", source, "has neither configuration() nor workload.pretrained; give one of them")
    if not isinstance(given, dict):
        kind = cls.config_class
        check(
            isinstance(given, kind),
            "workload",
            source,
            f"configuration() gave a {type(given).__name__}; return a {kind.__name__}, or a dictionary",
        )
        return given
    made = cls.config_class(**given)
    check_arguments(made, given, source, "")
    return made


def check_arguments(made: Any, given: dict[str, Any], source: str, prefix: str) -> None:
    """Raises ConfigError: a name is nearly one of the configuration's, which takes any and makes nothing of it. Those of its parts, too."""
    try:
        known = type(made)().to_dict().keys() | type(made).attribute_map.keys()
    except Exception:  # has no default
        return
    for name, value in given.items():
        near = difflib.get_close_matches(name, known, 1, LIKE) if name not in known else []
        check(
            not near,
            "workload",
            source,
            f"configuration() has {prefix}{name}, which {type(made).__name__} doesn't know; did you mean {near[:1] and near[0]}",
        )
        part = getattr(made, name, None)
        if isinstance(value, dict) and isinstance(part, transformers().PreTrainedConfig):
            check_arguments(part, value, source, f"{prefix}{name}.")


def unknown_arguments(made: Any, given: Any) -> list[str]:
    """Names in the dictionary `given` that a configuration takes and has no place for: most models make nothing of them."""
    try:
        default = type(made)()
    except Exception:  # has no default
        return []
    known = default.to_dict().keys() | type(made).attribute_map.keys() | set(transformers().PreTrainedConfig().to_dict())
    return [name for name in given if name not in known and not hasattr(default, name)] if isinstance(given, dict) else []


def differing(made: Any, given: Any) -> list[str]:
    """`name=value` of what a configuration says otherwise than `given`, a dictionary or another configuration."""
    try:
        other = (type(made)(**given) if isinstance(given, dict) else given).to_dict()
    except Exception:  # whatever a configuration makes of it
        return []
    named = list(given) if isinstance(given, dict) else list(other)
    own = made.to_dict()
    return [f"{name}={own[name]}" for name in named if name in own and name in other and own[name] != other[name] and name not in WRITTEN]


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
    check_types(Path(pretrained))
    configuration = configuration_of(cls, None, pretrained, "")
    model, found = cls.from_pretrained(
        pretrained, config=configuration, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    other, lacking = (sorted(str(each) for each in found[kind]) for kind in ("mismatched_keys", "missing_keys"))
    check(not other, "workload.pretrained", pretrained, f"has weights of other shapes: {', '.join(other[:SHOWN])}; give a model that fits")
    check(
        len(lacking) < len(list(model.state_dict())),
        "workload.pretrained",
        pretrained,
        f"holds no weight of {cls.__name__}; give the folder of such a model",
    )
    wrong = next((name for name, x in model.state_dict().items() if x.is_floating_point() and not x.isfinite().all()), None)
    check(wrong is None, "workload.pretrained", pretrained, f"{wrong} has a number that is not finite; restore it from a copy")
    return model.float(), lacking


def checksum(pretrained: str) -> str:
    """SHA-256 of the files from which a model is made, by name; computed once a process, unless one of them is another."""
    files = sorted(path for path in Path(pretrained).iterdir() if path.name == CONFIG or path.suffix in WEIGHTS)
    key = tuple((str(path), *stamp(path)) for path in files)
    if key not in _CHECKSUMS:
        listed = "".join(f"{sha256(path)} {path.name}\n" for path in files)
        _CHECKSUMS[key] = hashlib.sha256(listed.encode()).hexdigest()
    return _CHECKSUMS[key]


def check_types(folder: Path) -> None:
    """Raises ConfigError: a file of weights has integers or complex numbers in place of weights, which would be taken as they are."""
    import torch
    from safetensors import SafetensorError, safe_open

    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        check_file(path)
        try:
            if path.suffix == ".bin":
                types = {name: str(x.dtype) for name, x in torch.load(path, map_location="meta", weights_only=True).items()}
            else:
                with safe_open(path, "pt") as file:
                    types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
            raise ConfigError(
                f"workload.pretrained={folder}: {path.name} can't be read ({in_words(error)}); restore it from a copy"
            ) from None
        for name, kind in types.items():
            check(name.rpartition(".")[2] not in ("weight", "bias") or kind in FLOATS, "workload.pretrained", folder,
                  f"{name} in {path.name} is of type {kind.removeprefix('torch.')}, where a model has floating-point numbers; give a folder of those")  # fmt: skip


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
