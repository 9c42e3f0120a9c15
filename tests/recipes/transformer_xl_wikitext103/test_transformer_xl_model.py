"""The model: against another implementation's numbers, and what must hold whatever the weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from recipes.transformer_xl_wikitext103.adaptive import AdaptiveEmbedding, AdaptiveLogSoftmax
from recipes.transformer_xl_wikitext103.attention import by_position
from recipes.transformer_xl_wikitext103.comparison.check import TOLERANCE, deviations
from recipes.transformer_xl_wikitext103.configuration_transformer_xl import TransformerXLConfig
from recipes.transformer_xl_wikitext103.modeling_transformer_xl import (
    TransformerXLForCausalLM,
    memory,
)

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.safetensors"))


def build(settings, **changes):
    torch.manual_seed(0)
    return TransformerXLForCausalLM(TransformerXLConfig(**{**settings, **changes}))


def randomize(model, scale=0.3):
    """Give every parameter, biases too, a value that can be told from another's."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_model_agrees_with_transfo_xl_of_transformers_4_34_1(path):
    found = deviations(path)
    assert set(found) == {"log-probabilities", "memory", "losses", "loss", "gradients"}
    assert max(found.values()) < TOLERANCE


def test_by_position_moves_each_distance_to_its_position():
    # Column j of row i has the score of distance K-1-j; write the distance itself into it.
    length, total = 3, 5
    distance = torch.arange(total - 1, -2, -1).expand(length, -1)
    scores = by_position(distance[None])[0]
    for i in range(length):
        own = total - length + i
        assert scores[i, : own + 1].tolist() == list(range(own, -1, -1))


@pytest.mark.parametrize("div_val", [1, 2])
def test_adaptive_nll_is_minus_log_prob(tiny, div_val):
    config = TransformerXLConfig(**tiny, div_val=div_val)
    embedding = AdaptiveEmbedding(config)
    softmax = randomize(AdaptiveLogSoftmax(config, embedding))
    randomize(embedding)
    hidden, targets = torch.randn(3, 7, 16), torch.randint(50, (3, 7))
    targets[0, 0] = -100
    log_probs = softmax.log_prob(hidden, embedding)
    wanted = -log_probs.gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    wanted[0, 0] = 0
    torch.testing.assert_close(softmax(hidden, targets, embedding), wanted)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 7))


def test_adaptive_softmax_equals_full_softmax(tiny):
    # A cluster whose logit is the log-sum-exp of its words' logits is the full softmax, factored.
    config = TransformerXLConfig(**tiny)
    embedding = randomize(AdaptiveEmbedding(config))
    softmax = randomize(AdaptiveLogSoftmax(config, embedding))
    hidden = torch.randn(16)
    logits = embedding.tables[0].weight @ hidden + softmax.bias
    with torch.no_grad():
        softmax.cluster_weight.zero_()
        softmax.cluster_bias.copy_(
            torch.stack([p.logsumexp(0) for p in logits.split([10, 10, 30])][1:])
        )
    torch.testing.assert_close(softmax.log_prob(hidden, embedding), logits.log_softmax(0))
    targets = torch.arange(50)
    nll = softmax(hidden.expand(50, -1), targets, embedding)
    torch.testing.assert_close(nll, -logits.log_softmax(0))


def test_softmax_without_cutoffs_is_an_ordinary_one(tiny):
    model = randomize(build(tiny, cutoffs=[]))
    input_ids = torch.randint(50, (2, 5))
    hidden = model.transformer(input_ids).last_hidden_state
    logits = hidden @ model.transformer.word_emb.tables[0].weight.T + model.softmax.bias
    torch.testing.assert_close(model(input_ids).logits, logits.log_softmax(-1))


@pytest.mark.parametrize("div_val", [1, 2])
def test_every_parameter_has_a_gradient_whatever_the_words(tiny, div_val):
    model = build(tiny, div_val=div_val)
    input_ids = torch.zeros(2, 4, dtype=torch.long)  # the first cluster only
    model(input_ids, shift_labels=input_ids).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_memory_continues_a_text(tiny):
    model = randomize(build(tiny, mem_len=16)).eval()
    text = torch.randint(50, (2, 16))
    first = model(text[:, :9])
    second = model(text[:, 9:], first.mems)
    whole = model(text).logits
    torch.testing.assert_close(torch.cat((first.logits, second.logits), 1), whole)
    assert [past.shape for past in second.mems] == [(2, 16, 16)] * 2


def test_memory_starts_empty_and_keeps_the_last_positions(tiny):
    model = build(tiny, mem_len=5)
    output = model(torch.randint(50, (2, 3)))
    assert [past.shape[1] for past in output.mems] == [3, 3]
    later = model(torch.randint(50, (2, 4)), output.mems)
    assert [past.shape[1] for past in later.mems] == [5, 5]
    torch.testing.assert_close(later.mems[0][:, 0], output.mems[0][:, 2])
    assert not later.mems[1].requires_grad


