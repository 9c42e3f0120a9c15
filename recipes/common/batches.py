"""Training batches that a batch normalization can take."""

from typing import Any

from torch.utils.data import DataLoader

__all__ = ["NoBatchOfOne"]


class NoBatchOfOne:
    """Makes a `Trainer` class to its right leave a last training batch of one sample out.

    One sample has no variance, so a batch norm behind a pooling would stop the training there, at
    the end of an epoch. In evaluation nothing is left out, whatever `dataloader_drop_last` says.
    """

    def get_train_dataloader(self: Any) -> DataLoader:
        """Return batches of two samples at least."""
        chosen = self.args.dataloader_drop_last
        at_once = self.args.train_batch_size * self.args.world_size
        self.args.dataloader_drop_last = chosen or len(self.train_dataset) % at_once == 1 < at_once
        try:
            loader: DataLoader = super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = chosen
        return loader

    def get_eval_dataloader(self: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Return all samples."""
        chosen, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            loader: DataLoader = super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = chosen
        return loader
