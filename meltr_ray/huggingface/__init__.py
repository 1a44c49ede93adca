"""Any model of transformers that returns several losses, as a workload (docs/huggingface.md). `pip install meltr-ray[huggingface]`."""

from meltr_ray.huggingface.special import Special
from meltr_ray.huggingface.workload import HuggingFace

__all__ = ["HuggingFace", "Special"]
