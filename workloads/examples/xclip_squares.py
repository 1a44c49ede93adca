"""X-CLIP's contrastive loss and two losses of our own, on clips of a moving square: do the two help a clip to find its caption?

python workloads/sweep.py workload=workloads/examples/xclip_squares.py:XclipSquares experiment=xclip_squares
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr_ray import Metric
from meltr_ray.huggingface import HuggingFace

SPLITS = {"train": 200, "meta": 64, "validation": 300, "test": 300}
FRAMES, SIDE, PATCH, STEP = 4, 16, 8, 2
"""Frames of a clip, pixels of a frame and of a patch, and pixels that the square moves from frame to frame."""
COLOURS = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]], np.float32)
SIZES, MOVES = (4, 8), ((0, 1), (0, -1), (1, 0), (-1, 0))
END = 14
"""Ends a caption. X-CLIP reads a caption off at its largest id, so that no word may have a larger one."""
CAPTIONS = np.array([[0, 1 + colour, 7 + size, 9 + move, END] for colour in range(6) for size in range(2) for move in range(4)])
TEMPERATURE = 0.07


class XclipSquares(HuggingFace):
    """A small or large square of one of six colours moves in one of four directions under noise; its caption says so in three words."""

    architecture = "XCLIPModel"
    losses = ("contrastive", "frames", "halves")  # the first is the primary
    metrics = {"accuracy": Metric("%", meaning="clips whose caption is the nearest of all 48")}
    bounds = {"width": (8, 1024), "noise": (0, 100)}

    width: int = 16
    """Size of hidden layers."""
    noise: float = 0.3
    """Standard deviation of noise on pixels, which range from -1 to 1."""

    def configuration(self) -> dict[str, Any]:
        tower = dict(hidden_size=self.width, num_hidden_layers=1, num_attention_heads=4, intermediate_size=2 * self.width)
        frames = dict(image_size=SIDE, patch_size=PATCH, num_frames=FRAMES, mit_hidden_size=self.width,
                      mit_intermediate_size=2 * self.width, mit_num_attention_heads=4)  # fmt: skip
        words = dict(vocab_size=END + 1, max_position_embeddings=CAPTIONS.shape[1])
        return dict(text_config=tower | words, vision_config=tower | frames, projection_dim=self.width, prompt_layers=1,
                    prompt_num_attention_heads=4)  # fmt: skip

    def losses_of(self, outputs: Any, arguments: dict[str, Any], call: str) -> dict[str, Tensor]:
        return {"contrastive": outputs.loss} | own_losses(outputs.mit_output.last_hidden_state, outputs.text_embeds)

    def examples(self, split: str) -> list[tuple[np.ndarray, int]]:
        """(frames (4, 3, 16, 16) float32, number of the caption)."""
        generator = np.random.default_rng(list(SPLITS).index(split))
        chosen = generator.integers(len(CAPTIONS), size=SPLITS[split])
        return [(draw(CAPTIONS[number], self.noise, generator), int(number)) for number in chosen]

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, Tensor]:
        frames, numbers = zip(*examples)
        return {"pixel_values": torch.from_numpy(np.stack(frames)), "input_ids": torch.from_numpy(CAPTIONS[list(numbers)])}

    def control(self, batch: dict[str, Tensor], generator: np.random.Generator) -> dict[str, Tensor]:
        """Each clip has the caption of another."""
        return batch | {"input_ids": batch["input_ids"].roll(1, 0)}

    def predict(self, module: nn.Module, examples: list, device: torch.device) -> list[dict[str, Any]]:
        frames, numbers = zip(*examples)
        pixels, captions = torch.from_numpy(np.stack(frames)).to(device), torch.from_numpy(CAPTIONS).to(device)
        found = module.model(pixel_values=pixels, input_ids=captions).logits_per_video.argmax(1).tolist()
        return [{"id": str(at), "correct": one == right} for at, (one, right) in enumerate(zip(found, numbers))]

    def measure(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return {"accuracy": 100 * float(np.mean([row["correct"] for row in rows]))}

    def baselines(self) -> dict[str, Any]:
        return {split: {"chance": {"accuracy": 100 / len(CAPTIONS)}} for split in ("validation", "test")}


def draw(caption: np.ndarray, noise: float, generator: np.random.Generator) -> np.ndarray:
    """A clip (4, 3, 16, 16) of what the caption says, at a place drawn at random."""
    clip = noise * generator.standard_normal((FRAMES, 3, SIDE, SIDE)).astype(np.float32)
    colour, size, move = COLOURS[caption[1] - 1], SIZES[caption[2] - 7], np.array(MOVES[caption[3] - 9])
    way = STEP * (FRAMES - 1) * move
    first = generator.integers(np.maximum(0, -way), SIDE - size - np.maximum(0, way) + 1)
    for number, frame in enumerate(clip):
        y, x = first + STEP * number * move
        frame[:, y : y + size, x : x + size] += colour[:, None, None]
    return clip


def own_losses(frames: Tensor, captions: Tensor) -> dict[str, Tensor]:
    """frames (B, 4, D) of the clips; captions (B, B, D), normalised, caption k as X-CLIP adapts it to clip b -> two contrastive losses."""
    frames = F.normalize(frames, dim=-1)
    right = torch.arange(len(frames), device=frames.device)
    to_captions = torch.einsum("bfd,bkd->bfk", frames, captions) / TEMPERATURE
    first, second = (F.normalize(half.mean(1), dim=-1) for half in (frames[:, ::2], frames[:, 1::2]))
    return {
        "frames": F.cross_entropy(to_captions.flatten(0, 1), right.repeat_interleave(frames.shape[1])),  # each frame finds its caption
        "halves": F.cross_entropy(first @ second.T / TEMPERATURE, right),  # two frames of a clip find the other two
    }
