"""What of a model trains, and at which rate: frozen modules, LoRA (Hu et al., arXiv 2106.09685) by peft, rates by layer.

A parameter that requires no gradient is no part of w: the optimiser has no state of it and a meta step's v no entry.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Iterable, Optional

from torch import nn

from meltr_ray.config import Config
from meltr_ray.errors import ConfigError, check
from meltr_ray.training.loss_vector import PREFIX

NAMES_SHOWN = 8


def check_tuning(config: Config, model: nn.Module) -> None:
    """Refuse names that the module doesn't have, and settings with which nothing trains.

    Args:
        model: the workload's module; may be on the `meta` device: no weight is read.

    Raises:
        ConfigError: names the setting, its value and the nearest names that there are.
    """
    settings, backbone, workload = config.tuning, root(model, config), config.workload
    weights = [name for name, _ in backbone.named_parameters(remove_duplicate=False)]
    names = [name for name, _ in backbone.named_modules() if name] + weights
    for name in [name for encoder in workload.encoders for name in encoder]:
        check(name in names, "workload", workload.source, f"encoders names {name}, which is no submodule of its root; correct it")
    for field in ("frozen", "trained", "rates"):
        for name in getattr(settings, field) or []:
            _check_known(f"tuning.{field}", name, names, "there is no such module")
    linear = linear_layers(backbone)
    for target in settings.lora:
        _check_known("tuning.lora", target, [end for name in linear for end in ends(name)],
                     "there is no linear layer of this name")  # fmt: skip
        check(
            any(target in ends(name) for name in lora_layers(backbone, config)),
            "tuning.lora",
            target,
            "names only layers that are frozen or train as a whole; see tuning.frozen and tuning.trained",
        )
    for name in lora_layers(backbone, config):
        twins = [other for other, p in backbone.named_parameters(remove_duplicate=False) if p is linear[name].weight]
        check(
            len(twins) == 1,
            "tuning.lora",
            name,
            f"shares its weight with {twins[-1].removesuffix('.weight')}, which an update would miss; leave it out",
        )
    trains = settings.lora or any(_trains(name, config) for name, _ in backbone.named_parameters())
    check(trains, "tuning.frozen", settings.frozen, "leaves nothing to train; remove one")


def prepare_for_tuning(model: nn.Module, config: Config) -> None:
    """Freeze what doesn't train and put LoRA in, drawn from the current generator; before an engine is made of `model`.

    What `model` has frozen itself stays so, unless `tuning.trained` names it.

    The function that `model` computes stays as it is, for LoRA's update starts at 0. A layer with LoRA keeps its own weight
    as `<layer>.base_layer.weight`, so checkpoints under published names are to be loaded before this.

    Raises:
        ConfigError: as `check_tuning`.
    """
    check_tuning(config, model)
    settings, backbone = config.tuning, root(model, config)
    layers = lora_layers(backbone, config)
    for name, p in backbone.named_parameters():
        p.requires_grad_(_trains(name, config) and (p.requires_grad or longest(name, settings.trained or []) is not None))
    if layers:
        trained = [p for p in backbone.parameters() if p.requires_grad]
        _inject(backbone, layers, settings.lora_rank, settings.lora_alpha, settings.lora_dropout)
        for p in trained:  # peft freezes all that it didn't make
            p.requires_grad_(True)


def root(model: nn.Module, config: Config) -> nn.Module:
    """What names in `tuning.*` start from.

    Raises:
        ConfigError: the workload names a submodule that isn't there.
    """
    workload = config.workload
    names = [name for name, _ in model.named_modules()]
    check(
        workload.root in names, "workload", workload.source, f"root names {workload.root}, which is no submodule of the module; correct it"
    )
    return model.get_submodule(workload.root)


def merge(model: nn.Module) -> None:
    """Add LoRA's updates into the weights of their layers and take peft's layers out: the names are the published ones again.

    For export. Nothing happens without LoRA; the model computes the same function, up to rounding.
    """
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent)._modules[child] = module.get_base_layer()


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Groups for an optimiser, of all parameters that train.

    Returns:
        Groups with `params`, `weight_decay` and `rate`, the factor of their learning rate.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    own = {name: own_name(name, config.workload.root) for name, _ in model.named_parameters()}
    deep, rates = layer_factors(list(own.values()), config), config.tuning.rates or {}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, p in named.items():
        rate = deep[own[name]] * rates.get(longest(own[name], rates), 1.0)
        groups.setdefault((any(word in own[name] for word in config.optimizer.no_decay), rate), []).append(p)
    return [
        {"params": groups[exempt, rate], "weight_decay": 0.0 if exempt else config.optimizer.weight_decay, "rate": rate}
        for exempt, rate in sorted(groups, key=lambda kind: (kind[0], -kind[1]))
    ]


def layer_factors(names: list[str], config: Config) -> dict[str, float]:
    """Parameter -> decay^(depth): 0 for heads and what stands above an encoder's layers, 1 for its last layer, and so on down.

    `names` are in the order in which the modules hold them. What stands in front of the first layer is one deeper than it. A
    layer is what has the last number in a name (`encoder.layer.3`, `swin.layers.2.blocks.17`); what only has the first
    numbers of layers before it (`swin.layers.2.downsample`) belongs to the last of them.
    """
    factors = dict.fromkeys(names, 1.0)
    for modules in config.workload.encoders:
        inside = [name for module in modules for name in names if longest(name, [module])]
        layers: list[str] = []
        place: dict[str, Optional[int]] = {}
        for name in inside:
            numbered = re.match(r"(.*\.\d+)\.", name)
            if numbered and not any(longest(layer, [numbered[1]]) for layer in layers):
                layers.append(numbered[1])
            place[name] = len(layers) if numbered or not layers else None
        for name in inside:
            if place[name] is not None:
                factors[name] = config.tuning.layer_decay ** (len(layers) + 1 - place[name])
    return factors


def linear_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    """The layers that LoRA knows here, by name."""
    return {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}


def lora_layers(backbone: nn.Module, config: Config) -> list[str]:
    """Linear layers whose names end as `tuning.lora` says, but for those that are frozen by name or train as a whole."""
    settings = config.tuning
    return [name for name in linear_layers(backbone) if set(settings.lora) & set(ends(name))
            and longest(name, settings.frozen) is None and not _trains(name, config)]  # fmt: skip


def ends(name: str) -> list[str]:
    """`a.b.c` -> `a.b.c`, `b.c`, `c`."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def longest(name: str, modules: Iterable[str]) -> Optional[str]:
    """The innermost of `modules` that `name` is or lies in."""
    return max((module for module in modules if f"{name}.".startswith(f"{module}.")), key=len, default=None)


