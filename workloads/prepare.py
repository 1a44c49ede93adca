"""Turn what others distribute into the project's own forms: data sets into Parquet, checkpoints into safetensors, and back.

python workloads/prepare.py data=digits
python workloads/prepare.py data=msrvtt source=<folder with MSRVTT_data.json and videos or a feature file>
python workloads/prepare.py data=msrvtt data.variant=9k data.folder=data/msrvtt_9k source=<folder>
python workloads/prepare.py data=videos source=<folder of videos with captions.csv>
python workloads/prepare.py extract=<folder of videos> extractor=<folder of a vision model> export=<folder of features>
python workloads/prepare.py backbone=violet checkpoint=<file>
python workloads/prepare.py backbone=violet checkpoint=[<BERT>,<Video Swin>]
python workloads/prepare.py checkpoint=<folder> export=<file>
"""

from __future__ import annotations

import re
from pathlib import Path

from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.config.paths import check_writable
from meltr_ray.errors import ConfigError, check, shown
from meltr_ray.storage.address import is_address
from meltr_ray.video.backbones.settings import BackboneConfig
from meltr_ray.video.clips.settings import MADE
from meltr_ray.video.settings import PrepareConfig
from workloads import checks, cli
from workloads.ending import as_process

NAMES_SHOWN = 12
OF_TRAINING = ("seed", "losses", "combiner", "aid", "optimizer", "tuning", "engine", "train", "sweep")
"""Settings, and groups of them, that nothing here hangs on, but for that of a GPU."""
COMMON_NAMES = ("model", "pytorch_model")
"""Names that all of Hugging Face's files have, which their folders tell apart."""


def prepare(request: cli.Request) -> int:
    """Write `data.folder`, or the folder of an imported checkpoint, or the file `export`. Returns the exit code."""
    config, own = request.config, request.own
    cli.check_taken(request, "prepare.py", ("name", "output", "cluster", "checkpoint", *config.workload.preparation_settings))
    check_meant(request)
    if own.extract:
        return extract_features(config, own)
    if own.export:
        check(isinstance(own.checkpoint, str), "checkpoint", own.checkpoint, "export needs a folder; give one")
        check_writable("export", own.export, Path(own.export).absolute().parent)
        check(not Path(own.export).is_dir(), "export", own.export, "is a folder; give the name of a file")
        return export_checkpoint(Path(own.checkpoint), Path(own.export))
    if own.checkpoint is not None:
        return import_checkpoint(request)
    if "data" not in config.workload.groups:  # not video: whatever the workload itself makes
        config.workload.prepare(print)
        return 0
    from meltr_ray.video.datasets.prepare import prepare as prepare_data  # scikit-learn, which --help does without

    data = config.workload.data
    check_writable("data.folder", data.folder, Path(data.folder))
    prepare_data(data.name, Path(own.source) if own.source else None, Path(data.folder), print, data.variant, data.features, data.held_out)
    return 0


def check_meant(request: cli.Request) -> None:
    """Raises ConfigError: a setting of another of the things that this command does."""
    own, video = request.own, "data" in request.config.workload.groups
    if own.extract:
        doing, takes = "extract", ("extract", "extractor", "export", "frames_per_second")
    elif own.export:
        doing, takes = "export", ("export", "checkpoint")
    elif own.checkpoint is not None:
        doing, takes = "checkpoint", ("checkpoint",)
    elif video and request.config.workload.data.name != MADE:
        doing, takes = f"data={request.config.workload.data.name}", ("source", "data.features", "data.held_out")
    else:
        doing, takes = f"data={MADE}, which is made and not imported," if video else "this workload", ()
    for name, value in request.given.items():
        check(
            name.partition(".")[0] not in OF_TRAINING or name == "train.use_gpu",
            name,
            value,
            "prepare.py makes nothing of it; leave it out",
        )
    for name in ("source", "checkpoint", "export", "extract", "extractor", "frames_per_second", "data.features", "data.held_out"):
        if name in request.given and name not in takes:
            mend = ", or name the data set by data= (docs/data.md)" if video and name == "source" and not takes else ""
            raise ConfigError(f"{name}={shown(request.given[name])}: {doing} makes nothing of it; leave it out{mend}")