def test_model_sees_no_word_to_come(tiny):
    model = randomize(build(tiny)).eval()
    text = torch.randint(50, (1, 8))
    changed = text.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    before, after = model(text).logits, model(changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_same_length_lets_every_word_see_mem_len_words(tiny):
    # One layer: what a word sees through others' eyes does not count.
    model = randomize(build(tiny, n_layer=1, mem_len=3, same_length=True)).eval()
    text = torch.randint(50, (1, 8))
    changed = text.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 50
    differs = (model(text).logits != model(changed).logits).any(-1)[0]
    assert differs.tolist() == [False, False, True, True, True, False, False, False]


def test_clamp_len_tells_larger_distances_alike(tiny):
    model = randomize(build(tiny, n_layer=1)).eval()
    text = torch.randint(50, (1, 8))
    with memory(model, mem_len=8, clamp_len=2):
        clamped = model(text).logits
        swapped = text[:, [1, 0, 2, 3, 4, 5, 6, 7]]
        torch.testing.assert_close(model(swapped).logits[:, 4:], clamped[:, 4:])
    assert not torch.allclose(model(text).logits[:, 4:], clamped[:, 4:])
    assert model.config.clamp_len == -1


def test_labels_are_shifted_inside(tiny):
    model = build(tiny)
    text = torch.randint(50, (2, 9))
    inside = model(text, labels=text)
    outside = model(text[:, :-1], shift_labels=text[:, 1:])
    torch.testing.assert_close(inside.losses, outside.losses)
    torch.testing.assert_close(inside.loss, inside.losses.mean())


@pytest.mark.parametrize("changes", [{}, {"div_val": 2}, {"d_embed": 12}, {"weight_norm": True}])
def test_save_and_load_keep_every_weight(tiny, tmp_path, changes):
    model = build(tiny, **changes).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, mem_len=3)
    assert type(loaded) is TransformerXLForCausalLM
    assert loaded.config.mem_len == 3
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_config_is_registered(tiny, tmp_path):
    TransformerXLConfig(**tiny).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is TransformerXLConfig
    assert config.hidden_size == 16


@pytest.mark.parametrize("div_val", [1, 2])
def test_initial_weights_have_the_published_spread(tiny, div_val):
    larger = {"vocab_size": 5000, "d_model": 64, "n_head": 8, "d_head": 16, "d_inner": 256}
    model = build({**tiny, **larger}, div_val=div_val)
    for name, parameter in model.named_parameters():
        mean, std = parameter.mean().item(), parameter.std().item()
        spread = 0.01 if "projection" in name else 0.02
        if name.endswith((".bias", "cluster_bias")):
            assert mean == std == 0, name
        else:
            assert mean == pytest.approx(float("norm" in name), abs=0.01), name
            assert std == pytest.approx(spread, rel=0.5), name


def test_weight_norm_starts_as_the_plain_model(tiny):
    plain, normed = build(tiny), build(tiny, weight_norm=True)
    text = torch.randint(50, (2, 9))
    torch.testing.assert_close(plain(text).logits, normed(text).logits)


def test_weight_norm_is_on_every_linear_layer(tiny):
    model = build(tiny, weight_norm=True)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    directions = [n for n, _ in model.named_parameters() if n.endswith("original1")]
    assert len(directions) == len(linear) == 2 * 5
    model.train()
    model(torch.randint(50, (2, 9)), labels=torch.randint(50, (2, 9))).loss.backward()
    for name in directions:
        direction = model.get_parameter(name)
        cosine = nn.functional.cosine_similarity(direction, direction.grad, dim=1)
        assert cosine.abs().max() < 1e-4, name


BAD_CONFIGS = [
    ({"cutoffs": [20, 10]}, r"cutoffs=\[20, 10\] must rise"),
    ({"cutoffs": [50]}, "below vocab_size=50"),
    ({"d_model": 15}, "d_model=15 must be even"),
    ({"n_head": 0}, "n_head=0 must be >= 1"),
    ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ({"mem_len": -1}, "mem_len=-1 must be >= 0"),
    ({"mem_len": 0, "same_length": True}, "lets no word see even itself"),
    ({"clamp_len": 0}, "clamp_len=0 must be -1"),
    ({"div_val": 8}, "div_val=8 leaves the last of 3 clusters no element"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS)
def test_config_refuses(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerXLConfig(**{**tiny, **changes})


def test_memory_of_another_batch_is_refused(tiny):
    model = build(tiny)
    mems = model(torch.randint(50, (2, 3))).mems
    with pytest.raises(ValueError, match=r"needs 2 of shape \(3, memory, 16\)"):
        model(torch.randint(50, (3, 3)), mems)
    with pytest.raises(ValueError, match="mems are 1 tensors"):
        model(torch.randint(50, (2, 3)), mems[:1])


def test_two_kinds_of_labels_are_refused(tiny):
    text = torch.randint(50, (2, 3))
    with pytest.raises(ValueError, match="both given"):
        build(tiny)(text, labels=text, shift_labels=text)


def test_resizing_the_vocabulary_is_refused(tiny):
    with pytest.raises(NotImplementedError, match="ordered by frequency"):
        build(tiny).resize_token_embeddings(60)
