"""Decide, the pure functions: closed forms, both sides of every threshold, what is no number."""

import math

import pytest
import torch

from hf_adamp.optim.layout import Extent, Layout, Statistic, has_rows
from hf_adamp.optim.projection import View, choose_views, radial_part, shift_rows, total

EPS = 1e-8


def lay_out(shapes, delta=0.1, eps=EPS):
    return Layout.build(
        [Extent.of(torch.Size(shape)) for shape in shapes],
        [delta] * len(shapes),
        [eps] * len(shapes),
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


def statistics(grads, weights, steps=None):
    """The buffer of these weights, computed row by row."""
    rows = []
    for index, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
        step = steps[index] if steps else torch.zeros_like(weight)
        g, w, s = (x.double().reshape(len(weight), -1) for x in (grad, weight, step))
        rows.append(
            torch.stack([(g * w).sum(1), (g * g).sum(1), (w * w).sum(1), (s * w).sum(1),
                         (s * s).sum(1)])
        )  # fmt: skip
    return torch.cat(rows, dim=1)


def views_of(grads, weights, **options):
    layout = lay_out([tuple(weight.shape) for weight in weights], **options)
    return choose_views(total(statistics(grads, weights), layout), layout).codes.tolist()


def at_cosine(columns, cosine, rows=1):
    """Weight and gradient of `rows` rows with this cosine in each."""
    weight = torch.zeros(rows, columns, dtype=torch.float64)
    grad = torch.zeros_like(weight)
    weight[:, 0] = 2.0
    grad[:, 0] = 3 * cosine
    grad[:, 1] = 3 * math.sqrt(1 - cosine**2)
    return grad, weight


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), False),
        ((7,), False),
        ((0,), False),
        ((0, 4), False),
        ((3, 0), False),
        ((3, 0, 2), False),
        ((1, 1), True),
        ((7, 1), True),
        ((1, 7), True),
        ((2, 3, 4, 5, 6), True),
    ],
)
def test_weights_with_two_dimensions_and_elements_have_rows(shape, expected):
    assert has_rows(torch.Size(shape)) is expected


def test_layout_places_rows_one_weight_after_the_other():
    layout = lay_out([(3, 4), (1, 9), (2, 5, 5)])
    assert layout.row_weight.tolist() == [0, 0, 0, 1, 2, 2]
    assert layout.offsets.tolist() == [0, 3, 4, 6]
    expected = torch.tensor([0.1 / math.sqrt(c) for c in (4, 9, 25)], dtype=torch.float64)
    assert torch.equal(layout.channel_limit, expected)
    expected = torch.tensor([0.1 / math.sqrt(c) for c in (12, 9, 50)], dtype=torch.float64)
    assert torch.equal(layout.layer_limit, expected)


def test_extent_counts_beyond_two_to_the_31():
    extent = Extent.of(torch.Size((300_000, 128, 128)))
    assert extent == Extent(300_000, 128 * 128, 300_000 * 128 * 128)
    assert extent.numel > 2**31
    limits = lay_out([(300_000, 128, 128)])
    assert math.isclose(limits.layer_limit.item(), 0.1 / math.sqrt(extent.numel), rel_tol=1e-12)


@pytest.mark.parametrize("columns", [2, 3, 16, 1000])
@pytest.mark.parametrize(("side", "view"), [(0.999, View.CHANNEL), (1.001, View.NONE)])
def test_channel_view_fires_below_delta_over_root_columns(columns, side, view):
    grad, weight = at_cosine(columns, side * 0.1 / math.sqrt(columns))
    assert views_of([grad], [weight]) == [view]
    grad, weight = at_cosine(columns, -side * 0.1 / math.sqrt(columns))
    assert views_of([grad], [weight]) == [view]


def test_threshold_itself_does_not_project():
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    grad = torch.tensor([[1.0, math.sqrt(3), 0.0, 0.0]], dtype=torch.float64)
    # cos = 1/2 = δ/√4 with δ = 1: the test is strict.
    stats = statistics([grad], [weight])
    stats[Statistic.GRAD_SQ] = 4.0
    layout = lay_out([(1, 4)], delta=1.0)
    assert choose_views(total(stats, layout), layout).codes.tolist() == [View.NONE]


@pytest.mark.parametrize(("side", "view"), [(0.999, View.LAYER), (1.001, View.NONE)])
def test_layer_view_fires_below_delta_over_root_elements(side, view):
    grad, weight = at_cosine(8, 0.9, rows=2)
    grad[1, 0] = -grad[0, 0] + side * 0.1 / math.sqrt(16) * 3 * math.sqrt(2) * math.sqrt(2)
    grad[1, 1] = math.sqrt(9 - grad[1, 0] ** 2)
    assert views_of([grad], [weight]) == [view]


def test_one_row_decides_for_its_weight_and_for_no_other():
    near, weight = at_cosine(16, 0.0, rows=5)
    far = near.clone()
    far[3] = at_cosine(16, 0.9)[0]
    assert views_of([near, far, near], [weight] * 3) == [View.CHANNEL, View.NONE, View.CHANNEL]