def extract_features(config: Config, own: PrepareConfig) -> int:
    """Write the features of every video in `extract` to `export`, on the Ray cluster that `cluster` names."""
    from meltr_ray.cluster.connection import connected
    from meltr_ray.video.datasets.extract import Frames, Video, check_extractor, check_videos, extract
    from meltr_ray.video.datasets.feature_files import VIDEO_ENDINGS

    check(own.extractor is not None, "extractor", None, "extract needs the folder of a vision model; give it")
    check(own.export is not None, "export", None, "extract needs a folder to write features to; give it")
    check_writable("export", own.export, Path(own.export))
    check(Path(own.extract).is_dir(), "extract", own.extract, "no such folder; correct the path")
    checks.check_machine(config)
    paths = sorted(path for path in Path(own.extract).absolute().rglob("*") if path.suffix.lower() in VIDEO_ENDINGS)
    check(len(paths) > 0, "extract", own.extract, "holds no video; give the folder that does")
    videos = [Video(path.stem, str(path)) for path in paths]
    check_videos(videos)
    check_extractor(own.extractor)
    frames = Frames(per_second=own.frames_per_second)
    with cli.chatter_to(Path(own.export).absolute() / "log.txt") as terminal, connected(config):
        counts = extract(videos, own.extractor, own.export, frames, config.train.use_gpu, report=lambda line: print(line, file=terminal))
    print(", ".join(f"{name}: {count}" for name, count in counts.items()), "->", own.export)
    return 0


def import_checkpoint(request: cli.Request) -> int:
    """Write `<output>/checkpoints/<name>`, by default named after the backbone and the first file."""
    from meltr_ray.video.checkpoints import imports
    from meltr_ray.video.clips.vocabulary import Vocabulary

    config, given = request.config, request.given
    backbone, data = config.workload.backbone, config.workload.data
    files = request.own.checkpoint if isinstance(request.own.checkpoint, list) else [request.own.checkpoint]
    check(not is_address(config.output), "output", config.output, "prepare.py writes weights here alone; give a folder, and copy that")
    check(len(files) > 0, "checkpoint", request.own.checkpoint, "names no file; give one or several")
    check(all(isinstance(file, str) for file in files), "checkpoint", files, "is a list of paths; quote what looks like a number")
    paths = [Path(file) for file in files]
    if "name" not in given:
        title = paths[0].parent.name if paths[0].stem in COMMON_NAMES else paths[0].stem
        config.name = re.sub(r"[^\w.-]+", "-", f"{backbone.name}-{title}")
    folder = Path(config.output) / "checkpoints" / config.name
    if folder.exists() and "name" in given:
        raise ConfigError(f"name={config.name}: {folder} exists; choose another name")
    folder = checks.new_folder(config, "checkpoints", chosen=False)
    vocabulary_size = len(Vocabulary(data.vocabulary)) if data.vocabulary else None

    def with_size(size: str) -> BackboneConfig:
        return config_file.make(request.settings, {"backbone.size": size}).workload.backbone

    any_size = None if "backbone.size" in given else with_size
    facts = imports.import_checkpoint(paths, folder, backbone, any_size, vocabulary_size)
    for key, title in {"missing": "left to be drawn", "not_used": "not used", "fitted": "changed to fit"}.items():
        if facts[key]:
            print(f"{title}: {listing(facts[key])}")
    words = f"{facts['vocabulary_size']} words, " if facts["vocabulary_size"] else ""
    print(f"{facts['backbone']} of size {facts['settings']['size']}, {words}{facts['entries']} entries -> {folder}")
    return 0


def export_checkpoint(folder: Path, path: Path) -> int:
    """Write the weights in `folder` to the file `path`."""
    from meltr_ray.video.checkpoints import exports

    lacking = exports.export_checkpoint(folder, path)
    if lacking:
        print(f"not in {folder}: {listing(lacking)}")
    print(f"{path.stat().st_size / 2**20:.1f} MiB -> {path}")
    return 0


def listing(names: list[str]) -> str:
    """How many entries, and the first of them."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} entr{'y' if len(names) == 1 else 'ies'}: {', '.join(names[:NAMES_SHOWN])}{more}"


def main() -> None:
    cli.main(prepare, __doc__, own=PrepareConfig)


if __name__ == "__main__":
    as_process(main)
