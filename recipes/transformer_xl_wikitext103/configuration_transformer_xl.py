"""The size and the memory of a Transformer-XL, as a Transformers configuration."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from transformers import PretrainedConfig

__all__ = ["TransformerXLConfig"]


class TransformerXLConfig(PretrainedConfig):
    """Configuration of a Transformer-XL language model; the defaults are the base model's.

    Words are numbered from the most frequent to the rarest, because `cutoffs` cut the vocabulary
    into clusters of falling frequency. Input and output share their word vectors.

    Args:
        vocab_size: number of words. Default: 267,735, WikiText-103's.
        cutoffs: first word of each cluster but the first, rising, all below `vocab_size`; empty for
            an ordinary softmax. Default: (20000, 40000, 200000).
        div_val: word vectors of cluster i have `d_embed // div_val**i` elements. Default: 1.
        d_model: width of the layers, even. Default: 410.
        d_embed: width of the first cluster's word vectors; None is `d_model`. Default: None.
        n_layer, n_head, d_head, d_inner: number of layers and heads, width of a head and of the
            feed-forward layer. Default: 16, 10, 41, 2100.
        dropout, dropatt: dropout of activations, and of attention, in [0, 1). Default: 0.1, 0.
        mem_len: positions of each layer kept for the next segment, >= 0. Default: 150.
        same_length: whether every word sees the same number of positions, `mem_len` with itself,
            rather than all of the memory and its own segment. Default: False.
        clamp_len: largest distance told from the larger ones; -1 tells all. Default: -1.
        weight_norm: whether the linear layers learn a direction and a gain a row. Default: False.
        init_std, proj_init_std: standard deviation of the initial weights, and of the projections
            between `d_embed` and `d_model`. Default: 0.02, 0.01.
        layer_norm_epsilon: Default: 1e-5.
        vocab_sha256: what the vocabulary hashes to, to recognise another one; None does not check.
        **kwargs: as in `PretrainedConfig`.

    Raises:
        ValueError: a value is out of range.

    Source: Dai et al., https://arxiv.org/abs/1901.02860; the defaults are those of
    `run_wt103_base.sh` in https://github.com/kimiyoung/transformer-xl.
    """

    model_type = "transformer-xl"
    attribute_map = {  # noqa: RUF012  as every configuration of Transformers has it
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 267735,
        cutoffs: Sequence[int] = (20000, 40000, 200000),
        div_val: int = 1,
        d_model: int = 410,
        d_embed: int | None = None,
        n_layer: int = 16,
        n_head: int = 10,
        d_head: int = 41,
        d_inner: int = 2100,
        dropout: float = 0.1,
        dropatt: float = 0.0,
        mem_len: int = 150,
        same_length: bool = False,
        clamp_len: int = -1,
        weight_norm: bool = False,
        init_std: float = 0.02,
        proj_init_std: float = 0.01,
        layer_norm_epsilon: float = 1e-5,
        vocab_sha256: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.cutoffs = list(cutoffs)
        self.div_val = div_val
        self.d_model = d_model
        self.d_embed = d_model if d_embed is None else d_embed
        self.n_layer = n_layer
        self.n_head = n_head
        self.d_head = d_head
        self.d_inner = d_inner
        self.dropout = dropout
        self.dropatt = dropatt
        self.mem_len = mem_len
        self.same_length = same_length
        self.clamp_len = clamp_len
        self.weight_norm = weight_norm
        self.init_std = init_std
        self.proj_init_std = proj_init_std
        self.layer_norm_epsilon = layer_norm_epsilon
        self.vocab_sha256 = vocab_sha256
        self._check()
        super().__init__(**{"eos_token_id": 0, "bos_token_id": 0, **kwargs})

    def _check(self) -> None:
        """Refuse what the model cannot be built from."""
        sizes = ("vocab_size", "div_val", "d_model", "d_embed", "n_layer", "n_head", "d_head")
        for name in (*sizes, "d_inner"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1.")
        if self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even: half sines, half cosines.")
        for name in ("dropout", "dropatt"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1).")
        ends = [0, *self.cutoffs, self.vocab_size]
        if any(low >= high for low, high in pairwise(ends)):
            raise ValueError(
                f"cutoffs={self.cutoffs} must rise from above 0 to below vocab_size="
                f"{self.vocab_size}; choose others for this vocabulary."
            )
        if self.d_embed // self.div_val ** len(self.cutoffs) < 1:
            raise ValueError(
                f"div_val={self.div_val} leaves the last of {len(self.cutoffs) + 1} clusters no "
                f"element of d_embed={self.d_embed}; lower div_val or raise d_embed."
            )
        check_memory(self.mem_len, self.same_length, self.clamp_len)


def check_memory(mem_len: int, same_length: bool, clamp_len: int) -> None:
    """Refuse a memory that leaves a word nothing to look at, or has no meaning."""
    if mem_len < 0:
        raise ValueError(f"mem_len={mem_len} must be >= 0.")
    if same_length and mem_len < 1:
        raise ValueError(
            f"mem_len={mem_len} with same_length=True lets no word see even itself; use mem_len "
            ">= 1, or same_length=False."
        )
    if clamp_len < -1 or clamp_len == 0:
        raise ValueError(f"clamp_len={clamp_len} must be -1, for no limit, or >= 1.")
