"""Ray Train workers that stay from trial to trial, as Tune keeps the trial's own process: only the first trial pays for imports.

To Ray Train, all trials of these workers are one run. Each worker waits for a trial, trains it, reports how it ended and waits for the next.
Workers of a trial that failed don't stay: what is left in them may be anything.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import uuid
from typing import Any, Callable

import ray.train
from ray.train import FailureConfig
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR
from ray.train.v2._internal.execution.callback import ReportCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy, create_failure_policy

from meltr_ray.cluster.failures import UnlessCertain
from meltr_ray.cluster.garbage import collect
from meltr_ray.cluster.trainer import Controller, Trainer, scaling_of
from meltr_ray.config import Config
from meltr_ray.training.stopping import End

END = "end"
"""The only column of a worker's last report of a trial: name of an `End`."""
LOOK = "0.25"
"""Seconds between two looks at the workers; Ray's own 2 would be lost at the end of each trial."""
GONE = 60
"""Seconds that workers have to end."""

Trial = dict[str, Any]
Train = Callable[[Trial], str]
"""Trains a trial on one rank. Returns the name of an `End`, the same on all ranks."""


def train_on_workers(trial: Trial, config: Config, train: Train, report: Callable[[dict[str, Any]], None]) -> End:
    """Train one trial on the workers that this process has kept, or on new ones.

    Args:
        report: takes rank 0's rows.
    """
    global _kept
    while True:
        if _kept is None or _kept.scaling != scaling_of(config):
            if _kept:
                _kept.let_go()
            _kept = Standing(config, train, trial["stop"])
        end = _kept.train(trial, config, report)
        if end not in (None, End.LEAVING):
            return end
        _kept.let_go()
        _kept = None
        if end:
            return end


class Standing(WorkerGroupCallback, ReportCallback):
    """The workers. Ray Train's controller runs in a thread of this process, and says there what becomes of them.

    A controller of its own would be one more process for each trial, as would be an actor that passes rows to Tune.
    """

    def __init__(self, config: Config, train: Train, folder: str):
        os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, LOOK)
        self.scaling = scaling_of(config)
        self.trainer = _InThisProcess(self, config, train, folder)
        self.thread = threading.Thread(target=self._stand, daemon=True)
        self.said = queue.SimpleQueue[Any]()
        """Of the present trial: rank 0's rows, and the error that ended it."""
        self.lock = threading.Lock()  # around what follows
        self.trial: Trial | None = None
        self.policy: FailurePolicy | None = None
        self.group: Any = None
        self.gone = False

    # --- in the thread of the trial

    def train(self, trial: Trial, config: Config, report: Callable[[dict[str, Any]], None]) -> End | None:
        """Returns None: the workers ended while they had no trial."""
        with self.lock:
            if self.gone:
                return None
            self.trial, self.policy = trial, UnlessCertain(create_failure_policy(FailureConfig(max_failures=config.train.max_failures)))
            self._hand_over()
            if self.thread.ident is None:
                self.thread.start()
        try:
            while True:
                said = self.said.get()
                if isinstance(said, Exception):
                    raise said
                if END in said:
                    return End(said[END])
                report(said)
        except BaseException:
            self.gone = True  # whatever it is, what these workers say from now on is of this trial
            raise

    def let_go(self) -> None:
        with self.lock:
            self.gone = True
            if self.group:
                self.group.execute_async(give, None)
        self.thread.join(GONE)

    def _hand_over(self) -> None:
        """To workers that have died meanwhile in vain: those that take their place get it when they start."""
        if self.group and self.trial:
            self.group.execute_async(give, self.trial)

    # --- in the controller's thread

    def _stand(self) -> None:
        error: Exception = RuntimeError("its workers ended before it did")
        try:
            self.trainer.fit()
        except Exception as raised:
            error = raised
        with self.lock:
            self.gone = True
            if self.trial:
                self.said.put(error)

    def decide(self, error: Exception) -> FailureDecision:
        """Whether new workers take the place of those that failed."""
        with self.lock:
            decision = self.policy.make_decision(error) if self.trial and self.policy else FailureDecision.RAISE
            self.gone = decision is FailureDecision.RAISE
        return decision

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        with self.lock:
            self.group = worker_group
            self._hand_over()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        with self.lock:
            self.group = None

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        with self.lock:
            if END in metrics[0]:
                self.trial = None
        self.said.put(metrics[0])


class _InThisProcess(Trainer):
    def __init__(self, standing: Standing, config: Config, train: Train, folder: str):
        super().__init__(config, serve, {"train": train}, os.path.join(folder, "ray"), f"workers-{uuid.uuid4().hex[:12]}")
        self.standing = standing

    def _initialize_and_run_controller(self, failure_policy: FailurePolicy, **parts: Any) -> Any:
        controller = Controller(failure_policy=_OfStanding(self.standing, failure_policy), **parts)
        asyncio.run(controller.run())
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        return [*super()._create_default_callbacks(), self.standing]


class _OfStanding(FailurePolicy):
    def __init__(self, standing: Standing, usual: FailurePolicy):
        super().__init__(usual.failure_config)
        self.standing = standing

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        return self.standing.decide(training_failed_error)


# --- in a worker


def serve(given: dict[str, Train]) -> None:
    """What a worker does: train the trials that it is given, until it is given None or its machine leaves."""
    while (trial := _given.get()) is not None:
        end = given["train"](trial)
        collect()
        ray.train.report({END: end})
        if End(end) is End.LEAVING:
            return


def give(trial: Trial | None) -> None:
    """Called in each worker's process, beside `serve`."""
    _given.put(trial)


_given = queue.SimpleQueue[Trial | None]()
"""Of this process, if it is a worker."""
_kept: Standing | None = None
"""Of this process, if it is a trial's."""
