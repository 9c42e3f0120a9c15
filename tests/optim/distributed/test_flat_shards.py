"""Weights in flat shards: where their rows are, and that training equals one process's.

30 s of processor time on the machine they were written on.
"""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from hf_adamp import AdamP
from hf_adamp.optim.layout import Peers
from hf_adamp.optim.sharding.flat import FlatTensor, FlatWeight, place_flat
from tests.optim.distributed.flat_stand_in import (
    DECLARED,
    OPTIONS,
    SEEN,
    STAGES,
    Imported,
    groups_of,
    views_of,
)
from tests.optim.distributed.strategies import Net, batch_of, single_backward
from tests.tolerances import assert_close
from tests.training import params_of

PEERS = Peers(None, "cpu")


class Claims:
    """Gives out places as a reducer does."""

    def __init__(self):
        self.rows = self.segments = 0

    def claim_rows(self, _, count):
        self.rows += count
        return range(self.rows - count, self.rows)

    def claim_segments(self, _, count):
        self.segments += count
        return range(self.segments - count, self.segments)


shapes = st.lists(
    st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
)


def _placed(shapes, cuts, rank, declared="auto"):
    """The placements on a rank, and the ranges of a buffer that is cut at these places."""
    weights, begin = [], 0
    edges = [0, *sorted(cuts), sum(map(math.prod, shapes))]
    for shape in shapes:
        numel = math.prod(shape)
        bounds = tuple(min(max(edge - begin, 0), numel) for edge in edges)
        weight = torch.empty(shape)
        weights.append(FlatWeight(weight, weight.shape, bounds, max(begin - edges[rank], 0)))
        begin += numel
    flat = FlatTensor(torch.empty(edges[rank + 1] - edges[rank]), tuple(weights), rank, PEERS)
    claims = Claims()
    placements = place_flat(flat, declared, claims.claim_rows, claims.claim_segments)
    return placements, claims, edges


def _elements(placement):
    """Which elements of the flat tensor each piece holds."""
    for piece in placement.pieces:
        rows, columns = piece.shape
        for row in range(rows):
            begin = piece.offset + row * piece.stride[0]
            yield piece.row + row, range(begin, begin + columns)


@given(shapes, st.data())
def test_pieces_hold_every_element_once_and_cut_rows_add_up(shapes, data):
    total = sum(map(math.prod, shapes))
    cuts = data.draw(st.lists(st.integers(0, total), min_size=1, max_size=3))
    values = torch.arange(1.0, total + 1)
    rows = {}  # By place in the sum of cut rows: the sum of their elements.
    counted = torch.zeros(len(shapes), dtype=torch.int64)
    places = set()
    for rank in range(len(cuts) + 1):
        placements, claims, edges = _placed(shapes, cuts, rank)
        places.add((claims.rows, claims.segments))
        here = values[edges[rank] : edges[rank + 1]]
        held = sorted(i for p in placements for _, own in _elements(p) for i in own)
        assert held == list(range(len(here)))
        for placement in placements:
            if placement.extent is None:
                continue
            number = next(i for i, s in enumerate(shapes) if s == tuple(placement.weight.shape))
            counted[number] += placement.extent.rows - len(placement.guests)
            sums = torch.zeros(placement.extent.rows)
            for row, own in _elements(placement):
                sums[row] += here[list(own)].sum()
            for slots in placement.row_slots.values():
                for row, place in zip(slots.here, slots.there, strict=True):
                    rows[place] = rows.get(place, 0) + sums[row]
    assert len(places) == 1, "all processes number the sums alike"
    starts = [0, *accumulate(map(math.prod, shapes))]
    whole = [
        row.sum()
        for shape, start in zip(shapes, starts, strict=False)
        if len(shape) > 1
        for row in values[start : start + math.prod(shape)].view(shape[0], -1)
    ]
    for total_of_row in rows.values():
        assert any(torch.isclose(total_of_row, row) for row in whole)
    if len(set(shapes)) == len(shapes):
        expected = [shape[0] if len(shape) > 1 else 0 for shape in shapes]
        assert counted.tolist() == expected


