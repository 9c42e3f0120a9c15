"""Table of what our weight decay rule and Transformers' own rule do on 15 architectures.

    python -m tests.tables.decay_rules            print the table
    python -m tests.tables.decay_rules --write    write it into docs/parameter-groups.md

The models are tiny and randomly initialised from their configs; nothing is downloaded.
"""

import re
from collections import Counter
from collections.abc import Callable

import transformers
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_adamp.param_groups import decay_parameter_names
from tests.pages import DOCS, Section, print_or_write

SECTION = Section(DOCS / "parameter-groups.md", "decay-rules")

TEXT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**TEXT, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
WIDE = {**TEXT, "intermediate_size": 32}
VISION = {**WIDE, "image_size": 16, "patch_size": 8}
SPEECH = {
    **WIDE,
    "conv_dim": (16, 16),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 0,
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}

# (name in the table, model type in Transformers, what makes its config tiny)
ARCHITECTURES = (
    ("BERT", "bert", WIDE),
    ("GPT-2", "gpt2", GPT2),
    ("Llama", "llama", GATED),
    ("Qwen3", "qwen3", GATED),
    ("Gemma3", "gemma3_text", GATED),
    ("OLMo2", "olmo2", {**GATED, "pad_token_id": 0}),
    ("T5", "t5", T5),
    ("Whisper", "whisper", WHISPER),
    ("ViT", "vit", VISION),
    ("ResNet", "resnet", STAGES),
    ("MobileNetV2", "mobilenet_v2", {"depth_multiplier": 0.25, "image_size": 32}),
    ("ConvNeXtV2", "convnextv2", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    ("RegNet", "regnet", {**STAGES, "groups_width": 8}),
    ("Wav2Vec2", "wav2vec2", SPEECH),
    ("AST", "audio-spectrogram-transformer", {**WIDE, "max_length": 32, "num_mel_bins": 32}),
)


def build(
    model_type: str, options: dict, make: Callable = AutoModel.from_config, **extra
) -> nn.Module:
    """Build a randomly initialised model from its config."""
    return make(transformers.AutoConfig.for_model(model_type, **options, **extra))


def classifier(model_type: str, options: dict, **extra) -> nn.Module:
    """Build the same with a sequence classification head."""
    return build(model_type, options, AutoModelForSequenceClassification.from_config, **extra)


def differences(model: nn.Module) -> tuple[list[str], list[str]]:
    """Name what only Transformers' rule decays and what only ours decays."""
    ours = decay_parameter_names(model)
    theirs = decay_parameter_names(model, rule="transformers")
    return [n for n in theirs if n not in ours], [n for n in ours if n not in theirs]


def summary(names: list[str]) -> str:
    """Fold names into their last two words that are not numbers, with a count each."""
    if not names:
        return "–"
    short = Counter(".".join(_words(name)[-2:]) for name in names)
    return ", ".join(f"{count} × `{name}`" for name, count in short.items())


def _words(name: str) -> list[str]:
    words = [word for word in name.split(".") if not re.fullmatch(r"\d+", word)]
    # original0 says nothing without the module that is parametrized.
    return words if "parametrizations" not in words else [*words[:-4], ".".join(words[-4:])]


def table() -> str:
    """Build every architecture and return the table in Markdown."""
    rows = [
        "| Architecture | trainable | hf_adamp decays | Transformers decays "
        "| decayed by Transformers only | decayed by hf_adamp only |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for name, model_type, options in ARCHITECTURES:
        model = build(model_type, options)
        theirs_only, ours_only = differences(model)
        ours = len(decay_parameter_names(model))
        trainable = sum(parameter.requires_grad for parameter in model.parameters())
        rows.append(
            f"| {name} | {trainable} | {ours} "
            f"| {ours - len(ours_only) + len(theirs_only)} "
            f"| {summary(theirs_only)} | {summary(ours_only)} |"
        )
    made = (
        f"Tensors of tiny models from their configs, Transformers {transformers.__version__}; "
        "made by `python -m tests.tables.decay_rules --write`."
    )
    return "\n".join([*rows, "", made])


if __name__ == "__main__":
    print_or_write(table, SECTION, (__doc__ or "").partition("\n")[0])
