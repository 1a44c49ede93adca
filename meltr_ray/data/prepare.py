"""Prepare a data set: clips, vocabulary, closed-form baselines and manifest, in a folder that appears only when whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from meltr_ray.config import check, check_choice
from meltr_ray.data import digits, store
from meltr_ray.data.closed_form import closed_form_baselines
from meltr_ray.data.importers import msrvtt


def _make_digits(source: Path | None, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    return digits.make_digits(folder, report)


DATA_SETS = {
    "digits": (_make_digits, lambda source: digits.source()),
    "msrvtt": (msrvtt.import_msrvtt, msrvtt.source),
}
"""Name -> what writes the folder, and what tells from which source (equal sources: the same clips)."""


def prepare(data: str, source: Path | None, folder: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Prepare data set `data` in `folder`, from the original files in `source` (none for digits); the manifest.

    A finished folder of the same source is checked and left alone; anything else that is there is never overwritten.
    """
    check_choice("data.name", data, tuple(DATA_SETS))
    folder = Path(folder)
    build, describe = DATA_SETS[data]
    check(source is not None or data == "digits", "source", source, f"{data} is imported; give its original folder")
    origin = describe(source)
    if (folder / "manifest.json").is_file():
        manifest = store.check_folder(folder)
        check(manifest["name"] == data and manifest["source"] == origin, "data.folder", folder,
              f"holds {manifest['name']} from another source; choose another folder or delete it")
        if manifest["baselines"]:
            report(f"{data}: {folder} is there already and whole")
            return manifest
        return _add_baselines(folder, manifest, report)
    with store.new_folder(folder) as temporary:
        manifest = build(source, temporary, report)
        return _add_baselines(temporary, manifest, report)


def ensure_prepared(data: str, folder: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """The manifest of a whole folder for training; digits are made where they are missing. Call it on the driver."""
    check_choice("data.name", data, tuple(DATA_SETS))
    folder = Path(folder)
    if data == "digits" and not (folder / "manifest.json").is_file():
        return prepare(data, None, folder, report)
    check(folder.is_dir(), "data.folder", folder,
          f"no such folder; run python workloads/prepare.py data={data} source=<folder of the original files>")
    manifest = store.check_folder(folder)
    check(manifest["name"] == data, "data.folder", folder, f"holds {manifest['name']}, not {data}; choose another folder")
    return manifest if manifest["baselines"] else _add_baselines(folder, manifest, report)


def _add_baselines(folder: Path, manifest: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    baselines = closed_form_baselines(folder)
    for split, rows in baselines.items():
        for name, row in rows.items():
            report(f"{manifest['name']}: {split}, {name}: R@1 {row['recall_at_1']:.1f}, R@5 {row['recall_at_5']:.1f}, "
                   f"R@10 {row['recall_at_10']:.1f}, median rank {row['median_rank']:.1f}")  # fmt: skip
    return store.write_manifest(folder, **manifest | {"baselines": baselines})
