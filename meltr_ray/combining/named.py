"""Ways to combine losses by the names that settings give them; a new one is a line here."""

from __future__ import annotations

from meltr_ray.combining.fixed import Fixed
from meltr_ray.combining.learned import Meltr, Own
from meltr_ray.combining.way import Way

WAYS: dict[str, type[Way]] = {"meltr": Meltr, "fixed": Fixed, "own": Own}
"""Name in `combiner.name` -> way."""
