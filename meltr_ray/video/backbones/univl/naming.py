"""Names in UniVL's checkpoint files."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from meltr_ray.video.backbones.naming import Naming, Part, State
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig


class UniVLNaming(Naming):
    """Fine-tuning for one task saves the parts of that task; the last three that may be missing are heads of ours."""

    title = "UniVL"
    words = "bert.embeddings.word_embeddings.weight"
    width = "bert.embeddings.LayerNorm."
    may_be_missing = ("cross.", "decoder.", "cls.", "cls_visual.", "similarity_dense.", "answer_dense.", "score_dense.", "audio.")
    may_be_unexpected = ("visual.", "cls_visual.", "normalize_video.")  # what reads frames, where the data has none
    frame_features = "visual.embeddings.word_embeddings.weight"
    parts = {"bert": Part({"bert.": "bert.", "cls.predictions.": "cls.predictions."}, ("bert.pooler.", "cls."))}

    def is_own(self, beginnings: Collection[str]) -> bool:
        return "visual" in beginnings

    def empty(self, config: UniVLConfig, state: State, num_words: int) -> tuple[UniVLConfig, nn.Module]:
        features = state[self.frame_features].size(-1) if self.frame_features in state else 1
        return config, UniVL(config, num_words, features)
