"""A Trainer for clips: no batch of one in training, and this recipe's model card."""

from pathlib import Path
from typing import Any

from transformers import Trainer

from recipes.common.batches import NoBatchOfOne

from .card import write_card

__all__ = ["AudioTrainer"]


class AudioTrainer(NoBatchOfOne, Trainer):
    """Trainer that leaves a last batch of one clip out, and writes its own card.

    Args:
        card: what `write_card` needs beside folder and trainer; may be filled until it is written.
        kwargs: of `Trainer`.
    """

    def __init__(self, *args: Any, card: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.card = card

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write README.md; `push_to_hub` calls this before it uploads."""
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir), self, **self.card)
