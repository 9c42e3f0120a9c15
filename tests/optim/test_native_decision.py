"""The kernel's sums and decisions are those of the pure functions in projection.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_adamp.optim import projection
from hf_adamp.optim.backends import native_decision, native_library
from hf_adamp.optim.projection import Extent, Layout, Statistic

pytestmark = pytest.mark.skipif(native_library.load()[0] is None, reason=native_library.load()[1])

EXTENTS = st.lists(
    st.builds(
        lambda heads, size, columns: Extent.of(torch.Size([max(heads, 1) * size, columns]), heads),
        st.integers(0, 4),
        st.integers(1, 40),
        st.sampled_from([1, 2, 9, 64, 5000]),
    ),
    min_size=1,
    max_size=6,
)


def draw(extents, deltas, seed, spoilt=None):
    """A layout, statistics of rows, and decays; `spoilt` is put into one row's gradient."""
    generator = torch.Generator().manual_seed(seed)
    layout = Layout.build(
        extents, deltas, [1e-8] * len(extents), dtype=torch.float32, device=torch.device("cpu")
    )
    rows = len(layout.row_weight)
    stats = torch.rand(len(Statistic), rows, generator=generator)
    columns = torch.tensor([float(e.columns) for e in extents])[layout.row_weight]
    # About the threshold, where both outcomes come up, but not within rounding of it.
    norms = (stats[Statistic.GRAD_SQ] * stats[Statistic.WEIGHT_SQ]).sqrt()
    share = torch.randint(0, 4, (rows,), generator=generator) * 0.15 * (seed % 2)
    stats[Statistic.DOT] = norms * 0.3 * share / columns.sqrt()
    if spoilt is not None:
        stats[[Statistic.DOT, Statistic.GRAD_SQ], rows // 2] = spoilt
    decays = torch.rand(2, len(extents), generator=generator)
    return layout, stats, decays


@settings(max_examples=150)
@given(
    EXTENTS,
    st.sampled_from([0.0, 0.1, math.inf]),
    st.integers(0, 2**31),
    st.sampled_from([None, 0.0, math.nan, math.inf]),
)
def test_native_decision_is_that_of_the_pure_functions(extents, delta, seed, spoilt):
    layout, stats, (decay, projected_decay) = draw(extents, [delta] * len(extents), seed, spoilt)
    totals = native_decision.total(stats, layout)
    expected = projection.total(stats, layout)
    torch.testing.assert_close(totals, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    # Of the same sums: a last bit must not decide between two views.
    decision = native_decision.decide(stats, expected, layout, decay, projected_decay)
    wanted = projection.decide(stats, expected, layout, decay, projected_decay)
    assert torch.equal(decision.views.codes, wanted.views.codes)
    torch.testing.assert_close(decision.shift, wanted.shift, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_native_total_reads_statistics_among_others():
    """A bucket's part of a buffer has the buffer's stride."""
    extents = [Extent.of(torch.Size([7, 5]))]
    layout, stats, _ = draw(extents, [0.1], 0)
    buffer = torch.full((len(Statistic), 20), 1e9)
    buffer[:, 3:10] = stats
    torch.testing.assert_close(
        native_decision.total(buffer[:, 3:10], layout), projection.total(stats, layout)
    )


def test_native_decision_leaves_other_precisions_to_the_pure_functions():
    extents = [Extent.of(torch.Size([7, 5]))]
    layout, stats, (decay, projected_decay) = draw(extents, [0.1], 0)
    layout = Layout.build(extents, [0.1], [1e-8], dtype=torch.float64, device=torch.device("cpu"))
    stats = stats.double()
    assert native_decision.total(stats, layout).equal(projection.total(stats, layout))
    decays = decay.double(), projected_decay.double()
    totals = projection.total(stats, layout)
    decision = native_decision.decide(stats, totals, layout, *decays)
    assert decision.shift.equal(projection.decide(stats, totals, layout, *decays).shift)
