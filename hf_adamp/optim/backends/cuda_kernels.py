"""The Triton kernels of `cuda_triton.py`: a step over a table of tensor addresses.

One program works on one *task*: a tile of whole rows of one weight, or a part of a row that is too
long for a tile. A tile's elements stay in registers between the sums over its rows and the write,
so weights are written in the same pass by the view they had in the last step (the guess). Where
the decision proves it wrong, `apply` recovers the old weight, `(w_new + step) / (1 + written)`,
and writes it again. Nothing is added up atomically: runs repeat bit for bit.

Tables, all int32 or int64, one line a task or weight:
    tasks      weight, row, part, slot (-1 where the row is whole)
    weights    columns, rows, first_row (-1 without rows), log2 of the tile's width,
               whether rows are whole, not sharded within
    addresses  weight, grad, first moment, second moment, step count
"""

# Triton's language, not Python's: arguments are values on the device or constants to specialise
# on, which are in capitals as usual there, and types belong to the launch.
# ruff: noqa: ANN001, ANN202, ANN201, N803, SIM102, SIM300
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["accumulate", "add_parts", "apply"]

# As in cuda_triton.py.
_TASK_FIELDS = tl.constexpr(4)
_WEIGHT_FIELDS = tl.constexpr(5)
_ADDRESS_FIELDS = tl.constexpr(5)
_ADAM = tl.constexpr(0)
_PLAIN = tl.constexpr(2)
_FROM_COUNTS = tl.constexpr(1)
_FROM_TABLE = tl.constexpr(2)
_CHANNEL = tl.constexpr(1)
_LAYER = tl.constexpr(2)
_UNTOUCHED = tl.constexpr(3)
_MIXED = tl.constexpr(4)
# A shift beyond this takes too much of a weight to recover it from what is left.
_RECOVERABLE = tl.constexpr(0.5)
# The tiles' widths are powers of two from the one to below the other.
_NARROWEST = tl.constexpr(4)
_WIDEST = tl.constexpr(14)
# More of them need more registers for their sums than narrow rows are worth.
_MOST_ROWS = tl.constexpr(32)


@triton.jit
def _correction(log_beta, count):
    """`1 − βᵗ`, by its series where the difference would cancel."""
    x = count * log_beta
    series = 1.0 + x / 8
    series = 1.0 + x / 7 * series
    series = 1.0 + x / 6 * series
    series = 1.0 + x / 5 * series
    series = 1.0 + x / 4 * series
    series = 1.0 + x / 3 * series
    series = 1.0 + x / 2 * series
    return tl.where(x > -0.25, -x * series, 1.0 - tl.exp(x))


