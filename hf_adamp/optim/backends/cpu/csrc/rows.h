/* Loops over rows, for one type of weights and one of moments. kernel.c includes this once for each
 * pair, with
 *   WEIGHT, LOAD, STORE, CUT       the type of weights and gradients, from and to float, and half a
 *                                  unit in the last place of 1
 *   MOMENT, LOAD_MOMENT, KEEP_MOMENT   the type of moments, likewise; rounded already when kept
 *   IS_16_BIT, IS_LOW              whether weights are, and whether moments are
 *   NAME(f)                        the name of f for this pair
 *
 * A task is one function with everything inlined: rows are short, and what the compiler could not
 * keep in registers from one to the next took longer than their elements. `kind` and `rounding` are
 * constants to it. */

/* Where a task's tensor lies. */
struct NAME(memory) {
    WEIGHT *weight;
    const WEIGHT *grad;
    MOMENT *moment1, *moment2;
    WEIGHT *compensation;
    uint64_t seed;
    struct rule rule;
    struct scalars scalars;
};

/* Ask for memory that is needed soon. Processors see for themselves that memory is read in order, but
 * they stop asking where a row is written and where a page ends. An address past the end of a tensor
 * is harmless here. */
INLINE void NAME(fetch)(const int kind, const struct NAME(memory) *m, int64_t i)
{
    __builtin_prefetch(m->weight + i);
    __builtin_prefetch(m->grad + i);
    if (kind != PLAIN)
        __builtin_prefetch(m->moment1 + i);
    if (kind == ADAM)
        __builtin_prefetch(m->moment2 + i);
}

/* A weight as it is meant: with what rounding has cut off it, as far as that can still be true. A
 * weight that was assigned to since has the compensation of the old one. */
INLINE float NAME(weight_at)(const int rounding, const struct NAME(memory) *m, int64_t i)
{
    const float w = LOAD(m->weight[i]);
    if (rounding != KAHAN)
        return w;
    const float cut = LOAD(m->compensation[i]);
    return w + clamped(cut, fabsf(w) * CUT, TINY);
}

/* n weights as floats: where they are, or in `room`. */
INLINE float *NAME(weights_at)(const int rounding, const struct NAME(memory) *m, int64_t at,
                               int64_t n, float *room)
{
    if (!IS_16_BIT)
        return (float *)m->weight + at;
#pragma omp simd
    for (int64_t l = 0; l < n; l++)
        room[l] = NAME(weight_at)(rounding, m, at + l);
    return room;
}

INLINE float *NAME(moments_at)(MOMENT *moment, int64_t at, int64_t n, float *room)
{
    if (!IS_LOW)
        return (float *)moment + at;
#pragma omp simd
    for (int64_t l = 0; l < n; l++)
        room[l] = LOAD_MOMENT(moment[at + l]);
    return room;
}

INLINE struct stretch NAME(stretch_at)(const int kind, const int rounding,
                                       const struct NAME(memory) *m, int64_t at, int64_t n,
                                       struct room *room)
{
    struct stretch x = {.weight = NAME(weights_at)(rounding, m, at, n, room->weight)};
    x.grad = (const float *)m->grad + at;
    if (IS_16_BIT) {
#pragma omp simd
        for (int64_t l = 0; l < n; l++)
            room->grad[l] = LOAD(m->grad[at + l]);
        x.grad = room->grad;
    }
    if (kind != PLAIN)
        x.moment1 = NAME(moments_at)(m->moment1, at, n, room->moment1);
    if (kind == ADAM)
        x.moment2 = NAME(moments_at)(m->moment2, at, n, room->moment2);
    return x;
}

/* Keep n moments, which are rounded already. */
INLINE void NAME(keep_moments)(MOMENT *moment, int64_t at, int64_t n, const float *room)
{
#pragma omp simd
    for (int64_t l = 0; l < n; l++)
        moment[at + l] = KEEP_MOMENT(room[l]);
}

INLINE void NAME(put)(const int rounding, const struct NAME(memory) *m, int64_t i, float value)
{
    if (rounding == STOCHASTIC) {
        m->weight[i] = STORE(stochastic(value, noise_of(m->seed, (uint32_t)i, WEIGHTS)));
        return;
    }
    m->weight[i] = STORE(value);
    if (rounding == KAHAN)
        m->compensation[i] = STORE(value - LOAD(m->weight[i]));
}

/* w ← w + (shift w − step) for n elements, from their weights and steps as floats. */
INLINE void NAME(write)(const int rounding, const struct NAME(memory) *m, int64_t at, int64_t n,
                        const float *weights, const float *restrict steps, float shift)
{
#pragma omp simd
    for (int64_t l = 0; l < n; l++)
        NAME(put)(rounding, m, at + l, weights[l] + (shift * weights[l] - steps[l]));
}

