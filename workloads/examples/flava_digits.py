"""FLAVA's six pretraining losses on frames and captions of the bouncing digits: which of them help an image to find its caption?

python workloads/sweep.py workload=workloads/examples/flava_digits.py:FlavaDigits experiment=flava_digits
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from meltr_ray import Metric
from meltr_ray.huggingface import HuggingFace
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.clips.video import decode_video
from meltr_ray.video.clips.vocabulary import Vocabulary
from meltr_ray.video.datasets.digits import make_digits

SPLITS = ("train", "meta", "validation", "test")
SIDE, PATCH, WORDS, COLOURS, BEST = 32, 8, 20, 64, 10
"""Pixels of a frame and of a patch, words of a caption, visual tokens (four levels of red, of green and of blue), and ranks that count."""


class FlavaDigits(HuggingFace):
    """The middle frame of a clip and one of its captions, which names only some of what the frame shows, and motion that it doesn't."""

    architecture = "FlavaForPreTraining"
    calls = {
        "both": ("global_contrastive", "itm", "mmm_image", "mmm_text"),  # the first loss is the primary
        "image": ("mim",),  # FLAVA gives these two only without the other modality
        "text": ("mlm",),
    }
    metrics = {"recall": Metric("%", meaning="images whose caption is among the 10 nearest of the split's, and captions whose image is")}
    paths = ("folder", "pretrained")
    bounds = {"width": (8, 1024)}

    folder: str = "data/digits"
    """Of the bouncing digits; made there if need be."""
    width: int = 32
    """Size of hidden layers."""

    def configuration(self) -> dict:
        # weights are drawn wide, for those of a large model would make all images alike here
        tower = dict(
            hidden_size=self.width, num_hidden_layers=1, num_attention_heads=4, intermediate_size=2 * self.width, initializer_range=0.2
        )
        return dict(
            image_config=tower | dict(image_size=SIDE, patch_size=PATCH, vocab_size=COLOURS),
            text_config=tower | dict(vocab_size=len(self.vocabulary()), max_position_embeddings=WORDS),
            multimodal_config=tower,
            hidden_size=self.width, projection_dim=self.width, initializer_range=0.2, init_codebook=False,
        )  # fmt: skip

    def module(self) -> nn.Module:
        """Class token, mask token and positions, which FLAVA starts at 0, are drawn: a layer norm of 0 has gradients of 1e6 and more."""
        module = super().module()
        for name, weight in module.model.named_parameters():
            if name.endswith(("cls_token", "mask_token", "position_embeddings")):
                nn.init.normal_(weight, std=0.2)
        return module

    def prepare(self, report: Callable[[str], None]) -> None:
        make_digits(self.folder, report)
        if not self.file().exists():
            np.savez(
                self.file(),
                **{f"{split}_{name}": column for split in SPLITS for name, column in zip(("frames", "captions"), self.read(split))},
            )
        super().prepare(report)

    def examples(self, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """(frame (32, 32, 3) uint8, ids of its five captions (5, 20))."""
        with np.load(self.file()) as arrays:
            return list(zip(arrays[f"{split}_frames"], arrays[f"{split}_captions"]))

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, dict[str, Tensor]]:
        """Arguments of each call; a third of words and of patches is masked, a quarter of the texts is another's."""
        frames, captions = map(np.stack, zip(*examples))
        ids = captions[np.arange(len(captions)), generator.integers(5, size=len(captions))]
        words, paired = self.vocabulary(), generator.random(len(ids)) > 0.25
        paired[:2] = True
        shown = np.where(paired, np.arange(len(ids)), np.roll(np.arange(len(ids)), 1))
        masked = ids > words.sep_id
        masked &= (generator.random(ids.shape) < 1 / 3) | (np.arange(WORDS) == 1)
        patches = generator.random((len(ids), (SIDE // PATCH) ** 2)) < 1 / 3
        patches[:, 0] = True
        image = {"pixel_values": pixels(frames), "bool_masked_pos": torch.tensor(patches), "mim_labels": colours(frames)}
        text = {"input_ids": ids, "input_ids_masked": np.where(masked, words.mask_id, ids), "attention_mask": ids != words.pad_id,
                "mlm_labels": np.where(masked, ids, -100)}  # fmt: skip
        text = {name: torch.tensor(value).long() for name, value in text.items()}
        both = {name: value[torch.tensor(shown)] for name, value in text.items()} | image | {"itm_labels": torch.tensor(paired).long()}
        return {"both": both, "image": image, "text": text}

    def predict(self, module: nn.Module, examples: list, device: torch.device) -> list[dict]:
        """The rank of each image's caption among all, and of the caption's image; the first caption of each."""
        flava = module.model.flava
        frames, captions = map(np.stack, zip(*examples))
        ids = torch.tensor(captions[:, 0]).to(device)
        mask = (ids != self.vocabulary().pad_id).long()
        image = flava.image_projection(flava.image_model(pixels(frames).to(device)).last_hidden_state[:, 0])
        text = flava.text_projection(flava.text_model(ids, mask).last_hidden_state[:, 0])
        scores = (nn.functional.normalize(image, dim=-1) @ nn.functional.normalize(text, dim=-1).T).cpu()
        ranks = [(s > s.diagonal()[:, None]).sum(1) for s in (scores, scores.T)]
        return [{"id": str(number), "of_caption": int(a), "of_image": int(b)} for number, (a, b) in enumerate(zip(*ranks))]

    def measure(self, rows: list[dict]) -> dict[str, float]:
        return {"recall": 100 * float(np.mean([row[name] < BEST for row in rows for name in ("of_caption", "of_image")]))}

    def baselines(self) -> dict:
        return {split: {"chance": {"recall": 100 * BEST / len(self.examples(split))}} for split in ("validation", "test")}

    def file(self) -> Path:
        return Path(f"{self.folder}_frames.npz")

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(Path(self.folder) / "vocabulary.txt")

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Middle frames, half their size, and captions as ids, padded."""
        words, clips = self.vocabulary(), ClipStore(self.folder, split, videos=True)
        frames = np.stack([decode_video(clip.video)[14] for clip in clips])
        frames = frames.reshape(-1, SIDE, 2, SIDE, 2, 3).mean((2, 4)).astype(np.uint8)
        ids = [[words.encode(caption, WORDS) for caption in (clip.captions * 5)[:5]] for clip in clips]
        return frames, np.array([[each + [words.pad_id] * (WORDS - len(each)) for each in five] for five in ids])


def pixels(frames: np.ndarray) -> Tensor:
    """(B, 32, 32, 3) uint8 -> (B, 3, 32, 32) between -1 and 1."""
    return torch.tensor(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def colours(frames: np.ndarray) -> Tensor:
    """The visual token of each patch, (B, 16): its mean colour in four levels of red, green and blue."""
    count = SIDE // PATCH
    means = frames.reshape(-1, count, PATCH, count, PATCH, 3).mean((2, 4)).reshape(-1, count**2, 3)
    return torch.tensor((means // 64) @ np.array([16, 4, 1])).long()
