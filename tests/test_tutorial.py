"""The tutorial, followed in an empty folder: each training run and each evaluation as its page writes them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.commands import run

PAGE = (Path(__file__).parents[1] / "docs/tutorial.md").read_text()
FILE, COMMANDS = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], re.findall(r"^    meltr-(train|evaluate) (.*)$", PAGE, re.MULTILINE)


@pytest.mark.whole
def test_the_page_evaluates_the_weights_that_it_trained_last(tmp_path):
    """Not those of an earlier run of the same name, whose folder a second run leaves alone."""
    (tmp_path / "primes.py").write_text(FILE)
    assert [command for command, _ in COMMANDS] == ["train", "train", "evaluate"]
    for command, settings in COMMANDS:
        code, output = run(command, *shlex.split(settings), cwd=tmp_path)
        assert code == 0, output
        if command == "train":
            trained = output.rstrip().rpartition(" -> ")[2]
    found = json.loads(output)
    assert str(tmp_path / found["checkpoint"]) == trained
    assert found["metrics"]["accuracy"] > 80  # the first run, of 100 steps at the default rate, has 66
