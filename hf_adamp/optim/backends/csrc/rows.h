/* Loops over rows, for one type of weight. native.c includes this once a type, with
 *   WEIGHT       the type of weights and gradients
 *   LOAD, STORE  from and to float
 *   NAME(f)      the name of f for this type
 *
 * A task is one function with everything inlined: rows are short, and what the compiler could not
 * keep in registers from one to the next took longer than their elements.
 */

/* Advance the moments of at most LANES elements and add to the sums of each lane. With `at_once`
 * the weights are written, shifted by `shift`, and `buffer` is left with the old ones; without,
 * they are only read, and it is left with the step. */
INLINE void NAME(measure_lanes)(const int kind, const int at_once, WEIGHT *restrict weight,
                                const WEIGHT *restrict grad, float *restrict moment1,
                                float *restrict moment2, float *restrict buffer, const int64_t n,
                                struct rule rule, struct scalars scalars, float shift,
                                float lanes[STATISTICS][LANES])
{
#pragma omp simd
    for (int l = 0; l < LANES; l++)
        if (l < n) {
            const float w = LOAD(weight[l]), g = rule.sign * LOAD(grad[l]);
            float m = 0, v = 0;
            if (kind != PLAIN)
                moment1[l] = m = rule.keep1 * moment1[l] + rule.add1 * g;
            if (kind == ADAM)
                moment2[l] = v = rule.keep2 * moment2[l] + rule.add2 * g * g;
            const float s = step_of(kind, g, m, v, rule, scalars);
            buffer[l] = at_once ? w : s;
            if (at_once)
                weight[l] = STORE(w + (shift * w - s));
            lanes[DOT][l] += g * w;
            lanes[GRAD_SQ][l] += g * g;
            lanes[WEIGHT_SQ][l] += w * w;
            lanes[STEP_DOT][l] += s * w;
            lanes[STEP_SQ][l] += s * s;
        }
}

/* The same for n elements; leaves their sums in `sums`. */
INLINE void NAME(measure)(const int kind, const int at_once, const struct weight *w, int64_t at,
                          int64_t n, float *buffer, struct rule rule,
                          struct scalars scalars, float shift, float *sums)
{
    WEIGHT *weight = (WEIGHT *)w->weight + at;
    const WEIGHT *grad = (const WEIGHT *)w->grad + at;
    float *moment1 = w->moment1 + at, *moment2 = w->moment2 + at;
    float lanes[STATISTICS][LANES];
    memset(lanes, 0, sizeof lanes);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        NAME(measure_lanes)(kind, at_once, weight + i, grad + i, moment1 + i, moment2 + i,
                            buffer + i, LANES, rule, scalars, shift, lanes);
    if (i < n)
        NAME(measure_lanes)(kind, at_once, weight + i, grad + i, moment1 + i, moment2 + i,
                            buffer + i, n - i, rule, scalars, shift, lanes);
    add_lanes(lanes, sums);
}

/* w ← w + (shift w − step), the step from the buffer that `measure` left it in. */
INLINE void NAME(write)(const struct weight *w, int64_t at, int64_t n, const float *restrict step,
                        float shift)
{
    WEIGHT *restrict weight = (WEIGHT *)w->weight + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float value = LOAD(weight[i]);
        weight[i] = STORE(value + (shift * value - step[i]));
    }
}

/* The same, the step from moments that have been advanced; `written` is the shift that the weight
 * was written with before, or 0 with `recover` 0 where it was not. */
INLINE void NAME(rewrite)(const int kind, const struct weight *w, int64_t at, int64_t n,
                          struct rule rule, struct scalars scalars, float shift,
                          float written, int recover)
{
    WEIGHT *restrict weight = (WEIGHT *)w->weight + at;
    const WEIGHT *restrict grad = (const WEIGHT *)w->grad + at;
    const float *restrict moment1 = w->moment1 + at, *restrict moment2 = w->moment2 + at;
    const float scale = 1 / (1 + written);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float g = rule.sign * LOAD(grad[i]);
        const float m = kind != PLAIN ? moment1[i] : 0, v = kind == ADAM ? moment2[i] : 0;
        const float s = step_of(kind, g, m, v, rule, scalars);
        float value = LOAD(weight[i]);
        value = recover ? (value + s) * scale : value;
        weight[i] = STORE(value + (shift * value - s));
    }
}

/* A stretch of a row, tile by tile, written without projection in the loop that measures it. What
 * could not be recovered is put back. */
