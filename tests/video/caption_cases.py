"""Captions for the tests of captioning metrics, and what pycocoevalcap 1.2 gave for them with Java 17: not our own numbers."""

from __future__ import annotations

PREDICTIONS = {
    "cook": "A man is cooking pasta in the kitchen, and he doesn't talk.",
    "dogs": "dogs ran quickly across the green grass",
    "band": "a band is performing on stage in front of a lot of people",
    "same": "a woman is applying make-up",
    "none": "",
    "emoji": "😀 café ☺ naïve \u2028 a man ||| talks\nabout “cars” (red) t-shirt",
    "word": "man",
    "order": "the ball kicks the boy the dog the cat",
}
REFERENCES = {
    "cook": ["a guy prepares noodles in a kitchen", "a man doesn't speak while he cooks", "someone is making pasta"],
    "dogs": ["a dog is running over a lawn", "two puppies run fast in the grass"],
    "band": ["a rock group plays in front of many people", "musicians perform music on a stage before a large crowd"],
    "same": ["a woman is applying make-up", "a lady puts on cosmetics"],
    "none": ["a man is talking", "a person speaks"],
    "emoji": ["a man speaks about red cars in a café", "naïve man in a tee shirt"],
    "word": ["a man", "the boy's father is not here; he can't come"],
    "order": ["the boy kicks the ball to the dog and the cat", "the cat and the dog look at the boy"],
}
CORPUS = {
    "bleu_1": 0.6507936507833207,
    "bleu_2": 0.4033589129955168,
    "bleu_3": 0.23522912926205006,
    "bleu_4": 0.15595979494863751,
    "meteor": 0.329385982835418,
    "rouge_l": 0.47740589984441534,
    "cider": 1.3666730757370036,
}
PER_VIDEO = {
    "bleu_4": [
        5.6910028796230735e-09, 1.2421889947162098e-12, 3.107425138279266e-05, 0.9999999994791672,
        0.0, 3.8233014075451295e-09, 1.163336936997511e-05, 1.1044795564345139e-08,
    ],
    "meteor": [
        0.35094097617966774, 0.22789034900186422, 0.2520002569005835, 1.0,
        0.0, 0.32507396924149223, 0.31168831168831174, 0.4282308834827498,
    ],
    "rouge_l": [
        0.39804241435562804, 0.2857142857142857, 0.4699537750385208, 1.0,
        0.0, 0.3490701001430615, 0.6288659793814433, 0.6876006441223833,
    ],
    "cider": [
        0.435829536748183, 0.26525312402439283, 0.8580494452834067, 5.001587973966343,
        0.0, 0.39618444526005736, 1.2105013807221185, 2.765978699891527,
    ],
}  # fmt: skip
"""In the order of PREDICTIONS."""
