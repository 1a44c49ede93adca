"""Annotation files to plain data: CSV and JSON in UTF-8, plain or gzipped; what can't be read is refused in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from meltr_ray.errors import check

csv.field_size_limit(2**24)  # a caption may have ten thousand words; the default ends at 131,072 letters


def list_files(folder: Path) -> list[Path]:
    """Every file in `folder` and below (links to folders are followed), in the order of names; hidden ones aren't seen.

    Raises ConfigError where there is no such folder.
    """
    check(folder.is_dir(), "source", folder, "no such folder; correct the path")
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = os.path.realpath(parent)
        if here in seen:
            folders.clear()  # a link back up
            continue
        seen.add(here)
        paths = [Path(parent) / name for name in names if not name.startswith(".")]
        found += [path for path in paths if path.is_file()]  # no links that lead nowhere, no pipes
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def find(folder: Path, *names: str) -> Path | None:
    """The first of `names` (plain, then .gz) that lies in `folder`, or else below it; None where none does."""
    choices = [choice for name in names for choice in (name, f"{name}.gz")]
    for choice in choices:
        if (folder / choice).is_file():
            return folder / choice
    below = {path.name: path for path in reversed(list_files(folder))} if folder.is_dir() else {}
    return next((below[choice] for choice in choices if choice in below), None)


def need(folder: Path, *names: str) -> Path:
    """As `find`. Raises ConfigError where there is none."""
    path = find(folder, *names)
    check(path is not None, "source", folder, f"no {' or '.join(names)} there; give the folder that holds it")
    return path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte-order mark is taken off), gzipped if its name ends in .gz.

    Raises ConfigError with file, line and byte where it isn't UTF-8, and where a gzipped file isn't whole.
    """
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error):
        check(False, "source", path, "is no whole gzip file; fetch the file again")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        check(False, "source", path, f"line {line} (byte {error.start}) isn't UTF-8; save the file as UTF-8")
        raise


def read_csv(path: Path, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows by the names in the first line, separated by commas, tabs or semicolons, whichever that line has most of.

    Raises ConfigError where one of `columns` is missing, a name stands twice, or a row has other fields.
    """
    text = read_text(path)
    first = text.lstrip().partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",\t;", key=first.count), strict=True)
    rows = []
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        for name in columns:
            check(name in header, "source", path, f"has no column {name}, it has {', '.join(header) or 'none'}; add it")
        twice = [name for name in header if header.count(name) > 1]
        check(not twice, "source", path, f"has two columns {twice[:1]}; rename one")
        for row in reader:
            # DictReader keeps fields too many under None, and fills those too few with None
            whole = None not in row and None not in row.values()
            check(whole, "source", path, f"line {reader.line_num} has more or fewer fields than the {len(header)} columns; mend the line")
            rows.append(row)
    except csv.Error as error:
        check(False, "source", path, f"line {reader.reader.line_num} is no CSV ({error}); mend the line")
    return rows


def read_json(path: Path, keys: tuple[str, ...] = ()) -> Any:
    """The content of a JSON file, an object that has `keys` if any are given. Raises ConfigError where it is anything else."""
    text = read_text(path)
    try:
        content = json.loads(text)
        whole = not keys or (isinstance(content, dict) and set(keys) <= set(content))
        if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):  # half of a pair is no letter, and can't be stored
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        whole = False
    check(whole, "source", path, f"is no whole JSON file{' with ' + ' and '.join(keys) if keys else ''}; fetch the file again")
    return content


def read_json_lines(path: Path, keys: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Objects of a file with one JSON object a line. Raises ConfigError with the line that is none, or lacks one of `keys`."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: strings may hold other line ends
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            rows.append(None)
        whole = isinstance(rows[-1], dict) and set(keys) <= set(rows[-1])
        check(whole, "source", path, f"line {number} is no JSON object{' with ' + ' and '.join(keys) if keys else ''}; mend the line")
    return rows


def check_rows(path: Path, rows: Any, keys: tuple[str, ...], title: str = "row") -> None:
    """Raises ConfigError where `rows` is no list of objects, or one of them has no text or number under one of `keys`."""
    kind = {dict: "an object", str: "a text", list: "a list"}.get(type(rows), "a number or null")
    more = f" with {', '.join(keys)}" if keys else ""
    check(
        isinstance(rows, list),
        "source",
        path,
        f"holds no list of {title}s{more} but {kind}; write it so, or take another importer (docs/data.md)",
    )
    for number, row in enumerate(rows, 1):
        check(isinstance(row, dict), "source", path, f"{title} {number} is no object; mend it")
        lacking = [key for key in keys if not isinstance(row.get(key), (str, int, float))]
        check(not lacking, "source", path, f"{title} {number} has no {' and no '.join(lacking)}; mend it")