INLINE void NAME(write_at_once)(const int kind, const struct weight *w, int64_t at, int64_t n,
                                struct scalars scalars, struct rule rule, float *old,
                                int8_t *written_as, float *sums)
{
    for (int k = 0; k < STATISTICS; k++)
        sums[k] = 0;
    for (int64_t begin = 0, tile = 0; begin < n; begin += TILE, tile++) {
        const int64_t length = MINIMUM(TILE, n - begin);
        float own[STATISTICS];
        NAME(measure)(kind, 1, w, at + begin, length, old, rule, scalars, -rule.decay, own);
        for (int k = 0; k < STATISTICS; k++)
            sums[k] += own[k];
        if (!written_as)
            continue;
        const int stays = recoverable(own);
        if (!stays)
            for (int64_t i = 0; i < length; i++)
                ((WEIGHT *)w->weight)[at + begin + i] = STORE(old[i]);
        written_as[tile] = stays ? NONE : UNTOUCHED;
    }
}

INLINE void NAME(accumulate_rows)(const int kind, const struct task *t, const struct weight *w,
                                  struct scalars scalars, struct rule rule, int8_t guess,
                                  const struct buffers *b)
{
    float step[SEGMENT];
    const int is_part = t->slot >= 0, has_rows = w->first_row >= 0;
    const int64_t tiles = (w->columns + TILE - 1) / TILE;
    const float limit = rule.delta / sqrtf((float)w->columns);
    /* Numbers of 16 bits lose the old weight. */
    const int may_write = rule.dtype == FLOAT32 && rule.decay < RECOVERABLE;
    for (int64_t row = t->row; row < t->row + t->rows; row++) {
        const int64_t at = row * w->columns + t->column, place = w->first_row + row;
        float own[STATISTICS], *sums = is_part ? b->partials + STATISTICS * t->slot : own;
        int8_t *written_as =
            has_rows ? b->written_as + w->first_tile + row * tiles + t->column / TILE : 0;
        float shift = -rule.decay;
        if (!has_rows || (may_write && guess == NONE)) {
            NAME(write_at_once)(kind, w, at, t->columns, scalars, rule, step, written_as, sums);
        } else {
            NAME(measure)(kind, 0, w, at, t->columns, step, rule, scalars, 0, sums);
            /* A part of a row does not know the row's sums. */
            const int writes = may_write && guess == CHANNEL && !is_part && recoverable(sums) &&
                               channel_shift(sums, limit, rule, &shift);
            if (writes)
                NAME(write)(w, at, t->columns, step, shift);
            memset(written_as, writes ? CHANNEL : UNTOUCHED, (t->columns + TILE - 1) / TILE);
        }
        if (!has_rows)
            continue;
        if (t->column == 0)
            b->written[place] = shift;
        if (!is_part)
            for (int k = 0; k < STATISTICS; k++)
                b->stats[k * b->stride + place] = sums[k];
    }
}

INLINE void NAME(apply_rows)(const int kind, const struct task *t, const struct weight *w,
                             struct scalars scalars, struct rule rule, int8_t view,
                             const float *shift, const struct buffers *b)
{
    const int64_t tiles = (w->columns + TILE - 1) / TILE;
    for (int64_t row = t->row; row < t->row + t->rows; row++) {
        const int64_t at = row * w->columns + t->column, place = w->first_row + row;
        const int8_t *written_as = b->written_as + w->first_tile + row * tiles + t->column / TILE;
        for (int64_t begin = 0, tile = 0; begin < t->columns; begin += TILE, tile++)
            if (written_as[tile] != view)
                NAME(rewrite)(kind, w, at + begin, MINIMUM(TILE, t->columns - begin), rule, scalars,
                              shift[place], b->written[place], written_as[tile] != UNTOUCHED);
    }
}

MULTIVERSION static void NAME(accumulate_task)(const struct task *t, const struct weight *w,
                                               struct scalars scalars, const struct rule *rule,
                                               int8_t guess, const struct buffers *b)
{
    if (rule->kind == ADAM)
        NAME(accumulate_rows)(ADAM, t, w, scalars, *rule, guess, b);
    else if (rule->kind == MOMENTUM)
        NAME(accumulate_rows)(MOMENTUM, t, w, scalars, *rule, guess, b);
    else
        NAME(accumulate_rows)(PLAIN, t, w, scalars, *rule, guess, b);
}

MULTIVERSION static void NAME(apply_task)(const struct task *t, const struct weight *w,
                                          struct scalars scalars, const struct rule *rule,
                                          int8_t view, const float *shift, const struct buffers *b)
{
    if (rule->kind == ADAM)
        NAME(apply_rows)(ADAM, t, w, scalars, *rule, view, shift, b);
    else if (rule->kind == MOMENTUM)
        NAME(apply_rows)(MOMENTUM, t, w, scalars, *rule, view, shift, b);
    else
        NAME(apply_rows)(PLAIN, t, w, scalars, *rule, view, shift, b);
}

#undef WEIGHT
#undef NAME
#undef LOAD
#undef STORE
