"""The Triton kernels of a step: measure, decide, write.

A program of `measure` and of `write` works on one *task*: some whole rows of one weight, or a part
of a vector. A row wider than a tile is walked through in a loop. Nothing is added up atomically, so
runs repeat bit for bit.

A weight is projected row by row only if no row of it fails the test. So where a row fails,
`measure` knows more than half of the decision, and writes its task unprojected while it has it in
registers. If the weight turns out to be projected as a whole, `write` adds the radial part that is
missing. All other tasks are written by `write` alone.

Tables, one line a task, a tensor or a weight:
    tasks         tensor, place in the statistics (-1 for a vector), offset, rows, columns, stride
                  from row to row, weight, whether it may be written early
    addresses     weight, gradient, first moment, second moment, compensation
    coefficients  see `Column`
"""

# Triton's language, not Python's: arguments are values on the device or constants to specialise
# on, which are in capitals as usual there, and types belong to the launch.
# ruff: noqa: ANN001, ANN202, ANN201, N803, SIM300
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from enum import IntEnum

import triton
import triton.language as tl

__all__ = ["ADDRESSES", "Column", "Field", "decide", "measure", "nothing", "write"]


class Field(IntEnum):
    """The columns of `tasks`."""

    TENSOR = 0
    PLACE = 1
    OFFSET = 2
    ROWS = 3
    COLUMNS = 4
    STRIDE = 5
    WEIGHT = 6
    EARLY = 7


class Column(IntEnum):
    """The columns of `coefficients`: `rules.Coefficients`, and what a count of steps makes."""

    KEEP1 = 0
    ADD1 = 1
    KEEP2 = 2
    ADD2 = 3
    OF_MOMENT = 4
    OF_GRAD = 5
    EPS = 6
    SIGN = 7
    DECAY = 8
    PROJECTED_DECAY = 9
    DELTA = 10
    STEP_SIZE = 11
    ROOT = 12


ADDRESSES = 5

_FIELDS = tl.constexpr(len(Field))
_COLUMNS = tl.constexpr(len(Column))
_ADDRESSES = tl.constexpr(ADDRESSES)
_OFFSET = tl.constexpr(Field.OFFSET.value)
_PLACE = tl.constexpr(Field.PLACE.value)
_ROWS = tl.constexpr(Field.ROWS.value)
_WIDTH = tl.constexpr(Field.COLUMNS.value)
_STRIDE = tl.constexpr(Field.STRIDE.value)
_WEIGHT = tl.constexpr(Field.WEIGHT.value)
_EARLY = tl.constexpr(Field.EARLY.value)
_KEEP1 = tl.constexpr(Column.KEEP1.value)
_ADD1 = tl.constexpr(Column.ADD1.value)
_KEEP2 = tl.constexpr(Column.KEEP2.value)
_ADD2 = tl.constexpr(Column.ADD2.value)
_OF_MOMENT = tl.constexpr(Column.OF_MOMENT.value)
_OF_GRAD = tl.constexpr(Column.OF_GRAD.value)
_EPS = tl.constexpr(Column.EPS.value)
_SIGN = tl.constexpr(Column.SIGN.value)
_DECAY = tl.constexpr(Column.DECAY.value)
_PROJECTED_DECAY = tl.constexpr(Column.PROJECTED_DECAY.value)
_STEP_SIZE = tl.constexpr(Column.STEP_SIZE.value)
_ROOT = tl.constexpr(Column.ROOT.value)
# rules.Kind
_ADAM = tl.constexpr(0)
_PLAIN = tl.constexpr(2)
# Options of `rounding`.
_KAHAN = tl.constexpr(1)
_STOCHASTIC = tl.constexpr(2)
# What decay may take of a weight for the old one to be recovered from what is left.
_MOST_DECAY = tl.constexpr(0.5)


@triton.jit
def nothing(out):
    """The smallest kernel, to see whether any can be compiled and run."""
    tl.store(out, 0)


