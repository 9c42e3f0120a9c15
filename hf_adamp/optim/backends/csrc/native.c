/* AdamP and SGDP on a CPU in one pass over memory.
 *
 * Plain C on raw addresses: no torch headers, no Python headers, so it survives upgrades of both.
 * A row's step is kept in a small buffer between the loop that takes its statistics and the loop
 * that writes it, so weights are written in the same pass by which view they had in the last step
 * (the guess). The decision follows; where it differs, hf_adamp_apply recovers the old weight,
 *     w_old = (w_new + step) / (1 + shift written),
 * and writes it again. What could not be recovered precisely is written after the decision only.
 *
 * Statistics of a row are summed by one thread in one order, so results do not depend on the
 * number of threads. Long rows are split at fixed places and their parts added in order.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* One build serves every x86-64: the loader picks the widest version the processor has. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MULTIVERSION
#endif
#define INLINE static inline __attribute__((always_inline))

/* One more with every change of what native_library.py calls. */
#define VERSION 2
/* The longest stretch worked on at once; a row that is longer is split. */
#define SEGMENT 32768
/* What is measured and, where that is possible at once, written while it is in the first cache. */
#define TILE 1024
/* Elements that are worked on side by side, whatever the width of the processor's registers. */
#define LANES 16
#define MAXIMUM(a, b) ((a) > (b) ? (a) : (b))
#define MINIMUM(a, b) ((a) < (b) ? (a) : (b))
/* A shift beyond this takes too much of a weight to recover it from what is left. */
#define RECOVERABLE 0.5f

enum kind { ADAM, MOMENTUM, PLAIN };
enum view { NONE, CHANNEL, LAYER, UNTOUCHED };
enum dtype { FLOAT32, BFLOAT16, FLOAT16 };
enum statistic { DOT, GRAD_SQ, WEIGHT_SQ, STEP_DOT, STEP_SQ, STATISTICS };

/* One for a bucket; the numbers are those of bucket.AdamRule and bucket.SGDRule. */
struct rule {
    int32_t kind, dtype;
    float keep1, add1;     /* first moment: m = keep1 m + add1 g */
    float keep2, add2;     /* second moment: v = keep2 v + add2 g² */
    float of_moment, of_grad; /* numerator: of_moment m + of_grad g (Nesterov) */
    float eps, sign;
    float decay, projected_decay, delta;
};

/* One for a weight. first_row is its place in the statistics, -1 where it has no rows; first_tile
 * its place among the marks of how its tiles were written. */
struct weight {
    void *weight;
    const void *grad;
    float *moment1, *moment2;
    int64_t columns, first_row, first_tile;
};

struct scalars {
    float step_size, inverse_root; /* lr / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ); lr and unused for SGD */
};

/* Rows of a weight, or a part of one row, whose sums go to a slot of their own. */
struct task {
    int64_t weight, row, rows, column, columns, slot;
};

struct buffers {
    float *stats; /* STATISTICS × stride */
    int64_t stride;
    float *written;     /* the shift that a row was written with */
    int8_t *written_as; /* the view that a tile was written as */
    float *partials;    /* STATISTICS a slot */
};

typedef uint16_t bfloat16;

INLINE float load_bfloat16(bfloat16 x)
{
    union { uint32_t bits; float value; } word = { .bits = (uint32_t)x << 16 };
    return word.value;
}

INLINE bfloat16 store_bfloat16(float x)
{
    union { float value; uint32_t bits; } word = { .value = x };
    const uint32_t rounded = word.bits + 0x7fff + ((word.bits >> 16) & 1);
    /* A NaN's payload must not be rounded into infinity. */
    return x != x ? 0x7fc0 : (bfloat16)(rounded >> 16);
}

/* The step of an element from its moments, which have been advanced. */
INLINE float step_of(int kind, float g, float m, float v, struct rule rule,
                     struct scalars scalars)
{
    if (kind == PLAIN)
        return scalars.step_size * rule.of_grad * g;
    /* Not a product with 0, which an infinite gradient would turn into NaN. */
    const float ahead = rule.of_grad != 0 ? rule.of_grad * g : 0;
    const float numerator = rule.of_moment * m + ahead;
    if (kind == MOMENTUM)
        return scalars.step_size * numerator;
    return scalars.step_size * (numerator / (sqrtf(v) * scalars.inverse_root + rule.eps));
}

/* The sum of each statistic's lanes. Written out, since a loop over the halves stays a loop. */
INLINE void add_lanes(float lanes[STATISTICS][LANES], float *sums)
{
#pragma GCC unroll 5
    for (int k = 0; k < STATISTICS; k++) {
        float eight[LANES / 2], four[LANES / 4];
        for (int l = 0; l < LANES / 2; l++)
            eight[l] = lanes[k][l] + lanes[k][l + LANES / 2];
        for (int l = 0; l < LANES / 4; l++)
            four[l] = eight[l] + eight[l + LANES / 4];
        sums[k] = (four[0] + four[2]) + (four[1] + four[3]);
    }
}

