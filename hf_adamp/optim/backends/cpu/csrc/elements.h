/* What is computed of each element, in float32 whatever it is stored as. */

/* Elements side by side: where they lie in memory, or a room that holds them as floats. */
struct stretch {
    float *weight;
    const float *grad;
    float *moment1, *moment2;
};

struct room {
    float weight[TILE], grad[TILE], moment1[TILE], moment2[TILE];
};

/* x within ± the larger of two bounds, none of them negative; NaN where x is. As whole numbers, which
 * floats of one sign are ordered like: compilers have no minimum of floats that may be NaN. */
INLINE float clamped(float x, float bound1, float bound2)
{
    const uint32_t bound = MAXIMUM(to_bits(bound1), to_bits(bound2));
    const uint32_t size = MINIMUM(to_bits(fabsf(x)), bound), sign = to_bits(x) & 0x80000000U;
    return from_bits(size | sign) + (x - x);
}

/* The step of an element from its moments, which have been advanced. */
INLINE float step_of(int kind, float g, float m, float v, const struct rule *rule,
                     struct scalars scalars)
{
    if (kind == PLAIN)
        return scalars.step_size * (rule->of_grad * g);
    /* Not a product with 0, which an infinite gradient would turn into NaN. */
    const float ahead = rule->of_grad != 0 ? rule->of_grad * g : 0;
    const float numerator = rule->of_moment * m + ahead;
    if (kind == MOMENTUM)
        return scalars.step_size * numerator;
    return scalars.step_size * (numerator / (sqrtf(v) * scalars.inverse_root + rule->eps));
}

/* Advance the moments of the n ≤ LANES elements from i on, and add to the sums of each lane. With
 * `at_once` the weights are written, shifted by `shift`; without, the steps are left in `steps`.
 * `low` rounds moments to bfloat16; an element's random numbers are those of its place, `first + i`. */
INLINE void measure_lanes(const int kind, const int low, const int at_once,
                          const struct stretch *x, int64_t i, int64_t n, const struct rule *rule,
                          struct scalars scalars, uint64_t seed, uint32_t first, float *steps,
                          float shift, float lanes[STATISTICS][LANES])
{
#pragma omp simd
    for (int l = 0; l < LANES; l++)
        if (l < n) {
            const float w = x->weight[i + l], g = rule->sign * x->grad[i + l];
            /* A step that is computed again starts from moments as they are kept, and so does this. */
            const uint32_t noise = low ? noise_of(seed, first + (uint32_t)i + (uint32_t)l, MOMENTS) : 0;
            float m1 = 0, m2 = 0;
            if (kind != PLAIN) {
                m1 = rule->keep1 * x->moment1[i + l] + rule->add1 * g;
                m1 = low ? stochastic(m1, noise) : m1;
                x->moment1[i + l] = m1;
            }
            if (kind == ADAM) {
                m2 = rule->keep2 * x->moment2[i + l] + rule->add2 * g * g;
                m2 = low ? stochastic(m2, noise >> 16) : m2;
                x->moment2[i + l] = m2;
            }
            const float s = step_of(kind, g, m1, m2, rule, scalars);
            if (at_once)
                x->weight[i + l] = w + (shift * w - s);
            else
                steps[i + l] = s;
            lanes[DOT][l] += g * w;
            lanes[GRAD_SQ][l] += g * g;
            lanes[WEIGHT_SQ][l] += w * w;
            lanes[STEP_DOT][l] += s * w;
            lanes[STEP_SQ][l] += s * s;
        }
}

/* The steps of n elements whose moments have been advanced. */
INLINE void steps_again(const int kind, const struct stretch *x, int64_t n,
                        const struct rule *rule, struct scalars scalars, float *restrict steps)
{
#pragma omp simd
    for (int64_t l = 0; l < n; l++) {
        const float m1 = kind != PLAIN ? x->moment1[l] : 0, m2 = kind == ADAM ? x->moment2[l] : 0;
        steps[l] = step_of(kind, rule->sign * x->grad[l], m1, m2, rule, scalars);
    }
}

typedef float eight_floats __attribute__((vector_size(32)));
typedef float four_floats __attribute__((vector_size(16)));

/* The sum of each statistic's lanes, halved until one is left. In vectors, since compilers take the
 * loops for sums over the statistics, and gather their numbers one by one; a row waits for this. */
INLINE void add_lanes(float lanes[STATISTICS][LANES], float *sums)
{
#pragma GCC unroll 5
    for (int k = 0; k < STATISTICS; k++) {
        eight_floats low, high;
        memcpy(&low, lanes[k], sizeof low);
        memcpy(&high, lanes[k] + LANES / 2, sizeof high);
        low += high;
        four_floats first, second;
        memcpy(&first, &low, sizeof first);
        memcpy(&second, (const char *)&low + sizeof first, sizeof second);
        first += second;
        sums[k] = (first[0] + first[2]) + (first[1] + first[3]);
    }
}