/* Advance the moments of n elements and leave their sums in `sums`. With `at_once` the weights are
 * written, shifted by `shift`; without, the steps are left in `steps`. */
INLINE void NAME(measure)(const int kind, const int rounding, const int at_once,
                          const struct NAME(memory) *m, int64_t at, int64_t n, float *steps,
                          float shift, float *sums)
{
    const int64_t width = IS_16_BIT || IS_LOW ? TILE : n;
    float lanes[STATISTICS][LANES];
    struct room room;
    memset(lanes, 0, sizeof lanes);
    for (int64_t begin = 0; begin < n; begin += width, steps += width) {
        const int64_t first = at + begin, length = MINIMUM(width, n - begin);
        const struct stretch x = NAME(stretch_at)(kind, rounding, m, first, length, &room);
        const int writes = at_once && !IS_16_BIT;
        int64_t i = 0;
        for (; i + LANES <= length; i += LANES) {
            NAME(fetch)(kind, m, first + i + AHEAD);
            measure_lanes(kind, IS_LOW, writes, &x, i, LANES, &m->rule, m->scalars, m->seed,
                          (uint32_t)first, steps, shift, lanes);
        }
        if (i < length)
            measure_lanes(kind, IS_LOW, writes, &x, i, length - i, &m->rule, m->scalars, m->seed,
                          (uint32_t)first, steps, shift, lanes);
        if (IS_LOW)
            NAME(keep_moments)(m->moment1, first, length, x.moment1);
        if (IS_LOW && kind == ADAM)
            NAME(keep_moments)(m->moment2, first, length, x.moment2);
        if (at_once && IS_16_BIT)
            NAME(write)(rounding, m, first, length, x.weight, steps, shift);
    }
    add_lanes(lanes, sums);
}

/* Write n elements, whose steps `measure` has left in a buffer. */
INLINE void NAME(write_row)(const int rounding, const struct NAME(memory) *m, int64_t at, int64_t n,
                            const float *steps, float shift)
{
    const int64_t width = IS_16_BIT ? TILE : n;
    float room[TILE];
    for (int64_t begin = 0; begin < n; begin += width) {
        const int64_t length = MINIMUM(width, n - begin);
        const float *weights = NAME(weights_at)(rounding, m, at + begin, length, room);
        NAME(write)(rounding, m, at + begin, length, weights, steps + begin, shift);
    }
}

/* The same from moments that have been advanced, for weights as they were, or that have been written
 * with the shift `written`: what was added to them then is computed again and taken back. Two other
 * ways have a bias, which grows with every step: a product with 1 / (1 + written) rounds 1 + written
 * always the same way, and adding the whole difference of the shifts to the new weight loses it where
 * it is less than half a unit in the last place. */
INLINE void NAME(write_again)(const int kind, const int rounding, const struct NAME(memory) *m,
                              int64_t at, int64_t n, float shift, const int is_written,
                              float written)
{
    float steps[TILE];
    struct room room;
    const float scale = 1 / (1 + written);
    for (int64_t begin = 0; begin < n; begin += TILE) {
        const int64_t first = at + begin, length = MINIMUM(TILE, n - begin);
        const struct stretch x = NAME(stretch_at)(kind, rounding, m, first, length, &room);
        /* A loop of its own, so that no product of the step's is fused into what follows: it must be
         * the very number that was subtracted. */
        steps_again(kind, &x, length, &m->rule, m->scalars, steps);
        if (is_written) {
#pragma omp simd
            for (int64_t l = 0; l < length; l++) {
                const float now = x.weight[l];
                const float added = written * ((now + steps[l]) * scale) - steps[l];
                room.weight[l] = now - added;
            }
        }
        NAME(write)(rounding, m, first, length, is_written ? room.weight : x.weight, steps, shift);
    }
}

INLINE struct NAME(memory) NAME(memory_of)(const struct problem *p, int64_t tensor)
{
    return (struct NAME(memory)){
        .weight = p->weights[tensor],
        .grad = p->grads[tensor],
        .moment1 = p->moments1 ? p->moments1[tensor] : 0,
        .moment2 = p->moments2 ? p->moments2[tensor] : 0,
        .compensation = p->compensations ? p->compensations[tensor] : 0,
        .seed = p->seeds ? p->seeds[tensor] : 0,
        .rule = p->rules[p->rule_of[tensor]],
        .scalars = p->scalars[tensor],
    };
}

/* Measure a row, or a part of one, and write it if its shift can be guessed. Until a row fails the
 * channel view's test, a task takes its weight for one that is projected row by row; a row that
 * fails settles that it is not. So what is guessed depends on this step's numbers alone. */
