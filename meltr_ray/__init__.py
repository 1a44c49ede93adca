"""Learning how to combine losses: MELTR's meta-loss and its hypergradient, trained and swept on Ray.

`from meltr_ray import MELTR, hypergradient` works with any torch module that returns several losses, and imports neither
Ray nor DeepSpeed.
"""

from meltr_ray.combining.combiners import MELTR, FixedWeights, slopes
from meltr_ray.hypergrad import BilevelProblem, ModuleProblem, hypergradient, unrolled_hypergradient

__all__ = ["MELTR", "BilevelProblem", "FixedWeights", "ModuleProblem", "hypergradient", "slopes", "unrolled_hypergradient"]
