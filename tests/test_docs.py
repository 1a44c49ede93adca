"""What the documentation shows runs as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLES = [(path.name, block) for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
            for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]  # fmt: skip

TRAINING = ("examples.md",)
"""Pages whose blocks train several models."""


@pytest.mark.parametrize(
    "name, block",
    [
        pytest.param(name, block, marks=[pytest.mark.whole] * (name in TRAINING), id=f"{name}-{i}")
        for i, (name, block) in enumerate(EXAMPLES)
    ],
)
def test_examples_run(name, block):
    exec(compile(block, name, "exec"), {})


def test_files_that_the_documentation_names_exist():
    for document in ("README.md", "CONTRIBUTING.md"):
        for named in re.findall(r"`((?:meltr_ray|workloads|tests|analysis|tune_spaces|docs)/[\w/.]+)`", (ROOT / document).read_text()):
            assert (ROOT / named).exists(), f"{document} names {named}"


def test_the_tutorial_shows_the_files_that_run():
    """It has the whole of Primes; the page of the contract, the combiner of NoisyLabels; that of transformers, the losses of XclipSquares."""
    (tutorial,) = [block for name, block in EXAMPLES if name == "tutorial.md"]
    assert tutorial == (ROOT / "workloads/examples/primes.py").read_text()
    first, *_ = [block for name, block in EXAMPLES if name == "workloads.md"]
    _, mark, combiner = (ROOT / "workloads/examples/noisy_labels.py").read_text().partition("class ExampleWeights")
    assert first.endswith(mark + combiner)
    *_, last = [block for name, block in EXAMPLES if name == "huggingface.md"]
    _, mark, losses = (ROOT / "workloads/examples/xclip_squares.py").read_text().partition("def own_losses")
    assert mark + losses in last


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 70


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """To a file of the project, and to a heading of it."""
    for link in LINK.findall(without_code(page.read_text())):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(ROOT) and target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, which has {sorted(anchors(target))}"


def test_every_page_is_reached_from_the_index():
    linked = {link.partition("#")[0] for link in LINK.findall((ROOT / "docs/index.md").read_text())}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
