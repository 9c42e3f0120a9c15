/* The sums of the decision and the shifts that follow from it: projection.total and
 * projection.decide in a loop or two each, where torch needs dozens of small operations. A segment
 * is what rows are added up for: a weight, or a head of one.
 */

/* Mirrored in native_library.py. */
struct segments {
    const int64_t *offsets; /* n + 1: where each segment's rows begin */
    const int64_t *weight;  /* whose segment it is; null where each weight is one */
    int64_t n;
};

INLINE float radial_part(float step_dot, float weight_sq, float eps)
{
    const float norm = sqrtf(weight_sq) + eps;
    return step_dot / (norm * norm);
}

/* The statistics of each segment and how many of its rows fail the channel view's test. `eps` is
 * one a segment and `limit` one a weight. */
EXPORT MULTIVERSION void hf_adamp_total(const float *stats, int64_t stride,
                                        const struct segments *segments, const float *limit,
                                        const float *eps, float *totals)
{
    const float *dot = stats + DOT * stride, *grad_sq = stats + GRAD_SQ * stride,
                *weight_sq = stats + WEIGHT_SQ * stride, *step_dot = stats + STEP_DOT * stride,
                *step_sq = stats + STEP_SQ * stride;
    for (int64_t s = 0; s < segments->n; s++) {
        const float own_limit = limit[segments->weight ? segments->weight[s] : s], own_eps = eps[s];
        float sums[STATISTICS + 1] = {0};
        float d = 0, g = 0, w = 0, sd = 0, ss = 0, fails = 0;
#pragma omp simd reduction(+ : d, g, w, sd, ss, fails)
        for (int64_t r = segments->offsets[s]; r < segments->offsets[s + 1]; r++) {
            const float grad_norm = sqrtf(grad_sq[r]), weight_norm = sqrtf(weight_sq[r]);
            const float cosine = fabsf(dot[r]) / (MAXIMUM(grad_norm, own_eps) *
                                                  MAXIMUM(weight_norm, own_eps));
            d += dot[r];
            g += grad_sq[r];
            w += weight_sq[r];
            sd += step_dot[r];
            ss += step_sq[r];
            fails += cosine < own_limit ? 0.0f : 1.0f;
        }
        sums[DOT] = d, sums[GRAD_SQ] = g, sums[WEIGHT_SQ] = w, sums[STEP_DOT] = sd;
        sums[STEP_SQ] = ss, sums[STATISTICS] = fails;
        for (int k = 0; k <= STATISTICS; k++)
            totals[k * segments->n + s] = sums[k];
    }
}

/* |cos(w, g)| of a segment. */
INLINE float cosine_of(const float *totals, int64_t n, int64_t s, float eps)
{
    const float grad_norm = sqrtf(totals[GRAD_SQ * n + s]);
    const float weight_norm = sqrtf(totals[WEIGHT_SQ * n + s]);
    return fabsf(totals[DOT * n + s]) / (MAXIMUM(grad_norm, eps) * MAXIMUM(weight_norm, eps));
}

/* Which view each weight is seen in: per row where no row fails, else as one where all of its
 * segments pass. */
static void choose(const float *totals, const struct segments *segments, const float *limit,
                   const float *eps, uint8_t *channel, uint8_t *layer)
{
    const int64_t n = segments->n;
    for (int64_t s = 0; s < n; s++) {
        const int64_t w = segments->weight ? segments->weight[s] : s;
        const int is_first = s == 0 || !segments->weight || segments->weight[s - 1] != w;
        const int rows_pass = totals[STATISTICS * n + s] == 0;
        channel[w] = rows_pass && (is_first || channel[w]);
        layer[w] = cosine_of(totals, n, s, eps[s]) < limit[s] && (is_first || layer[w]);
    }
    for (int64_t s = 0; s < n; s++) {
        const int64_t w = segments->weight ? segments->weight[s] : s;
        layer[w] = layer[w] && !channel[w];
    }
}

/* The views and what each row is multiplied with, less one. `limit` and `eps` are one a segment;
 * views and both decays are one a weight. */
EXPORT MULTIVERSION void hf_adamp_decide(const float *stats, int64_t stride, const float *totals,
                                         const struct segments *segments, const float *limit,
                                         const float *eps, const float *decay,
                                         const float *projected_decay, uint8_t *channel,
                                         uint8_t *layer, float *shift)
{
    const float *weight_sq = stats + WEIGHT_SQ * stride, *step_dot = stats + STEP_DOT * stride;
    choose(totals, segments, limit, eps, channel, layer);
    for (int64_t s = 0; s < segments->n; s++) {
        const int64_t w = segments->weight ? segments->weight[s] : s;
        const int64_t begin = segments->offsets[s], end = segments->offsets[s + 1];
        const float own_decay = channel[w] || layer[w] ? projected_decay[w] : decay[w];
        if (channel[w]) {
#pragma omp simd
            for (int64_t r = begin; r < end; r++)
                shift[r] = radial_part(step_dot[r], weight_sq[r], eps[s]) - own_decay;
            continue;
        }
        const float *sums = totals + s;
        const float part = layer[w] ? radial_part(sums[STEP_DOT * segments->n],
                                                  sums[WEIGHT_SQ * segments->n], eps[s])
                                    : 0;
        for (int64_t r = begin; r < end; r++)
            shift[r] = part - own_decay;
    }
}
