/* Loops over a stretch of a row, for one type of weight. native.c includes this once a type, with
 *   WEIGHT       the type of weights and gradients
 *   LOAD, STORE  from and to float
 *   NAME(f)      the name of f for this type
 */

/* Advance the moments and sum up the statistics. With `at_once` the weights are written, shifted by
 * `shift`, and `buffer` is left with the old ones; without, they are only read, and it is left with
 * the step. */
INLINE void NAME(measure_kind)(const int kind, const int at_once, WEIGHT *restrict weight,
                               const WEIGHT *restrict grad, float *restrict moment1,
                               float *restrict moment2, float *restrict buffer, int64_t n,
                               const struct rule *rule, struct scalars scalars, float shift,
                               float *restrict sums)
{
    float dot = 0, grad_sq = 0, weight_sq = 0, step_dot = 0, step_sq = 0;
#pragma omp simd reduction(+ : dot, grad_sq, weight_sq, step_dot, step_sq)
    for (int64_t i = 0; i < n; i++) {
        const float w = LOAD(weight[i]), g = rule->sign * LOAD(grad[i]);
        float m = 0, v = 0;
        if (kind != PLAIN)
            moment1[i] = m = rule->keep1 * moment1[i] + rule->add1 * g;
        if (kind == ADAM)
            moment2[i] = v = rule->keep2 * moment2[i] + rule->add2 * g * g;
        const float s = step_of(kind, g, m, v, rule, scalars);
        buffer[i] = at_once ? w : s;
        if (at_once)
            weight[i] = STORE(w + (shift * w - s));
        dot += g * w;
        grad_sq += g * g;
        weight_sq += w * w;
        step_dot += s * w;
        step_sq += s * s;
    }
    sums[0] = dot;
    sums[1] = grad_sq;
    sums[2] = weight_sq;
    sums[3] = step_dot;
    sums[4] = step_sq;
}

/* w ← w + (shift w − step), the step from moments that have been advanced; `written` is the shift
 * that the weight was written with before, or 0 with `recover` 0 where it was not. */
INLINE void NAME(rewrite_kind)(const int kind, WEIGHT *restrict weight,
                               const WEIGHT *restrict grad, const float *restrict moment1,
                               const float *restrict moment2, int64_t n, const struct rule *rule,
                               struct scalars scalars, float shift, float written, int recover)
{
    const float scale = 1 / (1 + written);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float g = rule->sign * LOAD(grad[i]);
        const float m = kind != PLAIN ? moment1[i] : 0, v = kind == ADAM ? moment2[i] : 0;
        const float s = step_of(kind, g, m, v, rule, scalars);
        float w = LOAD(weight[i]);
        w = recover ? (w + s) * scale : w;
        weight[i] = STORE(w + (shift * w - s));
    }
}

INLINE void NAME(measure_mode)(const int at_once, const struct weight *w, int64_t at, int64_t n,
                               float *buffer, const struct rule *rule, struct scalars scalars,
                               float shift, float *sums)
{
    WEIGHT *weight = (WEIGHT *)w->weight + at;
    const WEIGHT *grad = (const WEIGHT *)w->grad + at;
    if (rule->kind == ADAM)
        NAME(measure_kind)(ADAM, at_once, weight, grad, w->moment1 + at, w->moment2 + at, buffer, n,
                           rule, scalars, shift, sums);
    else if (rule->kind == MOMENTUM)
        NAME(measure_kind)(MOMENTUM, at_once, weight, grad, w->moment1 + at, 0, buffer, n, rule,
                           scalars, shift, sums);
    else
        NAME(measure_kind)(PLAIN, at_once, weight, grad, 0, 0, buffer, n, rule, scalars, shift,
                           sums);
}

MULTIVERSION static void NAME(measure)(const struct weight *w, int64_t at, int64_t n, float *step,
                                       const struct rule *rule, struct scalars scalars, float *sums)
{
    NAME(measure_mode)(0, w, at, n, step, rule, scalars, 0, sums);
}

MULTIVERSION static void NAME(move)(const struct weight *w, int64_t at, int64_t n, float *old,
                                    const struct rule *rule, struct scalars scalars, float *sums)
{
    NAME(measure_mode)(1, w, at, n, old, rule, scalars, -rule->decay, sums);
}

MULTIVERSION static void NAME(rewrite)(const struct weight *w, int64_t at, int64_t n,
                                       const struct rule *rule, struct scalars scalars, float shift,
                                       float written, int recover)
{
    WEIGHT *weight = (WEIGHT *)w->weight + at;
    const WEIGHT *grad = (const WEIGHT *)w->grad + at;
    if (rule->kind == ADAM)
        NAME(rewrite_kind)(ADAM, weight, grad, w->moment1 + at, w->moment2 + at, n, rule, scalars,
                           shift, written, recover);
    else if (rule->kind == MOMENTUM)
        NAME(rewrite_kind)(MOMENTUM, weight, grad, w->moment1 + at, 0, n, rule, scalars, shift,
                           written, recover);
    else
        NAME(rewrite_kind)(PLAIN, weight, grad, 0, 0, n, rule, scalars, shift, written, recover);
}

/* w ← w + (shift w − step), the step from the buffer that measure left it in. */
MULTIVERSION static void NAME(write)(const struct weight *w, int64_t at, int64_t n,
                                     const float *restrict step, float shift)
{
    WEIGHT *restrict weight = (WEIGHT *)w->weight + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float value = LOAD(weight[i]);
        weight[i] = STORE(value + (shift * value - step[i]));
    }
}

#undef WEIGHT
#undef NAME
#undef LOAD
#undef STORE
