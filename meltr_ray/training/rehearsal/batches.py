"""Batches of a workload, and the control made of them."""

from __future__ import annotations

import copy
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from meltr_ray.config import Config
from meltr_ray.config.user_code import called, in_words
from meltr_ray.errors import ConfigError, check
from meltr_ray.training.batches import Batches
from meltr_ray.training.difference import copied, difference
from meltr_ray.training.loss_vector import WithControl
from meltr_ray.training.rehearsal.seeds import seeded_by_the_run
from meltr_ray.training.tensors import tensors
from meltr_ray.workload import Workload

SECONDS_OF_BATCHES = 0.5
"""For how long further batches of the first epoch are made: of small data all of them, of large data a part."""


def check_batches(config: Config) -> Any:
    """The first batch, which comes out the same again, here and where the examples are made anew."""
    workload = config.workload

    def made() -> Batches:
        return Batches(workload, "train", config.train.batch_size, config.seed)

    batches = made()
    check_list_kept(workload, batches)
    if batches.with_control:
        check_control(workload, batches)
    member = "control" if batches.with_control else "batch"
    batch, again = (seeded_by_the_run(workload, member, lambda: batches[0]) for _ in range(2))
    check_tensors(workload, batch)
    where = difference(batch, again)
    check(
        where is None,
        "workload",
        workload.source,
        f"two batches of equal examples and generators differ{f' in {where}' if where else ''}; draw all that is random from `generator`, "
        "and leave the examples as they are",
    )
    where = difference(batch, called(workload, member, lambda: made()[0]))
    check(
        where is None,
        "workload",
        workload.source,
        "examples('train') gives examples that differ from call to call, and so from process to process; draw them with a seed of their own",
    )
    if config.num_loaders:
        check_sent(workload, batch)
    started = time.perf_counter()
    for number in range(1, batches.per_epoch):
        if time.perf_counter() - started > SECONDS_OF_BATCHES:
            break
        batches[number]
    return batch


def first_examples(workload: Workload, batches: Batches) -> list[Any]:
    return called(workload, "examples", lambda: [batches.examples[number] for number in range(batches.batch_size)])


def check_list_kept(workload: Workload, batches: Batches) -> None:
    """batch leaves the list of examples that it is given as it is."""
    drawn = first_examples(workload, batches)
    given = list(drawn)
    called(workload, "batch", lambda: workload.batch(given, np.random.default_rng(0)))
    same = len(given) == len(drawn) and all(a is b for a, b in zip(given, drawn))
    check(same, "workload", workload.source, "batch changes the list of examples that it is given, so some are left out; change a copy")


def check_tensors(workload: Workload, batch: Any) -> None:
    """There is something, and its tensors are plain values."""
    check(batch is not None, "workload", workload.source, "batch gave None; return what forward takes")
    for place, x in tensors(tuple(batch) if isinstance(batch, WithControl) else batch):
        check(
            not x.is_meta, "workload", workload.source, f"batch gave a tensor on the meta device{place and f' in {place}'}; give it a value"
        )
        check(not x.requires_grad, "workload", workload.source,
              f"batch gave a tensor that asks for a gradient{place and f' in {place}'}; detach it, or make it a weight of the module")  # fmt: skip


def check_sent(workload: Workload, batch: Any) -> None:
    """A batch reaches the training process from one that makes batches; what doesn't would be waited for without end."""
    try:
        ForkingPickler.dumps(copy.deepcopy(batch))  # a copy, for it moves tensors to shared memory
    except Exception as error:
        raise ConfigError(f"workload={workload.source}: a batch can't be sent to the training process ({in_words(error)}); make it of tensors "
                          "and plain values, or use train.loader_workers=0") from error  # fmt: skip


def check_control(workload: Workload, batches: Batches) -> None:
    """The control's batch is another one, and the batch that it is made of stays as it was."""
    drawn = first_examples(workload, batches)
    batch = called(workload, "batch", lambda: workload.batch(drawn, np.random.default_rng(0)))
    check_tensors(workload, batch)
    before = copied(batch)
    permuted = called(workload, "control", lambda: workload.control(batch, np.random.default_rng(0)))
    where = difference(before, batch)
    check(
        where is None,
        "workload",
        workload.source,
        f"control changes {where or 'the batch'} of the batch that it is given, whose own targets are trained on; change a copy",
    )
    where = difference(batch, permuted, form=True)
    check(
        where is None,
        "workload",
        workload.source,
        f"control gave a batch of another form, in {where}; return one like that which it is given, with the targets of other examples",
    )
    check(
        difference(batch, permuted) is not None,
        "workload",
        workload.source,
        "control gave the batch as it is; permute its targets among its examples, of which batch has to keep more than one",
    )
