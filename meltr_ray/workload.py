"""The seam: all that a run knows of model, data and metric.

A workload is one class in one file, anywhere on disk (docs/workloads.md):

    class Primes(Workload):
        losses = ("prime", "digit", "norm", "permuted")    # the first is the primary
        metrics = {"accuracy": Metric("%")}                 # the first is the score
        width: int = 32
        "Hidden units."                                     # a setting: workload.width=64

        def module(self): ...                               # forward(batch, names=None) -> {name: scalar}
        def examples(self, split): ...
        def batch(self, examples, generator): ...
        def evaluate(self, module, examples, device): ...

Masks and dropout, resumable order, loader workers, ZeRO 0 to 3, sweeps, report and export follow from these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, ClassVar

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` needs none of it
    from pathlib import Path

    import numpy as np
    import torch
    from torch import nn

CONSTANT = "constant"
"""A planted control that every workload offers: a loss that depends on nothing."""
SHUFFLED = "shuffled"
"""The planted control of a workload that defines `control`: its primary loss on a permuted batch."""
OWN_SETS = ("primary", "default", "all", "controlled")
"""Names in `losses.set` that every workload has."""


@dataclass(frozen=True)
class Metric:
    """What a workload measures, as tables, plots and the report show it."""

    unit: str = ""
    """`%`, `s`; empty: none."""
    higher: bool = True
    """Whether higher is better."""
    digits: int = 1
    """Decimals shown."""
    label: str = ""
    """Name shown; default: the metric's own, underscores as blanks."""
    meaning: str = ""
    """One line for the results table."""
    margin: float | None = None
    """Difference that counts as one, in the unit; default: 1.5 of %, 0.05 of anything else."""

    @property
    def material(self) -> float:
        """The margin, or its default."""
        return self.margin if self.margin is not None else 1.5 if self.unit == "%" else 0.05

    def score(self, value: float) -> float:
        """Higher is better, whatever the metric's direction: the value or its negative. Its own inverse."""
        return value if self.higher else -value

    def shown(self, name: str) -> str:
        """Label of a metric of this name."""
        return self.label or name.replace("_", " ")


