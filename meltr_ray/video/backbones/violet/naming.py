"""Names in VIOLET's checkpoint files, and a Swin over images as its Video Swin."""

from __future__ import annotations

import re
from collections.abc import Collection
from math import isqrt

import torch.nn.functional as F
from torch import nn

from meltr_ray.video.backbones.naming import Naming, Part, State
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.backbones.violet.video_swin import PATCH, WindowAttention

HEADS = ("fc.", "fc_vtm.", "fc_mc.", "fc_oe.", "fc_mtm.", "fc_mvm.")
TASK_OF = {"fc_mc.1.weight": "multiple_choice", "fc_oe.1.weight": "open_ended"}
"""Entry of a head -> the task that has it."""


class VioletNaming(Naming):
    """Heads are those of a task; older libraries save a counter 0, 1, 2, .. beside the positions."""

    title = "VIOLET"
    words = "enc_txt.emb_txt.word_embeddings.weight"
    width = "enc_img.norm."
    may_be_missing = HEADS
    may_be_unexpected = (*HEADS, "enc_txt.emb_txt.position_ids")
    answer_heads = ("fc_oe.",)
    parts = {
        "bert": Part(
            {"bert.embeddings.": "enc_txt.emb_txt.", "bert.encoder.": "trsfr.", "cls.predictions.": "fc_mtm.predictions."}, ("fc_mtm.",)
        ),
        "swin": Part({"": "enc_img.swin."}),
    }

    def is_own(self, beginnings: Collection[str]) -> bool:
        return "enc_img" in beginnings

    def empty(self, config: VioletConfig, state: State, num_words: int) -> tuple[VioletConfig, nn.Module]:
        task = next((TASK_OF[name] for name in TASK_OF if name in state), "retrieval")
        return config, Violet(config, num_words, task, len(state.get("fc_oe.3.bias", (0,))))

    def own(self, state: State) -> State:
        """Its own fine-tuning calls every head `fc`: one with several rows is that of open-ended answers, `fc_oe` in MELTR."""
        if len(state.get("fc.3.bias", ())) < 2:
            return state
        return {re.sub(r"^fc\.", "fc_oe.", name): x for name, x in state.items()}

    def fit(self, state: State, config: VioletConfig) -> State:
        """A Swin over images as a Video Swin; one over videos as it is.

        As published with Video Swin (`inflate_weights`): patches are repeated over time and divided by its length, bias tables
        are repeated for each displacement in time, after bicubic interpolation if the windows differ in height or width.
        """
        patches = "enc_img.swin.patch_embed.proj.weight"
        if patches not in state or state[patches].dim() != 4:
            return state
        fitted = dict(state)
        fitted[patches] = state[patches][:, :, None].repeat(1, 1, PATCH[0], 1, 1) / PATCH[0]
        time, *window = config.swin_window
        reach = [2 * length - 1 for length in window]
        index = WindowAttention(1, tuple(config.swin_window), 1, fused=False).relative_position_index
        for name in [name for name in state if name.endswith("relative_position_bias_table")]:
            table, side = state[name], isqrt(len(state[name]))
            if [side, side] != reach:
                image = table.T.reshape(1, -1, side, side)
                table = F.interpolate(image, reach, mode="bicubic").flatten(2)[0].T
            fitted[name] = table.repeat(2 * time - 1, 1)
            fitted[name.replace("bias_table", "index")] = index.clone()
        return fitted
