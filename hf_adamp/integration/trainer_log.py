"""`ProjectionLog` in every ``Trainer`` of a script that does not know it: the launcher's ``--log``.

A ``Trainer`` is extended where it is made, as soon as its module is loaded, so that nothing here
imports Transformers before the program does.
"""

import sys
from functools import wraps
from pathlib import Path
from typing import Any

from hf_adamp.integration.import_hook import when_imported

__all__ = ["TrainerLog"]


class TrainerLog:
    """Adds a `ProjectionLog` to each ``Trainer`` that is made after `attach`.

    A script may make several; the second writes to ``NAME-2.jsonl``, since each training begins
    its file anew. A ``Trainer`` that has a `ProjectionLog` of its own keeps it and gets no other.

    Args:
        jsonl: The file with a line a weight; None writes none.
    """

    def __init__(self, jsonl: Path | None) -> None:
        self._jsonl = jsonl
        self.trainers = 0

    def attach(self) -> None:
        """Extend ``Trainer`` now if it is loaded, else when the program loads it."""
        when_imported("transformers.trainer", self._extend)

    def _extend(self) -> None:
        trainer_class: Any = sys.modules["transformers.trainer"].Trainer  # type: ignore[attr-defined]
        original = trainer_class.__init__
        if getattr(original, "hf_adamp_log", None) is self:
            return

        @wraps(original)
        def init(trainer: Any, *args: Any, **kwargs: Any) -> None:
            original(trainer, *args, **kwargs)
            self._add_to(trainer)

        init.hf_adamp_log = self  # type: ignore[attr-defined]
        trainer_class.__init__ = init

    def _add_to(self, trainer: Any) -> None:
        # Imports Transformers, which is loaded by now.
        from hf_adamp.diagnostics.callback import ProjectionLog  # noqa: PLC0415

        self.trainers += 1
        callbacks = trainer.callback_handler.callbacks
        # By name: this package may have been imported twice.
        names = {cls.__qualname__ for callback in callbacks for cls in type(callback).__mro__}
        if ProjectionLog.__qualname__ not in names:
            trainer.add_callback(ProjectionLog(jsonl=self._file()))

    def _file(self) -> Path | None:
        if self._jsonl is None or self.trainers == 1:
            return self._jsonl
        return self._jsonl.with_stem(f"{self._jsonl.stem}-{self.trainers}")
