"""Analysis: statistics against independent computations, pairing, the equal-seconds rule, partial sweeps, the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from analysis import statistics, tables
from meltr_ray import results
from meltr_ray.config import Config, SweepConfig, TaskConfig

LOSS_SET = ["joint", "masked_joint", "caption", "constant", "shuffled"]
BASELINES = ["uniform", "primary_only"]
POOR = "<b>CUDA</b> & <script>alert(1)</script>"


def write_trial(sweep, arm, seed, scores, *, phase="comparison", status="finished", error=None, test=None,
                seconds_per_step=0.1, every=50, learning_rate=1e-3, loss_set=LOSS_SET, slopes=None):  # fmt: skip
    """One trial with a validation score at each multiple of `every` steps and, if `test` is given, a test row."""
    settings = Config(seed=seed, task=TaskConfig(loss_set=loss_set))
    settings.optimizer.learning_rate = learning_rate
    name = f"{phase}_{arm}_{seed}_{learning_rate}"
    base = {**results.config_row(settings), "trial": name, "arm": arm, "phase": phase}
    best = int(np.argmax(scores))
    for index, score in enumerate(scores, 1):
        last, step = index == len(scores), index * every
        learned = {f"slope.{loss}": 1 + (end - 1) * index / len(scores) for loss, end in (slopes or {}).items()}
        row = {
            "split": "validation", "status": status if last else "running", "error": error if last else None,
            "step": step, "seconds": step * seconds_per_step, "meta_seconds": step * seconds_per_step * (0.3 if slopes else 0),
            "peak_memory_bytes": 2_000_000_000 + 50_000_000 * seed, "solver_outcome": "converged" if slopes else None,
        }  # fmt: skip
        results.append(sweep / "trials" / name, {**base, **row, **recalls(score), **learned})
    if test is not None:
        row = {"split": "test", "status": status, "step": every * len(scores), "best_step": (best + 1) * every}
        results.append(sweep / "trials" / name, {**base, **row, **recalls(test)})


def recalls(score):
    return {"score": score, "recall_at_10": score, "recall_at_5": 0.8 * score, "recall_at_1": 0.3 * score, "median_rank": 90 - score}


def write_plan(sweep, **plan):
    """What lies beside the results table; gathers the trials."""
    plan = {"arms": {arm: {} for arm in ["meltr", *BASELINES]}, "baselines": BASELINES, **plan}
    about = {
        "metric": {"name": "recall_at_10", "unit": "%"}, "machine": "2 CPU cores, 8 GiB", "command": "python workloads/sweep.py",
        "started": "2026-01-01T10:00:00Z", "ended": "2026-01-01T12:30:00Z",
        "data": {"name": "digits", "description": "bouncing digits", "rows": 2000},
        "learning_rate_chosen": {"meltr": 1e-3, "uniform": 2e-3, "primary_only": 1e-3},
    }  # fmt: skip
    simple = {"chance": recalls(5.0), "ridge": recalls(38.0)}
    (sweep / "sweep.json").write_text(json.dumps({**dataclasses.asdict(SweepConfig(**plan)), **about}))
    (sweep / "baselines.json").write_text(json.dumps({"validation": simple, "test": simple}))
    results.gather(sweep)
    return sweep


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """Three arms by six seeds, a search of learning rates, an arm for each loss left out, failures; seeded numbers."""
    sweep, random = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    climb = np.array([0.35, 0.6, 0.8, 0.92, 0.98, 1.0])
    for seed in range(6):
        luck = random.normal(0, 1.5)
        for arm, level in {"meltr": 57.0, "uniform": 54.0, "primary_only": 50.0}.items():
            scores = climb * (level + luck) + random.normal(0, 0.8, 6)
            ends = {loss: end + random.normal(0, 0.08) for loss, end in
                    {"joint": 1.6, "masked_joint": 1.3, "caption": 0.9, "constant": 0.95, "shuffled": 0.2}.items()}  # fmt: skip
            ours = arm == "meltr"
            bad = arm == "primary_only" and seed == 4
            write_trial(sweep, arm, seed, [float("nan")] if bad else scores.tolist(),
                        status="diverged" if bad else "finished", error="loss.joint is nan at step 37" if bad else None,
                        test=None if bad else scores[-1] - 1.5, seconds_per_step=0.15 if ours else 0.1,
                        slopes=ends if ours else None)  # fmt: skip
    for loss, effect in {"masked_joint": 3.0, "caption": 0.5, "constant": 0.0, "shuffled": -2.0}.items():
        for seed in range(4):
            scores = climb * (57.0 - effect) + random.normal(0, 0.8, 6)
            write_trial(sweep, f"meltr_without_{loss}", seed, scores.tolist(), phase="ablation", seconds_per_step=0.14,
                        loss_set=[name for name in LOSS_SET if name != loss])  # fmt: skip
    write_trial(sweep, "meltr_cg", 0, [20.0], phase="ablation", status="failed", error=POOR)
    for arm, best in {"meltr": 1e-3, "uniform": 2e-3, "primary_only": 1e-3}.items():
        for rate in (5e-4, 1e-3, 2e-3):
            score = 55 - 8 * np.log(rate / best) ** 2 + random.normal(0, 0.3)
            write_trial(sweep, arm, 100, [score - 5, score], phase="learning_rate_search", learning_rate=rate)
    arms = {arm: {} for arm in ["meltr", *BASELINES, "meltr_cg"]}
    return write_plan(sweep, arms=arms, learning_rates=[5e-4, 1e-3, 2e-3], other_seeds=4)
