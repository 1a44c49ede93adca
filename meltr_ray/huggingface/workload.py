"""The workload that a user derives from: a model of transformers, its batches and a metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from meltr_ray.errors import check
from meltr_ray.huggingface import model as models
from meltr_ray.workload import Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

    from meltr_ray.huggingface.rehearsal import Found
    from meltr_ray.huggingface.special import Special

SAVED = "pretrained"
"""Folder of a run's best weights, as `from_pretrained` reads them."""
SHOWN = 4


class HuggingFace(Workload):
    """A model of transformers that returns several losses. To be given: `architecture`, `configuration`, `examples`, `batch`, `metrics` and `evaluate`."""

    paths = ("pretrained",)
    root = "model"

    architecture: ClassVar[str | type] = ""
    """Class of the model, or its name in transformers."""
    calls: ClassVar[Sequence[str] | Mapping[str, Sequence[str]]] = ()
    """Calls of the model that a batch takes, where one gives not all losses: their names, or name -> losses that it gives."""

    pretrained: Optional[str] = None
    """Folder that save_pretrained wrote, from which weights come; default: they are drawn, as configuration() says."""

    def configuration(self) -> Any:
        """The model's configuration, or its arguments as a dictionary; not asked for where weights come from a folder."""
        return None

    def arguments(self, batch: Any, call: str) -> dict[str, Any]:
        """Arguments of the model's forward for a call; default: the batch, or of several calls the entry of this name."""
        if not self.calls:
            return batch
        there = isinstance(batch, Mapping) and isinstance(batch.get(call), Mapping)
        check(
            there,
            "workload",
            self.source,
            f"batch has no arguments for the call {call}; return a dictionary, call -> arguments, or write arguments()",
        )
        return batch[call]

    def losses_of(self, outputs: Any, arguments: dict[str, Any], call: str) -> dict[str, Tensor]:
        """Losses by name, scalars, of what a call gave; default: by rule (`losses.by_rule`). Add losses of your own here."""
        from meltr_ray.huggingface.losses import by_rule

        return by_rule(outputs)

    # --- what follows from these

    @property
    def losses(self) -> tuple[str, ...]:
        """Names as declared; default: those that one batch gives, in the order in which it does."""
        return tuple(name for names in self.giving().values() for name in names)

    @property
    def special(self) -> Special:
        """What the model's forward can't do inside a bi-level step, and what takes its place; default: as for its class."""
        from meltr_ray.huggingface.special import special_of

        return special_of(self.model_class())

    @property
    def within(self) -> Mapping[str, tuple[float, float]]:
        return {f"{self.root}.{name}": bounds for name, bounds in self.special.within.items()}

    def call_names(self) -> tuple[str, ...]:
        return tuple(self.calls) or ("",)

    def giving(self) -> Mapping[str, Sequence[str]]:
        """Call -> losses that it gives: as declared, else as found."""
        check_calls(self.calls, self.source)
        if isinstance(self.calls, Mapping):
            return self.calls
        declared = type(self).losses
        return self.found().giving if isinstance(declared, property) or self.calls else {"": tuple(declared)}

    def found(self) -> Found:
        """What one batch gives; found once a process for equal settings."""
        from meltr_ray.huggingface.rehearsal import rehearse

        key = (type(self), repr(dataclasses.astuple(self)))
        if key not in FOUND:
            FOUND[key] = rehearse(self)
            names = [name for gives in FOUND[key].giving.values() for name in gives]
            for name in names:
                twice = names.count(name) > 1 and not isinstance(self.calls, Mapping)
                check(
                    not twice, "workload", self.source, f"two calls give {name}; say which in calls, as in calls = {{'call': ('{name}',)}}"
                )
        return FOUND[key]

    def model_class(self) -> type:
        return models.class_of(self.architecture, self.source)

    def module(self) -> nn.Module:
        from meltr_ray.huggingface.module import ModelLosses

        made = models.loaded(self.model_class(), self.pretrained) if self.pretrained is not None else (self._drawn(), [])
        self.special.adapt(made[0])
        module = ModelLosses(made[0], self)
        module.drawn = made[1]
        return module

    def structure(self) -> nn.Module:
        from meltr_ray.huggingface.module import ModelLosses

        model = self._drawn()
        self.special.adapt(model)
        return ModelLosses(model, self)

    def _drawn(self) -> nn.Module:
        return models.drawn(self.model_class(), self.model_configuration())

    def model_configuration(self) -> Any:
        """Of transformers."""
        return models.configuration_of(
            self.model_class(), None if self.pretrained is not None else self.configuration(), self.pretrained, self.source
        )

    def check(self, config: Any) -> None:
        dropped = models.drops_layers(self.model_configuration()) if config.engine.zero_stage == 3 else None
        check(
            dropped is None,
            "engine.zero_stage",
            3,
            f"the model's {dropped} leaves out other layers on each worker, which then wait for each other; set it to 0, or take stage 2",
        )

    def prepare(self, report: Callable[[str], None]) -> None:
        for line in self.caveats():
            report(line)

    def caveats(self) -> list[str]:
        """What was left out of the losses, which weights a folder lacks, and what of configuration and batch the model makes nothing of."""
        if not self.rehearsed:
            return []
        found, lines, name = self.found(), [], self.model_class().__name__
        if more := [loss for losses in found.giving.values() for loss in losses if loss not in self.losses]:
            lines.append(f"{name} gives {', '.join(more)} too, which `losses` leaves out.")
        given = self.configuration()
        if unknown := models.unknown_arguments(self.model_configuration(), given) if self.pretrained is None else []:
            lines.append(f"configuration() has {', '.join(unknown)}, which {name}'s configuration has no place for.")
        if other := models.differing(self.model_configuration(), given) if self.pretrained is not None and given is not None else []:
            lines.append(f"The configuration in {self.pretrained} holds, not configuration(): {', '.join(other[:SHOWN])}.")
        if found.unnamed:
            lines.append(f"The forward of {name} has no name for {', '.join(found.unnamed)} of the batch.")
        if found.dropped:
            lines.append(f"No loss, since no gradient reaches it: {', '.join(found.dropped)}.")
        if found.drawn:
            more = f" and {len(found.drawn) - SHOWN} more" if len(found.drawn) > SHOWN else ""
            lines.append(f"Drawn, since {self.pretrained} has no such weight: {', '.join(found.drawn[:SHOWN])}{more}.")
        return lines

    def fingerprint(self) -> dict[str, str]:
        """Of the folder that weights come from: the trials of a sweep start alike, also those of a resumed one."""
        return {} if self.pretrained is None else {"pretrained": models.checksum(self.pretrained)}

    def keep(self, module: nn.Module, folder: Path) -> None:
        """Write the best weights by `save_pretrained`, with checksums: LoRA's updates are in the weights of their layers."""
        models.save(module.model, folder / SAVED)


def check_calls(calls: Any, source: str) -> None:
    """Raises ConfigError: `calls` is neither a tuple of names nor a dictionary, name -> names of losses."""
    good = isinstance(calls, (tuple, list, Mapping)) and all(isinstance(name, str) for name in calls)
    if isinstance(calls, Mapping):
        good = good and all(
            isinstance(gives, (tuple, list)) and gives and all(isinstance(name, str) for name in gives) for gives in calls.values()
        )
    check(good, "workload", source, f"calls is {calls!r}; give a tuple of names, or {{'call': ('loss', 'another_loss')}}")


FOUND: dict[Any, Found] = {}
"""Class and settings of a workload -> what its model gives."""