def own_name(name: str, root: str) -> str:
    """Name of a parameter as the engine has it -> its name below `root`, before LoRA."""
    return name.removeprefix(PREFIX).removeprefix(f"{root}.").replace(".base_layer.", ".")


def _trains(name: str, config: Config) -> bool:
    """Whether what the backbone has under this name trains as a whole."""
    settings = config.tuning
    listed = dict.fromkeys(settings.frozen, False) | dict.fromkeys(settings.trained or [], True)
    module = longest(name, listed)
    if module is not None:
        return listed[module]
    if not settings.lora:
        return True
    is_head = longest(name, [module for encoder in config.workload.encoders for module in encoder]) is None
    return is_head and settings.trained is None


def _check_known(field: str, name: str, known: list[str], problem: str) -> None:
    if name not in known:
        known = list(dict.fromkeys(known))
        outermost = sorted(known, key=lambda other: other.count("."))
        nearest = difflib.get_close_matches(name, known, NAMES_SHOWN // 2) or outermost[:NAMES_SHOWN]
        raise ConfigError(f"{field}={name}: {problem}; use a name such as {', '.join(nearest)}")


def _inject(backbone: nn.Module, layers: list[str], rank: int, alpha: float, dropout: float) -> None:
    import peft  # it imports transformers, which takes seconds

    found = "|".join(map(re.escape, layers))  # a pattern has to match the whole name; a list would match ends of names
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=found), backbone)
