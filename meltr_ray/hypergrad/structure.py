"""Who is w, who is phi, and what depends on what: what a hypergradient asks of what it is given, one line for each fault."""

from __future__ import annotations

import math
from typing import Any, Iterable, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.graph import Graph, graph_of
from meltr_ray.hypergrad.vectors import Vector

LEAST_SQUARE = 1e6
"""Of a gradient's length, in the least numbers of the type that have all digits: below it the squares of single entries are lost."""


class InvalidLosses(ValueError):
    """Losses or slopes that no hypergradient can be taken of: one line that names them and the mend."""


def check_vector_of_losses(l: Any, count: int) -> Tensor:
    """What `losses` gave is a vector of numbers; `count`: of them before, 0 if this is the first."""
    if not isinstance(l, Tensor):
        raise ValueError(f"losses: a {type(l).__name__}; return one tensor (T,), torch.stack of the losses")
    if l.dim() != 1:
        raise ValueError(f"losses: shape {tuple(l.shape)}; return one vector (T,) with a number for each loss")
    if len(l) == 0:
        raise ValueError("losses: none of them; return one vector (T,) with a number for each loss")
    if not l.is_floating_point():
        raise ValueError(f"losses: {_name(l.dtype)}; return real numbers of floating point")
    if count and len(l) != count:
        raise ValueError(f"losses: {len(l)} of them, {count} before; return the same losses of the same batch in every pass")
    return l


def check_scalar(name: str, value: Any) -> Tensor:
    """What a pass that gives one loss gave."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: a {type(value).__name__}; return one number, a tensor without dimensions")
    if value.numel() != 1:
        raise ValueError(f"{name}: shape {tuple(value.shape)}; return one number, such as the mean")
    if not math.isfinite(value.item()):
        raise InvalidLosses(f"{name}: it is {value.item()}; lower the learning rate, or mend that loss")
    return value


def check_values(l: Tensor) -> None:
    """All losses (M, T) are finite."""
    finite = l.isfinite()
    if not finite.all():
        row, loss = (~finite).nonzero()[0].tolist()
        raise InvalidLosses(f"losses: loss {loss} is {l[row, loss].item()}; lower the learning rate, or mend that loss")


def check_finite(name: str, tensors: Sequence[Tensor], mend: str) -> None:
    """No entry is NaN or infinite; one wait for the device where all is well."""
    if not tensors or math.isfinite(sum(torch.stack(torch._foreach_norm(list(tensors))).tolist())):
        return
    if not all(x.isfinite().all() for x in tensors):  # else only the norm has overflowed
        raise InvalidLosses(f"{name} not finite; {mend}")


def check_length(name: str, gradient: Vector) -> None:
    """Its square is a number of its type: neither 0 of what isn't, nor infinite. All products are scaled by the length."""
    kind = torch.finfo(gradient.pieces[0].dtype)
    square = gradient @ gradient
    if LEAST_SQUARE * kind.tiny < square < kind.max or not any(piece.any() for piece in gradient.pieces):
        return
    size, mend = ("large", "divide") if square > 1 else ("small", "multiply")
    raise InvalidLosses(
        f"{name}: its gradient is so {size} that {_name(gradient.pieces[0].dtype)} has no number for its square; {mend} that loss by a constant"
    )


def check_reach(name: str, values: Iterable[Tensor], module: nn.Module, w: Sequence[Tensor], phi: Sequence[Tensor] = (),
                beside: Sequence[Tensor] = ()) -> Graph:  # fmt: skip
    """`values` depend on w, and on no trained weights that aren't in it. A model's copy has weights of its own.

    Args:
        phi: tensors that `values` must not depend on.
        beside: tensors that they may depend on, beside w.

    Raises:
        ValueError: they reach none of w, a parameter that isn't in `module`, a copy of a weight, or phi.
    """
    graph = graph_of(values)
    weights, outer = {id(p) for p in w}, {id(p) for p in phi}
    foreign = [leaf for leaf in graph.leaves if id(leaf) not in weights]
    if not graph.hidden and len(foreign) == len(graph.leaves):
        raise ValueError(f"{name}: it doesn't depend on the module's weights; compute it with this module, not with a copy or another one")
    own = {id(p) for p in beside}
    named = {id(p): n for n, p in module.named_parameters()} if foreign else {}
    for leaf in foreign:
        if id(leaf) in outer:
            raise ValueError(f"{name}: it depends on the combiner's parameters, which enter through its slopes alone; use BilevelProblem")
        if id(leaf) in own:
            continue
        if id(leaf) in named:
            raise ValueError(f"{name}: {named[id(leaf)]} was frozen when the problem was made, and isn't now; make another problem")
        copied = [
            n for n, p in module.named_parameters() if p.shape == leaf.shape and leaf.numel() > 1 and torch.equal(p.detach(), leaf.detach())
        ]
        if isinstance(leaf, nn.Parameter) or copied:
            what = f"a copy of {copied[0]}" if copied else f"a parameter of shape {tuple(leaf.shape)} that isn't in the module"
            raise ValueError(
                f"{name}: it depends on {what}; compute it with the module's own weights, give a module that holds all, or freeze it"
            )
    return graph


