"""``python -m hf_adamp inspect MODEL``: is AdamP worth trying on this model?"""

import argparse
import json
import sys
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
            gradients=arguments.gradients,
            delta=arguments.delta,
            seed=arguments.seed,
        )
    except (ValueError, MemoryError) as error:
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
