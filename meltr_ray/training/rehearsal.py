"""What the driver tries before any trial starts: one batch, its losses, their gradients, one evaluation.

Every fault of a workload that would end a trial, or be silently wrong in it, is one line here.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from meltr_ray.combining.meta import Meta
from meltr_ray.combining.named import WAYS
from meltr_ray.combining.way import check_positive
from meltr_ray.config import Config, workload_settings
from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.hypergrad import ModuleProblem
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.hypergrad.structure import InvalidLosses
from meltr_ray.training.batches import Batches, check_enough
from meltr_ray.training.deepspeed_settings import deepspeed_settings
from meltr_ray.training.difference import difference
from meltr_ray.training.evaluation import checked, quietly
from meltr_ray.training.fits import check_fits
from meltr_ray.training.loss_vector import PREFIX, LossVector, WithControl, named_weights
from meltr_ray.training.refused import refused_in_settings
from meltr_ray.training.said import check_said
from meltr_ray.training.shapes import shapes_alone
from meltr_ray.training.splits import SPLITS, Part, examples
from meltr_ray.training.tuning import check_tuning, prepare_for_tuning
from meltr_ray.workload import Workload

T = TypeVar("T")
EVALUATED = 64
"""Validation examples that the evaluation is tried on."""
SEED = 20230613
"""Torch's, one that a workload is unlikely to set itself."""
SECONDS_OF_BATCHES = 0.5
"""For how long further batches of the first epoch are made: of small data all of them, of large data a part."""


def check_all(configs: Iterable[Config]) -> None:
    """Refuse what any of these configurations would fail on; on prepared data, each kind of them once.

    Raises:
        ConfigError: names the workload or the setting, and the mend.
    """
    seen: list[tuple[Any, frozenset[str]]] = []
    sizes: list[tuple[dict[str, Any], dict[str, int]]] = []
    for config in configs:
        settings = workload_settings(config)
        known = next((found for other, found in sizes if other == settings), None)
        if known is None:
            known = {split: len(examples(config.workload, split)) for split in SPLITS}
            sizes.append((settings, known))
            check_said(config.workload)
        for split in ["train"] + ["meta"] * config.draws_from_meta:
            check_enough(config.workload, split, known[split], config.train.batch_size, max(1, config.train.num_workers))
        check(
            known["validation"] > 0,
            "workload",
            config.workload.source,
            "has no validation example; return some from examples('validation')",
        )
        deepspeed_settings(config)
        products = (config.aid.solver, config.aid.product, config.aid.hessian_product) if may_be_refused(config) else None
        key = (settings, config.tuning, config.engine.zero_stage == 3, config.combiner.name, products)
        losses = frozenset(config.losses.set)
        if any(key == other and losses <= already for other, already in seen):
            continue
        seen.append((key, losses))
        if config.workload.rehearsed:
            rehearse(config)
        else:
            with shapes_alone():
                module = config.workload.structure()
                check_tuning(config, module)
            check_fits(config, sum(p.numel() for p in module.parameters()))


def rehearse(config: Config) -> None:
    """One batch through the module, and its losses checked; w, generators and files stay as they are."""
    workload = config.workload
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        module = seeded_by_the_run(workload, "module", workload.module)
        check(
            isinstance(module, nn.Module), "workload", workload.source, f"module() gave a {type(module).__name__}; return a torch.nn.Module"
        )
        check_module(workload, module)
        check_made_anew(config, module)
        prepare_for_tuning(module, config)
        batch = check_batches(config)
        model = LossVector(module, workload).train()
        check_losses(config, model, batch)
        if config.combiner.name == "own":
            check_own_combiner(config, model, batch)
        if may_be_refused(config):
            check_meta_step(config, model, batch)
        before = [p.detach().clone() for p in module.parameters()]
        with used_by_their_owners(model) if config.engine.zero_stage == 3 else nullcontext():
            called(workload, "module", lambda: model(batch))
            check_evaluation(workload, module)
        check(
            all(torch.equal(p, was) for p, was in zip(module.parameters(), before)),
            "workload",
            workload.source,
            "an evaluation or a forward changes the module's weights; leave them as they are",
        )
        check_structure(config, module)