@triton.jit
def _tile(
    tasks, task, begin, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    """Where elements of a task lie in their tensor, and which of the tile's places exist."""
    line = tasks + _FIELDS * task
    offset = tl.load(line + _OFFSET)
    rows = tl.load(line + _ROWS)
    columns = tl.load(line + _WIDTH)
    stride = tl.load(line + _STRIDE)
    if ALIGNED:
        # Four elements are loaded at once.
        offset = tl.multiple_of(offset, 4)
        columns = tl.multiple_of(columns, 4)
        stride = tl.multiple_of(stride, 4)
    r = tl.arange(0, ROWS)
    c = begin + tl.arange(0, COLUMNS)
    # int64: a weight may have more than 2^31 elements.
    places = offset + r[:, None].to(tl.int64) * stride + c[None, :]
    return places, (r[:, None] < rows) & (c[None, :] < columns)


@triton.jit
def _pointer(addresses, tensor, field, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(addresses + _ADDRESSES * tensor + field)
    pointer = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        # In bytes.
        pointer = tl.multiple_of(pointer, 16 if TYPE == tl.float32 else 8)
    return pointer


@triton.jit
def _rounded(x, noise):
    """One of the two bfloat16 neighbours of each element; their expectation is the element."""
    bits = x.to(tl.int32, bitcast=True) + (noise.to(tl.int32) & 0xFFFF)
    up_or_down = (bits & -65536).to(tl.float32, bitcast=True)
    # Infinity plus noise would be NaN.
    return tl.where(tl.abs(x) < float("inf"), up_or_down, x)


@triton.jit
def _load_weight(
    addresses, tensor, places, exists,
    TYPE: tl.constexpr, ROUNDING: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """A weight in working precision, with what rounding has cut off it so far; see `storage`."""
    pointer = _pointer(addresses, tensor, 0, TYPE, ALIGNED)
    w = tl.load(pointer + places, exists, other=0.0).to(tl.float32)
    if ROUNDING == _KAHAN:
        kept = _pointer(addresses, tensor, 4, TYPE, ALIGNED)
        cut = tl.load(kept + places, exists, other=0.0).to(tl.float32)
        # Half a unit in the last place, and below the normal numbers one unit.
        if TYPE == tl.bfloat16:
            # 2^-133 by its bits: written out, what is below the normal numbers is a float64.
            least = tl.full((), 65536, tl.int32).to(tl.float32, bitcast=True)
            bound = tl.maximum(tl.abs(w) * 0.00390625, least)
        else:
            bound = tl.maximum(tl.abs(w) * 0.00048828125, 5.960464477539063e-08)
        w += tl.minimum(tl.maximum(cut, -bound), bound)
    return w


@triton.jit
def _store_weight(
    addresses, tensor, places, exists, w, noise,
    TYPE: tl.constexpr, ROUNDING: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    if ROUNDING == _STOCHASTIC:
        w = _rounded(w, noise)
    stored = w.to(TYPE)
    tl.store(_pointer(addresses, tensor, 0, TYPE, ALIGNED) + places, stored, exists)
    if ROUNDING == _KAHAN:
        cut = (w - stored.to(tl.float32)).to(TYPE)
        tl.store(_pointer(addresses, tensor, 4, TYPE, ALIGNED) + places, cut, exists)


@triton.jit
def _noise(seeds, tensor, places, NOISY: tl.constexpr):
    """Random bits of each element for weight and moments, from its place and the seed alone."""
    first = places.to(tl.int32)
    second = first
    third = first
    if NOISY:
        first, second, third, _ = tl.randint4x(tl.load(seeds + tensor), first)
    return first, second, third


@triton.jit
def _load_grad(
    addresses, coefficients, tensor, places, exists, TYPE: tl.constexpr, ALIGNED: tl.constexpr
):
    sign = tl.load(coefficients + _COLUMNS * tensor + _SIGN)
    pointer = _pointer(addresses, tensor, 1, TYPE, ALIGNED)
    return sign * tl.load(pointer + places, exists, other=0.0).to(tl.float32)


@triton.jit
def _moment(
    addresses, tensor, field, places, exists, MOMENT: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    pointer = _pointer(addresses, tensor, field, MOMENT, ALIGNED) + places
    return pointer, tl.load(pointer, exists, other=0.0).to(tl.float32)


@triton.jit
def _keep(pointer, moment, exists, noise, MOMENT: tl.constexpr):
    """Store a moment; what is kept of it, since steps are computed from that."""
    if MOMENT == tl.bfloat16:
        moment = _rounded(moment, noise)
    tl.store(pointer, moment.to(MOMENT), exists)
    return moment


@triton.jit
def _step_of(
    coefficients, tensor, g, m, v, exists, KIND: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """The displacement of elements before projection, from moments that have been advanced."""
    line = coefficients + _COLUMNS * tensor
    of_grad = tl.load(line + _OF_GRAD)
    step_size = tl.load(line + _STEP_SIZE)
    if KIND == _PLAIN:
        step = (step_size * of_grad) * g
    else:
        numerator = tl.load(line + _OF_MOMENT) * m
        if AHEAD:
            # Not a product with 0, which an infinite gradient would turn into NaN.
            numerator += tl.where(of_grad != 0.0, of_grad * g, 0.0)
        if KIND == _ADAM:
            # Correctly rounded, as torch's are: the fast ones flush small roots to zero.
            root = tl.div_rn(tl.sqrt_rn(v), tl.load(line + _ROOT) + tl.zeros_like(v))
            numerator = tl.div_rn(numerator, root + tl.load(line + _EPS))
        step = step_size * numerator
    # Where there is no element, eps=0 would divide by zero.
    return tl.where(exists, step, 0.0)


@triton.jit
def _advance(
    addresses, coefficients, tensor, places, exists, g, noise1, noise2,
    MOMENT: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Both moments of some elements after this step, as they are kept."""
    line = coefficients + _COLUMNS * tensor
    m = g
    v = g
    if KIND != _PLAIN:
        keep1 = tl.load(line + _KEEP1)
        add1 = tl.load(line + _ADD1)
        pointer, m = _moment(addresses, tensor, 2, places, exists, MOMENT, ALIGNED)
        if KIND == _ADAM:
            # As torch interpolates, so that infinities turn into the same.
            m = tl.where(add1 < 0.5, m + add1 * (g - m), g - keep1 * (g - m))
        else:
            m = keep1 * m + add1 * g
        m = _keep(pointer, m, exists, noise1, MOMENT)
    if KIND == _ADAM:
        pointer, v = _moment(addresses, tensor, 3, places, exists, MOMENT, ALIGNED)
        v = tl.load(line + _KEEP2) * v + tl.load(line + _ADD2) * g * g
        v = _keep(pointer, v, exists, noise2, MOMENT)
    return m, v


@triton.jit
def _add(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4


@triton.jit
def _cosine(dot, grad_sq, weight_sq, eps):
    """`projection.cosine`; NaN where a sum is not finite, which loses every comparison."""
    norms = tl.maximum(tl.sqrt_rn(grad_sq), eps) * tl.maximum(tl.sqrt_rn(weight_sq), eps)
    return tl.abs(tl.div_rn(dot, norms))


@triton.jit
def _radial(step_dot, weight_sq, eps):
    """`projection.radial_part`."""
    norm = tl.sqrt_rn(weight_sq) + eps
    return tl.div_rn(step_dot, norm * norm)


@triton.jit(do_not_specialize=["first_task", "stride"])
def measure(
    first_task, tasks, addresses, coefficients, seeds, limits, stats, stride, done,
    TYPE: tl.constexpr, MOMENT: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr,
    ROUNDING: tl.constexpr, NOISY: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Moments and statistics of one task; the weight too where all is known that it takes."""
    task = first_task + tl.program_id(0)
    tensor = tl.load(tasks + _FIELDS * task)
    place = tl.load(tasks + _FIELDS * task + _PLACE)
    columns = tl.load(tasks + _FIELDS * task + _WIDTH)
    dot = tl.zeros([ROWS], tl.float32)
    grad_sq = tl.zeros([ROWS], tl.float32)
    weight_sq = tl.zeros([ROWS], tl.float32)
    step_dot = tl.zeros([ROWS], tl.float32)
    step_sq = tl.zeros([ROWS], tl.float32)
    w = tl.zeros([ROWS, COLUMNS], tl.float32)
    step = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, columns, COLUMNS):
        places, exists = _tile(tasks, task, begin, ROWS, COLUMNS, ALIGNED)
        _, noise1, noise2 = _noise(seeds, tensor, places, NOISY)
        w = _load_weight(addresses, tensor, places, exists, TYPE, ROUNDING, ALIGNED)
        g = _load_grad(addresses, coefficients, tensor, places, exists, TYPE, ALIGNED)
        m, v = _advance(
            addresses, coefficients, tensor, places, exists, g, noise1, noise2,
            MOMENT, KIND, ALIGNED,
        )  # fmt: skip
        step = _step_of(coefficients, tensor, g, m, v, exists, KIND, AHEAD)
        # Together, since the warps of a program wait for each other in every sum.
        a, b, c, d, e = tl.reduce((g * w, g * g, w * w, step * w, step * step), 1, _add)
        dot += a
        grad_sq += b
        weight_sq += c
        step_dot += d
        step_sq += e
    r = tl.arange(0, ROWS)
    own = r < tl.load(tasks + _FIELDS * task + _ROWS)
    out = stats + place + r
    with_rows = own & (place >= 0)
    tl.store(out, dot, with_rows)
    tl.store(out + stride, grad_sq, with_rows)
    tl.store(out + 2 * stride, weight_sq, with_rows)
    tl.store(out + 3 * stride, step_dot, with_rows)
    tl.store(out + 4 * stride, step_sq, with_rows)

    line = coefficients + _COLUMNS * tensor
    decay = tl.load(line + _DECAY)
    limit = tl.load(limits + tl.load(tasks + _FIELDS * task + _WEIGHT), place >= 0, other=0.0)
    cosine = _cosine(dot, grad_sq, weight_sq, tl.load(line + _EPS))
    fails = tl.sum((own & ((cosine < limit) == 0)).to(tl.int32), 0) > 0
    # The old weight, should it be wanted, is as precise as the larger of the new one and the step.
    small = tl.sum((own & ((step_sq <= weight_sq) == 0)).to(tl.int32), 0) == 0
    may = tl.load(tasks + _FIELDS * task + _EARLY) != 0
    early = (place < 0) | (may & fails & small & (decay < _MOST_DECAY))
    tl.store(done + task, early.to(tl.int8))
    if early:
        places, exists = _tile(tasks, task, 0, ROWS, COLUMNS, ALIGNED)
        noise, _, _ = _noise(seeds, tensor, places, NOISY)
        new = w + (-decay * w - step)
        _store_weight(addresses, tensor, places, exists, new, noise, TYPE, ROUNDING, ALIGNED)


@triton.jit(do_not_specialize=["stride", "weights"])
def decide(
    offsets, owners, coefficients, channel_limits, layer_limits, stats, stride,
    totals, weights, channels, layers, shifts, BLOCK: tl.constexpr,
):  # fmt: skip
    """`projection.total` and `projection.decide` of one weight."""
    weight = tl.program_id(0)
    line = coefficients + _COLUMNS * tl.load(owners + weight)
    eps = tl.load(line + _EPS)
    first = tl.load(offsets + weight)
    end = tl.load(offsets + weight + 1)
    limit = tl.load(channel_limits + weight)
    dot = tl.zeros([BLOCK], tl.float32)
    grad_sq = tl.zeros([BLOCK], tl.float32)
    weight_sq = tl.zeros([BLOCK], tl.float32)
    step_dot = tl.zeros([BLOCK], tl.float32)
    step_sq = tl.zeros([BLOCK], tl.float32)
    failing = tl.zeros([BLOCK], tl.float32)
    for begin in range(first, end, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        own = row < end
        row_dot = tl.load(stats + row, own, other=0.0)
        row_grad = tl.load(stats + stride + row, own, other=0.0)
        row_weight = tl.load(stats + 2 * stride + row, own, other=0.0)
        dot += row_dot
        grad_sq += row_grad
        weight_sq += row_weight
        step_dot += tl.load(stats + 3 * stride + row, own, other=0.0)
        step_sq += tl.load(stats + 4 * stride + row, own, other=0.0)
        holds = _cosine(row_dot, row_grad, row_weight, eps) < limit
        failing += tl.where(own & (holds == 0), 1.0, 0.0)
    all_dot = tl.sum(dot, 0)
    all_grad = tl.sum(grad_sq, 0)
    all_weight = tl.sum(weight_sq, 0)
    all_step = tl.sum(step_dot, 0)
    fails = tl.sum(failing, 0)
    tl.store(totals + weight, all_dot)
    tl.store(totals + weights + weight, all_grad)
    tl.store(totals + 2 * weights + weight, all_weight)
    tl.store(totals + 3 * weights + weight, all_step)
    tl.store(totals + 4 * weights + weight, tl.sum(step_sq, 0))
    tl.store(totals + 5 * weights + weight, fails)

    channel = fails == 0.0
    whole = _cosine(all_dot, all_grad, all_weight, eps) < tl.load(layer_limits + weight)
    layer = (channel == 0) & whole
    tl.store(channels + weight, channel.to(tl.int8))
    tl.store(layers + weight, layer.to(tl.int8))
    decay = tl.load(line + tl.where(channel | layer, _PROJECTED_DECAY, _DECAY))
    layer_part = tl.where(layer, _radial(all_step, all_weight, eps), 0.0)
    for begin in range(first, end, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        own = row < end
        row_weight = tl.load(stats + 2 * stride + row, own, other=0.0)
        part = _radial(tl.load(stats + 3 * stride + row, own, other=0.0), row_weight, eps)
        tl.store(shifts + row, tl.where(channel, part, 0.0) + (layer_part - decay), own)


@triton.jit
def _write_task(
    task, tasks, addresses, coefficients, seeds, shifts, done,
    TYPE: tl.constexpr, MOMENT: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr,
    ROUNDING: tl.constexpr, NOISY: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`w ← w + (shift · w − step)` for a task, or what it lacks of that."""
    tensor = tl.load(tasks + _FIELDS * task)
    place = tl.load(tasks + _FIELDS * task + _PLACE)
    columns = tl.load(tasks + _FIELDS * task + _WIDTH)
    early = tl.load(done + task) != 0
    decay = tl.load(coefficients + _COLUMNS * tensor + _DECAY)
    r = tl.arange(0, ROWS)
    own = r < tl.load(tasks + _FIELDS * task + _ROWS)
    shift = tl.load(shifts + place + r, own, other=0.0)
    missing = tl.where(early, shift + decay, shift)
    for begin in range(0, columns, COLUMNS):
        places, exists = _tile(tasks, task, begin, ROWS, COLUMNS, ALIGNED)
        exists = exists & own[:, None]
        w = _load_weight(addresses, tensor, places, exists, TYPE, ROUNDING, ALIGNED)
        g = w
        m = w
        v = w
        if AHEAD or KIND == _PLAIN:
            g = _load_grad(addresses, coefficients, tensor, places, exists, TYPE, ALIGNED)
        if KIND != _PLAIN:
            _, m = _moment(addresses, tensor, 2, places, exists, MOMENT, ALIGNED)
        if KIND == _ADAM:
            _, v = _moment(addresses, tensor, 3, places, exists, MOMENT, ALIGNED)
        step = _step_of(coefficients, tensor, g, m, v, exists, KIND, AHEAD)
        # Only what is added is computed from the old weight, so its error is not kept.
        old = w + step
        old = old + old * (decay / (1.0 - decay))
        late = missing[:, None] * tl.where(early, old, w)
        new = w + (late - tl.where(early, 0.0, step))
        noise, _, _ = _noise(seeds, tensor, places, NOISY)
        _store_weight(addresses, tensor, places, exists, new, noise, TYPE, ROUNDING, ALIGNED)


@triton.jit
def _lacks(task, exists, tasks, coefficients, shifts, done):
    """Whether a task, or each of several, is not written yet, or lacks its radial part."""
    tensor = tl.load(tasks + _FIELDS * task, exists, other=0)
    place = tl.load(tasks + _FIELDS * task + _PLACE, exists, other=0)
    early = tl.load(done + task, exists, other=1) != 0
    decay = tl.load(coefficients + _COLUMNS * tensor + _DECAY)
    # Exactly 0 where a weight was not to be projected. The first row tells it: one row of a task
    # that is written early fails its test, so only the whole can be projected, all rows alike.
    missing = tl.load(shifts + place, exists, other=0.0) + decay
    return exists & ((early == 0) | (missing != 0.0))


@triton.jit(do_not_specialize=["first_task", "end_task"])
def write(
    first_task, tasks, addresses, coefficients, seeds, end_task, shifts, done,
    TYPE: tl.constexpr, MOMENT: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr,
    ROUNDING: tl.constexpr, NOISY: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """What some tasks lack; most often nothing, so one program looks at several."""
    begin = first_task + TASKS * tl.program_id(0)
    own = begin + tl.arange(0, TASKS)
    lacks = _lacks(own, own < end_task, tasks, coefficients, shifts, done)
    if tl.sum(lacks.to(tl.int32), 0) > 0:
        for task in range(begin, tl.minimum(begin + TASKS, end_task)):
            if _lacks(task, task < end_task, tasks, coefficients, shifts, done):
                _write_task(
                    task, tasks, addresses, coefficients, seeds, shifts, done,
                    TYPE, MOMENT, KIND, AHEAD, ROUNDING, NOISY, ALIGNED, ROWS, COLUMNS,
                )  # fmt: skip
