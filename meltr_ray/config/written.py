"""Values as people write them, `key=value`: a text stays a text, all else is read as Hydra reads it."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from meltr_ray.config.run import ABOUT_THE_COMMAND
from meltr_ray.errors import ConfigError

TEXTS = ("str", "Optional[str]", "str | None", "None | str")
QUOTES = ("'", '"')


def override(key: str, kind: str, text: str) -> str:
    """`key=text` for Hydra. `kind`: the setting's type; that of a text keeps `2024_01`, `1e3`, `true` and `a=b,c#d` as they stand.

    `null` leaves an optional text out, but for settings of the command, which no file gives; quoted, `'null'`, it is a text like others. A dictionary
    is put over what a file gives, entry by entry.
    """
    if kind.startswith("dict[") or (kind == "Any" and text.startswith("{")):
        return f"++{key}={text}"
    if kind not in TEXTS or _is_quoted(text):
        return f"{key}={text}"
    if text == "null" and kind != "str" and key not in ABOUT_THE_COMMAND:
        return f"{key}=null"
    return f"{key}={QuotedString(text=text, quote=Quote.double).with_quotes()}"


def value_of(key: str, kind: str, text: str) -> Any:
    """The value of `key=text`.

    Raises:
        ConfigError: it can't be read; shows how to quote it.
    """
    try:
        found = OverridesParser.create().parse_override(override(key, kind, text)).value()
    except (HydraException, ValueError, RecursionError):
        raise ConfigError(f"{key}={text}: can't be read; {how_to_quote(key, text)}") from None
    return found.text if isinstance(found, QuotedString) else found


def how_to_quote(key: str, text: str) -> str:
    """The mend for a value with marks that have a meaning in lists and numbers."""
    inner = text.strip("[]").split(",")[0].strip() if text.startswith("[") else text
    example = f"'{inner}'" if "'" not in inner else f'"{inner}"'
    shown = f"[{example},...]" if text.startswith("[") else example
    return f'quote a text with such marks, and for the shell the whole of it: "{key}={shown}"'


def _is_quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] in QUOTES and text[-1] == text[0]
