"""Transformer-XL: attention by relative position over a segment and the memory of those before.

Dai et al., "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", ACL 2019,
https://arxiv.org/abs/1901.02860.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from .adaptive import AdaptiveEmbedding, AdaptiveLogSoftmax
from .attention import RelativeAttention
from .configuration_transformer_xl import TransformerXLConfig, check_memory

__all__ = ["TransformerXLForCausalLM", "TransformerXLModel", "TransformerXLOutput", "memory"]

Memory = Sequence[Tensor]


@dataclass
class TransformerXLOutput(ModelOutput):
    """What the models return; what was not asked for is None.

    Attributes:
        loss: mean negative log-likelihood of all targets that count.
        losses: negative log-likelihood of each target, (batch, targets).
        logits: log-probability of every word, (batch, length, vocab_size); without targets only.
        last_hidden_state: output of the last layer, (batch, length, d_model).
        mems: for each layer, its inputs to be seen from the next segment, (batch, memory, d_model).
    """

    loss: Tensor | None = None
    losses: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    mems: tuple[Tensor, ...] | None = None


class TransformerXLLayer(nn.Module):
    """Attention, then a feed-forward layer, each normalized after its residual sum."""

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.attention = RelativeAttention(config)
        self.inner = nn.Linear(config.d_model, config.d_inner)
        self.outer = nn.Linear(config.d_inner, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, *attention: Any) -> Tensor:
        """Return the layer's output (B, T, d); the rest is as in `RelativeAttention`."""
        hidden = self.attention(hidden, *attention)
        inner = self.dropout(functional.relu(self.inner(hidden)))
        return self.layer_norm(hidden + self.dropout(self.outer(inner)))


class TransformerXLPreTrainedModel(PreTrainedModel):
    """What both models share: their configuration class and the initial weights."""

    config_class = TransformerXLConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["TransformerXLLayer"]  # noqa: RUF012  a list, as Transformers has it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights as the published training script does."""
        # A module is only asked about by some releases if it holds parameters itself: lists of
        # parameters and parametrizations are therefore initialized as the modules that they are.
        config = self.config
        if isinstance(module, parametrize.ParametrizationList):
            _normal(module.original1, config.init_std)
            if not _is_loaded(module.original0):
                # The product is what the plain model starts from.
                norms = torch.linalg.vector_norm(module.original1, dim=1, keepdim=True)
                module.original0.copy_(norms)
        elif isinstance(module, nn.ParameterList):
            for projection in module:
                _normal(projection, config.proj_init_std)
        elif isinstance(module, nn.LayerNorm):
            _normal(module.weight, config.init_std, mean=1.0)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            if not parametrize.is_parametrized(module, "weight"):
                _normal(module.weight, config.init_std)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                std = config.proj_init_std if name == "head_projection" else config.init_std
                if name not in ("bias", "cluster_bias"):
                    _normal(parameter, std)
        for name in ("bias", "cluster_bias"):
            bias = getattr(module, name, None)
            if isinstance(bias, nn.Parameter) and not _is_loaded(bias):
                bias.zero_()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a word's number says how frequent it is, so words cannot be added at the end."""
        raise NotImplementedError(
            "Transformer-XL's vocabulary is ordered by frequency and cannot be resized; build the "
            "vocabulary from all of the text and train a new model."
        )


def _is_loaded(parameter: Tensor) -> bool:
    """Whether `from_pretrained` has filled this parameter (Transformers 5 marks these)."""
    return getattr(parameter, "_is_hf_initialized", False)


def _normal(parameter: Tensor, std: float, mean: float = 0.0) -> None:
    if not _is_loaded(parameter):
        parameter.normal_(mean, std)