def seeded_by_the_run(workload: Workload, member: str, function: Callable[[], T]) -> T:
    """`function()`, which leaves the seed of torch's generator as it is."""
    before = torch.initial_seed()
    found = called(workload, member, function)
    check(
        torch.initial_seed() == before,
        "workload",
        workload.source,
        f"{member} sets the seed of torch's generator, so every seed of a sweep would draw the same; leave the seed to the run",
    )
    return found


def check_module(workload: Workload, module: nn.Module) -> None:
    """Its weights can be trained, and its forward takes what it is called with."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    check(
        bool(trained),
        "workload",
        workload.source,
        "none of the module's parameters requires a gradient; leave those that are to be trained unfrozen",
    )
    for name, p in trained:
        check(not p.is_meta, "workload", workload.source, f"{name} is on the meta device; give it a value")
        check(
            p.dtype == torch.float32,
            "workload",
            workload.source,
            f"{name} is {str(p.dtype).removeprefix('torch.')}; make it float32, engine.precision sees to the rest",
        )
    signature = inspect.signature(module.forward)
    try:
        signature.bind(None, ())
    except TypeError:
        raise ConfigError(f"workload={workload.source}: {type(module).__name__}.forward takes {signature}; "
                          "write forward(self, batch, names=None)") from None  # fmt: skip


def check_made_anew(config: Config, module: nn.Module) -> None:
    """module() makes another object at each call, and its weights hang on torch's generator alone."""
    workload = config.workload
    torch.manual_seed(SEED)
    again = called(workload, "module", workload.module)
    check(
        again is not module,
        "workload",
        workload.source,
        "module() gave one object twice; make a new one at each call, or runs would share weights",
    )
    for (name, a), b in zip(module.named_parameters(), again.parameters()):
        check(
            a.shape == b.shape and (a.is_meta or torch.equal(a, b)),
            "workload",
            workload.source,
            f"two calls of module() with the same seed give other weights in {name}; draw them from torch's own generator",
        )


def check_batches(config: Config) -> Any:
    """The first batch, which comes out the same again, here and where the examples are made anew."""
    workload = config.workload

    def made() -> Batches:
        return Batches(workload, "train", config.train.batch_size, config.seed)

    batches = made()
    if batches.with_control:
        check_control(workload, batches)
    member = "control" if batches.with_control else "batch"
    batch, again = (seeded_by_the_run(workload, member, lambda: batches[0]) for _ in range(2))
    where = difference(batch, again)
    check(
        where is None,
        "workload",
        workload.source,
        f"two batches of equal examples and generators differ{f' in {where}' if where else ''}; draw all that is random from `generator`",
    )
    where = difference(batch, called(workload, member, lambda: made()[0]))
    check(
        where is None,
        "workload",
        workload.source,
        "examples('train') gives examples that differ from call to call, and so from process to process; draw them with a seed of their own",
    )
    started = time.perf_counter()
    for number in range(1, batches.per_epoch):
        if time.perf_counter() - started > SECONDS_OF_BATCHES:
            break
        batches[number]
    return batch


def check_structure(config: Config, module: nn.Module) -> None:
    """`structure()` has the names and shapes of `module()`, whose weights are loaded into it."""
    workload = config.workload
    if not workload.defines("structure"):
        return
    found = called(workload, "structure", workload.structure)
    check(isinstance(found, nn.Module), "workload", workload.source, f"structure() gave a {type(found).__name__}; return a torch.nn.Module")
    prepare_for_tuning(found, config)
    shapes, wanted = ({name: tuple(p.shape) for name, p in named_weights(each)} for each in (found, module))
    other = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    check(
        not other,
        "workload",
        workload.source,
        f"structure() and module() differ in {other[:1] and other[0]}; give both the same names and shapes",
    )


