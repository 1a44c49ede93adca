"""What the driver tries before any trial starts: one batch, its losses, their gradients, one evaluation.

Every fault of a workload that would end a trial, or be silently wrong in it, is one line here.
"""

from meltr_ray.training.rehearsal.driver import check_all

__all__ = ["check_all"]
