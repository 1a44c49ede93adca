"""Tasks by name -> their modules: METRICS, `examples`, `predict`, `metrics` and `report`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

MODULES: dict[str, str] = {
    "retrieval": "retrieval",
    "multiple_choice": "question_answering",
    "open_ended": "question_answering",
    "captioning": "captioning",
    "sentiment": "sentiment",
}
"""Imported where it is asked for: the metrics of captions take seconds."""


def module_of(task: str) -> ModuleType:
    return import_module(f"meltr_ray.video.tasks.{MODULES[task]}")
