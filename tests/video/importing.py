"""Small video models, and their weights under the names of the original projects, as tests of imports use them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from tests.video import test_allinone, test_univl, test_violet

WORDS = 31
SIZES = dict(hidden_size=16, num_heads=2, feed_forward_size=32)
CONFIGS = {
    "univl": UniVLConfig(**SIZES, text_layers=2, max_position_embeddings=12),
    "violet": VioletConfig(**SIZES, cross_layers=2, max_position_embeddings=12, swin_heads=[1, 2], swin_window=[2, 4, 4]),
    "allinone": AllInOneConfig(**SIZES, num_layers=2, max_position_embeddings=12),
}
MODELS = {
    "univl": lambda: test_univl.toy_univl(test_univl.toy_config()),
    "violet": lambda: Violet(test_violet.toy_config(), WORDS),
    "violet, options": lambda: Violet(test_violet.toy_config(), WORDS, "multiple_choice"),
    "violet, answers": lambda: Violet(test_violet.toy_config(), WORDS, "open_ended", 9),
    "allinone": lambda: AllInOne(test_allinone.toy_config(), WORDS, num_answers=9),
    "allinone S": lambda: AllInOne(test_allinone.toy_config("distilled"), WORDS),
}


def drawn(make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def write(state: dict, path: Path, wrapper: str | None = None) -> Path:
    torch.save(state if wrapper is None else {wrapper: state}, path)
    return path


def check_equal(got: dict, want: dict) -> None:
    assert list(got) == list(want)
    assert all(torch.equal(got[name], x) and got[name].dtype == x.dtype for name, x in want.items())


def message_of(call) -> str:
    """The one line that `call` must fail with."""
    with pytest.raises(ConfigError) as caught:
        call()
    assert re.fullmatch(r"[\w.]+=[^\n]+: [^\n]+; [^\n]+", str(caught.value))
    return str(caught.value)
