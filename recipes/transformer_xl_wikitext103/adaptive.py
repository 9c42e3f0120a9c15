"""Adaptive input and adaptive softmax: word vectors by cluster of frequency, shared by both.

Sources: Grave et al., https://arxiv.org/abs/1609.04309 (softmax), and Baevski and Auli,
https://arxiv.org/abs/1809.10853 (input), in the form that Transformer-XL gave them.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configuration_transformer_xl import TransformerXLConfig

__all__ = ["IGNORED", "AdaptiveEmbedding", "AdaptiveLogSoftmax"]

IGNORED = -100  # the target of a position without a loss, as in torch's cross_entropy


class AdaptiveEmbedding(nn.Module):
    """Word vectors of all clusters, in one table (`div_val` 1) or in narrowing tables.

    Vectors narrower or wider than the layers go through a projection of their cluster. The output
    layer asks this module for its weights, so that nothing is stored, saved or updated twice.
    """

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.ends = [0, *config.cutoffs, config.vocab_size]
        self.sizes = [high - low for low, high in pairwise(self.ends)]
        self.scale = config.d_model**0.5
        self.d_model = config.d_model
        if config.div_val == 1:
            shapes = [(config.vocab_size, config.d_embed)]
        else:
            shapes = [
                (size, config.d_embed // config.div_val**i) for i, size in enumerate(self.sizes)
            ]
        self.tables = nn.ModuleList(nn.Embedding(*shape) for shape in shapes)
        projected = config.div_val > 1 or config.d_embed != config.d_model
        self.projections = nn.ParameterList(
            nn.Parameter(torch.empty(config.d_model, width)) for _, width in shapes if projected
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return word vectors (*, d_model), scaled by the root of their width."""
        if len(self.tables) == 1:
            vectors = self.tables[0](input_ids)
            if len(self.projections):
                vectors = functional.linear(vectors, self.projections[0])
            return vectors * self.scale
        flat = input_ids.flatten()
        vectors = self.projections[0].new_zeros(len(flat), self.d_model)
        parts = zip(pairwise(self.ends), self.tables, self.projections, strict=True)
        # A cluster without a word takes part with no row: every weight then has a gradient in
        # every process, which data-parallel training relies on.
        for (low, high), table, projection in parts:
            rows = ((flat >= low) & (flat < high)).nonzero().squeeze(1)
            part = functional.linear(table(flat[rows] - low), projection)
            vectors = vectors.index_copy(0, rows, part.to(vectors.dtype))
        return vectors.view(*input_ids.shape, self.d_model) * self.scale

    def cluster_weights(self) -> tuple[Tensor, ...]:
        """Return the word vectors of each cluster, (words, width)."""
        if len(self.tables) == 1:
            # One split has one gradient of the table's size; a slice a cluster would have one each.
            return self.tables[0].weight.split(self.sizes)
        return tuple(table.weight for table in self.tables)


class AdaptiveLogSoftmax(nn.Module):
    """Log-probabilities of words: of frequent words and clusters first, then within a cluster.

    The head decides among the first cluster's words and the other clusters. Where the embedding
    projects, the head has a projection of its own and the tails share the embedding's.
    """

    def __init__(self, config: TransformerXLConfig, embedding: AdaptiveEmbedding) -> None:
        super().__init__()
        self.ends = embedding.ends
        self.sizes = embedding.sizes
        clusters = len(config.cutoffs)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        if clusters:
            self.cluster_weight = nn.Parameter(torch.empty(clusters, config.d_embed))
            self.cluster_bias = nn.Parameter(torch.empty(clusters))
        if len(embedding.projections):
            self.head_projection = nn.Parameter(torch.empty(config.d_model, config.d_embed))

    def forward(self, hidden: Tensor, targets: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """Return the negative log-likelihood (*) of targets (*) after hidden states (*, d_model).

        Where the target is `IGNORED` it is 0.
        """
        shape, hidden, targets = targets.shape, hidden.flatten(0, -2), targets.flatten()
        weights, biases = embedding.cluster_weights(), self.bias.split(self.sizes)
        # The cluster of a word: how many cutoffs it has reached.
        cluster = sum((targets >= end for end in self.ends[1:-1]), torch.zeros_like(targets))
        head_targets = torch.where(cluster > 0, self.ends[1] + cluster - 1, targets)
        logits = self._head_logits(hidden, weights[0], biases[0])
        nll = functional.cross_entropy(logits, head_targets, reduction="none", ignore_index=IGNORED)
        for i in range(1, len(self.sizes)):
            rows = (cluster == i).nonzero().squeeze(1)
            logits = self._tail_logits(hidden[rows], i, weights[i], biases[i], embedding)
            tail = functional.cross_entropy(logits, targets[rows] - self.ends[i], reduction="none")
            nll = nll.index_add(0, rows, tail.to(nll.dtype))
        return nll.view(shape)

    def log_prob(self, hidden: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """Return the log-probability of every word, (*, vocab_size)."""
        weights, biases = embedding.cluster_weights(), self.bias.split(self.sizes)
        head = functional.log_softmax(self._head_logits(hidden, weights[0], biases[0]), dim=-1)
        parts = [head[..., : self.sizes[0]]]
        for i in range(1, len(self.sizes)):
            logits = self._tail_logits(hidden, i, weights[i], biases[i], embedding)
            own = head[..., self.sizes[0] + i - 1, None]
            parts.append(functional.log_softmax(logits, dim=-1) + own)
        return torch.cat(parts, dim=-1)

    def _head_logits(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if len(self.sizes) > 1:
            weight = torch.cat((weight, self.cluster_weight))
            bias = torch.cat((bias, self.cluster_bias))
        if hasattr(self, "head_projection"):
            hidden = hidden @ self.head_projection
        return functional.linear(hidden, weight, bias)

    @staticmethod
    def _tail_logits(
        hidden: Tensor, index: int, weight: Tensor, bias: Tensor, embedding: AdaptiveEmbedding
    ) -> Tensor:
        if len(embedding.projections):
            shared = embedding.projections[min(index, len(embedding.projections) - 1)]
            hidden = hidden @ shared
        return functional.linear(hidden, weight, bias)
