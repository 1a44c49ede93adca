"""What the documentation shows runs as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = [(path.name, block) for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
            for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]  # fmt: skip


@pytest.mark.parametrize("name, block", EXAMPLES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(EXAMPLES)])
def test_examples_run(name, block):
    exec(compile(block, name, "exec"), {})


def test_files_that_the_documentation_names_exist():
    for document in ("README.md", "CONTRIBUTING.md"):
        for named in re.findall(r"`((?:meltr_ray|workloads|tests|analysis|tune_spaces|docs)/[\w/.]+)`", (ROOT / document).read_text()):
            assert (ROOT / named).exists(), f"{document} names {named}"


def test_the_tutorial_shows_the_files_that_run():
    """Its first listing is the whole of Primes, its second ends with the combiner of NoisyLabels."""
    listings = [block for name, block in EXAMPLES if name == "workloads.md"]
    assert listings[0] == (ROOT / "workloads/examples/primes.py").read_text()
    _, mark, combiner = (ROOT / "workloads/examples/noisy_labels.py").read_text().partition("class ExampleWeights")
    assert listings[1].endswith(mark + combiner)
