"""Turn the original distribution of a data set into the project's Parquet.

    python workloads/prepare.py data=digits
    python workloads/prepare.py data=msrvtt source=<folder with MSRVTT_data.json and a feature file>
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig  # noqa: E402

from meltr_ray.config import Config  # noqa: E402
from meltr_ray.data.prepare import prepare as prepare_data  # noqa: E402
from workloads import cli  # noqa: E402


def prepare(settings: DictConfig, config: Config) -> int:
    """Write `data.folder`. Returns the exit code."""
    prepare_data(config.data.name, Path(config.source) if config.source else None, Path(config.data.folder), print)
    return 0


if __name__ == "__main__":
    cli.main(prepare, __doc__)
