"""How much memory a graph of autograd holds, counted while it is built."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Sequence

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class GraphBytes:
    """Bytes of the tensors that the operators inside `counting` kept for their derivatives, each memory once.

    Args:
        beside: tensors that are there anyway, such as data and frozen weights, and don't count.
    """

    def __init__(self, beside: Sequence[Tensor] = ()):
        self.beside = {x.untyped_storage().data_ptr() for x in beside}
        self.storages: dict[int, int] = {}

    @property
    def total(self) -> int:
        return sum(self.storages.values())

    @contextmanager
    def counting(self) -> Iterator[None]:
        """As long as the graph lives no memory is reused, so an address stands for one."""
        with saved_tensors_hooks(self._seen, lambda x: x):
            yield

    def _seen(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        address, num_bytes = (
            storage.data_ptr(),
            min(storage.nbytes(), x.numel() * x.element_size()),
        )  # of data in one block, its own part alone
        if address not in self.beside:
            self.storages[address] = max(num_bytes, self.storages.get(address, 0))
        return x.detach()  # x itself would hold the graph that holds it
