"""Hugging Face's own example scripts, unchanged, with `--optim adamp`.

They are not part of any package. Set HF_EXAMPLES to a folder that holds `examples/pytorch` of
Transformers, or to `download`, which takes the scripts of the installed version's tag from GitHub:

    HF_EXAMPLES=~/transformers/examples/pytorch python -m pytest -k example_script
"""

import csv
import json
import os
import shutil
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

SOURCE = os.environ.get("HF_EXAMPLES", "")
PLACE = "https://raw.githubusercontent.com/huggingface/transformers/v{}/examples/pytorch/{}"
WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "mat", "log", "big", "red"]
COMMON = (
    *("--optim", "adamp", "--optim_args", "delta=0.05", "--learning_rate", "0.01"),
    *("--weight_decay", "0.01", "--do_train", "--max_steps", "2", "--save_steps", "2", "--use_cpu"),
    *("--per_device_train_batch_size", "2", "--report_to", "none", "--output_dir", "out"),
)
# `evaluate.load` finds a folder of this name before it asks the Hub. Nothing is evaluated here.
METRIC = """
import datasets
import evaluate

class Unused(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("int32")
        features = datasets.Features({"predictions": kind, "references": kind})
        return evaluate.MetricInfo(description="", citation="", features=features)
"""

needs_scripts = pytest.mark.skipif(
    not SOURCE, reason="needs HF_EXAMPLES: a folder of Transformers' example scripts, or download"
)


def bring(path, folder):
    """Copy a script, unchanged, next to what it reads."""
    if SOURCE == "download":
        url = PLACE.format(transformers.__version__, path)
        with urllib.request.urlopen(url) as answer:
            text = answer.read()
    else:
        text = (Path(SOURCE).expanduser() / path).read_bytes()
    (folder / Path(path).name).write_bytes(text)


def save_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789."]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    special = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[SEP]", model_max_length=64, **special
    ).save_pretrained(folder)
    return len(words)


def encoder(folder):
    """A BERT that is not trained."""
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=save_tokenizer(folder), intermediate_size=16, **size)
    BertForMaskedLM(config).save_pretrained(folder)


def decoder(folder):
    config = GPT2Config(vocab_size=save_tokenizer(folder), n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)


def image_model(folder):
    config = ViTConfig(
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "image_size": 16, "patch_size": 8},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def sentences(number):
    return [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(6)) for i in range(number)]


def labelled(folder):
    """Sentences with a class."""
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sentence1", "label"])
        rows.writerows([text, i % 2] for i, text in enumerate(sentences(8)))
    shutil.copy(folder / "train.csv", folder / "validation.csv")


def plain_text(folder):
    (folder / "train.txt").write_text("\n".join(sentences(200)))
    (folder / "validation.txt").write_text("\n".join(sentences(50)))


def questions(folder):
    answers = [
        {
            **{"id": str(i), "title": "", "context": text, "question": "the cat"},
            "answers": {"text": [text.split()[1]], "answer_start": [text.index(text.split()[1])]},
        }
        for i, text in enumerate(sentences(8))
    ]
    (folder / "train.json").write_text(json.dumps({"data": answers}))


def pictures(folder):
    from PIL import Image

    for number in range(8):
        place = folder / "train" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(place / f"{number}.png")


CSV = ("--train_file", "train.csv", "--validation_file", "validation.csv")
TEXT = ("--train_file", "train.txt", "--validation_file", "validation.txt")
# Files, the first of them the script; what writes its data, and its model; its arguments.
SCRIPTS = {
    "run_glue": (["text-classification/run_glue.py"], labelled, encoder, CSV),
    "run_classification": (
        ["text-classification/run_classification.py"],
        *(labelled, encoder),
        (*CSV, "--text_column_names", "sentence1", "--shuffle_train_dataset"),
    ),
    "run_clm": (
        ["language-modeling/run_clm.py"],
        *(plain_text, decoder),
        (*TEXT, "--block_size", "16"),
    ),
    "run_mlm": (
        ["language-modeling/run_mlm.py"],
        *(plain_text, encoder),
        (*TEXT, "--max_seq_length", "16"),
    ),
    "run_qa": (
        [f"question-answering/{name}.py" for name in ("run_qa", "trainer_qa", "utils_qa")],
        *(questions, encoder),
        ("--train_file", "train.json", "--max_seq_length", "32", "--doc_stride", "8"),
    ),
    "run_image_classification": (
        ["image-classification/run_image_classification.py"],
        *(pictures, image_model),
        (
            *("--train_dir", "train", "--remove_unused_columns", "False", "--label_column_name"),
            *("label", "--train_val_split", "0.25", "--ignore_mismatched_sizes"),
        ),
    ),
}


@needs_scripts
@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_example_script_trains_with_adamp(run_python, tmp_path, monkeypatch, name):
    if name == "run_image_classification" and find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    # Data sets are kept by the names of their files, which are the same in every run.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    files, write_data, save_model, arguments = SCRIPTS[name]
    for file in files:
        bring(file, tmp_path)
    write_data(tmp_path)
    save_model(tmp_path / "model")
    for metric in ("accuracy", "squad"):
        (tmp_path / metric).mkdir()
        (tmp_path / metric / f"{metric}.py").write_text(METRIC)
    command = [Path(files[0]).name, "--model_name_or_path", "model", *arguments, *COMMON]
    run_python(*command, automatic=True)
    saved = torch.load(tmp_path / "out/checkpoint-2/optimizer.pt", weights_only=True)
    assert {group["delta"] for group in saved["param_groups"]} == {0.05}
    assert {group["weight_decay"] for group in saved["param_groups"]} == {0.01, 0.0}
    assert {float(state["step"]) for state in saved["state"].values()} == {2.0}
