"""The two tasks of the comparison: data, model, loss, and which weights are scale-invariant."""

import re
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch
from datasets import disable_progress_bars
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from recipes.transformer_xl_wikitext103.demo_text import write_text
from tests.benchmarks.digits import build_model, load_splits, preprocess

__all__ = ["TASKS", "Task"]

Batch = tuple[Tensor, Tensor]


class Task(ABC):
    """Something to learn.

    Attributes:
        steps: how many a run takes.
        invariant: found in the names of the weights that are scale-invariant.
        declared: what they are declared as.
        size: how many samples make a batch.
    """

    steps: int
    invariant: str
    declared: object
    size: int

    @abstractmethod
    def build(self) -> nn.Module:
        """Make an untrained model."""

    @abstractmethod
    def data(self, split: str) -> Batch:
        """Return all inputs and targets of train, valid or test."""

    @abstractmethod
    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the model's logits with classes last."""

    def batch(self, split: str, order: Generator) -> Batch:
        """Draw a batch at random."""
        inputs, targets = self.data(split)
        chosen = torch.randint(len(inputs), (self.size,), generator=order)
        return inputs[chosen], targets[chosen]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats."""
        inputs, targets = batch
        return functional.cross_entropy(
            self.logits(model, inputs).flatten(0, -2), targets.flatten()
        )

    def evaluate(self, model: nn.Module, split: str) -> tuple[float, float]:
        """Mean cross-entropy and share of right answers over a whole split."""
        model.eval()
        losses, rights = [], []
        with torch.no_grad():
            for inputs, targets in zip(*(t.split(256) for t in self.data(split)), strict=True):
                logits = self.logits(model, inputs)
                wrong = functional.cross_entropy(
                    logits.flatten(0, -2), targets.flatten(), reduction="none"
                )
                losses.append(wrong)
                rights.append((logits.argmax(-1) == targets).flatten())
        model.train()
        return float(torch.cat(losses).mean()), float(torch.cat(rights).double().mean())


class Digits(Task):
    """A small ResNet on scikit-learn's digits; every convolution feeds a BatchNorm."""

    steps, size = 400, 32
    invariant, declared = r"convolution\.weight$", "row"

    def build(self) -> nn.Module:
        """Make a third of the recipe's ResNet."""
        return build_model([16, 32, 64], [1, 1, 1])

    @lru_cache(maxsize=3)  # noqa: B019 -- there is one task, and it lives as long as the process
    def data(self, split: str) -> Batch:
        """Return the recipe's split."""
        disable_progress_bars()
        rows = load_splits()["validation" if split == "valid" else split]
        images = torch.stack([preprocess(image, 32) for image in rows["image"]])
        return images, torch.tensor(rows["label"])

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return (batch, 10)."""
        return model(pixel_values=inputs).logits


class Text(Task):
    """A small Qwen3 on the King James Bible by words; queries and keys are normed head by head."""

    steps, size, length, words, head = 400, 16, 48, 1500, 16
    invariant, declared = r"[qk]_proj\.weight$", ("head_dim", 16)

    def build(self) -> nn.Module:
        """Make a Qwen3 of two layers."""
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=self.words,
                hidden_size=64,
                intermediate_size=160,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=self.head,
                max_position_embeddings=self.length,
                tie_word_embeddings=True,
                use_cache=False,
            )
        )

    @lru_cache(maxsize=1)  # noqa: B019 -- as above
    def _splits(self) -> dict[str, Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            write_text(Path(folder))
            text = {
                split: re.split(r"\s+", (Path(folder) / f"{split}.txt").read_text())
                for split in ("train", "valid", "test")
            }
        common = [word for word, _ in Counter(text["train"]).most_common(self.words - 1)]
        places = {word: place for place, word in enumerate(common, start=1)}
        splits = {}
        for split, words in text.items():
            ids = torch.tensor([places.get(word, 0) for word in words])
            if split != "train":
                ids = ids[:20_000]  # enough to tell losses apart by 0.01
            splits[split] = ids[: len(ids) // self.length * self.length].view(-1, self.length)
        return splits

    def data(self, split: str) -> Batch:
        """Return blocks of words, and the words that follow each."""
        blocks = self._splits()[split]
        return blocks[:, :-1], blocks[:, 1:]

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return (batch, words, vocabulary)."""
        return model(input_ids=inputs).logits


TASKS: dict[str, Task] = {"digits": Digits(), "text": Text()}
