"""YAML files of settings, which may come from others: refused where they are larger, deeper or more than settings ever are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from meltr_ray.config.references import check_length, check_references
from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import sealed

LARGEST = 4 * 2**20
"""Bytes."""
MOST_VALUES = 200_000
"""Of a file, each alias counted as all that it stands for."""


def read_yaml(path: Path) -> DictConfig:
    """The settings in a file, neither resolved nor checked.

    Raises:
        ConfigError: it is no YAML of settings, aliases make more of it than fits, or it is not as it was written.
    """
    check(Path(path).is_file(), "settings", path, "no such file; correct the path")
    check(Path(path).stat().st_size <= LARGEST, "settings", path, f"has more than {LARGEST // 2**20} MiB; give a file of settings")
    try:
        loader = get_yaml_loader()(sealed.read(path))  # OmegaConf's own, which reads no date and refuses a name given twice
        root = loader.get_single_node()
        check(_values(root) <= MOST_VALUES, "settings", path, f"stands for more than {MOST_VALUES} values by its aliases; write it out")
        for scalar in _scalars(root):
            check_length("settings", scalar)
        values = loader.construct_document(root) if root is not None else {}
        check(isinstance(values, dict), "settings", path, "holds no settings by name; give a file that a run wrote")
        found = OmegaConf.create(values)
    except ConfigError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ConfigError(f"settings={path}: is no YAML of settings ({reason}); put it back from a copy") from None
    check_references(found)
    return found


def _values(root: yaml.Node | None) -> int:
    """Nodes below, without following an alias twice; beyond any bound where one contains itself."""
    sizes: dict[int, int] = {}
    waiting, open_nodes = ([root] if root is not None else []), set()
    while waiting:
        node = waiting[-1]
        inner = _inner(node)
        if id(node) in sizes:
            waiting.pop()
        elif id(node) in open_nodes:
            sizes[id(node)] = 1 + sum(sizes.get(id(each), MOST_VALUES) for each in inner)
            waiting.pop()
        else:
            open_nodes.add(id(node))
            waiting += [each for each in inner if id(each) not in sizes and id(each) not in open_nodes]
    return sizes.get(id(root), 0)


def _scalars(root: yaml.Node | None) -> Iterator[str]:
    """Texts and numbers as they are written, each once, whatever aliases stand for it."""
    waiting, seen = ([root] if root is not None else []), set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield node.value
        waiting += _inner(node)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
