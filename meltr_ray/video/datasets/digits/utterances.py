"""What somebody says before the clip, and the sentiment in [-3, 3] that then comes: neither words nor picture alone tell it.

Two attitudes are stated, one to warm colours and one to cold ones, mostly of opposite signs; the score is their mean over the
digits of the clip. Most speakers like warm ones better, so the picture alone tells something, and so do the words; their product
tells the rest.
"""

from __future__ import annotations

import numpy as np

from meltr_ray.video.datasets.digits.scene import Digit

WARM = ("red", "orange", "yellow", "purple")
"""The other colours are cold, white among them."""
ATTITUDES = {
    3: ("i really love {}", "i utterly enjoy {}"),
    2: ("i love {}", "i enjoy {}"),
    1: ("i love {} a bit", "i enjoy {} a bit"),
    0: ("i do not mind {}",),
    -1: ("i hate {} a bit", "{} bore me a bit"),
    -2: ("i do not love {}", "i do not enjoy {}", "i hate {}", "{} bore me"),
    -3: ("i really hate {}", "{} utterly bore me"),
}
"""Score -> how it is said of something."""
OPPOSITE, NEUTRAL, LIKES_WARM = 0.75, 0.05, 0.8
"""Probability that the two scores are of opposite signs, that one is 0, and that warm colours have the higher one."""


def utter(digits: list[Digit], random: np.random.Generator) -> tuple[str, float]:
    """What is said, and its score for these digits."""
    warm, cold = draw_scores(random)
    said = [str(random.choice(ATTITUDES[score])).format(f"{what} colours") for score, what in ((warm, "warm"), (cold, "cold"))]
    transcript = (" but " if warm * cold < 0 else " and ").join(random.permutation(said))
    return transcript, float(np.mean([warm if digit.colour in WARM else cold for digit in digits]))


def draw_scores(random: np.random.Generator) -> tuple[int, int]:
    """Of warm and of cold colours."""
    sign = random.choice((-1, 1))
    signs = np.array([sign, -sign if random.random() < OPPOSITE else sign])
    low, high = sorted((signs * random.integers(1, 4, 2) * (random.random(2) >= NEUTRAL)).tolist())
    return (high, low) if random.random() < LIKES_WARM else (low, high)
