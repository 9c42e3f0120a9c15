"""Attention by content and by relative position (Dai et al., https://arxiv.org/abs/1901.02860).

Section 3.3 of the paper has the score in four terms: (a) content by content, (b) content by
distance, and the same of a bias that all positions share, (c) and (d).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configuration_transformer_xl import TransformerXLConfig

__all__ = ["RelativeAttention", "by_position"]


class RelativeAttention(nn.Module):
    """Multi-head attention in which a score depends on content and on distance."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.n_head, self.d_head = config.n_head, config.d_head
        width = config.n_head * config.d_head
        self.qkv_net = nn.Linear(config.d_model, 3 * width, bias=False)
        self.r_net = nn.Linear(config.d_model, width, bias=False)
        self.o_net = nn.Linear(width, config.d_model, bias=False)
        self.dropatt = config.dropatt
        self.dropout = nn.Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self,
        hidden: Tensor,
        past: Tensor,
        distances: Tensor,
        biases: tuple[Tensor, Tensor],
        hidden_from: Tensor,
    ) -> Tensor:
        """Attend from hidden (B, T, d) to past (B, M, d) and hidden; K = M + T.

        `distances` (K+1, d) encode K-1 down to -1, `biases` are u and v of the paper (H, D), and
        `hidden_from` (T, K) is True where a position may not be seen.
        """
        batch, length, _ = hidden.shape
        width = self.n_head * self.d_head
        content_bias, distance_bias = biases
        # Only the segment asks; the memory is only asked.
        weight = self.qkv_net.weight
        query = functional.linear(hidden, weight[:width])
        context = functional.linear(torch.cat((past, hidden), dim=1), weight[width:])
        query = query.view(batch, length, self.n_head, self.d_head)
        key, value = context.view(batch, -1, 2, self.n_head, self.d_head).permute(2, 0, 3, 1, 4)
        relative = self.r_net(distances).view(-1, self.n_head, self.d_head).permute(1, 2, 0)
        by_distance = ((query + distance_bias) * self.d_head**-0.5).transpose(1, 2) @ relative
        # Terms (b) and (d) enter as an additive mask; the fused operator computes (a) and (c).
        mask = by_position(by_distance).masked_fill(hidden_from, -torch.inf)
        attended = functional.scaled_dot_product_attention(
            (query + content_bias).transpose(1, 2).to(value.dtype),
            key,
            value,
            attn_mask=mask.to(value.dtype),
            dropout_p=self.dropatt if self.training else 0.0,
        )
        output = self.o_net(attended.transpose(1, 2).reshape(batch, length, width))
        return self.layer_norm(hidden + self.dropout(output))


def by_position(by_distance: Tensor) -> Tensor:
    """Turn scores by distance (*, T, K+1) into scores by position (*, T, K), without a copy.

    Column j of the input belongs to distance K-1-j, so that row i has the score of position p in
    column p + T-1-i. Row by row in memory that is i·(K+1) + p + T-1-i = (T-1) + i·K + p: the rows
    of the result are K elements long and follow each other from element T-1 on. What row i
    shows of positions after its own belongs to other rows, and has to be masked.
    """
    *outer, length, columns = by_distance.shape
    flat = by_distance.reshape(*outer, length * columns)
    size = length * (columns - 1)
    return flat.narrow(-1, length - 1, size).view(*outer, length, columns - 1)
