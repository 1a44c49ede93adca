"""Settings of workloads/prepare.py alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from meltr_ray.bounds import bounded, check_settings
from meltr_ray.config.paths import check_local, check_path


@dataclass(kw_only=True)
class PrepareConfig:
    """What is turned into the project's own forms, and what it is written to."""

    source: Optional[str] = None
    """Folder of the original distribution of a data set."""
    checkpoint: Any = None
    """Checkpoint file to import, or a list, `[bert.bin,swin.pth]`, of files that each cover a part of the backbone; with `export`, folder of a run or of an imported checkpoint."""
    export: Optional[str] = None
    """File that the weights of `checkpoint` are written to, under the names and in the form of the backbone's authors; with `extract`, the folder of the features."""
    extract: Optional[str] = None
    """Folder of videos, and those below it, whose frame features are taken by the model in `extractor` and written to the folder `export`, where an importer finds them."""
    extractor: Optional[str] = None
    """Folder of a Hugging Face vision model and its image processor, as `save_pretrained` writes them."""
    frames_per_second: float = bounded(1.0, 1e-3, 1000)
    """Frames of a video that `extract` takes features of, a second."""

    def __post_init__(self):
        check_settings("", self)
        for name in ("source", "checkpoint", "extract", "extractor"):
            for path in self.checkpoint if name == "checkpoint" and isinstance(self.checkpoint, (list, tuple)) else [getattr(self, name)]:
                check_local(name, str(path or ""))
        if self.export is not None:
            check_path("export", self.export)
