"""A run's arguments from configuration files and the command line, the last one winning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

__all__ = ["parse"]


def parse(classes: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """Fill dataclasses from `[CONFIG.yaml ...] [--name value ...]`.

    A file's `name: value` is the same as `--name value` at its place, so that later files and
    the command line overrule earlier files.

    Args:
        classes: dataclasses of which every field becomes an option.
        argv: the arguments, without the program's name.

    Raises:
        ValueError: a file is missing or not a list of `name: value`, or an option is unknown.
    """
    files = 0
    while files < len(argv) and argv[files].endswith((".yaml", ".yml")):
        files += 1
    options = [option for file in argv[:files] for option in _read(Path(file))]
    parser = HfArgumentParser(classes)
    *filled, unknown = parser.parse_args_into_dataclasses(
        [*options, *argv[files:]], look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        raise ValueError(
            f"unknown options {' '.join(unknown)}; --help lists those there are, and configuration "
            "files come before options."
        )
    return tuple(filled)


def _read(file: Path) -> list[str]:
    """Turn a file into the options it stands for."""
    if not file.is_file():
        raise ValueError(f"{file} is not a file; name a configuration, such as configs/base.yaml.")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold lines of `name: value`.")
    options: list[str] = []
    for name, value in content.items():
        values = value if isinstance(value, list) else [value]
        options += [f"--{name}", *map(str, values)]
    return options
