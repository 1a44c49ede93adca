"""How the page of predictions shows the rows of each task, and the types of columns that may be empty.

The vocabulary is that of analysis/page/predictions.js.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_COMMON = {"id": pa.string(), "source": pa.string(), "correct": pa.bool_(), "quality": pa.float64()}
_QUESTION = {"question_id": pa.string(), "question": pa.string(), "type": pa.string(), "answer": pa.string(),
             "options": pa.list_(pa.string()), "predicted": pa.string(), "confidence": pa.float64(), "known": pa.bool_()}  # fmt: skip
COLUMNS: dict[str, dict[str, pa.DataType]] = {task: _COMMON | own for task, own in {
    "retrieval": {"query": pa.string(), "caption_number": pa.int32(), "rank": pa.float64(), "video_rank": pa.float64(),
                  "top_ids": pa.list_(pa.string()), "top_scores": pa.list_(pa.float64())},
    "multiple_choice": _QUESTION,
    "open_ended": _QUESTION,
    "captioning": {"caption": pa.string(), "references": pa.list_(pa.string()), "log_probability": pa.float64()},
    "sentiment": {"transcript": pa.string(), "truth": pa.float64(), "predicted": pa.float64()},
}.items()}  # fmt: skip
"""Task -> type of each column of its rows."""


def _value(column: str, before: str = "", **more: Any) -> dict[str, Any]:
    return {"as": "value", "column": column, "before": before, **more}


def _ranking(shown: int) -> dict[str, Any]:
    return {"as": "ranking", "ids": "top_ids", "scores": "top_scores", "shown": shown}


def _unknown(text: str) -> dict[str, Any]:
    return {"as": "flag", "column": "known", "is": False, "text": text}


_TIED = {"as": "flag", "column": "rank", "fraction": True}
_SCALE = {"as": "scale", "low": -3, "high": 3, "truth": "truth", "predicted": "predicted"}
_ASKED: dict[str, Any] = {
    "head": "question",
    "under": [
        {"as": "text", "column": "predicted", "label": "predicted", "judged": True},
        {"as": "text", "column": "answer", "label": "answer"},
        {"as": "words", "column": "options", "before": "of "},
    ],
    "side": [_value("confidence", "confidence ", format="percent"), _value("type", optional=True), _unknown("answer not in vocabulary")],
    "details": [
        ["predicted", {"as": "text", "column": "predicted"}],
        ["answer", {"as": "text", "column": "answer"}],
        ["confidence", _value("confidence", format="percent")],
        ["options", {"as": "options", "column": "options", "right": "answer", "chosen": "predicted"}],
        ["type", _value("type", optional=True)],
        ["question", _value("question_id", optional=True)],
        ["vocabulary", _unknown("the answer is not in it, so the model can't give it")],
    ],
    "search": ["question", "answer", "predicted", "question_id", "options"],
    "by": "type",
}
VIEWS: dict[str, dict[str, Any]] = {task: view | {"noun": "clip"} for task, view in {
    "multiple_choice": _ASKED | {"title": "multiple choice", "height": [8.8, 14.6]},
    "open_ended": _ASKED | {
        "title": "open ended", "height": [7.4, 12.5],
        "shows": [{"name": "unknown", "label": "answer not in vocabulary", "column": "known", "is": False}],
    },
    "retrieval": {
        "title": "retrieval", "height": [9.2, 15.8],
        "head": "query",
        "under": [_ranking(5)],
        "verdict": {"show": _value("rank", "rank "), "bad": {"column": "rank", "above": 10}},
        "side": [_value("caption_number", "caption "), _TIED | {"text": "tied"}],
        "details": [
            ["first ten", _ranking(10)],
            ["rank", {"as": "line", "join": " ", "parts": [_value("rank"), _TIED | {"text": "(tied)"}]}],
            ["video to text", _value("video_rank", "rank ", optional=True)],
            ["caption number", _value("caption_number")],
        ],
        "search": ["query", "top_ids"],
        "right_label": "right (rank 1)",
        "shows": [{"name": "ten", "label": "in first 10", "column": "rank", "at_most": 10},
                  {"name": "beyond", "label": "beyond first 10", "column": "rank", "above": 10}],
    },
    "captioning": {
        "title": "captioning", "height": [7.4, 12.5],
        "head": "caption",
        "under": [{"as": "list", "column": "references", "label": "reference", "shown": 2}],
        "verdict": {"show": _value("quality", "CIDEr ", digits=2), "unjudged": True},
        "side": [_value("log_probability", "log p ", digits=2)],
        "details": [["log probability", _value("log_probability", digits=3)], ["references", {"as": "items", "column": "references"}]],
        "search": ["caption", "references"],
    },
    "sentiment": {
        "title": "sentiment", "height": [7.0, 12.5],
        "head": "transcript",
        "under": [_SCALE, {"as": "line", "join": " · ", "parts": [_value("truth", "truth ○ ", digits=2), _value("predicted", "predicted ▮ ", digits=2)]}],
        "side": [_value("quality", "error ", digits=2, negative=True, optional=True)],
        "details": [["truth", _value("truth", digits=2)], ["predicted", _value("predicted", digits=2)], ["scale", _SCALE]],
        "search": ["transcript"],
    },
}.items()}  # fmt: skip
"""Task -> its view."""
