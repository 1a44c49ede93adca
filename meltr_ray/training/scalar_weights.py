"""Weights without dimensions, such as the temperature of a contrastive loss, of which DeepSpeed expects one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


@contextmanager
def sent_as_vectors() -> Iterator[None]:
    """For the start of an engine: it sends weights to other ranks as bytes, and torch views no tensor without dimensions as bytes."""
    from deepspeed.runtime.engine import DeepSpeedEngine  # not before training/zero.py, which tells it what machine this is
    from deepspeed.runtime.zero.partition_parameters import Init

    send, convert = DeepSpeedEngine._broadcast_model, Init._convert_to_deepspeed_param

    def broadcast(engine: DeepSpeedEngine) -> None:
        scalars = [p for p in engine.module.parameters() if p.dim() == 0]
        for p in scalars:
            p.data = p.data.view(1)
        send(engine)
        for p in scalars:
            p.data = p.data.view(())

    def convert_and_view(init: Init, p: Any) -> None:
        convert(init, p)  # notes the shape that p has when it is gathered
        p.data = p.data.view(1) if p.dim() == 0 else p.data

    DeepSpeedEngine._broadcast_model, Init._convert_to_deepspeed_param = broadcast, convert_and_view
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model, Init._convert_to_deepspeed_param = send, convert


def clip_as_vectors(engine: Any) -> None:
    """Let an engine of DeepSpeed's stage 0, which scales gradients by a vector of one number, clip weights without dimensions too."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        seen = [SimpleNamespace(grad=p.grad.view(1) if p.dim() == 0 else p.grad, device=p.device)
                for p in engine.module.parameters() if p.grad is not None]  # fmt: skip
        clip_grad_norm_(seen, engine.gradient_clipping(), mpu=engine.mpu)

    if any(p.dim() == 0 for p in engine.module.parameters()):
        engine.clip_fp32_gradients = clip