def test_delta_zero_projects_nothing():
    grad, weight = at_cosine(16, 0.0, rows=3)
    assert views_of([grad], [weight], delta=0.0) == [View.NONE]


@pytest.mark.parametrize("spoiled", ["grad", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_projects_nothing(value, spoiled):
    grad, weight = at_cosine(16, 0.0, rows=4)
    bad_grad, bad_weight = grad.clone(), weight.clone()
    {"grad": bad_grad, "weight": bad_weight}[spoiled][2, 5] = value
    views = views_of([grad, bad_grad, grad], [weight, bad_weight, weight])
    assert views == [View.CHANNEL, View.NONE, View.CHANNEL]


def test_zero_weight_counts_as_orthogonal_and_needs_eps():
    grad, weight = torch.ones(3, 4), torch.zeros(3, 4)
    assert views_of([grad], [weight]) == [View.CHANNEL]
    assert views_of([grad], [weight], eps=0.0) == [View.NONE]


def test_norms_below_eps_count_as_eps():
    grad, weight = at_cosine(4, 0.9)
    # |g| = 3e-9 counts as 1e-8, which makes a cosine of 0.27.
    layout = lay_out([(1, 4)], delta=0.6)
    stats = statistics([1e-9 * grad], [weight])
    assert choose_views(total(stats, layout), layout).codes.tolist() == [View.CHANNEL]
    stats = statistics([1e-7 * grad], [weight])
    assert choose_views(total(stats, layout), layout).codes.tolist() == [View.NONE]


def shifts_of(view, decay=0.0, projected=0.0, eps=EPS):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 5, dtype=torch.float64, generator=draw)
    step = torch.randn(3, 5, dtype=torch.float64, generator=draw)
    layout = lay_out([(3, 5)], eps=eps)
    stats = statistics([step], [weight], [step])
    totals = total(stats, layout)
    views = choose_views(totals, layout)
    on, off = torch.tensor([True]), torch.tensor([False])
    views = type(views)(on if view == View.CHANNEL else off, on if view == View.LAYER else off)
    decays = (torch.tensor([d], dtype=torch.float64) for d in (decay, projected))
    return weight, step, shift_rows(stats, totals, layout, views, *decays)


def test_shift_of_a_row_takes_its_radial_part_away():
    weight, step, shift = shifts_of(View.CHANNEL, eps=0.0)
    moved = shift[:, None] * weight - step
    assert torch.allclose((moved * weight).sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-14)


def test_shift_of_a_layer_takes_the_whole_radial_part_away():
    weight, step, shift = shifts_of(View.LAYER, eps=0.0)
    moved = shift[:, None] * weight - step
    assert abs((moved * weight).sum()) < 1e-14
    assert (moved * weight).sum(1).abs().max() > 1e-2
    assert shift.unique().numel() == 1


def test_shift_without_a_view_is_weight_decay():
    _, _, shift = shifts_of(View.NONE, decay=0.25, projected=0.5)
    assert shift.tolist() == [-0.25] * 3


@pytest.mark.parametrize("view", [View.CHANNEL, View.LAYER])
def test_shift_with_a_view_has_the_projected_decay(view):
    _, _, plain = shifts_of(view)
    _, _, decayed = shifts_of(view, decay=0.25, projected=0.125)
    assert torch.allclose(plain - decayed, torch.full((3,), 0.125, dtype=torch.float64))


def test_radial_part_is_measured_against_norm_plus_eps():
    stats = torch.tensor([[0.0], [0.0], [4.0], [6.0], [0.0]], dtype=torch.float64)
    assert radial_part(stats, torch.tensor(1.0)).item() == 6 / 9
    assert radial_part(stats, torch.tensor(0.0)).item() == 6 / 4


def test_spoiled_row_leaves_the_shifts_of_other_weights_alone():
    grad, weight = at_cosine(16, 0.0, rows=2)
    bad = torch.full_like(grad, float("nan"))
    layout = lay_out([(2, 16)] * 3)
    stats = statistics([grad, bad, grad], [weight] * 3, [grad, bad, grad])
    totals = total(stats, layout)
    none = torch.zeros(3, dtype=torch.float64)
    shift = shift_rows(stats, totals, layout, choose_views(totals, layout), none, none)
    assert shift.isfinite().all()


def test_many_rows_add_up_precisely_in_float32():
    """A vocabulary's worth of rows, all in one total."""
    rows = 250_000
    layout = Layout.build(
        [Extent(rows, 4, 4 * rows)], [0.1], [EPS], dtype=torch.float32, device=torch.device("cpu")
    )
    stats = torch.rand(5, rows, generator=torch.Generator().manual_seed(0))
    exact = stats.double().sum(1)
    assert torch.allclose(total(stats, layout)[:5, 0].double(), exact, rtol=1e-5)
