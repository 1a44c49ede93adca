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
from meltr_ray.workload import Metric  # noqa: E402

TEMP = {retrieval: {"recall_at_10": Metric("%")}, captioning: {"cider": Metric("%")}, question_answering: {"accuracy": Metric("%")}, sentiment: {"mae": Metric("", higher=False, digits=3)}}
for m, v in TEMP.items():
    if not hasattr(m, "METRICS"): m.METRICS = v
