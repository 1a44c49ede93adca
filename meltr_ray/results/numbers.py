"""A measured number as people read it, alike in the report and on a terminal."""

from __future__ import annotations

import math
from typing import Any

from meltr_ray.workload import Metric

DASH = "–"


def number(value: Any, digits: int = 1, sign: bool = False) -> str:
    """`+1.3`, with a true minus sign, or a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    text = text.lstrip("+-") if float(text) == 0 else text
    return text.replace("-", "−")


def measured(metric: Metric, value: Any) -> str:
    """`57.2 %`: a value of the metric with its digits and its unit."""
    return f"{number(value, metric.digits)} {metric.unit}".rstrip()
