"""Prepare a data set: clips, words, answers and manifest, in a folder that appears only when whole; then closed-form baselines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from meltr_ray.errors import check, check_choice
from meltr_ray.video.clips import shards, store
from meltr_ray.video.clips.settings import MADE
from meltr_ray.video.datasets import digits
from meltr_ray.video.datasets.importers import (
    mosei,
    mosi,
    msrvtt,
    msrvtt_clips,
    msrvtt_mc,
    msrvtt_qa,
    msvd_captions,
    msvd_qa,
    tgif_qa,
    videos,
    violet_files,
    youcook2,
)
from meltr_ray.video.datasets.importers.media import find_media
from meltr_ray.video.datasets.importers.write import HELD_OUT, divided, source_of, write

DATA_SETS: dict[str, ModuleType] = {
    "msrvtt": msrvtt,
    "msrvtt_qa": msrvtt_qa,
    "msrvtt_mc": msrvtt_mc,
    "msrvtt_clips": msrvtt_clips,
    "msvd_captions": msvd_captions,
    "msvd_qa": msvd_qa,
    "tgif_qa": tgif_qa,
    "youcook2": youcook2,
    "violet_files": violet_files,
    "mosi": mosi,
    "mosei": mosei,
    "videos": videos,
}
"""Name -> importer: a module with `read(folder, variant) -> Annotations`.

It may have `VARIANTS`, the names of its divisions, the default first; and `derive(splits)`, which adds questions to the clips once
it is known which clip is in which split.
"""


def prepare(
    data: str, source: Path | None, folder: Path, report: Callable[[str], None] = print, variant: str | None = None,
    features: str | None = None, held_out: float = HELD_OUT,
) -> dict[str, Any]:  # fmt: skip
    """Import data set `data`, or make it (digits), and add the closed-form baselines; the manifest.

    Arguments and errors are those of `import_data`.
    """
    check_choice("data.name", data, (MADE, *DATA_SETS))
    if data == MADE:
        check(variant is None, "data.variant", variant, f"{data} has none; leave it out")
        manifest = digits.make_digits(folder, report)
    else:
        manifest = import_data(data, source, folder, report, variant, features, held_out)
    return _baselines_added(Path(folder), manifest, report)


def import_data(
    data: str, source: Path | None, folder: Path, report: Callable[[str], None] = print, variant: str | None = None,
    features: str | None = None, held_out: float = HELD_OUT,
) -> dict[str, Any]:  # fmt: skip
    """Write data set `data` to `folder`, from the original files in `source`; the manifest.

    `features`: folder below `source` whose feature files alone are taken; `held_out`: share of the clips that each split takes which
    the data set lacks.

    `variant`: one of the importer's `VARIANTS`; None: the first. A finished folder of the same source is checked and left alone;
    anything else that is there is never overwritten.
    """
    folder = Path(folder)
    check(source is not None, "source", source, f"{data} is imported; give its original folder")
    source, importer = Path(source), DATA_SETS[data]
    check(source.is_dir(), "source", source, "no such folder; correct the path")
    variant = _variant(data, variant)
    annotations = importer.read(source, variant)
    media = find_media(source, annotations, features)
    origin = source_of(source, annotations, media, **divided(held_out))
    if (folder / "manifest.json").is_file():
        manifest = store.check_folder(folder)
        same = manifest["name"] == data and manifest["source"] == origin and manifest.get("variant") == variant
        check(same, "data.folder", folder, f"holds {_titled(manifest)} from another source; choose another folder or delete it")
        report(f"{data}: {folder} is there already and whole")
        return manifest
    derive = getattr(importer, "derive", None)
    return write(annotations, media, folder, report, derive, held_out, name=data, variant=variant, source=origin)


def ensure_prepared(data: str, folder: Path, report: Callable[[str], None] = print, variant: str | None = None) -> dict[str, Any]:
    """The manifest of a whole folder for training; digits are made where they are missing. Call it on the driver.

    Raises ConfigError where the folder holds another data set, or another variant than the one that is named.
    """
    check_choice("data.name", data, (MADE, *DATA_SETS))
    folder = Path(folder)
    if data == MADE and not (folder / "manifest.json").is_file():
        return prepare(data, None, folder, report)
    check(
        folder.is_dir(),
        "data.folder",
        folder,
        f"no such folder; run python workloads/prepare.py data={data} source=<folder of the original files>",
    )
    manifest = store.check_folder(folder)
    same = manifest["name"] == data and variant in (None, manifest.get("variant"))
    check(same, "data.folder", folder, f"holds {_titled(manifest)}, not {data}{f' ({variant})' if variant else ''}; choose another folder")
    media = manifest.get("media")
    check(
        media is None or any(media.values()),
        "data.folder",
        folder,
        "holds annotations alone, no video and no features, so nothing can be trained; put them into the source folder and prepare it again",
    )
    return _baselines_added(folder, manifest, report)


def _variant(data: str, variant: str | None) -> str | None:
    """The chosen variant. Raises ConfigError where the importer hasn't got it."""
    variants = getattr(DATA_SETS[data], "VARIANTS", ())
    check(bool(variants) or variant is None, "data.variant", variant, f"{data} has none; leave it out")
    if variant is not None:
        check_choice("data.variant", variant, variants)
    return variant or (variants[0] if variants else None)


def _titled(manifest: dict[str, Any]) -> str:
    return f"{manifest['name']}{f' ({variant})' if (variant := manifest.get('variant')) else ''}"


def _baselines_added(folder: Path, manifest: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """The manifest with the closed-form baselines, which a folder of annotations alone doesn't get."""
    if manifest["baselines"] or not any(manifest.get("media", {"features": 1}).values()):
        return manifest
    from meltr_ray.video.baselines import baselines  # scikit-learn takes seconds, and a data set gets them once

    try:
        found = baselines(folder, lambda line: report(f"{manifest['name']}: {line}"))
    except ValueError as error:  # too few clips: no word is left, or no principal component
        report(f"{manifest['name']}: no closed-form baselines ({error})")
        return manifest
    return shards.write_manifest(folder, **manifest | {"baselines": found})
