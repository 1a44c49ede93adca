"""`meltr-sweep`, `meltr-train`, `meltr-evaluate` and `meltr-prepare`: the scripts beside this file, from any folder."""

from __future__ import annotations

import importlib
import sys

from meltr_ray.extras import lacking, needs
from workloads.ending import as_process


def sweep() -> None:
    run("sweep")


def train() -> None:
    run("train")


def evaluate() -> None:
    run("evaluate")


def prepare() -> None:
    run("prepare")


def run(script: str) -> None:
    """`main` of a script; one line and exit code 2 where the packages that the commands need aren't installed."""
    if missing := lacking("sweep"):
        print(f"error: meltr-{script}: {needs('sweep', missing)}", file=sys.stderr)
        sys.exit(2)
    as_process(importlib.import_module(f"workloads.{script}").main)
