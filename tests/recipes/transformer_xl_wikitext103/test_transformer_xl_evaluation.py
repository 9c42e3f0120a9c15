"""Perplexity: what it must not depend on, and the script that prints it."""

import json

import numpy as np
import pytest
import torch

from recipes.transformer_xl_wikitext103 import evaluate
from recipes.transformer_xl_wikitext103.configuration_transformer_xl import TransformerXLConfig
from recipes.transformer_xl_wikitext103.data import load_corpus
from recipes.transformer_xl_wikitext103.modeling_transformer_xl import (
    TransformerXLForCausalLM,
    memory,
)
from recipes.transformer_xl_wikitext103.streams import evaluation_stream

WORDS = np.random.default_rng(0).integers(0, 50, 97)


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    model = TransformerXLForCausalLM(TransformerXLConfig(**tiny))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def mean_nll(model, columns, tgt_len, world=1):
    sums = [
        evaluate.score(model, evaluation_stream(WORDS, columns, tgt_len, rank=rank, world=world))
        for rank in range(world)
    ]
    total, tokens = map(sum, zip(*sums, strict=True))
    assert tokens == len(WORDS)
    return total / tokens


@pytest.mark.parametrize("tgt_len", [1, 3, 16, 97])
def test_perplexity_does_not_depend_on_segment_length(model, tgt_len):
    with memory(model, mem_len=10, same_length=True, clamp_len=6):
        assert mean_nll(model, 1, tgt_len) == pytest.approx(mean_nll(model, 1, 7), rel=1e-6)


def test_perplexity_depends_on_segment_length_where_words_see_unequally_many(model):
    with memory(model, mem_len=10):
        assert mean_nll(model, 1, 3) != pytest.approx(mean_nll(model, 1, 16), rel=1e-4)


def test_perplexity_with_all_words_remembered_is_that_of_one_segment(model):
    with memory(model, mem_len=97):
        assert mean_nll(model, 1, 8) == pytest.approx(mean_nll(model, 1, 97), rel=1e-6)


@pytest.mark.parametrize("world", [2, 5, 8])
def test_perplexity_does_not_depend_on_the_batch(model, world):
    # Five columns at once, or in batches of 3 and 2, of one each, and none in some processes.
    with memory(model, mem_len=10, same_length=True):
        assert mean_nll(model, 5, 7, world) == pytest.approx(mean_nll(model, 5, 7), rel=1e-6)


def test_score_leaves_the_mode_of_the_model(model):
    model.train()
    mean_nll(model, 5, 7)
    assert model.training


@pytest.fixture
def saved(tiny, text, tmp_path):
    corpus = load_corpus(str(text), tmp_path)
    settings = {**tiny, "vocab_size": len(corpus.words), "vocab_sha256": corpus.sha256}
    model = TransformerXLForCausalLM(TransformerXLConfig(**settings))
    model.save_pretrained(tmp_path / "model")
    return ["--model", str(tmp_path / "model"), "--cache_dir", str(tmp_path)]


def test_evaluation_is_the_published_one_unless_told_otherwise(saved, text, capsys):
    evaluate.main([*saved, "--data", str(text)])
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    words = (text / "test.txt").read_text()
    assert printed["tokens"] == len(words.split()) + words.count("\n")
    assert printed["perplexity"] == pytest.approx(np.exp(printed["loss"]))
    published = {"mem_len": 640, "tgt_len": 64, "same_length": True, "clamp_len": 400}
    assert {name: printed[name] for name in published} == published


def test_evaluation_with_another_vocabulary_is_refused(saved, text, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in text.iterdir():
        (other / path.name).write_text(path.read_text().replace("w1", "v1"))
    with pytest.raises(ValueError, match="its numbers mean other words"):
        evaluate.main([*saved, "--data", str(other)])


def test_evaluation_of_an_unknown_split_is_refused(saved, text):
    with pytest.raises(ValueError, match="split=dev is none of train, validation, test"):
        evaluate.main([*saved, "--data", str(text), "--split", "dev"])


def test_evaluation_without_memory_is_refused_with_same_length(saved, text):
    with pytest.raises(ValueError, match="lets no word see even itself"):
        evaluate.main([*saved, "--data", str(text), "--mem_len", "0"])
