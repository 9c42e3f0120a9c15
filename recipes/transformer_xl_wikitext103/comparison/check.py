"""Compare our model with what TransfoXL of Transformers 4.34.1 computed from the same weights.

    python -m recipes.transformer_xl_wikitext103.comparison.check FOLDER [FOLDER ...]

reads the files that `reference.py` wrote and prints the largest deviation of each case; it exits
with status 1 where one is above 1e-5.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from recipes.common.tables import format_table

from ..configuration_transformer_xl import TransformerXLConfig
from ..modeling_transformer_xl import TransformerXLForCausalLM

__all__ = ["TOLERANCE", "convert", "deviations", "read_case"]

TOLERANCE = 1e-5  # absolute, float32


def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename TransfoXL's weights, or their gradients, to our names; shared ones appear once."""
    converted = {}
    biases = []
    for name, tensor in tensors.items():
        parts = name.split(".")
        if name.startswith("crit.out_layers") and parts[-1] == "bias":
            biases.append(tensor)  # one a table, in order
        elif (new := _new_name(name, parts)) is not None:
            converted[new] = tensor
    converted["softmax.bias"] = torch.cat(biases)
    return converted


_RENAMED = {
    "crit.cluster_weight": "softmax.cluster_weight",
    "crit.cluster_bias": "softmax.cluster_bias",
    "crit.out_projs.0": "softmax.head_projection",
    "transformer.r_w_bias": "transformer.content_bias",
    "transformer.r_r_bias": "transformer.distance_bias",
}
_RENAMED_IN_LAYER = {
    "dec_attn.": "attention.",
    "pos_ff.CoreNet.0.": "inner.",
    "pos_ff.CoreNet.3.": "outer.",
    "pos_ff.layer_norm.": "layer_norm.",
}


def _new_name(name: str, parts: list[str]) -> str | None:
    """Return our name, or None for what is computed (frequencies) or shared (see `convert`)."""
    if name in _RENAMED:
        return _RENAMED[name]
    if name.startswith("transformer.word_emb.emb_layers"):
        return f"transformer.word_emb.tables.{parts[-2]}.weight"
    if name.startswith("transformer.word_emb.emb_projs"):
        return f"transformer.word_emb.projections.{parts[-1]}"
    if name.startswith("transformer.layers") and parts[-1] not in ("r_w_bias", "r_r_bias"):
        for old, new in _RENAMED_IN_LAYER.items():
            name = name.replace(old, new)
        return name
    return None


def read_case(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Return a case's settings and number of segments, and its tensors."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["case"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return metadata, tensors


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def deviations(path: Path) -> dict[str, float]:
    """Return the largest absolute deviation of each quantity, over all segments of a case."""
    metadata, tensors = read_case(path)
    config = TransformerXLConfig(**metadata["config"], dropout=0.0, dropatt=0.0)
    model = TransformerXLForCausalLM(config)
    model.load_state_dict(convert(_part(tensors, "weights.")))
    largest: dict[str, float] = {}

    def compare(quantity: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape, (quantity, ours.shape, theirs.shape)
        difference = (ours - theirs).abs().max().item() if ours.numel() else 0.0
        largest[quantity] = max(largest.get(quantity, 0.0), difference)

    mems = None
    for index in range(metadata["segments"]):
        theirs = _part(tensors, f"segment_{index}.")
        input_ids = theirs["input_ids"]
        output = model(input_ids, mems)
        compare("log-probabilities", output.logits, theirs["log_probs"])
        for layer, kept in enumerate(output.mems):
            compare("memory", kept, theirs[f"memory_{layer}"])
        if "loss" in theirs:
            scored = model(input_ids, mems, labels=input_ids)
            compare("losses", scored.losses, theirs["losses"])
            compare("loss", scored.loss, theirs["loss"])
        mems = output.mems
    scored.loss.backward()  # the last segment's
    gradients = convert(_part(tensors, "gradients."))
    for name, parameter in model.named_parameters():
        compare("gradients", parameter.grad, gradients[name])
    return largest


def main() -> None:
    """Print a Markdown table, a line a case."""
    torch.set_num_threads(1)
    folders = [Path(argument) for argument in sys.argv[1:]]
    paths = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    if not paths:
        named = " and ".join(map(str, folders))
        sys.exit(f"{named} holds no .safetensors file; run `make compare-transformer-xl`.")
    results = {path: deviations(path) for path in paths}
    quantities = list(next(iter(results.values())))
    print(f"Largest absolute deviation from {read_case(paths[0])[0]['written_by']} (float32)\n")
    rows = [[path.stem, *(f"{r[q]:.1e}" for q in quantities)] for path, r in results.items()]
    print(format_table(["case", *quantities], rows))
    worst = max(max(result.values()) for result in results.values())
    if worst > TOLERANCE:
        sys.exit(f"the largest deviation, {worst:.1e}, is above {TOLERANCE:.0e}.")


if __name__ == "__main__":
    main()
