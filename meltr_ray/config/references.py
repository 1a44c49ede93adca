"""References between settings, `${data.folder}/words.txt`: counted before they are followed, as a few lines of them can stand for any amount."""

from __future__ import annotations

import os
import re
from typing import Any, Iterator, NamedTuple

from omegaconf import DictConfig, OmegaConf

from meltr_ray.errors import check

MOST = 10_000
"""Letters and values that the references of a configuration may stand for, all together."""
LONGEST = 2_000
"""Letters of a text that has references: to read one takes a while."""
DEEPEST = 16
"""References that lead to one another."""
REFERENCE = re.compile(r"\$\{([^${}]*)\}")
FUNCTIONS = ("oc.env", "now")
"""What a reference may call; others make settings out of texts, which nothing counts."""
WRITE_OUT = "write the value out"

Path = tuple[str | int, ...]


class Followed(NamedTuple):
    """What a setting stands for."""

    size: int
    """Letters and values."""
    depth: int
    """Texts on the longest way through its references, itself one."""


def check_references(settings: DictConfig) -> None:
    """Of settings that nothing has followed yet.

    Raises:
        ConfigError: references stand for more than settings ever are, lead to themselves, or call what they may not.
    """
    tree = OmegaConf.to_container(settings, resolve=False)
    found: dict[Path, Followed] = {}
    total = 0
    for path, text in list(_texts(tree, ())):
        if "${" in text:
            total += _followed(tree, path, found, (_name(path), text), 0).size
            check(total <= MOST, _name(path), text, f"references stand for more than {MOST} letters; {WRITE_OUT}")


def check_length(name: str, text: str) -> None:
    """Raises ConfigError: `text` has references and is too long to look at them."""
    check("${" not in text or len(text) <= LONGEST, name, text, f"has references and more than {LONGEST} letters; {WRITE_OUT}")


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    for key, inner in _inside(value):
        yield from _texts(inner, (*path, key))


def _inside(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _followed(tree: Any, path: Path, found: dict[Path, Followed], asked: tuple[str, str], above: int) -> Followed:
    """The setting at `path`, or nothing where there is none. `above`: references that have led here; `asked`: for messages."""
    if path not in found:
        _check_depth(above, asked)
        value = tree
        for key in path:
            value = dict(_inside(value)).get(key)
        if isinstance(value, str):
            own, below = len(value), [_target(tree, path, text, found, asked, above + 1) for text in _references(value, asked)]
        else:
            own, below = 0, [_followed(tree, (*path, key), found, asked, above) for key, _ in _inside(value)]
        found[path] = Followed(1 + own + sum(each.size for each in below),
                               isinstance(value, str) + max((each.depth for each in below), default=0))  # fmt: skip
    _check_depth(above + found[path].depth, asked)
    return found[path]


def _check_depth(depth: int, asked: tuple[str, str]) -> None:
    check(depth <= DEEPEST, *asked, f"refers to itself, or through more than {DEEPEST} others; {WRITE_OUT}")


def _references(text: str, asked: tuple[str, str]) -> list[str]:
    check_length(asked[0], text)
    check("${" not in REFERENCE.sub("", text), *asked, f"has a reference within a reference; {WRITE_OUT}")
    return REFERENCE.findall(text)


def _target(tree: Any, path: Path, reference: str, found: dict[Path, Followed], asked: tuple[str, str], above: int) -> Followed:
    function, colon, argument = reference.partition(":")
    if colon:
        check(function.strip() in FUNCTIONS, *asked, f"calls {function}; use one of {', '.join(FUNCTIONS)}, or {WRITE_OUT}")
        return Followed(len(argument) + len(os.environ.get(argument.partition(",")[0].strip(), "")), 1)
    dots = len(reference) - len(reference.lstrip("."))
    keys = [int(key) if key.isdigit() else key for key in re.split(r"[.\[\]]+", reference.strip(" .[]"))]
    return _followed(tree, (*(path[: max(0, len(path) - dots)] if dots else ()), *keys), found, asked, above)


def _name(path: Path) -> str:
    return ".".join(map(str, path))
