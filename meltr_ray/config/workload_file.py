"""From `my_losses.py:Primes` to the class: read, checked, and importable by that name in every process."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meltr_ray.config.members import check_members, check_spelling
from meltr_ray.config.user_code import in_words, line_of
from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import put, sealed
from meltr_ray.storage.saying import say
from meltr_ray.workload import Workload

SHIPPED = {"video": "meltr_ray.video.workload:Video"}
"""Workloads that come with the project: their short names."""
TRAVELLED = "meltr_ray_workload"
"""Name of the folder of a workload's files on a machine to which they were sent; on its `sys.path`."""
GENERATED = "<string>"
"""Where dataclass writes the code of the methods that it makes."""
NEEDED = ("module", "examples", "batch")
"""Methods that a workload can't do without."""
_TEXTS: WeakKeyDictionary[type[Workload], bytes] = WeakKeyDictionary()
"""Of a class, what its file held when the class was first seen."""


def find(source: str) -> type[Workload]:
    """The class that `source` names: `file.py:Class`, `file.py` with one workload in it, `package.module:Class`, or a short name.

    Raises:
        ConfigError: no such file or class, a file that doesn't import (its own last line is shown), a class that isn't a whole
            workload.
    """
    place, name = parted(SHIPPED.get(source, source))
    module = _import_file(source, Path(place)) if place.endswith(".py") else _import_module(source, place)
    cls = _class_of(source, module, name)
    _check_whole(source, cls)
    _TEXTS.setdefault(cls, _text_of(cls))
    return cls


@functools.cache
def _check_whole(source: str, cls: type[Workload]) -> None:
    written = {name for each in cls.__mro__[: cls.__mro__.index(Workload)] for name in vars(each).get("__annotations__", {})}
    for item in dataclasses.fields(cls):
        check(
            item.name not in written or not hasattr(Workload, item.name),
            "workload",
            source,
            f"{item.name} is no setting but a part of every workload; leave its annotation out",
        )
        default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        check(default, "workload", source, f"{item.name} has no default; give it one")
    check_groups(cls, source)
    check_spelling(cls, source)
    check_members(cls, source)
    try:
        OmegaConf.structured(cls)
    except (OmegaConfBaseException, NameError, TypeError) as error:
        raise ConfigError(
            f"workload={source}: {str(error).splitlines()[0]}; a setting is a bool, int, float, str, or a list or dict of these"
        ) from None
    own = cls.__init__.__code__.co_filename != GENERATED
    check(not own, "workload", source, f"{cls.__name__} has an __init__ of its own, and settings are fields that a generated one takes; "
          "leave it out, and write what follows from settings as a property")  # fmt: skip
    for member in NEEDED:
        check(getattr(cls, member) is not getattr(Workload, member), "workload", source, f"{cls.__name__} has no method {member}; write it")
    whole = cls.evaluate is not Workload.evaluate or (cls.predict is not Workload.predict and cls.measure is not Workload.measure)
    check(whole, "workload", source, f"{cls.__name__} has no method evaluate, nor predict and measure in its place; write one")
    for member in ("losses", "metrics"):
        value = inspect.getattr_static(cls, member)
        check(
            isinstance(value, property) or bool(value),
            "workload",
            source,
            f"{cls.__name__} names no {member}; give them as a class attribute",
        )


def check_groups(cls: type[Workload], source: str) -> None:
    """Groups are fields whose classes are dataclasses, and older names of settings lead into them."""
    known = [item.name for item in dataclasses.fields(cls)]
    for name, kind in cls.groups.items():
        check(name in known and isinstance(kind, type) and dataclasses.is_dataclass(kind), "workload", source,
              f"groups has {name}; give fields of the workload, each with its class of settings, a dataclass")  # fmt: skip
    for name in cls.aliases:
        group, _, inner = name.partition(".")
        check(group in cls.groups and inner in [item.name for item in dataclasses.fields(cls.groups[group])], "workload", source,
              f"aliases has {name}, which is no setting of a group; keep it there with the default None")  # fmt: skip


def _text_of(cls: type[Workload]) -> bytes:
    file = inspect.getsourcefile(cls)
    return Path(file).read_bytes() if file and Path(file).is_file() else b""


def make(source: str, settings: dict | None = None) -> Workload:
    """An instance, which knows where it came from."""
    return find(source)(source=absolute(source), **(settings or {}))


def absolute(source: str) -> str:
    """The same for processes that run in other folders."""
    place, name = parted(source)
    return f"{Path(place).absolute()}{f':{name}' if name else ''}" if place.endswith(".py") else source


