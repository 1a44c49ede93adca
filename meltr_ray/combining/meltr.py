"""The meta loss transformer: g_phi, the vector of losses (T,) -> one training loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr_ray.combining.inputs import INPUTS
from meltr_ray.errors import check, check_choice
from meltr_ray.hypergrad.arguments import check_count, check_number


class MELTR(nn.Module):
    """The meta loss transformer (arXiv 2303.13009, section 3.2): one token a loss, one layer, mean over the tokens.

    A token is the loss value through a two-layer perceptron plus an embedding of which loss it is; parameter names are
    those of the published code. Differs from it in three ways. `near_sum` adds the plain sum of losses to the output and
    starts the last layer at zero, so that training starts as with uniform weights; `near_sum=False` is the published form.
    `inputs` other than `raw` keep large values from saturating the layer norm, behind which a token no longer changes with its loss.
    Dropout is 0 unless asked for. Attention always takes the kernel that admits a second derivative.

    Args:
        num_losses: T.
        embedding_size, loss_encoder_size, feed_forward_size: 256, 128 and 512 as published.
        inputs: one of INPUTS: loss values as they are (published), their logarithm, or over an exponential mean of theirs.
    """

    NUM_HEADS = 8

    def __init__(self, num_losses: int, embedding_size: int = 256, loss_encoder_size: int = 128,
                 feed_forward_size: int = 512, dropout: float = 0.0, near_sum: bool = True,
                 inputs: str = "raw"):  # fmt: skip
        super().__init__()
        for name, value in dict(num_losses=num_losses, embedding_size=embedding_size, loss_encoder_size=loss_encoder_size,
                                feed_forward_size=feed_forward_size).items():  # fmt: skip
            check_count(name, value)
        check(
            embedding_size % self.NUM_HEADS == 0, "embedding_size", embedding_size, f"is no multiple of {self.NUM_HEADS} heads; change it"
        )
        check_number("dropout", dropout, high=0.99)
        check_choice("inputs", inputs, tuple(INPUTS))
        self.task_embedding = nn.Embedding(num_losses, embedding_size)
        self.loss_fc1 = nn.Linear(1, loss_encoder_size)
        self.loss_fc2 = nn.Linear(loss_encoder_size, embedding_size)
        self.encoder = nn.TransformerEncoderLayer(embedding_size, self.NUM_HEADS, feed_forward_size, dropout, batch_first=True)
        self.fc1 = nn.Linear(embedding_size, 1, bias=False)
        self.near_sum, self.inputs = near_sum, INPUTS[inputs](num_losses)
        if near_sum:
            nn.init.zeros_(self.fc1.weight)

    def forward(self, losses: Tensor) -> Tensor:
        """losses (T,) -> scalar.

        Raises:
            ValueError: another number of losses than it is made for.
        """
        if losses.shape != self.task_embedding.weight.shape[:1]:
            raise ValueError(f"losses: shape {tuple(losses.shape)}, where this combiner is made for num_losses={len(self.task_embedding.weight)}; "
                             "give as many, or make it for these")  # fmt: skip
        values = self.loss_fc2(torch.relu(self.loss_fc1(self.inputs(losses).unsqueeze(-1))))  # (T, E)
        tokens = (values + self.task_embedding.weight).unsqueeze(0)  # (1, T, E)
        with sdpa_kernel(SDPBackend.MATH):
            encoded = self.encoder(tokens)
        combined = self.fc1(encoded.mean(1)).squeeze()
        return losses.sum() + combined if self.near_sum else combined