def test_stack_of_experts_that_is_cut_column_by_column_is_refused():
    with pytest.raises(RuntimeError, match=r"'in_out'.*weights that are whole.*use 'auto'"):
        _placed([(2, 3, 4)], [5], 0, ("experts", "in_out"))


def check_training(name, family, declared, flags):
    torch.manual_seed(0)
    model, single = Net(), Net()
    single.load_state_dict(model.state_dict())
    with Imported():
        optimizer = family(groups_of(model, declared), **OPTIONS[family], **flags)
        alone = family(groups_of(single, declared), **OPTIONS[family], **flags)
        optimizer.record_steps = alone.record_steps = True
        zero = STAGES[name](optimizer)
        seen = set()
        for step in range(6):
            images, labels = batch_of(step, 0, torch.distributed.get_rank(), torch.float32)
            model.zero_grad()
            cross_entropy(model(images), labels).backward()
            zero.step()
            single_backward(single, step, torch.distributed.get_world_size())
            alone.step()
            assert views_of(optimizer, model) <= views_of(alone, single)
            seen |= views_of(alone, single)
            for (what, actual), expected in zip(
                model.named_parameters(), single.parameters(), strict=True
            ):
                assert_close(actual, expected, what=f"{name}, step {step}: {what}")
    return seen


@pytest.mark.parametrize("family", OPTIONS, ids=lambda family: family.__name__)
@pytest.mark.parametrize(("name", "size"), [(n, s) for s in (2, 3) for n in STAGES], ids=str)
def test_training_matches_one_process(pools, name, size, family):
    seen = pools(size).run(check_training, name, family, "auto", {})[0]
    # Guards the test itself: on both sides of the test, in both views.
    assert seen >= SEEN


@pytest.mark.parametrize("declared", DECLARED, ids=str)
@pytest.mark.parametrize("name", STAGES)
def test_declared_weights_match_one_process(pools, name, declared):
    seen = pools(3).run(check_training, name, AdamP, declared, {})[0]
    assert {view for name, view in seen if name == "up.weight"} == {DECLARED[declared]}


@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("name", STAGES)
def test_every_backend_matches_one_process(pools, name, flags):
    pools(3).run(check_training, name, AdamP, "auto", flags)


def check_one_plan_each(name):
    model = Net()
    with Imported():
        optimizer = AdamP(groups_of(model), **OPTIONS[AdamP])
        zero = STAGES[name](optimizer)
        seen = []
        for step in range(3):
            images, labels = batch_of(step, 0, torch.distributed.get_rank(), torch.float32)
            model.zero_grad()
            cross_entropy(model(images), labels).backward()
            zero.step()
            seen.append(dict(optimizer._plans))
    assert len(seen[0]) == 2
    assert all(plans == seen[0] for plans in seen)


@pytest.mark.parametrize("name", STAGES)
def test_each_group_keeps_its_plan(pools, name):
    pools(2).run(check_one_plan_each, name)


def check_refused(change, told):
    model = Net()
    with Imported():
        optimizer = AdamP(groups_of(model), **OPTIONS[AdamP])
        zero = STAGES["stage 2"](optimizer)
        CHANGES[change](model, optimizer)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        with pytest.raises(RuntimeError, match=told + ".*stage 0.*set delta=0"):
            zero.step()
        assert params_of(optimizer)[-1] not in optimizer.state


def _change_values(model, optimizer):
    with torch.no_grad():
        model.up.weight.add_(1)


def _move_a_weight(model, optimizer):
    model.up.weight.data = model.up.weight.data.clone()


CHANGES = {
    "values": _change_values,
    "moved": _move_a_weight,
    "experts": lambda model, optimizer: optimizer.param_groups[1].update(moe=True),
    "frozen": lambda model, optimizer: [p.requires_grad_(False) for p in model.parameters()],
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("values", "changed outside of DeepSpeed"),
        ("moved", "do not add up"),
        ("experts", "partitioned by experts"),
        ("frozen", "no weight of its group is trainable"),
    ],
)
def test_flat_tensor_that_cannot_be_read_is_refused(pools, change, told):
    pools(2).run(check_refused, change, told)
