"""Tasks by name -> their modules: METRICS, `examples`, `predict`, `metrics` and `report`."""

from __future__ import annotations

from types import ModuleType

from meltr_ray.video.tasks import captioning, question_answering, retrieval, sentiment

MODULES: dict[str, ModuleType] = {
    "retrieval": retrieval,
    "multiple_choice": question_answering,
    "open_ended": question_answering,
    "captioning": captioning,
    "sentiment": sentiment,
}