class TransformerXLModel(TransformerXLPreTrainedModel):
    """The layers with their memory, without a language-model head.

    Args:
        config: a `TransformerXLConfig`.
    """

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__(config)
        self.word_emb = AdaptiveEmbedding(config)
        self.layers = nn.ModuleList(TransformerXLLayer(config) for _ in range(config.n_layer))
        self.content_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.distance_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.dropout = nn.Dropout(config.dropout)
        if config.weight_norm:
            # Norm per output row: the direction's scale cannot matter, which AdamP's test finds.
            for module in self.layers.modules():
                if isinstance(module, nn.Linear):
                    weight_norm(module, dim=0)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the adaptive embedding."""
        return self.word_emb

    def forward(
        self, input_ids: Tensor, mems: Memory | None = None, **kwargs: Any
    ) -> TransformerXLOutput:
        """Read one segment.

        Args:
            input_ids: words, (batch, length).
            mems: what the previous segment returned; None for an empty memory, the start of a text.
            **kwargs: ignored; generation and trainers pass options of other models.

        Raises:
            ValueError: the memory does not fit the batch or the model.
        """
        batch, length = input_ids.shape
        hidden = self.dropout(self.word_emb(input_ids))
        if mems is None:
            mems = [hidden.new_empty(batch, 0, self.config.d_model)] * self.config.n_layer
        self._check_memory(mems, batch)
        distances, hidden_from = self._positions(mems[0].shape[1], length, hidden)
        biases = (self.content_bias, self.distance_bias)
        kept = []
        for layer, past in zip(self.layers, mems, strict=True):
            kept.append(self._keep(past, hidden))
            hidden = layer(hidden, past, distances, biases, hidden_from)
        return TransformerXLOutput(last_hidden_state=self.dropout(hidden), mems=tuple(kept))

    def _check_memory(self, mems: Memory, batch: int) -> None:
        config = self.config
        shapes = {tuple(past.shape) for past in mems}
        found = min(shapes, key=len, default=())
        fits = len(mems) == config.n_layer and len(shapes) == 1 and len(found) == 3
        if not (fits and found[0] == batch and found[2] == config.d_model):
            raise ValueError(
                f"mems are {len(mems)} tensors of shape {' and '.join(map(str, sorted(shapes)))}; "
                f"this model needs {config.n_layer} of shape ({batch}, memory, {config.d_model}). "
                "Pass the mems that the previous segment of the same batch returned, or None."
            )

    def _positions(self, past: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return encodings of the distances K-1 ... -1 (K+1, d), and what may not be seen (T, K).

        No position at distance -1 is ever seen; its column lets `by_position` work without a copy.
        """
        config, total = self.config, past + length
        distance = torch.arange(total - 1, -2, -1, device=like.device, dtype=torch.float32)
        if config.clamp_len > 0:
            distance = distance.clamp(max=config.clamp_len)
        exponent = torch.arange(0, config.d_model, 2, device=like.device, dtype=torch.float32)
        angle = torch.outer(distance, 10000 ** -(exponent / config.d_model))
        encoding = torch.cat((angle.sin(), angle.cos()), dim=1).to(like.dtype)
        query = torch.arange(past, total, device=like.device)[:, None]
        back = query - torch.arange(total, device=like.device)
        unseen = back < 0
        if config.same_length:
            unseen = unseen | (back >= config.mem_len)
        return self.dropout(encoding), unseen

    def _keep(self, past: Tensor, hidden: Tensor) -> Tensor:
        """Return the last `mem_len` of past and hidden, without their history."""
        room = self.config.mem_len - hidden.shape[1]
        if room <= 0:
            return hidden.detach()[:, hidden.shape[1] - self.config.mem_len :]
        return torch.cat((past[:, max(0, past.shape[1] - room) :], hidden.detach()), dim=1)


class TransformerXLForCausalLM(TransformerXLPreTrainedModel):
    """Transformer-XL with adaptive softmax; its word vectors are those of the input.

    Args:
        config: a `TransformerXLConfig`.

    Example:
        ```python
        first = model(segment, shift_labels=targets)
        second = model(next_segment, shift_labels=next_targets, mems=first.mems)
        ```
    """

    # Each segment's loss is a mean of its own: what Trainer divides by is the number of segments.
    accepts_loss_kwargs = False

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__(config)
        self.transformer = TransformerXLModel(config)
        self.softmax = AdaptiveLogSoftmax(config, self.transformer.word_emb)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        mems: Memory | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TransformerXLOutput:
        """Read one segment; with targets return losses, without log-probabilities.

        Args:
            input_ids: words, (batch, length).
            mems: what the previous segment returned, or None for an empty memory.
            labels: the words themselves, as for every causal model of Transformers: position i is
                scored on label i+1, and the last word's successor is not scored.
            shift_labels: the words that follow each position, as a stream knows them all. -100
                marks a position that does not count, in both.
            **kwargs: ignored.

        Raises:
            ValueError: both kinds of labels are given, or the memory does not fit.
        """
        if labels is not None and shift_labels is not None:
            raise ValueError("labels and shift_labels are both given; pass one of them.")
        output = self.transformer(input_ids, mems)
        hidden = output.last_hidden_state
        embedding = self.transformer.word_emb
        if labels is not None:
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        if shift_labels is None:
            output.logits = self.softmax.log_prob(hidden, embedding)
            return output
        output.losses = self.softmax(hidden, shift_labels, embedding)
        output.loss = output.losses.sum() / (shift_labels >= 0).sum()
        return output


@contextmanager
def memory(
    model: PreTrainedModel, *, mem_len: int, same_length: bool = False, clamp_len: int = -1
) -> Iterator[None]:
    """Give a model another memory for a while, as evaluation does.

    Args:
        model: a Transformer-XL; its weights do not depend on these settings.
        mem_len: as in `TransformerXLConfig`.
        same_length: as in `TransformerXLConfig`. Default: False.
        clamp_len: as in `TransformerXLConfig`. Default: -1.

    Raises:
        ValueError: a value is out of range.
    """
    check_memory(mem_len, same_length, clamp_len)
    wanted = {"mem_len": mem_len, "same_length": same_length, "clamp_len": clamp_len}
    before = {name: getattr(model.config, name) for name in wanted}
    model.config.update(wanted)
    try:
        yield
    finally:
        model.config.update(before)


AutoConfig.register(TransformerXLConfig.model_type, TransformerXLConfig)
AutoModel.register(TransformerXLConfig, TransformerXLModel)
AutoModelForCausalLM.register(TransformerXLConfig, TransformerXLForCausalLM)
