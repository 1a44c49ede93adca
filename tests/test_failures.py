"""How a trial ends whose error the next attempt would meet: at once, on all its workers, by the line of the worker that knows why."""

from __future__ import annotations

import re

import pytest
import ray.train
from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
from ray.train.v2.api.exceptions import WorkerGroupError

from meltr_ray.cluster.failures import UnlessCertain, cause_of
from meltr_ray.cluster.sweep import keep_best
from meltr_ray.cluster.trial import record_failure
from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.storage import sealed
from meltr_ray.storage.writers import ShutOut
from meltr_ray.training import checkpoint
from meltr_ray.training.statistics import Diverged
from tests.commands import run
from tests.engine_toy import toy, toy_config
from tests.faults import RETURN, attempt, written
from tests.test_analysis import LOSS_SET, METRICS, measured

PARTNER = RuntimeError("connection closed by peer")


@pytest.mark.parametrize("error", [ConfigError("a=b: c; d"), Diverged("loss a is nan at step 3"), ShutOut("attempt 2 writes it")])
def test_an_error_that_is_certain_ends_a_trial_at_once(error):
    policy = UnlessCertain(create_failure_policy(ray.train.FailureConfig(max_failures=2)))
    failed = WorkerGroupError("", {0: PARTNER, 1: error})
    assert cause_of(failed) is error and policy.make_decision(failed) is FailureDecision.RAISE
    others = [policy.make_decision(WorkerGroupError("", {0: PARTNER})) for _ in range(3)]
    assert others == [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.RAISE]


def test_an_attempt_that_was_shut_out_writes_nothing_of_it(tmp_path):
    """The row of a failure would be the last word on a trial that a later attempt has finished."""
    config = attempt(written(tmp_path))
    config_file.write(tmp_path / "one" / "config.yaml", config)
    trial = {"folder": str(tmp_path / "one"), "arm": "a", "phase": "p"}
    record_failure(trial, ShutOut("attempt 2 writes it"))
    assert results.read_trial(tmp_path / "one") == []
    (tmp_path / "one" / results.FILE).write_bytes(
        b"PAR1" + bytes(100)
    )  # damaged: set aside, or the failure of the failure would be tried again
    record_failure(trial, ValueError("no"))
    assert [row["error"] for row in results.read_trial(tmp_path / "one")] == ["ValueError: no"]


def test_best_weights_that_are_gone_are_not_replaced_in_silence(tmp_path, capsys):
    for name, score in (("one", 30.0), ("two", 40.0)):
        row = {"trial": name, "arm": "a", "phase": "single", "split": "validation", "status": "finished", "step": 1}
        results.append(tmp_path / "trials" / name, row | measured(score), Columns.of(METRICS, LOSS_SET, {"seed": 0}))
        checkpoint.save_weights(tmp_path / "trials" / name / "best.safetensors", toy()[0].state_dict(), {"trial": name})
        config_file.write(tmp_path / "trials" / name / "config.yaml", toy_config(0))
    best, two = tmp_path / "best/best.safetensors", tmp_path / "trials/two"
    keep_best(tmp_path)
    assert checkpoint.weights_facts(best)["trial"] == "two" and capsys.readouterr().err == ""
    (two / "config.yaml").unlink()
    keep_best(tmp_path)
    assert checkpoint.weights_facts(best)["trial"] == "two" and "its copy is used" in capsys.readouterr().err
    sealed.read(tmp_path / "best/config.yaml")
    content = bytearray((two / "best.safetensors").read_bytes())
    content[-5] ^= 1
    for damage in (lambda: (two / "best.safetensors").write_bytes(content), (two / "best.safetensors").unlink):
        damage()
        keep_best(tmp_path)
        assert checkpoint.weights_facts(best)["trial"] == "one"
        assert "two: its best weights or settings are gone or damaged" in capsys.readouterr().err


LATE = "        self.calls = getattr(self, 'calls', 0) + 1\n        if self.calls > 6 and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:\n            {}\n"


@pytest.mark.slow
@pytest.mark.parametrize("what, line", [
    ("losses['size'] = losses['size'] * float('nan')", r"error: Diverged: loss size is nan at step"),
    ("raise SystemExit(0)", r"its code asks for the end of the process in training \(SystemExit: 0\); raise an error"),
    ("return {'total': losses['total']}", r"error: losses.set=size: the module returned total when asked for total, size"),
], ids=["nan", "exit", "refused"])  # fmt: skip
def test_what_one_of_two_workers_meets_ends_both(what, line, tmp_path):
    source = written(tmp_path, RETURN, LATE.format(what) + RETURN)
    code, said = run("train", f"workload={source}", "train.num_workers=2", "train.batch_size=8", "train.steps=40", "train.checkpoint_every=0",
                     "combiner.embedding_size=16", "name=mine", cwd=tmp_path, timeout=240)  # fmt: skip
    assert code == 1 and re.search(line, said) and "Traceback" not in said, said
    assert (tmp_path / "outputs/runs/mine/.attempt").read_text() == "1"
