"""What is refused, in words that help, before anything is changed."""

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import FAMILIES, families_and_paths
from tests.training import assert_identical, build, run_steps, set_grads, snapshot
from tests.weights import make_grads, make_weights

EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
NAMES = ["linear", "bias", "embedding"]


@EVERY_PATH
def test_sparse_gradient_is_refused_before_anything_changes(family, path):
    weights = make_weights(names=NAMES, device=path.device)
    optimizer = build(family, weights, path)
    run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])
    before = snapshot(optimizer)
    set_grads(weights.values(), make_grads(weights.values(), "channel", 2))
    weights["embedding"].grad = weights["embedding"].grad.to_sparse()
    with pytest.raises(RuntimeError, match=r"\['params'\]\[2\] has a sparse gradient.*dense"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


@EVERY_FAMILY
def test_sparse_embedding_is_refused_in_the_first_step(family):
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = build(family, embedding.named_parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="weight has a sparse gradient"):
        optimizer.step()
    assert not optimizer.state


@EVERY_FAMILY
def test_complex_weight_is_refused(family):
    weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"is complex.*view_as_real"):
        build(family, [("layer.weight", weight)])


@EVERY_FAMILY
def test_complex_weight_in_add_param_group_leaves_the_optimizer_as_it_was(family):
    weights = make_weights(names=NAMES)
    optimizer = build(family, weights)
    weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="is complex"):
        optimizer.add_param_group({"params": [weight]})
    assert len(optimizer.param_groups) == 1
    run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])


MARKS = {
    "_is_flat_param": (True, "flattened FSDP1 shard"),
    "_fsdp_flattened": (True, "flattened FSDP1 shard"),
    "ds_id": (3, "partitioned by DeepSpeed ZeRO"),
    "ds_tensor": (None, "partitioned by DeepSpeed ZeRO"),
    "_hp_mapping": (None, "partitioned by DeepSpeed ZeRO"),
}


def marked(mark):
    weight = nn.Parameter(torch.randn(12))
    setattr(weight, mark, MARKS[mark][0])
    return weight


@pytest.mark.parametrize("mark", MARKS)
@EVERY_FAMILY
def test_flattened_weight_is_refused(family, mark):
    with pytest.raises(RuntimeError, match=rf"block\.weight.*{MARKS[mark][1]}.*fully_shard"):
        build(family, [("block.weight", marked(mark))])


@pytest.mark.parametrize("mark", MARKS)
@EVERY_FAMILY
def test_flattened_weight_is_refused_in_add_param_group(family, mark):
    optimizer = build(family, make_weights(names=NAMES))
    with pytest.raises(RuntimeError, match=MARKS[mark][1]):
        optimizer.add_param_group({"params": [marked(mark)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("mark", MARKS)
@EVERY_FAMILY
def test_flattened_weight_serves_where_delta_zero_asks_for_no_projection(family, mark):
    weight = marked(mark)
    before = weight.detach().clone()
    optimizer = build(family, [weight], delta=0.0)
    run_steps(optimizer, [[torch.ones(12)]])
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("value", [False, None])
@EVERY_FAMILY
def test_mark_that_says_no_is_no_reason_to_refuse(family, value):
    weight = nn.Parameter(torch.randn(3, 4))
    weight._fsdp_flattened = weight._is_flat_param = value
    build(family, [weight])


@EVERY_FAMILY
def test_weights_that_were_flattened_after_construction_are_noticed(family):
    """As DeepSpeed does, which puts one flat weight in the place of a group's."""
    optimizer = build(family, make_weights(names=["linear", "conv2d"]))
    flat = nn.Parameter(torch.randn(100))
    optimizer.param_groups[0]["params"] = [flat]
    flat.grad = torch.randn(100)
    before = flat.detach().clone()
    with pytest.raises(RuntimeError, match="were flattened"):
        optimizer.step()
    assert torch.equal(flat, before)


@EVERY_FAMILY
def test_weight_in_two_groups_is_refused_in_torchs_words(family):
    weight = nn.Parameter(torch.randn(3, 4))
    with pytest.raises(ValueError, match="more than one parameter group"):
        build(family, [{"params": [weight]}, {"params": [weight]}])


@EVERY_FAMILY
def test_weight_that_is_no_leaf_is_refused_in_torchs_words(family):
    with pytest.raises(ValueError, match="non-leaf"):
        build(family, [torch.randn(3, 4, requires_grad=True) * 2])
