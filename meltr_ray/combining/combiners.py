"""g_phi: the vector of losses (T,) -> one training loss. MELTR, and fixed weights as its baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr_ray.config import CombinerConfig


def slopes(combiner: nn.Module, losses: Tensor) -> tuple[Tensor, Tensor]:
    """(g_phi(l), a) with a = d_l g_phi(l), (T,), both detached: all that an inner step on w needs to know of phi."""
    l = losses.detach().requires_grad_()
    with torch.enable_grad():
        value = combiner(l)
        (a,) = torch.autograd.grad(value, l)
    return value.detach(), a


class MELTR(nn.Module):
    """The meta loss transformer (arXiv 2303.13009, section 3.2): one token a loss, one layer, mean over the tokens.

    A token is the loss value through a two-layer perceptron plus an embedding of which loss it is; parameter names are
    those of the published code. Differs from it in three ways. `near_sum` adds the plain sum of losses to the output and
    starts the last layer at zero, so that training starts as with uniform weights; `near_sum=False` is the published form.
    Dropout is 0 unless asked for, and then one mask holds for a whole meta step (`mask_seed`), so that every pass of it
    sees the same g_phi. Attention always takes the kernel that admits a second derivative.

    Args:
        num_losses: T.
        embedding_size, loss_encoder_size, feed_forward_size: 256, 128 and 512 as published.
    """

    NUM_HEADS = 8

    def __init__(self, num_losses: int, embedding_size: int = 256, loss_encoder_size: int = 128,
                 feed_forward_size: int = 512, dropout: float = 0.0, near_sum: bool = True):  # fmt: skip
        super().__init__()
        self.task_embedding = nn.Embedding(num_losses, embedding_size)
        self.loss_fc1 = nn.Linear(1, loss_encoder_size)
        self.loss_fc2 = nn.Linear(loss_encoder_size, embedding_size)
        self.encoder = nn.TransformerEncoderLayer(embedding_size, self.NUM_HEADS, feed_forward_size, dropout, batch_first=True)
        self.fc1 = nn.Linear(embedding_size, 1, bias=False)
        self.near_sum, self.dropout, self.mask_seed = near_sum, dropout, 0
        if near_sum:
            nn.init.zeros_(self.fc1.weight)

    def forward(self, losses: Tensor) -> Tensor:
        """losses (T,) -> scalar."""
        values = self.loss_fc2(torch.relu(self.loss_fc1(losses.unsqueeze(-1))))  # (T, E)
        tokens = (values + self.task_embedding.weight).unsqueeze(0)  # (1, T, E)
        with torch.random.fork_rng(enabled=self.dropout > 0), sdpa_kernel(SDPBackend.MATH):
            if self.dropout > 0:
                torch.manual_seed(self.mask_seed)
            encoded = self.encoder(tokens)
        combined = self.fc1(encoded.mean(1)).squeeze()
        return losses.sum() + combined if self.near_sum else combined


class FixedWeights(nn.Module):
    """g(l) = sum_t weights_t l_t; nothing to learn. The baseline."""

    def __init__(self, weights: list[float]):
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, losses: Tensor) -> Tensor:
        return self.weights.to(losses.dtype) @ losses


class NonNegativeSlopes(nn.Module):
    """A combiner whose negative slopes are cut to zero: a loss that it would raise counts as a constant at this w.

    Training and hypergradient see the same function of the other losses, so its Hessian stays symmetric.
    """

    def __init__(self, combiner: nn.Module):
        super().__init__()
        self.combiner = combiner

    def forward(self, losses: Tensor) -> Tensor:
        _, a = slopes(self.combiner, losses)
        return self.combiner(torch.where(a < 0, losses.detach(), losses))


def make_combiner(config: CombinerConfig, loss_set: list[str], primary: str) -> nn.Module:
    """The combiner that `config` names, for the losses in `loss_set`."""
    if config.name == "meltr":
        combiner = MELTR(len(loss_set), config.embedding_size, config.loss_encoder_size, config.feed_forward_size,
                         config.dropout, near_sum=config.mode == "near_sum")  # fmt: skip
        return NonNegativeSlopes(combiner) if config.slopes == "non_negative" else combiner
    if config.weights == "uniform":
        return FixedWeights([1.0] * len(loss_set))
    if config.weights == "primary":
        return FixedWeights([float(name == primary) for name in loss_set])
    return FixedWeights([float(weight) for weight in config.weights])
