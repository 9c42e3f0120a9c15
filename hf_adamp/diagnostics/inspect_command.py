"""``python -m hf_adamp inspect MODEL``: is AdamP worth trying on this model?"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(argv: list[str]) -> None:
    """Probe the model that the arguments name, and print what was found.

    Args:
        argv: Arguments behind the word `inspect`.

    Raises:
        SystemExit: With status 2 where the arguments make no sense or the model cannot be probed.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.plot is not None:
        _check_picture(parser, arguments.plot)
    # Behind the parser: --help and mistakes need not wait for torch and Transformers.
    from hf_adamp.diagnostics.models import inspect_model  # noqa: PLC0415

    try:
        report = inspect_model(
            arguments.model,
            pretrained=arguments.pretrained,
            all_layers=arguments.all_layers,
            settings=dict(arguments.set),
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
            inputs=None if arguments.inputs is None else _function(arguments.inputs),
            gradients=arguments.gradients,
            delta=arguments.delta,
            seed=arguments.seed,
            progress=_shows_progress(),
        )
    except (ValueError, TypeError, MemoryError) as error:
        parser.error(str(error))
    print(report.to_json() if arguments.json else report)
    if arguments.plot is not None:
        print(f"wrote {report.plot(arguments.plot)}", file=sys.stderr)


def _check_picture(parser: argparse.ArgumentParser, path: Path) -> None:
    """Refuse before the probe what would fail after it."""
    if path.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--plot {path} must end in .png, .pdf or .svg.")
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        parser.error("--plot needs matplotlib, which is not installed: pip install hf-adamp[plots]")


def _function(text: str) -> Callable[..., Any]:
    """The function that `module:function` names; the working directory is on the path.

    Raises:
        ValueError: There is no such module or function.
    """
    module, _, name = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function: Any = import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--inputs {text} cannot be found ({error}); it is MODULE:FUNCTION, a function in a "
            "file MODULE.py here or on PYTHONPATH that returns a batch."
        ) from error

    def batches(model: Any) -> Any:
        try:
            return function(*[model][: len(inspect.signature(function).parameters)])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"--inputs {text} failed: {reason}; call it by itself.") from error

    return batches


def _shows_progress() -> bool:
    """Unless Transformers is asked not to (`transformers.logging.disable_progress_bar`)."""
    shown: bool = import_module("transformers.utils.logging").is_progress_bar_enabled()
    return shown


def _inputs_name(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise argparse.ArgumentTypeError(f"{text!r} must be MODULE:FUNCTION, as in batches:one")
    return text


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE, as in num_local_experts=8")
    # As Python writes them, too.
    value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hf_adamp inspect",
        description="Find the weights of a model that can be scaled without changing its output, "
        "and say whether AdamP is worth trying.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="an id on the Hub, a folder, a config.json, or a model type such as resnet",
    )
    parser.add_argument("--pretrained", action="store_true", help="load the weights too")
    parser.add_argument(
        "--all-layers", action="store_true", help="probe every layer, not one of each kind"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="change the config; may be repeated",
    )
    parser.add_argument(
        "--inputs",
        type=_inputs_name,
        metavar="MODULE:FUNCTION",
        help="a function that returns a batch as the training loop has it (a mapping of keyword "
        "arguments), or a list of batches; it may take the model. Needed where the probe cannot "
        "make inputs up",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture")
    parser.add_argument("--gradients", type=int, default=8, help="for AdamP's test (default: 8)")
    parser.add_argument("--delta", type=float, default=0.1, help="of that test (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and inputs")
    parser.add_argument("--revision", help="of a model on the Hub")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that comes with the model"
    )
    return parser
