"""Tiny models of transformers, drawn at random from their configurations, as workloads: no dropout, so that a reference can follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meltr_ray import Metric
from meltr_ray.huggingface import HuggingFace

WORDS, MASK = 13, 2
"""Size of a vocabulary, whose ids from 3 on are words."""


def bert(**settings: Any) -> dict[str, Any]:
    """Sizes under the names that BERT gave them; weights drawn wide, so that losses differ between examples."""
    return dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.2) | settings


class Tiny(HuggingFace):
    """Examples are numbers: a batch is drawn by its generator alone."""

    metrics = {"nothing": Metric()}

    def examples(self, split: str) -> range:
        return range(16)

    def evaluate(self, module: torch.nn.Module, examples: Any, device: torch.device) -> dict[str, float]:
        return {"nothing": 0.0}


class Flava(Tiny):
    """Six losses by three calls."""

    architecture = "FlavaForPreTraining"
    calls = ("both", "image", "text")

    def configuration(self) -> dict[str, Any]:
        return dict(
            image_config=bert(image_size=8, patch_size=4, vocab_size=11),
            text_config=bert(vocab_size=WORDS, max_position_embeddings=8),
            multimodal_config=bert(), hidden_size=16, projection_dim=8, initializer_range=0.2, init_codebook=False,
        )  # fmt: skip

    def module(self) -> nn.Module:
        """Tokens that start at 0 are drawn: the gradient of a layer norm there is 1e6 and more for each layer."""
        module = super().module()
        for name, weight in module.model.named_parameters():
            if name.endswith(("cls_token", "mask_token", "position_embeddings")):
                nn.init.normal_(weight, std=0.2)
        return module

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, dict[str, Tensor]]:
        patches = torch.tensor(generator.random((len(examples), 4)) < 0.5)
        patches[:, 0] = True
        image = {"pixel_values": normal(generator, len(examples), 3, 8, 8), "bool_masked_pos": patches,
                 "mim_labels": torch.tensor(generator.integers(0, 11, (len(examples), 4)))}  # fmt: skip
        ids, masked = masked_words(generator, len(examples), 6)
        text = {"input_ids": ids, "input_ids_masked": ids.masked_fill(masked, MASK), "mlm_labels": ids.masked_fill(~masked, -100)}
        return {"image": image, "text": text, "both": image | text | {"itm_labels": torch.tensor([1] * (len(examples) - 1) + [0])}}


class Wav2Vec2(Tiny):
    """A contrastive loss and the diversity of its codes."""

    architecture = "Wav2Vec2ForPreTraining"

    def configuration(self) -> dict[str, Any]:
        return bert(
            conv_dim=(8, 8), conv_stride=(4, 2), conv_kernel=(4, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2, num_codevectors_per_group=4, num_codevector_groups=2, codevector_dim=8, proj_codevector_dim=8,
            hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, feat_quantizer_dropout=0.0,
            layerdrop=0.0, mask_time_prob=0.05, vocab_size=WORDS,
        )  # fmt: skip

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, Tensor]:
        frames = 8
        masked = torch.tensor(generator.random((len(examples), frames)) < 0.5)
        masked[:, :2] = True
        return {"input_values": normal(generator, len(examples), 8 * frames), "mask_time_indices": masked,
                "sampled_negative_indices": torch.tensor(generator.integers(0, len(examples) * frames, (len(examples), frames, 3)))}  # fmt: skip


class Luke(Tiny):
    """Masked words and masked entities."""

    architecture = "LukeForMaskedLM"

    def configuration(self) -> dict[str, Any]:
        return bert(vocab_size=WORDS, entity_vocab_size=7, entity_emb_size=8, max_position_embeddings=12, pad_token_id=1,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, Tensor]:
        ids, masked = masked_words(generator, len(examples), 6)
        entities = torch.tensor(generator.integers(1, 7, (len(examples), 2)))
        return {"input_ids": ids.masked_fill(masked, MASK), "labels": ids.masked_fill(~masked, -100), "attention_mask": torch.ones_like(ids),
                "entity_ids": torch.full_like(entities, 6), "entity_labels": entities, "entity_attention_mask": torch.ones_like(entities),
                "entity_position_ids": torch.tensor([[[0, 1, -1], [3, 4, 5]]] * len(examples))}  # fmt: skip


class Detr(Tiny):
    """Classes, boxes and their overlap of what is matched; how many objects it finds has no gradient."""

    architecture = "DetrForObjectDetection"

    def configuration(self) -> dict[str, Any]:
        from transformers import ResNetConfig

        backbone = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"], layer_type="basic", hidden_act="gelu"
        )
        return dict(
            backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=3, num_labels=4,
            activation_function="gelu", init_std=0.5, dropout=0.0, auxiliary_loss=False,
        )  # fmt: skip

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, Any]:
        boxes = torch.tensor(generator.uniform(0.2, 0.5, (len(examples), 1, 4)).astype(np.float32))
        labels = [{"class_labels": torch.tensor(generator.integers(0, 4, 1)), "boxes": box} for box in boxes]
        return {"pixel_values": normal(generator, len(examples), 3, 32, 32), "labels": labels}


class PeAudioVideo(Tiny):
    """Six contrastive losses; its vision tower needs timm, and is a ViT here."""

    architecture = "PeAudioVideoModel"

    def configuration(self) -> Any:
        from transformers import DacConfig, PeAudioVideoConfig, ViTConfig
        from transformers.models.pe_audio.configuration_pe_audio import PeAudioEncoderConfig
        from transformers.models.pe_audio_video.configuration_pe_audio_video import PeAudioVideoEncoderConfig
        from transformers.models.pe_video.configuration_pe_video import PeVideoEncoderConfig

        tower = bert(head_dim=8)
        audio = DacConfig(downsampling_ratios=[2, 2], encoder_hidden_size=4, codebook_dim=4)
        vision = ViTConfig(**bert(image_size=8, patch_size=4, num_labels=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
        encoder = PeAudioVideoEncoderConfig(audio_config=PeAudioEncoderConfig(dac_config=audio, **tower),
                                            video_config=PeVideoEncoderConfig(vision_config=vision, **tower), **tower)  # fmt: skip
        text = dict(vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
                    bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)  # fmt: skip
        return PeAudioVideoConfig(text_config=text, audio_video_config=encoder)

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, Tensor]:
        ids, _ = masked_words(generator, len(examples), 6)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "input_values": normal(generator, len(examples), 1, 32),
                "pixel_values_videos": normal(generator, len(examples), 4, 3, 8, 8)}  # fmt: skip


def normal(generator: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(generator.standard_normal(shape).astype(np.float32))


def masked_words(generator: np.random.Generator, count: int, length: int) -> tuple[Tensor, Tensor]:
    """ids (count, length), and which of them are masked: the second always."""
    ids, masked = torch.tensor(generator.integers(3, WORDS, (count, length))), torch.tensor(generator.random((count, length)) < 0.4)
    masked[:, 1] = True
    return ids, masked


MODELS = {"flava": Flava, "wav2vec2": Wav2Vec2, "luke": Luke, "detr": Detr, "pe_audio_video": PeAudioVideo}
