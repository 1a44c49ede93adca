"""Names in All-in-one's checkpoint files, and tables of positions for other lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from math import isqrt

import torch
import torch.nn.functional as F
from torch import nn

from meltr_ray.video.backbones.allinone.model import AllInOne, start_rank_from_match
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.naming import Naming, Part, State

HEADS = ("itm_score.", "mlm_score.", "txt_proj.", "vid_proj.", "rank_output.", "vqa_classifier.", "mc_vqa_classifier.")
FRAMES, TEXT_POSITIONS = "transformer.temporal_embed", "text_embeddings.position_embeddings.weight"


class AllInOneNaming(Naming):
    """May be missing: heads, which fine-tuning makes anew, and the text's positions, which `fit_start` drops if their length differs.

    May be there for nothing: heads of other tasks, MELTR's own combiner (`aux_model`), and a counter 0, 1, .. that older libraries
    saved.
    """

    title = "All-in-one"
    words = "text_embeddings.word_embeddings.weight"
    width = "transformer.norm."
    may_be_missing = (*HEADS, "text_embeddings.position_embeddings.")
    may_be_unexpected = (*HEADS, "text_embeddings.position_ids", "aux_model.", "vcop_classifier.", "mpp_score.", "rank_output_2.",
                         "nlvr2_classifier.")  # fmt: skip
    answer_heads = ("vqa_classifier.",)
    wrapper = "state_dict"
    parts = {
        "bert": Part({"bert.embeddings.": "text_embeddings.", "cls.predictions.": "mlm_score."}, ("mlm_score.",)),
        "vit": Part({"": "transformer."}, (FRAMES,)),  # a ViT knows no time (published: zeros)
    }

    def is_own(self, beginnings: Collection[str]) -> bool:
        return {"transformer", "text_embeddings"} <= set(beginnings)

    def empty(self, config: AllInOneConfig, state: State, num_words: int) -> tuple[AllInOneConfig, nn.Module]:
        frames, positions = state.get(FRAMES), state.get(TEXT_POSITIONS)
        config = dataclasses.replace(
            config,
            num_frames=config.num_frames if frames is None else frames.size(1),
            max_position_embeddings=config.max_position_embeddings if positions is None else len(positions),
        )
        return config, AllInOne(config, num_words, num_answers=len(state.get("vqa_classifier.4.bias", (0,))))

    def fit(self, state: State, config: AllInOneConfig) -> State:
        """BERT's positions cut to the text length; a ViT's, bilinear, to the number of patches (published: `resize_pos_embed`)."""
        places, fitted = "transformer.pos_embed", dict(state)
        if TEXT_POSITIONS in state and len(state[TEXT_POSITIONS]) > config.max_position_embeddings:
            fitted[TEXT_POSITIONS] = state[TEXT_POSITIONS][: config.max_position_embeddings].clone()
        if places in state and state[places].dim() == 3:
            first, grid = state[places].tensor_split([1 + config.distilled], dim=1)
            side = isqrt(grid.size(1))
            if side**2 == grid.size(1) != config.num_patches:
                image = grid.transpose(1, 2).unflatten(2, (side, side))
                grid = F.interpolate(image, [isqrt(config.num_patches)] * 2, mode="bilinear").flatten(2).transpose(1, 2)
                fitted[places] = torch.cat((first, grid), dim=1)
        return fitted

    def fit_start(self, state: State, model: AllInOne) -> State:
        """For the model's frames and text length, as published.

        Temporal embeddings are cut or filled up with zeros; a text position table of another length is left out, so that the
        model keeps its own, new one.
        """
        fitted = dict(state)
        missing = model.config.num_frames - state[FRAMES].size(1) if FRAMES in state else 0
        if missing:
            fitted[FRAMES] = F.pad(state[FRAMES], (0, 0, 0, missing))
        if TEXT_POSITIONS in state and len(state[TEXT_POSITIONS]) != model.config.max_position_embeddings:
            del fitted[TEXT_POSITIONS]
        return fitted

    def complete(self, model: AllInOne, copied: Collection[str], left: list[str]) -> list[str]:
        """The ranking head starts from the matching head where the checkpoint has none, as published."""
        if "rank_output.weight" not in left or "itm_score.fc.weight" not in copied:
            return left
        start_rank_from_match(model)
        return [name for name in left if not name.startswith("rank_output.")]
