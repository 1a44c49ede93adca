"""What autograd's graph of a value says: which tensors it reaches, and whether it is the graph that was tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable

from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """Nodes of a graph in the order of a walk from its values.

    Args:
        signature: hash of the names of the nodes; a detach, a custom Function or another branch changes it.
        leaves: tensors that require a gradient and that the values depend on.
        hidden: whether a node runs a backward pass of its own (reentrant checkpointing), so that leaves may be missing.
    """

    signature: int
    leaves: tuple[Tensor, ...]
    hidden: bool


def graph_of(values: Iterable[Tensor]) -> Graph:
    """The graph of `values`; nothing is kept of it, so it can be freed. About a microsecond a node."""
    stack = [value.grad_fn if value.grad_fn is not None else value for value in values if value.requires_grad]
    seen, names, leaves = set(), [], []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, Tensor):
            leaves.append(node)
            continue
        names.append(node.name())
        if hasattr(node, "variable"):
            leaves.append(node.variable)
            continue
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return Graph(hash(tuple(names)), tuple(leaves), any("CheckpointFunction" in name for name in names))