@triton.jit
def _scalars(
    weight, addresses, table, lr, step_size, inverse_root, log_beta1, log_beta2,
    SOURCE: tl.constexpr, LR_ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """`lr / (1 − β₁ᵗ)` and `1 / √(1 − β₂ᵗ)` of a weight; where counts are read, both from them."""
    if SOURCE == _FROM_COUNTS:
        address = tl.load(addresses + _ADDRESS_FIELDS * weight + 4)
        count = tl.load(address.to(tl.pointer_type(tl.float32)))
        step_size = step_size / _correction(log_beta1, count)
        inverse_root = 1.0 / tl.sqrt_rn(_correction(log_beta2, count))
    elif SOURCE == _FROM_TABLE:
        step_size = tl.load(table + 2 * weight)
        inverse_root = tl.load(table + 2 * weight + 1)
    if LR_ON_DEVICE:
        step_size = step_size * tl.load(lr)
    return step_size, inverse_root


@triton.jit
def _step_of(
    g, m, v, step_size, inverse_root, of_moment, of_grad, eps,
    KIND: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The step of elements from their moments, which have been advanced."""
    if KIND == _PLAIN:
        step = (step_size * of_grad) * g
    else:
        numerator = of_moment * m
        # Not a product with 0, which an infinite gradient would turn into NaN.
        if AHEAD:
            numerator += of_grad * g
        if KIND == _ADAM:
            # Correctly rounded, as torch's are: the fast ones flush small roots to zero.
            numerator = tl.div_rn(numerator, tl.sqrt_rn(v) * inverse_root + eps)
        step = step_size * numerator
    return step


@triton.jit
def _pointer(addresses, weight, field, offset, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(addresses + _ADDRESS_FIELDS * weight + field)
    pointer = address.to(tl.pointer_type(TYPE)) + offset
    if ALIGNED:
        # Four elements, in bytes.
        pointer = tl.multiple_of(pointer, 16 if TYPE == tl.float32 else 8)
    return pointer


@triton.jit
def _place_tile(
    tasks, task, weights, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr
):
    """Where a task's tile lies: weight, first element, places in it, which of them exist."""
    weight = tl.load(tasks + _TASK_FIELDS * task)
    row = tl.load(tasks + _TASK_FIELDS * task + 1)
    part = tl.load(tasks + _TASK_FIELDS * task + 2)
    columns = tl.load(weights + _WEIGHT_FIELDS * weight)
    rows = tl.load(weights + _WEIGHT_FIELDS * weight + 1)
    if ALIGNED:
        columns = tl.multiple_of(columns, 4)
    # int64: a weight may have more than 2^31 elements, a tile has not.
    begin = part.to(tl.int64) * COLUMNS
    offset = row.to(tl.int64) * columns + begin
    own_rows = tl.minimum(rows - row, ROWS).to(tl.int32)
    width = tl.minimum(columns - begin, COLUMNS).to(tl.int32)
    if ALIGNED:
        offset = tl.multiple_of(offset, 4)
        width = tl.multiple_of(width, 4)
    r = tl.arange(0, ROWS)
    c = tl.arange(0, COLUMNS)
    # A part of a row is alone in its tile, so that its width need not be the row's.
    places = r[:, None] * width + c[None, :]
    exists = (r[:, None] < own_rows) & (c[None, :] < width)
    return weight, row, part, offset, own_rows, columns, places, exists


@triton.jit
def _advance(
    addresses, weight, offset, places, exists, step_size, inverse_root,
    keep1, add1, keep2, add2, of_moment, of_grad, eps, sign,
    TYPE: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Advance the moments of a tile; weights, gradients, steps, and where the weights are."""
    pointers = _pointer(addresses, weight, 0, offset, TYPE, ALIGNED) + places
    w = tl.load(pointers, exists, other=0.0).to(tl.float32)
    grads = _pointer(addresses, weight, 1, offset, TYPE, ALIGNED) + places
    g = sign * tl.load(grads, exists, other=0.0).to(tl.float32)
    m = g
    v = g
    if KIND != _PLAIN:
        moment = _pointer(addresses, weight, 2, offset, tl.float32, ALIGNED) + places
        m = tl.load(moment, exists, other=0.0)
        if KIND == _ADAM:
            # As torch interpolates, so that infinities turn into the same.
            m = tl.where(add1 < 0.5, m + add1 * (g - m), g - keep1 * (g - m))
        else:
            m = keep1 * m + add1 * g
        tl.store(moment, m, exists)
    if KIND == _ADAM:
        moment = _pointer(addresses, weight, 3, offset, tl.float32, ALIGNED) + places
        v = keep2 * tl.load(moment, exists, other=0.0) + add2 * g * g
        tl.store(moment, v, exists)
    step = _step_of(g, m, v, step_size, inverse_root, of_moment, of_grad, eps, KIND, AHEAD)
    # Where there is no element, eps=0 would divide by zero.
    step = tl.where(exists, step, 0.0)
    return w, g, step, pointers


@triton.jit
def _store_sums(out, stride, place, mask, dot, grad_sq, weight_sq, step_dot, step_sq):
    """The statistics of rows, in the order of `projection.Statistic`."""
    tl.store(out + place, dot, mask)
    tl.store(out + stride + place, grad_sq, mask)
    tl.store(out + 2 * stride + place, weight_sq, mask)
    tl.store(out + 3 * stride + place, step_dot, mask)
    tl.store(out + 4 * stride + place, step_sq, mask)


@triton.jit
def _accumulate_tile(
    task, tasks, weights, addresses, table, lr, guesses, stats, stride,
    written, written_as, done, partials, slots,
    step_size, inverse_root, log_beta1, log_beta2, keep1, add1, keep2, add2,
    of_moment, of_grad, eps, sign, decay, projected_decay, delta,
    TYPE: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr, SOURCE: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    weight, row, part, offset, own_rows, columns, places, exists = _place_tile(
        tasks, task, weights, ROWS, COLUMNS, ALIGNED
    )
    slot = tl.load(tasks + _TASK_FIELDS * task + 3)
    first_row = tl.load(weights + _WEIGHT_FIELDS * weight + 2)
    guess = tl.load(guesses + weight)
    step_size, inverse_root = _scalars(
        weight, addresses, table, lr, step_size, inverse_root, log_beta1, log_beta2,
        SOURCE, LR_ON_DEVICE,
    )  # fmt: skip
    if LR_ON_DEVICE:
        decay = decay * tl.load(lr)
        projected_decay = projected_decay * tl.load(lr)

    w, g, step, pointers = _advance(
        addresses, weight, offset, places, exists, step_size, inverse_root,
        keep1, add1, keep2, add2, of_moment, of_grad, eps, sign, TYPE, KIND, AHEAD, ALIGNED,
    )  # fmt: skip
    dot = tl.sum(g * w, 1)
    grad_sq = tl.sum(g * g, 1)
    weight_sq = tl.sum(w * w, 1)
    step_dot = tl.sum(step * w, 1)
    step_sq = tl.sum(step * step, 1)

    r = tl.arange(0, ROWS)
    place = first_row + row + r
    # In place of branches on what the task is: counts of rows, 0 where it is something else.
    with_statistics = tl.where(first_row >= 0, own_rows, 0)
    whole = r < tl.where(slot < 0, with_statistics, 0)
    _store_sums(stats, stride, place, whole, dot, grad_sq, weight_sq, step_dot, step_sq)
    is_part = r < tl.where(slot < 0, 0, with_statistics)
    _store_sums(partials, slots, slot + r, is_part, dot, grad_sq, weight_sq, step_dot, step_sq)

    shift, channel = _guessed_shift(
        dot, grad_sq, weight_sq, step_dot, columns, guess, eps, decay, projected_decay, delta
    )
    # 16 bits lose the old weight; a part of a row, here or on other processes, does not know the
    # row's sums.
    whole_here = tl.load(weights + _WEIGHT_FIELDS * weight + 4)
    open_rows = tl.where(slot < 0, own_rows, 0)
    open_rows = tl.where(whole_here == 0, 0, open_rows)
    if TYPE != tl.float32:
        open_rows = 0
    open_rows = tl.where(guess == _LAYER, 0, open_rows)
    open_rows = tl.where(guess == _UNTOUCHED, 0, open_rows)
    open_rows = tl.where(decay < _RECOVERABLE, open_rows, 0)
    # `w_new + step`, from which the old weight is recovered, is as precise as the larger of the
    # two, so the step must be the smaller. A sum that is not a number fails.
    write = (step_sq <= weight_sq) & (r < open_rows)
    # What has no rows is done here: weight decay and the step.
    write = write | (r < tl.where(first_row < 0, own_rows, 0))
    shift = tl.where(first_row < 0, -decay, shift)
    new = w + (shift[:, None] * w - step)
    tl.store(pointers, new.to(TYPE), exists & write[:, None])

    view = tl.where(write, tl.where(channel, _CHANNEL, 0), _UNTOUCHED)
    first = r < tl.where(part == 0, with_statistics, 0)
    tl.store(written + place, tl.where(write, shift, 0.0), first)
    tl.store(written_as + place, view.to(tl.int8), first)
    low = tl.min(tl.where(r < own_rows, view, _MIXED), 0)
    high = tl.max(tl.where(r < own_rows, view, 0), 0)
    tl.store(done + task, tl.where(low == high, low, _MIXED).to(tl.int8))


@triton.jit
def _guessed_shift(
    dot, grad_sq, weight_sq, step_dot, columns, guess, eps, decay, projected_decay, delta
):
    """The shift to write rows with before the decision, and for which as the channel view's."""
    grad_norm = tl.sqrt_rn(grad_sq)
    weight_norm = tl.sqrt_rn(weight_sq)
    cosine = tl.abs(dot) / (tl.maximum(grad_norm, eps) * tl.maximum(weight_norm, eps))
    radial = step_dot / ((weight_norm + eps) * (weight_norm + eps))
    # A row that fails the test settles its whole weight, so there is no need to know the others.
    limit = tl.where(guess == _CHANNEL, delta / tl.sqrt_rn(columns.to(tl.float32)), 0.0)
    channel = (cosine < limit) & (tl.abs(radial) < _RECOVERABLE)
    return tl.where(channel, radial - projected_decay, -decay), channel


@triton.jit(do_not_specialize=["first_task", "stride", "slots"])
def accumulate(
    first_task, tasks, weights, addresses, table, lr, guesses, stats, stride,
    written, written_as, done, partials, slots,
    step_size, inverse_root, log_beta1, log_beta2, keep1, add1, keep2, add2,
    of_moment, of_grad, eps, sign, decay, projected_decay, delta,
    TYPE: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr, SOURCE: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr, ALIGNED: tl.constexpr, WIDTHS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Moments, statistics and, by the guess, weights of one task."""
    task = first_task + tl.program_id(0)
    weight = tl.load(tasks + _TASK_FIELDS * task)
    width = tl.load(weights + _WEIGHT_FIELDS * weight + 3)
    # One launch for all shapes of tiles; only those that the bucket has are compiled.
    for power in tl.static_range(_NARROWEST, _WIDEST):
        if (WIDTHS >> power) & 1:
            if width == power:
                _accumulate_tile(
                    task, tasks, weights, addresses, table, lr, guesses, stats, stride,
                    written, written_as, done, partials, slots,
                    step_size, inverse_root, log_beta1, log_beta2, keep1, add1, keep2, add2,
                    of_moment, of_grad, eps, sign, decay, projected_decay, delta,
                    TYPE, KIND, AHEAD, SOURCE, LR_ON_DEVICE, ALIGNED,
                    TILE >> power if TILE >> power < _MOST_ROWS else _MOST_ROWS,
                    1 << power,
                )  # fmt: skip


@triton.jit(do_not_specialize=["stride", "slots"])
def add_parts(splits, partials, slots, stats, stride, BLOCK: tl.constexpr):
    """One statistic of one split row, from its parts; `splits` has place, first slot, parts."""
    split = tl.program_id(0)
    statistic = tl.program_id(1)
    place = tl.load(splits + 3 * split)
    first = tl.load(splits + 3 * split + 1)
    parts = tl.load(splits + 3 * split + 2)
    sums = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, parts, BLOCK):
        part = begin + tl.arange(0, BLOCK)
        sums += tl.load(partials + statistic * slots + first + part, part < parts, other=0.0)
    tl.store(stats + statistic * stride + place, tl.sum(sums, 0))


@triton.jit
def _apply_tile(
    task, tasks, weights, addresses, table, lr, view, shifts, written, written_as,
    step_size, inverse_root, log_beta1, log_beta2, of_moment, of_grad, eps, sign,
    TYPE: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr, SOURCE: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    weight, row, _, offset, own_rows, _, places, exists = _place_tile(
        tasks, task, weights, ROWS, COLUMNS, ALIGNED
    )
    step_size, inverse_root = _scalars(
        weight, addresses, table, lr, step_size, inverse_root, log_beta1, log_beta2,
        SOURCE, LR_ON_DEVICE,
    )  # fmt: skip
    r = tl.arange(0, ROWS)
    place = tl.load(weights + _WEIGHT_FIELDS * weight + 2) + row + r
    own = r < own_rows
    was = tl.load(written_as + place, own, other=0).to(tl.int32)
    exists = exists & (own & (was != view))[:, None]

    pointers = _pointer(addresses, weight, 0, offset, TYPE, ALIGNED) + places
    w = tl.load(pointers, exists, other=0.0).to(tl.float32)
    g = w
    m = w
    v = w
    if AHEAD or KIND == _PLAIN:
        grads = _pointer(addresses, weight, 1, offset, TYPE, ALIGNED) + places
        g = sign * tl.load(grads, exists, other=0.0).to(tl.float32)
    if KIND != _PLAIN:
        moment = _pointer(addresses, weight, 2, offset, tl.float32, ALIGNED) + places
        m = tl.load(moment, exists, other=0.0)
    if KIND == _ADAM:
        moment = _pointer(addresses, weight, 3, offset, tl.float32, ALIGNED) + places
        v = tl.load(moment, exists, other=0.0)
    step = _step_of(g, m, v, step_size, inverse_root, of_moment, of_grad, eps, KIND, AHEAD)

    scale = 1.0 / (1.0 + tl.load(written + place, own, other=0.0))
    recover = own & (was != _UNTOUCHED)
    w = tl.where(recover[:, None], (w + step) * scale[:, None], w)
    shift = tl.load(shifts + place, own, other=0.0)
    new = w + (shift[:, None] * w - step)
    tl.store(pointers, new.to(TYPE), exists)


@triton.jit
def _view_of(weight, channel, layer, mask):
    view = tl.load(channel + weight, mask).to(tl.int32) * _CHANNEL
    return view + tl.load(layer + weight, mask).to(tl.int32) * _LAYER


@triton.jit(do_not_specialize=["first_task", "end_task"])
def apply(
    first_task, end_task, tasks, weights, addresses, table, lr, guesses, channel, layer, shifts,
    written, written_as, done,
    step_size, inverse_root, log_beta1, log_beta2, of_moment, of_grad, eps, sign,
    TYPE: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr, SOURCE: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr, ALIGNED: tl.constexpr, WIDTHS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Write what was deferred and what was written by a wrong guess, of a run of tasks."""
    begin = first_task + tl.program_id(0) * CHUNK
    own = begin + tl.arange(0, CHUNK)
    live = own < end_task
    weight = tl.load(tasks + _TASK_FIELDS * own, live, other=0)
    view = _view_of(weight, channel, layer, live)
    # The next step's guess; each weight's first task leaves it.
    row = tl.load(tasks + _TASK_FIELDS * own + 1, live, other=1)
    part = tl.load(tasks + _TASK_FIELDS * own + 2, live, other=1)
    tl.store(guesses + weight, view.to(tl.int8), live & (row == 0) & (part == 0))
    wrong = live & (tl.load(done + own, live, other=0).to(tl.int32) != view)
    if tl.sum(wrong.to(tl.int32), 0) > 0:
        for task in range(begin, tl.minimum(begin + CHUNK, end_task)):
            its_weight = tl.load(tasks + _TASK_FIELDS * task)
            its_view = _view_of(its_weight, channel, layer, True)
            if tl.load(done + task).to(tl.int32) != its_view:
                width = tl.load(weights + _WEIGHT_FIELDS * its_weight + 3)
                for power in tl.static_range(_NARROWEST, _WIDEST):
                    if (WIDTHS >> power) & 1:
                        if width == power:
                            _apply_tile(
                                task, tasks, weights, addresses, table, lr, its_view, shifts,
                                written, written_as, step_size, inverse_root,
                                log_beta1, log_beta2, of_moment, of_grad, eps, sign,
                                TYPE, KIND, AHEAD, SOURCE, LR_ON_DEVICE, ALIGNED,
                                TILE >> power if TILE >> power < _MOST_ROWS else _MOST_ROWS,
                                1 << power,
                            )  # fmt: skip
