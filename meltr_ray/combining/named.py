"""Ways to combine losses by the names that settings give them; a new one is a line here."""

from __future__ import annotations

from meltr_ray.combining import from_gramian, scalarized
from meltr_ray.combining.ahead import MeltrAhead, MeltrGated
from meltr_ray.combining.aligned import Aligned
from meltr_ray.combining.fixed import Fixed
from meltr_ray.combining.learned import Meltr, Own
from meltr_ray.combining.look_ahead import LookAhead
from meltr_ray.combining.tryout import Tryout
from meltr_ray.combining.uw_so import SoftOptimal
from meltr_ray.combining.way import Way

LEARNED: dict[str, type[Way]] = {
    "meltr": Meltr,
    "own": Own,
    "aligned": Aligned,
    "tryout": Tryout,
    "look_ahead": LookAhead,
    "meltr_ahead": MeltrAhead,
    "meltr_gated": MeltrGated,
}
"""By what they do to the primary loss of meta batches."""
OF_LOSSES: dict[str, type[Way]] = {
    "uncertainty": scalarized.Uncertainty, "uw_so": SoftOptimal, "dwa": scalarized.DynamicWeightAverage, "rlw": scalarized.RandomWeights,
    "imtl_l": scalarized.ImtlL, "stch": scalarized.SmoothTchebycheff, "famo": scalarized.Famo, "geometric_mean": scalarized.GeometricMean,
}  # fmt: skip
"""From the losses' values alone."""
OF_GRAMIAN: dict[str, type[Way]] = {
    "pcgrad": from_gramian.PCGrad, "cagrad": from_gramian.CAGrad, "mgda": from_gramian.MGDA, "aligned_mtl": from_gramian.AlignedMTL,
    "imtl_g": from_gramian.ImtlG, "upgrad": from_gramian.UPGrad, "dualproj": from_gramian.DualProj, "gradvac": from_gramian.GradVac,
    "fairgrad": from_gramian.FairGrad, "pcd": from_gramian.PCD, "cosine_gate": from_gramian.CosineGate,
}  # fmt: skip
"""From how their gradients stand to each other."""
WAYS: dict[str, type[Way]] = {"fixed": Fixed} | LEARNED | OF_LOSSES | OF_GRAMIAN
"""Name in `combiner.name` -> way."""