def tensors_of(name: str, hyperparameters: nn.Module | Tensor | Iterable[Tensor]) -> list[Tensor]:
    """phi as a list of tensors, each one a leaf that requires a gradient, but for frozen parameters of a module.

    Raises:
        ValueError: not tensors, one frozen, or one computed from others.
    """
    if isinstance(hyperparameters, nn.Module):
        return list(hyperparameters.parameters())
    if isinstance(hyperparameters, (str, dict)) or not isinstance(hyperparameters, Iterable):
        raise ValueError(f"{name}: a {type(hyperparameters).__name__}; give a module, a tensor or a list of tensors")
    phi = [hyperparameters] if isinstance(hyperparameters, Tensor) else list(hyperparameters)
    for index, p in enumerate(phi):
        if not isinstance(p, Tensor):
            raise ValueError(f"{name}: entry {index} is a {type(p).__name__}; give tensors that require a gradient")
        if p.grad_fn is not None:
            raise ValueError(
                f"{name}: entry {index} is computed from other tensors; give those that it is computed from, and compute it inside the pass"
            )
    if len(phi) > 1 and any(p.requires_grad for p in phi) and not all(p.requires_grad for p in phi):
        frozen = next(index for index, p in enumerate(phi) if not p.requires_grad)
        raise ValueError(f"{name}: entry {frozen} requires no gradient; leave it out, or call requires_grad_() on it")
    if len({id(p) for p in phi}) < len(phi):
        raise ValueError(f"{name}: one tensor stands twice; give each once")
    return phi


def check_apart(name: str, phi: Iterable[Tensor], named: Iterable[tuple[str, Tensor]]) -> None:
    """No tensor of phi is a weight, nor shares memory with one: moving w would move phi."""
    places = {_place(p): n for n, p in named if p.numel()}
    for p in phi:
        if p.numel() and _place(p) in places:
            raise ValueError(f"{name}: {places[_place(p)]} is a weight of the module, too; give the module without it, or freeze it there")


def check_combiner(combiner: Any) -> None:
    """It is a module, whose parameters are phi."""
    if isinstance(combiner, type) or not callable(combiner) or not callable(getattr(combiner, "parameters", None)):
        raise ValueError("combiner: it has no parameters(); give a torch module, whose parameters are phi")


def check_combined(combiner: Any, l: Tensor, phi: Sequence[Tensor]) -> None:
    """g_phi takes these losses and gives one number; called once for each combiner and kind of losses.

    Raises:
        InvalidLosses: of another number or type than it is made for, or with more than one number in the end.
    """
    try:
        value = combiner(l)
    except (RuntimeError, IndexError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidLosses(
            f"losses: the combiner doesn't take {len(l)} of {_name(l.dtype)} ({reason[:90]}); give as many as it is made for, in its type"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InvalidLosses("combiner: it doesn't give one number; return a tensor without dimensions")
    sizes = {len(p) for p in phi if p.dim() == 1 and len(p) > 1} if len(l) == 1 else set()
    for size in sorted(sizes):  # one loss, and perhaps a weight for each of several: a product would be broadcast
        try:
            wide = combiner(l.expand(size))
        except (RuntimeError, IndexError, ValueError):
            continue
        if isinstance(wide, Tensor) and wide.numel() == 1:
            raise InvalidLosses(f"losses: 1 of them, where the combiner takes {size}; give as many as it is made for")


def _place(p: Tensor) -> tuple[Any, ...]:
    return (p.device, p.untyped_storage().data_ptr()) if p.device.type != "meta" and p.untyped_storage().size() else (id(p),)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
