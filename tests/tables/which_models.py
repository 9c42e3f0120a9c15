"""Table and picture of what the probe finds on architectures of Transformers.

    python -m tests.tables.which_models            print the table
    python -m tests.tables.which_models --write    write it, and the picture, into docs/

Each model is `python -m hf_adamp inspect TYPE` in a process of its own: the default config of a
model type, random weights, one layer of each kind. With --results DIR the reports are kept there,
and those that are there are not made again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import transformers

from hf_adamp import ProbeReport
from hf_adamp.diagnostics.plots import load_matplotlib
from hf_adamp.diagnostics.probe.picture import KINDS, kind
from tests.pages import DOCS, Section

SECTION = Section(DOCS / "which-models.md", "which-models")
# One thread, so that the time is that of one core.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PICTURE = DOCS / "which-models.png"

# The default is B7.
EFFICIENTNET_B0 = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 1280,
    "image_size": 224,
}
# (name in the table, model type, changes of its default config)
ARCHITECTURES = (
    ("ResNet-50", "resnet", {}),
    ("RegNetY", "regnet", {}),
    ("MobileNetV2", "mobilenet_v2", {}),
    ("EfficientNet-B0", "efficientnet", EFFICIENTNET_B0),
    ("LeViT", "levit", {}),
    ("ConvNeXt", "convnext", {}),
    ("ConvNeXtV2", "convnextv2", {}),
    ("ViT", "vit", {}),
    ("DINOv2", "dinov2", {}),
    ("Swin", "swin", {}),
    ("Swin V2", "swinv2", {}),
    ("CLIP", "clip", {}),
    ("SigLIP", "siglip", {}),
    ("BERT", "bert", {}),
    ("DeBERTa-v2", "deberta-v2", {}),
    ("T5", "t5", {}),
    ("BART", "bart", {}),
    ("GPT-2", "gpt2", {}),
    ("Llama", "llama", {}),
    ("Mixtral, 2 experts", "mixtral", {"num_local_experts": 2}),
    ("Qwen3", "qwen3", {}),
    ("Gemma 2", "gemma2", {}),
    ("Gemma 3", "gemma3_text", {}),
    ("OLMo 2", "olmo2", {}),
    ("Mamba", "mamba", {}),
    ("Whisper", "whisper", {}),
    ("Wav2Vec2", "wav2vec2", {}),
    ("HuBERT", "hubert", {}),
    ("AST", "audio-spectrogram-transformer", {}),
)


def inspect(model_type: str, settings: dict, folder: Path) -> dict:
    """Run the command; its report with the seconds and the gigabytes that it took."""
    path = folder / f"{model_type}.json"
    if not path.exists():
        command = [sys.executable, "-m", "hf_adamp", "inspect", model_type, "--json"]
        command += [f"--set={key}={value}" for key, value in settings.items()]
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(command, stdout=output, env=ENVIRONMENT)
            # wait4 and not wait: it tells this child's memory.
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                code = os.waitstatus_to_exitcode(status)
                raise RuntimeError(f"{' '.join(command)} failed with status {code}.")
            output.seek(0)
            report = output.read()
        # Seconds of the processor, which other work on the machine does not lengthen.
        seconds = usage.ru_utime + usage.ru_stime
        cost = {"seconds": seconds, "gigabytes": usage.ru_maxrss / 2**20}
        path.write_text(json.dumps({"report": report, **cost}), encoding="utf-8")
    result = json.loads(path.read_text(encoding="utf-8"))
    return {**result, "report": ProbeReport.from_json(result["report"])}


def row(name: str, result: dict) -> str:
    """One line of the table."""
    report = result["report"]
    weights = [w for w in report.weights.values() if w.effect > 0]
    invariant = [w for w in weights if w.granularity is not None]
    others = [w for w in weights if w.granularity is None]
    share = sum(w.invariant_numel for w in invariant) / sum(w.numel for w in weights)
    caught = _mean([w.caught for w in invariant])
    misfires = _mean([w.misfires for w in others])
    exactness = f"{max(w.cosine for w in invariant):.0e}" if invariant else "–"
    return (
        f"| {name} | {len(invariant)} of {len(weights)} | {share:.0%} | {_parts(invariant)} "
        f"| {exactness} | {caught} | {misfires} "
        f"| {result['seconds']:.0f} s | {result['gigabytes']:.1f} GB |"
    )


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.0%}" if values else "–"


def _parts(weights: list) -> str:
    """Which weights are invariant, by granularity: `q_proj`, `k_proj` by head."""
    if not weights:
        return "–"
    by_kind: dict[str, Counter] = {}
    for weight in weights:
        by_kind.setdefault(kind(weight.granularity), Counter())[_short(weight.name)] += 1
    return "; ".join(
        f"{granularity}: " + ", ".join(f"`{name}`" for name in names)
        for granularity, names in by_kind.items()
    )


def _short(name: str) -> str:
    words = [word for word in name.split(".") if not re.fullmatch(r"\d+", word)]
    if "parametrizations" in words:
        return ".".join([words[words.index("parametrizations") - 1], words[-1]])
    return words[-2] if words[-1] == "weight" else words[-1]


def table(results: dict[str, dict]) -> str:
    """The table in Markdown."""
    lines = [
        "| Architecture | invariant weights | share of elements | which, by what | `|cos|` at most "
        "| the test finds | misfires on the others | CPU time | memory |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *(row(name, result) for name, result in results.items()),
    ]
    made = (
        f"Default configs of Transformers {transformers.__version__}, torch {torch.__version__}, "
        f"one thread; made by `python -m tests.tables.which_models --write`."
    )
    return "\n".join([*lines, "", made]).replace("`|cos|`", "`\\|cos\\|`")


def draw(results: dict[str, dict], output: Path) -> None:
    """Draw the shares of elements by granularity, a bar for each architecture."""
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=(9, 0.8 + 0.26 * len(results)), dpi=150, layout="constrained")
    canvas_class(figure)
    axis = figure.subplots()
    left = [0.0] * len(results)
    for name, colour in KINDS.items():
        shares = [_share(result["report"], name) for result in results.values()]
        axis.barh(range(len(results)), shares, left=left, color=colour, label=name)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set_yticks(range(len(results)), list(results), fontsize=9)
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.set(xlim=(0, 100), xlabel="% of the elements of all weights with two dimensions or more")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(output)


def _share(report: ProbeReport, name: str) -> float:
    weights = [w for w in report.weights.values() if w.effect > 0]
    part = sum(w.numel for w in weights if kind(w.granularity) == name)
    return 100 * part / sum(w.numel for w in weights)


def main() -> None:
    """Print the table or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write it into docs/")
    parser.add_argument("--results", type=Path, help="keep the reports in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.results or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results = {}
        for name, model_type, settings in ARCHITECTURES:
            print(name, file=sys.stderr, flush=True)
            results[name] = inspect(model_type, settings, folder)
    if arguments.write:
        SECTION.write(table(results))
        draw(results, PICTURE)
    else:
        print(table(results))


if __name__ == "__main__":
    main()