def source_of(cls: type[Workload]) -> str:
    """How other processes find a class that is at hand in this one.

    Raises:
        ConfigError: it was not defined in a file, or inside a function.
    """
    file = None if cls.__module__ == "builtins" else getattr(sys.modules.get(cls.__module__), "__file__", None)
    check(
        file is not None and Path(file).exists(),
        "workload",
        cls.__name__,
        "isn't defined in a file, from which workers could make it again; put it into one",
    )
    check(
        "." not in cls.__qualname__,
        "workload",
        cls.__qualname__,
        "is defined inside another class or a function, where workers can't find it; move it out",
    )
    if "." in cls.__module__:  # part of a package: its own imports need that
        return f"{cls.__module__}:{cls.__name__}"
    return f"{Path(file).absolute()}:{cls.__name__}"


def keep_text(workload: Workload, folder: Path) -> None:
    """Copy the text of the class's file to `folder`, twice, or check that it is still the same there.

    Raises:
        ConfigError: the file has changed since, so what goes on would be another experiment; or since it was imported here, as in a notebook.
    """
    file = Path(inspect.getsourcefile(type(workload)))
    copy, text = folder / file.name, file.read_bytes()
    kept = {each: each.read_bytes() for each in (copy, sealed.copy_of(copy)) if each.is_file()}  # one of them may be damaged
    check(
        not kept or text in kept.values(),
        "workload",
        workload.source,
        f"the file has changed since this was started; put it back (its text then is in {copy}) or start anew with another name=",
    )
    check(
        _TEXTS.get(type(workload), text) == text,
        "workload",
        workload.source,
        "the file has changed since Python read it; restart Python (in a notebook, its kernel), so that what is trained is what is kept",
    )
    if kept and kept.get(copy) != text:
        say(f"{copy}: isn't the text of {workload.source} any more, as its copy is; it is written anew")
    for each in (copy, sealed.copy_of(copy)):
        if kept.get(each) != text:
            put(each, text)


def changed_since(workload: Workload, folder: Path) -> Path | None:
    """The copy of the class's file that the run in `folder`, or the sweep around it, was started with, where the file is another now."""
    file = Path(inspect.getsourcefile(type(workload)) or "")
    copies = [place / "workload" / file.name for place in (folder, folder.parent, folder.parent.parent)]
    copy = next((each for each in copies if each.is_file()), None)
    return copy if copy and file.is_file() and copy.read_bytes() != file.read_bytes() else None


def parted(source: str) -> tuple[str, str]:
    """`file.py:Class` -> (`file.py`, `Class`)."""
    place, colon, name = source.rpartition(":")
    return (place, name) if colon else (source, "")


def _import_file(source: str, path: Path) -> ModuleType:
    path = path.absolute()
    if not path.is_file():
        path = sent(path.name) or path
    check(path.is_file(), "workload", source, "no such file; correct the path")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and Path(getattr(known, "__file__", None) or "").absolute() == path:
        return known
    elsewhere = known if known is not None else _spec(name)
    origin = getattr(elsewhere, "__file__", None) or getattr(elsewhere, "origin", None)
    check(
        elsewhere is None or Path(origin or "").absolute() == path,
        "workload",
        source,
        f"{name} is the name of another module ({origin or 'of Python'}); rename the file",
    )
    check(name.isidentifier(), "workload", source, f"{name} can't be the name of a Python module; rename the file")
    if str(path.parent) not in sys.path:  # files beside it are importable, here and in processes that take over sys.path
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    return _run(source, name)


def sent(name: str) -> Path | None:
    """A file that came along with a run to a machine that has no copy of it."""
    found = _spec(TRAVELLED)
    places = [Path(place) / name for place in getattr(found, "submodule_search_locations", None) or ()]
    return next((path for path in places if path.is_file()), None)


def _import_module(source: str, name: str) -> ModuleType:
    check(
        bool(name) and all(part.isidentifier() for part in name.split(".")),
        "workload",
        source,
        f"no workload; give file.py:Class, or one of {', '.join(SHIPPED)}",
    )
    return _run(source, name)


def _run(source: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a script that parses arguments or ends as it is imported
        file = getattr(_spec(name), "origin", None)
        raise ConfigError(f"workload={source}: doesn't import{line_of(error, file)}: {in_words(error)}; mend it") from error


def _spec(name: str) -> object | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _class_of(source: str, module: ModuleType, name: str) -> type[Workload]:
    classes = {key: value for key, value in vars(module).items() if isinstance(value, type)}
    own = [key for key, value in classes.items() if issubclass(value, Workload) and value.__module__ == module.__name__]
    if not name:
        check(
            len(own) == 1,
            "workload",
            source,
            f"holds {len(own)} workloads ({', '.join(own) or 'none'}); name one, as in {source}:{(own or ['Mine'])[0]}",
        )
        name = own[0]
    if name not in vars(module):
        near = difflib.get_close_matches(name, own or classes, 3) or own
        raise ConfigError(
            f"workload={source}: has no class {name}; "
            + (f"did you mean {' or '.join(near)}" if near else "write it, derived from meltr_ray.Workload")
        )
    found = vars(module)[name]
    check(
        isinstance(found, type) and issubclass(found, Workload) and found is not Workload,
        "workload",
        source,
        f"{name} is no workload; derive it from meltr_ray.Workload",
    )
    return found
