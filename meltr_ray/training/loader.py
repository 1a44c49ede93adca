"""Batches made ahead of training by worker processes, in the order and with the content of `data/batches.py`.

What a step takes is a pure function of its number, so any number of workers gives the same, and a run that starts at step n goes
on with what an uninterrupted one would see there.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

from meltr_ray.combining.way import Key
from meltr_ray.errors import ConfigError
from meltr_ray.training.batches import Batches, MetaBatches, to_device
from meltr_ray.training.origin import check_as_known

START_METHOD = "forkserver"
"""A fork of a process with threads (Ray, gRPC, OpenMP) may hang; a spawned worker imports torch by itself, seconds each time."""
PRELOADED = ("torch.utils.data", __name__)
"""Imported once, by the server that forks the workers of this process; ours fails, and is then imported later, off PYTHONPATH."""


class Loader:
    """What each optimiser step from `first` to before `last` trains on: iterate to get (micro-batches, batches beside them or None).

    A batch that a later step asks for again, as meta batches of training batches do, is made once and kept until then.

    Args:
        sources: name the batches of a step.
        beside: step -> keys of the batches that it has beside its own; None: none.
        workers: processes that make batches; 0: this one does, when they are asked for.
        prefetch: steps that each worker is ahead.
        preloaded: modules that the workers share once imported.
        known: checksums of batches as this process makes them, by key.

    Raises, while iterating:
        ConfigError: what a worker raised, such as a video that can't be decoded, as it was raised there; a worker makes another batch
            than this process.
        RuntimeError: a worker died.
    """

    def __init__(self, sources: MetaBatches, beside: Callable[[int], Sequence[Key] | None], first: int, last: int,
                 workers: int = 0, prefetch: int = 2, preloaded: Sequence[str] = (), known: Mapping[Key, int] | None = None):  # fmt: skip
        self.steps = range(first, last)
        self.micro = [sources.trained(step) for step in self.steps]
        self.meta = [beside(step) for step in self.steps]
        self.makes, self.drops = _plan(
            [[*micro, *(key for key in meta or [] if isinstance(key[1], int))] for micro, meta in zip(self.micro, self.meta)]
        )
        self.maker = _Maker({"train": sources.train, "held_out": sources.held_out})
        self.workers, self.prefetch, self.preloaded, self.known = workers, prefetch, (*PRELOADED, *preloaded), known or {}
        self.seconds_waited = 0.0
        """Time that the steps so far have waited for their batches."""

    def __iter__(self) -> Iterator[tuple[list[Any], list[Any] | None]]:
        held: dict[Key, Any] = {}
        made = iter(self._data_loader(self.makes))
        of = {key: Again(self._data_loader, key) for meta in self.meta for key in meta or [] if isinstance(key[1], range)}
        for micro, meta, makes, drops in zip(self.micro, self.meta, self.makes, self.drops):
            started = time.perf_counter()
            found = next(made)
            self.seconds_waited += time.perf_counter() - started
            if isinstance(found, ConfigError):
                raise found
            for key, batch in zip(makes, found) if self.workers else ():
                check_as_known(self.maker.sources[key[0]].workload, batch, self.known.get(key))
            held |= zip(makes, found)
            yield [held[key] for key in micro], None if meta is None else [of[key] if key in of else held[key] for key in meta]
            for key in drops:
                del held[key]

    def _data_loader(self, makes: Sequence[list[Key]]) -> DataLoader:
        options: dict[str, Any] = {}
        if self.workers:
            options = dict(prefetch_factor=self.prefetch, worker_init_fn=_start_worker, multiprocessing_context=_context(self.preloaded))
        # A generator of its own: else torch draws a seed for its workers from the one that dropout draws from.
        return DataLoader(self.maker, batch_size=None, sampler=makes, collate_fn=_as_they_are, num_workers=self.workers,
                          generator=torch.Generator(), **options)  # fmt: skip


class Again:
    """Many training batches, made anew whenever they are gone through, so that few are held at a time.

    Args:
        load: makes lists of batches of lists of keys.
        key: names them, by a range.
        device: where they go.
    """

    def __init__(self, load: Callable[[Sequence[list[Key]]], DataLoader], key: Key, device: torch.device | None = None):
        self.load, self.key, self.device = load, key, device

    def to(self, device: torch.device) -> Again:
        return Again(self.load, self.key, device)

    def __iter__(self) -> Iterator[Any]:
        source, numbers = self.key
        for found in self.load([[(source, number)] for number in numbers]):
            if isinstance(found, ConfigError):
                raise found
            yield to_device(found[0], self.device) if self.device else found[0]


def _as_they_are(batches: Any) -> Any:
    """In place of torch's own, which makes lists of tuples and tensors of arrays."""
    return batches


class _Maker(Dataset):
    """Batches by their keys: what a worker process gets."""

    def __init__(self, sources: dict[str, Batches | None]):
        self.sources = sources

    def __getitem__(self, keys: list[Key]) -> list[Any] | ConfigError:
        try:
            return [self.sources[source][index] for source, index in keys]
        except ConfigError as error:  # as a value: torch would add the worker's traceback to its one line
            return error


def _plan(wanted: list[list[Key]]) -> tuple[list[list[Key]], list[list[Key]]]:
    """From the keys that each step wants: those that it is the first to want, and those that it is the last to want."""
    first: dict[Key, int] = {}
    last: dict[Key, int] = {}
    for step, keys in enumerate(wanted):
        for key in keys:
            first.setdefault(key, step)
            last[key] = step
    makes: list[list[Key]] = [[] for _ in wanted]
    drops: list[list[Key]] = [[] for _ in wanted]
    for key, step in first.items():
        makes[step].append(key)
        drops[last[key]].append(key)
    return makes, drops


def _context(preloaded: Sequence[str]) -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context(START_METHOD)
    if START_METHOD == "forkserver":
        context.set_forkserver_preload(list(preloaded))
    return context


def _start_worker(number: int) -> None:
    """One thread for the work: torch sees to its own, this to those of BLAS and OpenMP."""
    threadpool_limits(1)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_unsent)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_unsent(error: Exception, batch: Any) -> None:
    """A batch that can't be sent: Python would leave it out, and training wait for it without end."""
    print(f"a batch can't be sent to the training process: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_with_parent() -> None:
    """Torch looks at the parent's process number, which is the fork server's, and that outlives a killed training process."""
    multiprocessing.parent_process().join()
    os._exit(1)
