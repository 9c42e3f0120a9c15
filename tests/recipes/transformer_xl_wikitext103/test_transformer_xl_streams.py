"""Columns and segments: every word where it belongs, once, whatever the number of processes."""

import numpy as np
import pytest
import torch

from recipes.transformer_xl_wikitext103.streams import evaluation_stream, training_stream


def collect(stream, key):
    return torch.cat([batch[key] for batch in stream.loader()], dim=1)


def test_training_columns_continue_from_segment_to_segment():
    stream = training_stream(np.arange(43, dtype=np.int32), 4, 3)
    assert [batch["segment"] for batch in stream.loader()] == [0, 1, 2]
    assert collect(stream, "input_ids").tolist() == [
        list(range(10 * column, 10 * column + 9)) for column in range(4)
    ]
    assert torch.equal(collect(stream, "shift_labels"), collect(stream, "input_ids") + 1)


def test_last_segment_may_be_shorter():
    stream = training_stream(np.arange(40), 4, 4)
    assert [batch["input_ids"].shape for batch in stream.loader()] == [(4, 4), (4, 4), (4, 1)]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_read_all_training_words_without_overlap(world):
    words = np.arange(100)
    whole = collect(training_stream(words, 6, 5), "input_ids")
    shares = [training_stream(words, 6, 5, rank=rank, world=world) for rank in range(world)]
    assert torch.equal(torch.cat([collect(share, "input_ids") for share in shares]), whole)
    assert len(whole.unique()) == whole.numel()


@pytest.mark.parametrize("world", [1, 3, 8])
@pytest.mark.parametrize("columns", [1, 4, 7])
def test_evaluation_scores_every_word_once(columns, world):
    words = np.arange(1, 53)
    scored = []
    for rank in range(world):
        stream = evaluation_stream(words, columns, 5, rank=rank, world=world)
        if stream.columns:
            scored.append(collect(stream, "shift_labels").flatten())
    scored = torch.cat(scored)
    assert scored[scored >= 0].tolist() == words.tolist()


def test_evaluation_reads_the_word_before_each():
    stream = evaluation_stream(np.arange(1, 11), 3, 2)
    inputs, targets = collect(stream, "input_ids"), collect(stream, "shift_labels")
    assert inputs[0, 0] == 0
    assert torch.equal(inputs[targets >= 0], targets[targets >= 0] - 1)


def test_evaluation_of_the_test_split_scores_245_569_words():
    stream = evaluation_stream(np.ones(245_569, np.int32), 10, 64)
    assert sum(int((batch["shift_labels"] >= 0).sum()) for batch in stream.loader()) == 245_569


def test_columns_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="columns=60 cannot be shared out evenly to 8 processes"):
        training_stream(np.arange(1000), 60, 5, world=8)


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match="9 words do not fill columns=5"):
        training_stream(np.arange(9), 5, 5)
    with pytest.raises(ValueError, match=r"columns=10 must be in \[1, 9\]"):
        evaluation_stream(np.arange(9), 10, 5)


def test_segment_without_a_row_is_refused():
    with pytest.raises(ValueError, match="tgt_len=0 must be >= 1"):
        training_stream(np.arange(9), 1, 0)