@dataclass(kw_only=True)
class Workload:
    """Model, data and metric of a sweep. Subclasses are dataclasses: their annotated fields are settings.

    Instances are rebuilt in every process from (`source`, settings); nothing else of them travels.
    """

    source: str = ""
    """File or module and class, as in `my_losses.py:Primes`; given as workload=<source>."""

    # --- what has to be there

    losses: ClassVar[Sequence[str]] = ()
    """Names of all losses that the module offers; the first is the primary by default. May be a property of the settings."""
    metrics: ClassVar[Mapping[str, Metric]] = {}
    """What is measured; the first is the score. May be a property of the settings."""

    def module(self) -> nn.Module:
        """The module that is trained, weights drawn from torch's generator.

        forward(batch, names=None) -> {name: scalar}: the losses in `names` (None: all); what no name needs can be left out.
        Every parameter is used inside the forward of the submodule that owns it (ZeRO 3 gathers weights by module).
        """
        raise NotImplementedError

    def examples(self, split: str) -> Sequence[Any] | None:
        """Examples of `train`, `meta`, `validation` or `test`, with len() and [i].

        None where there is no such split: `meta` and `test` are then split off `train`, and the report says so.
        """
        raise NotImplementedError

    def batch(self, examples: list[Any], generator: np.random.Generator) -> Any:
        """A training batch: any nesting of lists, tuples, dictionaries and dataclasses of tensors.

        All that is random comes from `generator`: equal generators give equal batches.
        """
        raise NotImplementedError

    def evaluate(self, module: nn.Module, examples: Sequence[Any], device: torch.device) -> dict[str, float]:
        """A value for each of `metrics`; in evaluation mode, without gradients.

        Every rank calls it with all examples and must make the same number of forward passes.
        """
        return self.measure(self.predict(module, examples, device))

    # --- what may be there

    primaries: ClassVar[Sequence[str] | None] = None
    """Losses that may be the primary; None: all but the controls."""
    controls: ClassVar[Sequence[str]] = ()
    """Planted losses among `losses`, which should be demoted: no part of the default loss set."""
    default_losses: ClassVar[Sequence[str] | None] = None
    """The default loss set, primary first; None: all but the controls."""
    loss_sets: ClassVar[Mapping[str, Sequence[str]]] = {}
    """More names for `losses.set`: name -> auxiliary losses that join the primary."""
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Setting -> least and greatest value."""
    paths: ClassVar[Sequence[str]] = ()
    """Settings that are paths: made absolute on the driver, since workers run in other folders."""
    loader_workers: ClassVar[int] = 0
    """Processes that make batches ahead of training by default; 1 where making one takes longer than a step."""
    rehearsed: ClassVar[bool] = True
    """Whether the driver runs a batch through the module before any trial starts; False for models that it can't hold."""
    root: ClassVar[str] = ""
    """Submodule that names in `tuning.*` start from; empty: the module itself."""
    encoders: ClassVar[Sequence[Sequence[str]]] = ()
    """For `tuning.layer_decay` and LoRA: encoders, each the submodules it is made of, from its input on; all else is heads."""
    within: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Weights by their names in the module -> least and greatest value, held after each step: what a forward may not do itself."""
    resamples: ClassVar[int] = 100
    """Resamples of `predict`'s rows on which each evaluation is scored besides: how sure an effect is of its examples. 0: none."""
    per_example: ClassVar[bool] = False
    """Whether each loss is a vector (B,), a number for each example, that a combiner of your own weighs; see `combiner`."""

    def predict(self, module: nn.Module, examples: Sequence[Any], device: torch.device) -> list[dict[str, Any]]:
        """In place of `evaluate`: a row an example, which gives intervals and the page of predictions.

        A row may have `id`, `source` (what is drawn anew in an interval, such as the video of a clip), `correct` (true or false) and
        `quality` (a number). Beside an `evaluate` of your own, both measure the same.
        """
        raise NotImplementedError

    def measure(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """A value for each of `metrics` from rows of `predict`."""
        raise NotImplementedError

    def control(self, batch: Any, generator: np.random.Generator) -> Any:
        """A batch whose targets belong to other examples: its primary loss joins the losses as `shuffled`, a planted control."""
        raise NotImplementedError

    def combiner(self) -> nn.Module:
        """A combiner of your own, for combiner.name=own: forward(losses) or forward(losses, batch) -> scalar."""
        raise NotImplementedError

    def keep(self, module: nn.Module, folder: Path) -> None:
        """At the end of a single run: write its best weights into its folder in a form of your own. One process calls it."""

    def prepare(self, report: Callable[[str], None]) -> None:
        """Make or check what every process needs, such as files; called once, on the driver, before any worker starts."""

    def baselines(self) -> dict[str, dict[str, dict[str, float]]]:
        """Split -> name, such as `chance` -> metric -> value."""
        return {}

    def caveats(self) -> list[str]:
        """What a reader of the results has to know, a sentence each."""
        return []

    def fingerprint(self) -> dict[str, str]:
        """What of the data a resumed run and an evaluation must find again: name -> checksum."""
        return {}

    def identity(self) -> dict[str, str]:
        """What all trials of a sweep must find alike besides, such as the data's files or the weights that training starts from: name -> checksum."""
        return {}

    # --- what only a workload as large as video needs

    groups: ClassVar[Mapping[str, type]] = {}
    """Fields that are settings of settings, written without `workload.` in front: field -> class."""
    choices: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Group -> name -> class of settings or values, chosen by <group>=<name>."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Older name of a setting -> the present one."""
    conf: ClassVar[str] = "config"
    """Name of the file in workloads/conf/ that the settings are composed by."""
    preloaded: ClassVar[Sequence[str]] = ()
    """Modules that those processes share once imported, where that takes long."""
    prediction_settings: ClassVar[Sequence[str]] = ()
    """Names of settings that evaluate.py may change: how predictions are made, and where data are; the others are the run's own."""
    preparation_settings: ClassVar[Sequence[str]] = ()
    """Settings that prepare.py alone makes something of."""
    prediction_columns: ClassVar[Mapping[str, Any]] = {}
    """Types (pyarrow) of columns of `predict`'s rows that can't be seen from the rows, such as that of a column of nulls."""
    prediction_view: ClassVar[Mapping[str, Any]] = {}
    """How the page of predictions shows the rows (analysis/page/predictions.js); empty: as a plain table."""
    reported_metrics: ClassVar[Mapping[str, Metric]] = {}
    """Metrics that `report` gives besides, for their labels and units: no part of the results table."""

    def title(self) -> str:
        """Name of output folders."""
        return type(self).__name__.lower()

    def describe(self) -> dict[str, Any]:
        """`name`, `description` and `rows` of the data, for the report."""
        return {"name": type(self).__name__, "description": (type(self).__doc__ or "").strip().split("\n")[0]}

    def structure(self) -> nn.Module:
        """The module for weights that will be loaded into it, or for its names and shapes alone; cheaper where `module` reads a file."""
        return self.module()

    def check(self, config: Any) -> None:
        """Refuse a configuration that doesn't go together with these settings; raises ConfigError."""

    def resolve(self, primary: str, loss_set: list[str]) -> None:
        """Told which primary and which losses were chosen, once they are known."""
        self.primary, self.loss_set = primary, loss_set

    def verify(self) -> None:
        """Check what was prepared, before an evaluation; raises ConfigError."""

    def report(self, rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, tuple[float, float]], list[str]]:
        """Metrics, their 95 % intervals and notes from rows of `predict`; default: `measure`, and a bootstrap of it over sources."""
        raise NotImplementedError

    def pictures(self, split: str) -> dict[str, bytes]:
        """JPEG of examples by the `id` of their rows, for the page of predictions."""
        return {}

    # --- what the machine makes of it

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(kw_only=True)(cls)

    def __reduce__(self) -> Any:
        """Other processes rebuild it from its file; caches that an instance holds stay behind."""
        settings = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return rebuild, (type(self), settings, getattr(self, "primary", None), getattr(self, "loss_set", None))

    def defines(self, member: str) -> bool:
        """Whether the class has an optional member of its own."""
        return getattr(type(self), member) is not getattr(Workload, member)

    def offered(self) -> tuple[str, ...]:
        """All losses that a loss set may have, planted controls last."""
        planted = [] if self.per_example else [CONSTANT] + [SHUFFLED] * self.defines("control")
        return tuple(dict.fromkeys([*self.losses, *planted]))

    def planted(self) -> tuple[str, ...]:
        """Those of them that are controls."""
        own = set(self.losses) - set(self.controls)
        return tuple(loss for loss in self.offered() if loss in self.controls or (loss in (CONSTANT, SHUFFLED) and loss not in own))

    def named_sets(self, primary: str) -> dict[str, list[str]]:
        """Name in `losses.set` -> losses, the primary first."""
        planted = self.planted()
        genuine = [loss for loss in self.offered() if loss not in planted]
        default = list(genuine if self.default_losses is None else self.default_losses)
        auxiliary = dict(zip(OWN_SETS, ([], default, genuine, [*default, *planted]))) | dict(self.loss_sets)
        return {name: [primary, *(loss for loss in chosen if loss != primary)] for name, chosen in auxiliary.items()}

    def score(self, values: Mapping[str, float]) -> float:
        """The first metric, higher is better whatever its direction."""
        name, metric = next(iter(self.metrics.items()))
        return metric.score(values[name])


def made_anew(workload: Workload) -> Workload:
    """As another process makes it."""
    make, given = workload.__reduce__()
    return make(*given)


def rebuild(cls: type[Workload], settings: dict[str, Any], primary: str | None, loss_set: list[str] | None) -> Workload:
    """A workload in another process."""
    made = cls(**settings)
    if primary is not None and loss_set is not None:
        made.resolve(primary, loss_set)
    return made
