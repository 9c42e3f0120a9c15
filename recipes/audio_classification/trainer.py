"""A Trainer for clips: no batch of one in training, and this recipe's model card."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer

from .card import write_card

__all__ = ["AudioTrainer"]


class AudioTrainer(Trainer):
    """Trainer that leaves a last batch of one clip out, and writes its own card.

    One clip has no variance, so the batch norm behind the pooling would stop the training there, at
    the end of an epoch. In evaluation nothing is left out.

    Args:
        card: what `write_card` needs beside folder and trainer; may be filled until it is written.
        kwargs: of `Trainer`.
    """

    def __init__(self, *args: Any, card: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.card = card

    def get_train_dataloader(self) -> DataLoader:
        """Return batches of two clips at least."""
        chosen = self.args.dataloader_drop_last
        at_once = self.args.train_batch_size * self.args.world_size
        self.args.dataloader_drop_last = chosen or len(self.train_dataset) % at_once == 1 < at_once
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = chosen

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write README.md; `push_to_hub` calls this before it uploads."""
        if self.is_world_process_zero():
            write_card(Path(self.args.output_dir), self, **self.card)