def check_control(workload: Workload, batches: Batches) -> None:
    """The control's batch is another one, and the batch that it is made of stays as it was."""
    drawn = [batches.examples[number] for number in range(batches.batch_size)]
    batch = called(workload, "batch", lambda: workload.batch(drawn, np.random.default_rng(0)))
    before = copy.deepcopy(batch)
    permuted = called(workload, "control", lambda: workload.control(batch, np.random.default_rng(0)))
    where = difference(before, batch)
    check(
        where is None,
        "workload",
        workload.source,
        f"control changes {where or 'the batch'} of the batch that it is given, whose own targets are trained on; change a copy",
    )
    check(
        difference(batch, permuted) is not None,
        "workload",
        workload.source,
        "control gave the batch as it is; permute its targets among examples",
    )


def check_losses(config: Config, model: LossVector, batch: Any) -> None:
    """Names, shapes and values; each depends on w; the same again with the same generators; one alone as among the others."""
    workload, names = config.workload, config.losses.set
    count = len(names) if not workload.per_example else config.train.batch_size
    start = torch.get_rng_state()
    losses = seeded_by_the_run(workload, "forward", lambda: model(batch))
    check(len(losses) == count, "losses.set", names, f"gave {len(losses)} numbers for {count} examples; return one for each")
    for index, loss in enumerate(losses):
        name = names[0] if workload.per_example else names[index]
        check(bool(loss.isfinite()), "losses.set", name, f"is {loss.item()} on the first batch; mend it, or leave it out")
    check(losses.dtype != torch.float64, "losses.set", names, "are float64; compute them in float32, as the weights are")
    if WAYS[config.combiner.name].positive:
        check_positive(losses, names)
    torch.set_rng_state(start)
    check(
        torch.equal(losses, model(batch)),
        "workload",
        workload.source,
        "two passes over one batch with the same generators differ; draw dropout and masks from torch's own generator",
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    own = tuple(name for name in names if name in workload.losses and name not in workload.planted())
    for name, loss in model.named(batch[0] if isinstance(batch, WithControl) else batch, own).items():
        found = torch.autograd.grad(loss.sum(), parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else []
        check(
            any(g is not None for g in found),
            "losses.set",
            name,
            "doesn't depend on the module's weights; compute it with the module, without detach, or name it in `controls`",
        )
    torch.set_rng_state(start)
    called(workload, "module", lambda: model(batch, (workload.primary,)))


@contextmanager
def used_by_their_owners(model: nn.Module) -> Iterator[None]:
    """ZeRO 3 gathers a parameter for the forward of the module that owns it: refuse one that is used elsewhere."""
    owners: dict[int, tuple[str, list[nn.Module]]] = {}
    for name, owner in model.named_modules():
        for own, p in owner.named_parameters(recurse=False):
            owners.setdefault(id(p), (f"{name}.{own}".removeprefix(PREFIX), []))[1].append(owner)
    active: list[nn.Module] = []

    def within_torch(whose: list[nn.Module]) -> bool:
        """Whether a layer of torch's own that holds the owner runs: its attention takes weights of its projection, and DeepSpeed sees it."""
        return any(type(at).__module__.startswith("torch.nn.") and any(owner in set(at.modules()) for owner in whose) for at in active)

    handles = [m.register_forward_pre_hook(lambda m, _: active.append(m)) for m in model.modules()]
    handles += [m.register_forward_hook(lambda m, _, __: active.pop() and None) for m in model.modules()]

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            for p in _tensors([args, kwargs or {}]):
                name, whose = owners.get(id(p), ("", []))
                if whose and not any(owner is at for owner in whose for at in active) and not within_torch(whose):
                    raise ConfigError(f"engine.zero_stage=3: {name} is used outside the forward of the module that owns it, "
                                      f"{type(whose[0]).__name__}; use it there, or take engine.zero_stage=2")  # fmt: skip
            return function(*args, **(kwargs or {}))

    try:
        with torch.no_grad(), Watch():
            yield
    finally:
        for handle in handles:
            handle.remove()


def check_own_combiner(config: Config, model: nn.Module, batch: Any) -> None:
    """The combiner of a workload gives a scalar that depends on the losses."""
    way = called(config.workload, "combiner", lambda: WAYS["own"].of(config, config.workload))
    losses = model(batch).detach()
    value = called(config.workload, "combiner", lambda: way.combiner(losses, *way.beside(batch)))
    check(
        isinstance(value, Tensor) and value.dim() == 0,
        "combiner.name",
        "own",
        f"gave {f'the shape {tuple(value.shape)}' if isinstance(value, Tensor) else f'a {type(value).__name__}'}; return a scalar",
    )
    _, a = called(config.workload, "combiner", lambda: way.slopes(losses, batch))
    check(
        bool(a.isfinite().all()) and bool(a.any()),
        "combiner.name",
        "own",
        "has slopes that are not finite or all zero, so nothing would train; start it near the plain sum",
    )


def may_be_refused(config: Config) -> bool:
    """Whether its meta steps take products that not every model has: one asked for by name, or with H."""
    learns = issubclass(WAYS[config.combiner.name], Meta)
    return learns and (config.aid.product != "auto" or config.aid.hessian_product != "auto" or SOLVERS[config.aid.solver].counts_decay)


def check_meta_step(config: Config, model: LossVector, batch: Any) -> None:
    """A product that is wrong for this model is refused here, not after the first steps of every trial."""
    short = copy.copy(config)
    short.aid = aid = dataclasses.replace(
        config.aid, iterations=1, rank=1, adam="ignore", warm_start=False, check_every=0
    )  # one product tells
    way = WAYS[config.combiner.name].of(short, config.workload)
    primary = (config.losses.primary,)
    problem = ModuleProblem(model, lambda: model(batch), lambda: model(batch, primary).mean(), product=aid.product,
                            hessian_product=aid.hessian_product, radius=aid.radius, accuracy=aid.accuracy)  # fmt: skip

    def step() -> None:
        with refused_in_settings(config), suppress(InvalidLosses):  # which end a run by the name of the loss
            way.step(problem, [batch])

    called(config.workload, "module", step)


def check_evaluation(workload: Workload, module: nn.Module) -> None:
    """Every declared metric is there, finite and the same at every call; there is a row for each example."""
    validation, cpu = examples(workload, "validation"), torch.device("cpu")
    some = Part(validation, tuple(range(min(EVALUATED, len(validation)))))
    found, again = (
        called(workload, "evaluate", lambda: checked(workload, quietly(module, lambda: workload.evaluate(module, some, cpu))))
        for _ in range(2)
    )
    for name in workload.metrics:
        check(
            bool(np.isfinite(found[name])),
            "workload",
            workload.source,
            f"evaluate gave {name} = {found[name]} on {len(some)} validation examples; return a finite number",
        )
        check(
            found[name] == again[name],
            "workload",
            workload.source,
            f"two evaluations of the same weights give {name} = {found[name]:g} and {again[name]:g}; leave out what is random, or draw it from torch's generator",
        )
    if not workload.defines("evaluate"):
        check_rows(workload, called(workload, "predict", lambda: quietly(module, lambda: workload.predict(module, some, cpu))), len(some))


def check_rows(workload: Workload, rows: list[dict[str, Any]], count: int) -> None:
    """A row an example at least, and `measure` leaves them as they are."""
    check(len(rows) >= count, "workload", workload.source, f"predict gave {len(rows)} rows for {count} examples; return one for each")
    before = copy.deepcopy(rows)
    called(workload, "measure", lambda: workload.measure(rows))
    where = difference(before, rows)
    check(where is None, "workload", workload.source, f"measure changes its rows{f' in {where}' if where else ''}; leave them as they are")


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [t for each in x for t in _tensors(each)] if isinstance(x, (list, tuple)) else []
