"""What an error of a trial's workers says: which of them tells why, and whether another attempt could end otherwise."""

from __future__ import annotations

from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.exceptions import WorkerGroupError

from meltr_ray.errors import ConfigError
from meltr_ray.storage.writers import ShutOut
from meltr_ray.training.statistics import Diverged

CERTAIN = (ConfigError, Diverged, ShutOut)
"""Errors that the next attempt would meet, too."""


class UnlessCertain(FailurePolicy):
    """Ray Train's own policy, `usual`, but that an attempt whose error is certain is the last, and that workers which don't start have failed.

    An error of one rank ends the others, which may wait for it in a collective.
    """

    def __init__(self, usual: FailurePolicy):
        super().__init__(usual.failure_config)
        self.usual = usual

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        if isinstance(cause_of(training_failed_error), CERTAIN):
            return FailureDecision.RAISE
        failure = getattr(training_failed_error, "controller_failure", None)
        if failure and not isinstance(failure, WorkerGroupStartupTimeoutError):  # Ray would try for ever, or not again
            training_failed_error = WorkerGroupError(str(failure), {0: failure})
        return self.usual.make_decision(training_failed_error)


def cause_of(error: BaseException) -> BaseException:
    """What an error comes from; of workers that failed together, the one that says why: the others miss a partner."""
    error = getattr(error, "controller_failure", error)  # of workers that didn't start
    failed = [cause_of(each) for _, each in sorted(getattr(error, "worker_failures", {}).items())]
    if failed:
        return next((each for each in failed if isinstance(each, CERTAIN)), failed[0])
    while error.__cause__ is not None and not isinstance(error, CERTAIN):
        error = error.__cause__
    return error