INLINE float NAME(measure_row)(const int kind, const int rounding, const struct NAME(memory) *m,
                               int64_t at, int64_t columns, const struct block *b, float limit,
                               int *guesses_channel, float *steps, float *sums)
{
    const int guesses = !IS_16_BIT && b->mode == GUESS && m->rule.decay < RECOVERABLE;
    float shift = -m->rule.decay;
    if (b->mode == VECTOR || (guesses && !*guesses_channel)) {
        NAME(measure)(kind, rounding, 1, m, at, columns, steps, shift, sums);
        return shift;
    }
    NAME(measure)(kind, rounding, 0, m, at, columns, steps, 0, sums);
    if (!guesses)
        return NAN;
    *guesses_channel = channel_shift(sums, limit, &m->rule, &shift);
    shift = *guesses_channel ? shift : -m->rule.decay;
    if (!(fabsf(shift) < RECOVERABLE))
        return NAN;
    NAME(write_row)(rounding, m, at, columns, steps, shift);
    return shift;
}

INLINE void NAME(measure_rows)(const int kind, const int rounding, const struct problem *p,
                               const struct task *t)
{
    float steps[SEGMENT], own[STATISTICS];
    const struct block *b = &p->blocks[t->block];
    const struct NAME(memory) m = NAME(memory_of)(p, b->tensor);
    const float limit = channel_limit(b, &m.rule);
    int guesses_channel = !b->vectors;
    for (int64_t row = 0; row < t->rows; row++) {
        const int64_t at = t->offset + row * t->stride, place = b->first_row + t->row + row;
        float *buffer = b->mode == WHOLE ? steps + row * t->columns : steps;
        float *sums = t->slot >= 0 ? p->partials + STATISTICS * t->slot : own;
        const float shift = NAME(measure_row)(kind, rounding, &m, at, t->columns, b, limit,
                                              &guesses_channel, buffer, sums);
        if (b->mode == VECTOR || t->slot >= 0)
            continue;
        p->written[place] = shift;
        for (int k = 0; k < STATISTICS; k++)
            p->stats[k * p->n_rows + place] = sums[k];
    }
    if (b->mode != WHOLE)
        return;
    decide(p, t->block);
    for (int64_t row = 0; row < t->rows; row++)
        NAME(write_row)(rounding, &m, t->offset + row * t->stride, t->columns,
                        steps + row * t->columns, p->shift[b->first_row + row]);
}

INLINE void NAME(write_rows)(const int kind, const int rounding, const struct problem *p,
                             const struct task *t)
{
    const struct block *b = &p->blocks[t->block];
    const struct NAME(memory) m = NAME(memory_of)(p, b->tensor);
    for (int64_t row = t->row; row < t->row + t->rows; row++) {
        const int64_t at = t->offset + (row - t->row) * t->stride, place = b->first_row + row;
        const float shift = p->shift[place], written = p->written[place];
        if (written != written)
            NAME(write_again)(kind, rounding, &m, at, t->columns, shift, 0, 0);
        else if (!IS_16_BIT && written != shift)
            NAME(write_again)(kind, rounding, &m, at, t->columns, shift, 1, written);
    }
}

/* Each pair of a kind and a rounding is a loop of its own; 32 bits are not rounded. */
#define FOR_KIND(f, rounding)                 \
    do {                                      \
        if (p->kind == ADAM)                  \
            f(ADAM, rounding, p, t);          \
        else if (IS_LOW || p->kind == MOMENTUM) \
            f(MOMENTUM, rounding, p, t);      \
        else                                  \
            f(PLAIN, rounding, p, t);         \
    } while (0)
#define FOR_ROUNDING(f)                                   \
    do {                                                  \
        if (!IS_16_BIT || p->rounding == NEAREST)         \
            FOR_KIND(f, NEAREST);                         \
        else if (p->rounding == KAHAN)                    \
            FOR_KIND(f, KAHAN);                           \
        else                                              \
            FOR_KIND(f, STOCHASTIC);                      \
    } while (0)

#define TASKS(level, target)                                                                    \
    target static void NAME(measure_task##level)(const struct problem *p, const struct task *t) \
    {                                                                                           \
        FOR_ROUNDING(NAME(measure_rows));                                                       \
    }                                                                                           \
    target static void NAME(write_task##level)(const struct problem *p, const struct task *t)   \
    {                                                                                           \
        FOR_ROUNDING(NAME(write_rows));                                                         \
    }
LEVELS(TASKS)

#undef TASKS
#undef FOR_KIND
#undef FOR_ROUNDING
#undef WEIGHT
#undef LOAD
#undef STORE
#undef CUT
#undef TINY
#undef IS_16_BIT
#undef IS_LOW
#undef MOMENT
#undef LOAD_MOMENT
#undef KEEP_MOMENT
#undef NAME
