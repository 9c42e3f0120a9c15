/* Loops over rows, for one type of weights and one of moments. kernel.c includes this once for each
 * pair, with
 *   WEIGHT, LOAD, STORE, CUT       the type of weights and gradients, from and to float, and half a
 *                                  unit in the last place of 1
 *   MOMENT, LOAD_MOMENT, KEEP_MOMENT(x, noise)   the type of moments, likewise
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

/* A weight as it is meant: with what rounding has cut off it, as far as that can still be true. A
 * weight that was assigned to since has the compensation of the old one. */
INLINE float NAME(weight_at)(const int rounding, const struct NAME(memory) *m, int64_t i)
{
    const float w = LOAD(m->weight[i]);
    if (rounding != KAHAN)
        return w;
    const float bound = MAXIMUM(fabsf(w) * CUT, TINY);
    const float cut = LOAD(m->compensation[i]);
    return w + (cut != cut ? cut : MAXIMUM(-bound, MINIMUM(bound, cut)));
}

INLINE void NAME(put)(const int rounding, const struct NAME(memory) *m, int64_t i, float value)
{
    if (rounding == STOCHASTIC) {
        m->weight[i] = STORE(stochastic(value, noise_of(m->seed, i, 2)));
        return;
    }
    m->weight[i] = STORE(value);
    if (rounding == KAHAN)
        m->compensation[i] = STORE(value - LOAD(m->weight[i]));
}

/* An element's step from its moments, which have been advanced. */
INLINE float NAME(step_at)(const int kind, const struct NAME(memory) *m, int64_t i)
{
    const float g = m->rule.sign * LOAD(m->grad[i]);
    const float m1 = kind != PLAIN ? LOAD_MOMENT(m->moment1[i]) : 0;
    const float m2 = kind == ADAM ? LOAD_MOMENT(m->moment2[i]) : 0;
    return step_of(kind, g, m1, m2, &m->rule, m->scalars);
}

/* Advance the moments of at most LANES elements and add to the sums of each lane. With `at_once`
 * the weights are written, shifted by `shift`; without, the step is left in `steps`. */
INLINE void NAME(measure_lanes)(const int kind, const int rounding, const int at_once,
                                const struct NAME(memory) *m, int64_t at, int64_t n, float *steps,
                                float shift, float lanes[STATISTICS][LANES])
{
#pragma omp simd
    for (int l = 0; l < LANES; l++)
        if (l < n) {
            const int64_t i = at + l;
            const float w = NAME(weight_at)(rounding, m, i);
            const float g = m->rule.sign * LOAD(m->grad[i]);
            float m1 = 0, m2 = 0;
            if (kind != PLAIN) {
                m1 = m->rule.keep1 * LOAD_MOMENT(m->moment1[i]) + m->rule.add1 * g;
                m->moment1[i] = KEEP_MOMENT(m1, noise_of(m->seed, i, 0));
                /* As it is kept: whoever computes the step again starts from there. */
                m1 = LOAD_MOMENT(m->moment1[i]);
            }
            if (kind == ADAM) {
                m2 = m->rule.keep2 * LOAD_MOMENT(m->moment2[i]) + m->rule.add2 * g * g;
                m->moment2[i] = KEEP_MOMENT(m2, noise_of(m->seed, i, 1));
                m2 = LOAD_MOMENT(m->moment2[i]);
            }
            const float s = step_of(kind, g, m1, m2, &m->rule, m->scalars);
            if (at_once)
                NAME(put)(rounding, m, i, w + (shift * w - s));
            else
                steps[l] = s;
            lanes[DOT][l] += g * w;
            lanes[GRAD_SQ][l] += g * g;
            lanes[WEIGHT_SQ][l] += w * w;
            lanes[STEP_DOT][l] += s * w;
            lanes[STEP_SQ][l] += s * s;
        }
}

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

/* The same for n elements; leaves their sums in `sums`. */
INLINE void NAME(measure)(const int kind, const int rounding, const int at_once,
                          const struct NAME(memory) *m, int64_t at, int64_t n, float *steps,
                          float shift, float *sums)
{
    float lanes[STATISTICS][LANES];
    memset(lanes, 0, sizeof lanes);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        NAME(fetch)(kind, m, at + i + AHEAD);
        NAME(measure_lanes)(kind, rounding, at_once, m, at + i, LANES, steps + i, shift, lanes);
    }
    if (i < n)
        NAME(measure_lanes)(kind, rounding, at_once, m, at + i, n - i, steps + i, shift, lanes);
    add_lanes(lanes, sums);
}

/* w ← w + (shift w − step), the step from the buffer that `measure` left it in. */
INLINE void NAME(write)(const int rounding, const struct NAME(memory) *m, int64_t at, int64_t n,
                        const float *restrict steps, float shift)
{
#pragma omp simd
    for (int64_t l = 0; l < n; l++) {
        const float w = NAME(weight_at)(rounding, m, at + l);
        NAME(put)(rounding, m, at + l, w + (shift * w - steps[l]));
    }
}

/* The same, the step from moments that have been advanced. */
INLINE void NAME(write_again)(const int kind, const int rounding, const struct NAME(memory) *m,
                              int64_t at, int64_t n, float shift)
{
#pragma omp simd
    for (int64_t i = at; i < at + n; i++) {
        const float w = NAME(weight_at)(rounding, m, i), s = NAME(step_at)(kind, m, i);
        NAME(put)(rounding, m, i, w + (shift * w - s));
    }
}

/* The same for a weight that has been written with the shift `written`: what was added to it then is
 * computed again and taken back. Two other ways have a bias, which grows with every step: a product
 * with 1 / (1 + written) rounds 1 + written always the same way, and adding the whole difference of
 * the shifts to the new weight loses it where it is less than half a unit in the last place. */
INLINE void NAME(rewrite)(const int kind, const struct NAME(memory) *m, int64_t at, int64_t n,
                          float shift, float written)
{
    float steps[TILE];
    const float scale = 1 / (1 + written);
    for (int64_t begin = at; begin < at + n; begin += TILE) {
        const int64_t length = MINIMUM(TILE, at + n - begin);
        /* A loop of its own, so that no product of the step's is fused into what follows: it must be
         * the very number that was subtracted. */
        for (int64_t l = 0; l < length; l++)
            steps[l] = NAME(step_at)(kind, m, begin + l);
#pragma omp simd
        for (int64_t l = 0; l < length; l++) {
            const float s = steps[l], now = LOAD(m->weight[begin + l]);
            const float added = written * ((now + s) * scale) - s;
            const float w = now - added;
            m->weight[begin + l] = STORE(w + (shift * w - s));
        }
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
    NAME(write)(rounding, m, at, columns, steps, shift);
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
        NAME(write)(rounding, &m, t->offset + row * t->stride, t->columns,
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
            NAME(write_again)(kind, rounding, &m, at, t->columns, shift);
        else if (!IS_16_BIT && written != shift)
            NAME(rewrite)(kind, &m, at, t->columns, shift, written);
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
