"""Each task measures what it declares, and its rows are those that its view shows."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.predictions import _named
from meltr_ray.results.predictions import as_table
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.tasks import captioning, question_answering, sentiment
from meltr_ray.video.tasks.named import module_of
from meltr_ray.video.tasks.views import COLUMNS, VIEWS
from meltr_ray.workload import Workload

CLIP = Clip("a", ["a man cooks pasta"], None, "film", transcript="so good", score=1.5)
ROWS = {
    "retrieval": [dict(id="a", source="film", correct=True, quality=-1.0, query="a man", caption_number=0, rank=1.0, video_rank=2.0,
                       top_ids=["a", "b"], top_scores=[0.5, 0.25])],
    "captioning": [captioning.caption_row(CLIP, "a man cooks", -2.0)],
    "sentiment": [sentiment.score_row(CLIP, 1.0)],
    "multiple_choice": [question_answering.answer_row(
        Clip("a", [], None, "film", question=Question("q", "what?", "pasta", ["rice", "pasta"], 1, "what")), np.array([0.0, 1.0]), None)],
}  # fmt: skip


class Only(Workload):
    """Just its metrics."""


@pytest.mark.parametrize("task", ROWS)
def test_a_task_measures_what_it_declares(task):
    module, rows = module_of(task), ROWS[task]
    found = module.metrics(rows)
    assert set(module.METRICS) <= set(found) and "score" not in found
    assert all(metric.meaning for metric in module.METRICS.values())
    first = next(iter(module.METRICS))
    headlines = {"retrieval": "recall_at_10", "captioning": "cider", "sentiment": "mae", "multiple_choice": "accuracy"}
    assert first == headlines[task]
    workload = Only()
    workload.metrics = module.METRICS
    assert workload.score(found) == (-0.5 if task == "sentiment" else found[first])
    reported = set(module.report(rows)[0])
    assert set(module.METRICS) | set(getattr(module, "REPORTED", {})) <= reported and "score" not in reported


@pytest.mark.parametrize("task", ROWS)
def test_rows_have_the_columns_that_are_declared_and_shown(task):
    assert set(ROWS[task][0]) == set(COLUMNS[task]) >= _named(VIEWS[task])
    table = as_table(ROWS[task], COLUMNS[task])
    assert {name: table.schema.field(name).type for name in table.column_names} == COLUMNS[task]
    assert as_table([], COLUMNS[task]).schema.equals(table.schema.remove_metadata())
