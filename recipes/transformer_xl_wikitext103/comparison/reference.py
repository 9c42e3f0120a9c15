"""What TransfoXL of Transformers 4.34.1 computes: weights, inputs and results, as safetensors.

    .venv/transfo_xl/bin/python recipes/transformer_xl_wikitext103/comparison/reference.py A B

runs where that release is installed, apart from everything else, and writes one file a case: the
small ones, which the tests keep, into folder A, the large ones into folder B.
`make compare-transformer-xl` calls it, then `check.py`.

Two defaults of that class differ from the published training code and are set here: its first
memory is full of zeros rather than empty, and its biases differ by layer.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SMALL = {
    "vocab_size": 40,
    "cutoffs": [10, 20, 30],
    "d_model": 16,
    "d_embed": 16,
    "n_layer": 2,
    "n_head": 2,
    "d_head": 6,
    "d_inner": 24,
    "mem_len": 9,
    "same_length": False,
    "clamp_len": -1,
    "div_val": 1,
}
LARGE = {
    **{"vocab_size": 2000, "cutoffs": [200, 500, 1000], "d_model": 128, "d_embed": 128},
    **{"n_layer": 4, "n_head": 4, "d_head": 32, "d_inner": 256, "mem_len": 48},
}
# Segments are longer and shorter than what is left of the memory, and both than mem_len.
SMALL_CASES = {
    "div_val_1": SMALL,
    "div_val_1_projected": {**SMALL, "d_embed": 12},
    "div_val_4": {**SMALL, "div_val": 4, "d_embed": 64},
    "evaluation": {**SMALL, "same_length": True, "clamp_len": 5},
}
LARGE_CASES = {
    "large_div_val_1": {**SMALL, **LARGE},
    "large_div_val_4": {**SMALL, **LARGE, "div_val": 4},
}
SMALL_LENGTHS, LARGE_LENGTHS = (6, 1, 4, 12), (32, 16, 64, 48)
BATCH = 2


def build(settings: dict) -> "transformers.TransfoXLLMHeadModel":
    """Return a model with random weights: every term counts, and logits stay near ±10."""
    torch.manual_seed(0)
    config = transformers.TransfoXLConfig(
        **settings, untie_r=False, dropout=0.0, dropatt=0.0, adaptive=True
    )
    model = transformers.TransfoXLLMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            width = max(parameter.shape[-1], config.d_model)
            scale = 0.5 / width**0.5 if parameter.dim() > 1 else 0.2
            parameter.normal_(1.0 if "layer_norm.weight" in name else 0.0, scale)
    return model


def run(settings: dict, lengths: tuple) -> dict:
    """Read segments one after another, and return everything by name."""
    model = build(settings)
    tensors = {f"weights.{name}": value.clone() for name, value in model.state_dict().items()}
    mems = [torch.zeros(0, BATCH, settings["d_model"])] * settings["n_layer"]
    for index, length in enumerate(lengths):
        input_ids = torch.randint(settings["vocab_size"], (BATCH, length))
        log_probs = model(input_ids, mems=mems).prediction_scores
        kept = mems
        output = model(input_ids, mems=mems, labels=input_ids) if length > 1 else None
        mems = model(input_ids, mems=mems).mems
        # That class returns losses by cluster, not by position: look them up.
        losses = -log_probs[:, :-1].gather(2, input_ids[:, 1:, None]).squeeze(2)
        tensors[f"segment_{index}.input_ids"] = input_ids
        tensors[f"segment_{index}.log_probs"] = log_probs.detach()
        tensors[f"segment_{index}.losses"] = losses.detach()
        # Batch first, as everything else.
        for layer, memory in enumerate(mems):
            tensors[f"segment_{index}.memory_{layer}"] = memory.transpose(0, 1)
        if output is not None:
            tensors[f"segment_{index}.loss"] = output.loss.detach()
            last = input_ids, kept
    model.zero_grad()
    model(last[0], mems=last[1], labels=last[0]).loss.backward()
    for name, parameter in model.named_parameters():
        # A cluster that no target is in has none.
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        tensors[f"gradients.{name}"] = gradient
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def write(folder: Path, cases: dict[str, dict], lengths: tuple) -> None:
    """Write a file a case."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    for name, settings in cases.items():
        case = {"config": settings, "segments": len(lengths), "written_by": versions}
        path = folder / f"{name}.safetensors"
        # One entry: several would be written in a random order, and each file would differ.
        save_file(run(settings, lengths), path, metadata={"case": json.dumps(case)})
        print(f"{path}: {path.stat().st_size:,} bytes, {versions}")


def main() -> None:
    """Write every case into the two folders named on the command line."""
    torch.set_num_threads(1)
    write(Path(sys.argv[1]), SMALL_CASES, SMALL_LENGTHS)
    write(Path(sys.argv[2]), LARGE_CASES, LARGE_LENGTHS)


if __name__ == "__main__":
    main()
