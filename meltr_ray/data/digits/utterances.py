"""What somebody says before the clip, and the sentiment in [-3, 3] of what then comes: neither words nor picture alone tell it.

Two attitudes are stated, one to a property that some digit of the clip has and one to a property that none has. The score is
that of the first kind. Both scores are drawn without a look at the clip and put in any order, so the words leave two scores open,
mostly of opposite signs, and the picture leaves all.
"""

from __future__ import annotations

import numpy as np

from meltr_ray.data.digits.properties import VALUES, sizes_are_clear, values
from meltr_ray.data.digits.scene import Digit

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
OPPOSITE, NEUTRAL = 0.75, 0.05
"""Probability that the two scores are of opposite signs, and that a score is 0."""
SPOKEN_OF = {"colour": "{} digits", "size": "{} digits"}
"""Kind of property -> how things that have it are called."""


def utter(digits: list[Digit], random: np.random.Generator) -> tuple[str, float]:
    """What is said, and its score for these digits."""
    there, absent = properties(digits, random)
    score, other = draw_scores(random)
    said = [str(random.choice(ATTITUDES[value])).format(of) for value, of in ((score, there), (other, absent))]
    return (" but " if score * other < 0 else " and ").join(random.permutation(said)), float(score)


def properties(digits: list[Digit], random: np.random.Generator) -> tuple[str, str]:
    """What some digit is, and what none of them is, of the same kind."""
    found = {}
    for kind in SPOKEN_OF:
        present = sorted(set(values(digits, kind)))
        absent = [value for value in VALUES[kind] if value not in present]
        if present and absent and (kind != "size" or sizes_are_clear(digits)):
            found[kind] = present, absent
    kind = str(random.choice(list(found)))
    there, absent = (str(random.choice(some)) for some in found[kind])
    return SPOKEN_OF[kind].format(there), SPOKEN_OF[kind].format(absent)


def draw_scores(random: np.random.Generator) -> tuple[int, int]:
    """Two scores of which either may be true with the same probability."""
    sign = random.choice((-1, 1))
    signs = np.array([sign, -sign if random.random() < OPPOSITE else sign])
    scores = signs * random.integers(1, 4, 2) * (random.random(2) >= NEUTRAL)
    return int(scores[0]), int(scores[1])