/* A weight may be written before the decision where the old one can be recovered to its last bits:
 * w_new + step is as precise as the larger of the two, so the step must be the smaller. Sums that
 * are not numbers fail as well. */
INLINE int recoverable(const float *sums)
{
    return sums[STEP_SQ] <= sums[WEIGHT_SQ];
}

/* The shift of a row in the channel view; false where the row fails the view's test, which settles
 * its whole weight. */
INLINE int channel_shift(const float *sums, float limit, struct rule rule, float *shift)
{
    const float grad_norm = sqrtf(sums[GRAD_SQ]), weight_norm = sqrtf(sums[WEIGHT_SQ]);
    const float norms = MAXIMUM(grad_norm, rule.eps) * MAXIMUM(weight_norm, rule.eps);
    const float part =
        sums[STEP_DOT] / ((weight_norm + rule.eps) * (weight_norm + rule.eps));
    *shift = part - rule.projected_decay;
    return fabsf(sums[DOT]) / norms < limit && fabsf(part) < RECOVERABLE;
}

#define WEIGHT float
#define NAME(f) f##_float32
#define LOAD(x) (x)
#define STORE(x) (x)
#include "rows.h"

#define WEIGHT bfloat16
#define NAME(f) f##_bfloat16
#define LOAD(x) load_bfloat16(x)
#define STORE(x) store_bfloat16(x)
#include "rows.h"

#ifdef __FLT16_MAX__
#define HAS_FLOAT16 1
#define WEIGHT _Float16
#define NAME(f) f##_float16
#define LOAD(x) ((float)(x))
#define STORE(x) ((_Float16)(x))
#include "rows.h"
#else
#define HAS_FLOAT16 0
#endif

/* Calls f for the type of the rule's weights. */
#if HAS_FLOAT16
#define FOR_TYPE(f, ...)                        \
    do {                                        \
        if (rule->dtype == FLOAT32)             \
            f##_float32(__VA_ARGS__);           \
        else if (rule->dtype == BFLOAT16)       \
            f##_bfloat16(__VA_ARGS__);          \
        else                                    \
            f##_float16(__VA_ARGS__);           \
    } while (0)
#else
#define FOR_TYPE(f, ...)                        \
    do {                                        \
        if (rule->dtype == FLOAT32)             \
            f##_float32(__VA_ARGS__);           \
        else                                    \
            f##_bfloat16(__VA_ARGS__);          \
    } while (0)
#endif

/* The sums of split rows, from their parts in order. */
static void add_parts(const struct task *tasks, int64_t n_tasks, const struct weight *weights,
                      const struct buffers *b)
{
    for (int64_t i = 0; i < n_tasks; i++) {
        const struct task *t = &tasks[i];
        const int64_t place = weights[t->weight].first_row + t->row;
        if (t->slot < 0 || weights[t->weight].first_row < 0)
            continue;
        for (int k = 0; k < STATISTICS; k++) {
            float *sum = &b->stats[k * b->stride + place];
            *sum = (t->column ? *sum : 0) + b->partials[STATISTICS * t->slot + k];
        }
    }
}

/* Moments, statistics and, by the guess, weights of a bucket. */
EXPORT void hf_adamp_accumulate(const struct task *tasks, int64_t n_tasks,
                                const struct weight *weights, const struct scalars *scalars,
                                const struct rule *rule, const int8_t *guess,
                                const struct buffers *b, int32_t threads)
{
    _Atomic int64_t next = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t i; (i = atomic_fetch_add(&next, 1)) < n_tasks;) {
        const int64_t w = tasks[i].weight;
        FOR_TYPE(accumulate_task, &tasks[i], &weights[w], scalars[w], rule, guess[w], b);
    }
    add_parts(tasks, n_tasks, weights, b);
}

/* Write what was deferred and what was written by a wrong guess; `view` by weight, `shift` by row. */
EXPORT void hf_adamp_apply(const struct task *tasks, int64_t n_tasks, const struct weight *weights,
                           const struct scalars *scalars, const struct rule *rule,
                           const int8_t *view, const float *shift, const struct buffers *b,
                           int32_t threads)
{
    _Atomic int64_t next = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t i; (i = atomic_fetch_add(&next, 1)) < n_tasks;) {
        const int64_t w = tasks[i].weight;
        if (weights[w].first_row >= 0)
            FOR_TYPE(apply_task, &tasks[i], &weights[w], scalars[w], rule, view[w], shift, b);
    }
}

/* One more for each of n numbers that lie apart. */
EXPORT void hf_adamp_count(float *const *counts, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        *counts[i] += 1;
}

#include "decision.h"

/* What native_library.py must agree with: its version, the sizes of the structures, and what was
 * compiled in. */
EXPORT void hf_adamp_build(int64_t *build, int64_t n)
{
    const int64_t all[] = {VERSION, sizeof(struct task), sizeof(struct weight), sizeof(struct rule),
                           sizeof(struct buffers), sizeof(struct segments), SEGMENT, TILE,
                           HAS_FLOAT16};
    for (int64_t i = 0; i < n; i++)
        build[i] = i < (int64_t)(sizeof all / sizeof *all) ? all[i] : -1;
}
