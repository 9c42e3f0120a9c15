"""A checkpoint whose run grouped its weights in another way: each state finds its weight."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from hf_adamp import SGDP, AdamP, get_param_groups
from hf_adamp.param_groups import ParamGroups
from tests.training import params_of, run_steps


class Network(nn.Module):
    """What the two rules group otherwise: a norm that only its module's class gives away.

    All its weights have one shape, so that a wrong match would load.
    """

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.batch = nn.BatchNorm1d(4)
        self.hidden = nn.Linear(4, 4, bias=False)
        self.scale = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 4, bias=False)


def network(seed=0):
    torch.manual_seed(seed)
    return Network()


def begun(optimizer, model):
    """Steps whose gradients tell the weights apart."""
    for count, param in enumerate(model.parameters(), start=1):
        param.grad = torch.full_like(param, float(count))
    optimizer.step()
    return optimizer


def assert_each_has_its_own(optimizer, model, first, first_model):
    """The same moments under the same names."""
    theirs = dict(first_model.named_parameters())
    for name, param in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[param][moment], first.state[theirs[name]][moment])


def transformers_groups(model):
    return list(get_param_groups(model, 0.1, rule="transformers"))


def one_group(model):
    return model.parameters()


def with_an_empty_group(model):
    """As a Trainer makes them where nothing is decayed or nothing is not."""
    return [*list(get_param_groups(model, 0.1)), {"params": [], "weight_decay": 0.0}]


def sizes(optimizer):
    return [len(group["params"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("grouped", [transformers_groups, one_group, with_an_empty_group])
def test_adamw_grouped_by_another_rule_continues_in_adamp(grouped, caplog):
    before, after = network(), network()
    first = begun(torch.optim.AdamW(grouped(before), lr=0.5, weight_decay=0.1), before)
    second = AdamP(get_param_groups(after, 0.3))
    assert sizes(first) != sizes(second)
    with caplog.at_level("INFO"):
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert_each_has_its_own(second, after, first, before)
    assert "each weight's state is matched on its own" in caplog.text
    # What all groups agree on is the checkpoint's, what the grouping is about is the optimizer's.
    assert {group["lr"] for group in second.param_groups} == {0.5}
    assert [group["weight_decay"] for group in second.param_groups] == [0.3, 0.0]
    assert {group["delta"] for group in second.param_groups} == {0.1}


def test_options_that_differ_between_groups_go_with_their_weights():
    before, after = network(), network()
    groups = [
        {"params": [p], "lr": 0.5 if p.ndim > 1 else 0.25, "weight_decay": 0.0}
        for group in transformers_groups(before)
        for p in group["params"]
    ]
    first = AdamP(ParamGroups(groups, before), betas=(0.5, 0.75))
    second = AdamP(get_param_groups(after, 0.3))
    second.load_state_dict(first.state_dict())
    assert [group["lr"] for group in second.param_groups] == [0.5, 0.25]
    assert {group["betas"] for group in second.param_groups} == {(0.5, 0.75)}


@pytest.mark.parametrize(
    "declared",
    [None, {"hidden.weight": "row"}, {"embed.weight": "row", "head.weight": ("head", 2)}],
    ids=["undeclared", "one", "two"],
)
def test_our_own_checkpoint_is_matched_by_name_whatever_is_declared(declared):
    before, after = network(), network()
    first = begun(
        AdamP(get_param_groups(before, 0.1, scale_invariance={"head.weight": None})), before
    )
    second = AdamP(get_param_groups(after, 0.1, scale_invariance=declared))
    second.load_state_dict(first.state_dict())
    assert_each_has_its_own(second, after, first, before)
    kept = AdamP(get_param_groups(after, 0.1, scale_invariance=declared)).param_groups
    assert [g["scale_invariant"] for g in second.param_groups] == [
        g["scale_invariant"] for g in kept
    ]


def test_our_own_checkpoint_of_the_other_rule_is_matched_by_name():
    """Also where the groups have the same sizes and shapes by chance."""
    before, after = network(), network()
    a, b, *others = before.parameters()
    swapped = [{"params": [after.batch.weight, *list(after.parameters())[:1]]}]
    first = begun(AdamP(ParamGroups([{"params": [a, b, *others]}], before)), before)
    rest = [p for p in after.parameters() if all(p is not q for q in swapped[0]["params"])]
    swapped[0]["params"] += reversed(rest)
    second = AdamP(ParamGroups(swapped, after))
    second.load_state_dict(first.state_dict())
    assert_each_has_its_own(second, after, first, before)


def test_names_that_the_user_gives_are_used():
    before, after = network(), network()
    first = begun(torch.optim.AdamW(before.named_parameters()), before)
    second = AdamP(list(reversed(list(after.named_parameters()))))
    second.load_state_dict(first.state_dict())
    assert_each_has_its_own(second, after, first, before)
    assert second.param_groups[0]["param_names"][0] == "head.weight"


def test_names_are_compared_without_wrappers():
    before, after = network(), network()
    names = [f"module._orig_mod.{name}" for name, _ in before.named_parameters()]
    named = list(zip(names, before.parameters(), strict=True))
    first = begun(torch.optim.AdamW(named), before)
    second = AdamP(get_param_groups(after, 0.1))
    second.load_state_dict(first.state_dict())
    assert_each_has_its_own(second, after, first, before)


def test_checkpoint_that_fits_in_two_ways_is_refused():
    """Two rules that swap weights of one shape: the sizes tell nothing."""

    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.Linear(4, 4, bias=False)  # spared by Transformers: it is called a norm
            self.gain = nn.Parameter(torch.ones(1, 4, 4))
            self.token = nn.Parameter(torch.ones(1, 1, 16))  # decayed by Transformers

    model = Swapped()
    theirs = [g["params"] for g in transformers_groups(model)]
    ours = [g["params"] for g in get_param_groups(model, 0.1)]
    assert list(map(len, theirs)) == list(map(len, ours))
    first = torch.optim.AdamW(transformers_groups(model))
    second = AdamP(get_param_groups(model, 0.1))
    before = second.state_dict()
    with pytest.raises(ValueError, match=r"in more than one way.*groups=transformers"):
        second.load_state_dict(first.state_dict())
    assert second.state_dict() == before
    # Shapes tell where there is state.
    begun(first, model)
    second.load_state_dict(first.state_dict())
    for param in model.parameters():
        assert torch.equal(second.state[param]["exp_avg"], first.state[param]["exp_avg"])


def test_renamed_weights_keep_their_places_with_a_warning(caplog):
    before, after = network(), network()
    first = begun(AdamP(get_param_groups(before, 0.1)), before)
    saved = first.state_dict()
    saved["param_names"] = [name.replace("head", "classifier") for name in saved["param_names"]]
    second = AdamP(get_param_groups(after, 0.1))
    second.load_state_dict(saved)
    assert_each_has_its_own(second, after, first, before)
    assert "classifier.weight is now head.weight" in caplog.text


@pytest.mark.parametrize("change", ["frozen", "swapped"])
def test_checkpoint_of_other_weights_names_them(change):
    before, after = network(), network()
    saved = begun(AdamP(get_param_groups(before, 0.1)), before).state_dict()
    if change == "frozen":
        after.head.weight.requires_grad_(False)
        match = r"it lacks none and has head\.weight in addition; train the same weights"
    else:
        index = saved["param_names"].index("head.weight")
        saved["param_names"][index], saved["param_names"][0] = "embed.weight", "tail.weight"
        match = r"it lacks head\.weight and has tail\.weight in addition"
    second = AdamP(get_param_groups(after, 0.1))
    with pytest.raises(ValueError, match=match):
        second.load_state_dict(saved)
    assert not second.state


def test_error_says_what_differs_and_what_to_write():
    """Groups without a model to ask."""
    model = network()
    saved = torch.optim.AdamW(transformers_groups(model)).state_dict()
    second = AdamP(list(get_param_groups(model, 0.1)))
    with pytest.raises(
        ValueError,
        match=r"doesn't match the size of optimizer's group: it has groups of 5, 2 weights, the "
        r"optimizer 3, 4\. .* groups=transformers in --optim_args, or get_param_groups",
    ):
        second.load_state_dict(saved)


def test_groups_do_not_keep_the_model_alive():
    model = network()
    groups = get_param_groups(model, 0.1)
    optimizer = AdamP(groups)
    saved = optimizer.state_dict()
    assert saved["param_names"] == [
        *(f"{name}.weight" for name in ("embed", "hidden", "head")),
        *(f"{name}.{kind}" for name in ("batch", "scale") for kind in ("weight", "bias")),
    ]
    del model
    assert groups.source.names(params_of(optimizer)) is None
    assert groups.source.groupings() == []
    assert "param_names" not in optimizer.state_dict()
    optimizer.load_state_dict(saved)


def test_names_stand_aside_of_the_groups():
    """torch.optim adds no group without names to groups that have some."""
    model, loss = network(), nn.Linear(2, 2)
    for cls in (AdamP, torch.optim.AdamW):
        optimizer = cls(get_param_groups(model, 0.1))
        optimizer.add_param_group({"params": loss.parameters()})
    assert "param_names" not in AdamP(get_param_groups(model, 0.1)).param_groups[0]


def test_our_checkpoint_with_names_loads_in_torch():
    before, after = network(), network()
    first = begun(AdamP(get_param_groups(before, 0.1)), before)
    second = torch.optim.AdamW(get_param_groups(after, 0.1))
    second.load_state_dict(first.state_dict())
    assert_each_has_its_own(second, after, first, before)


def test_sgd_grouped_by_another_rule_continues_in_sgdp():
    before, after = network(), network()
    first = begun(torch.optim.SGD(transformers_groups(before), lr=0.5, momentum=0.9), before)
    second = SGDP(get_param_groups(after, 0.1), lr=0.1)
    second.load_state_dict(first.state_dict())
    theirs = dict(before.named_parameters())
    for name, param in after.named_parameters():
        buffer = first.state[theirs[name]]["momentum_buffer"]
        assert torch.equal(second.state[param]["momentum"], buffer)
    run_steps(second, [[torch.ones_like(param) for param in params_of(second)]])


def unpickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, unpickled])
@pytest.mark.parametrize("when", ["groups", "optimizer"])
def test_copies_and_pickles_keep_the_names(duplicate, when):
    """What `torch.multiprocessing.spawn` hands to its processes, for one."""
    model = network()
    declared = {"hidden.weight": "row"}
    groups = get_param_groups(model, 0.1, scale_invariance=declared)
    names = AdamP(groups).state_dict()["param_names"]
    if when == "groups":
        twin, groups = duplicate((model, groups))
        optimizer = AdamP(groups)
    else:
        twin, optimizer = duplicate((model, begun(AdamP(groups), model)))
    assert optimizer.state_dict()["param_names"] == names
    assert [g["scale_invariant"] for g in optimizer.param_groups] == ["auto", "row", "auto"]
    assert optimizer.param_groups[1]["params"][0] is twin.hidden.weight
    # And they serve: another grouping's state finds its weight.
    before = network()
    first = begun(AdamP(get_param_groups(before, 0.1)), before)
    optimizer.load_state_dict(copy.deepcopy(first.state_dict()))
    assert_each_has_its_own(optimizer, twin, first, before)


def test_copied_optimizer_that_gets_other_weights_has_no_wrong_names():
    model = network()
    optimizer = copy.deepcopy(AdamP(get_param_groups(model, 0.1)))
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(2, 2))]})
    assert "param_names" not in optimizer.state_dict()


def test_copied_optimizer_lets_go_of_its_weights():
    model = network()
    optimizer = copy.deepcopy(AdamP(get_param_groups(model, 0.1)))
    gone = weakref.ref(optimizer.param_groups[0]["params"][0])
    optimizer.param_groups[0]["params"] = []
    gc.collect()
    assert gone() is None
