"""What pages are made of: the templates, styles and scripts in analysis/page/, put into one file that needs no network."""

from __future__ import annotations

import importlib.resources
from typing import Any

import jinja2

FILES = importlib.resources.files("analysis") / "page"


def text(name: str) -> str:
    """Text of a file of analysis/page/."""
    return (FILES / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """A page from a template; values are escaped, and those that `tojson` takes hold no NaN."""
    environment = jinja2.Environment(autoescape=True, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    return environment.from_string(text(template)).render(values)
