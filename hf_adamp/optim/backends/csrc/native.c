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

/* The longest stretch worked on at once; a row that is longer is split. native.py knows it too. */
#define SEGMENT 32768
/* What is measured and, where that is possible at once, written while it is in the first cache. */
#define TILE 1024
#define STATISTICS 5
#define MAXIMUM(a, b) ((a) > (b) ? (a) : (b))
#define MINIMUM(a, b) ((a) < (b) ? (a) : (b))
/* A shift beyond this takes too much of a weight to recover it from what is left. */
#define RECOVERABLE 0.5f

enum kind { ADAM, MOMENTUM, PLAIN };
enum view { NONE, CHANNEL, LAYER, UNTOUCHED };
enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

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
INLINE float step_of(int kind, float g, float m, float v, const struct rule *rule,
                     struct scalars scalars)
{
    if (kind == PLAIN)
        return scalars.step_size * rule->of_grad * g;
    /* Not a product with 0, which an infinite gradient would turn into NaN. */
    const float ahead = rule->of_grad != 0 ? rule->of_grad * g : 0;
    const float numerator = rule->of_moment * m + ahead;
    if (kind == MOMENTUM)
        return scalars.step_size * numerator;
    return scalars.step_size * (numerator / (sqrtf(v) * scalars.inverse_root + rule->eps));
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

/* A weight may be written before the decision where the old one can be recovered to its last bits:
 * w_new + step is as precise as the larger of the two, so the step must be the smaller. Sums that
 * are not numbers fail as well. */
INLINE int recoverable(const float *sums)
{
    return sums[4] <= sums[2];
}

/* The shift of a row in the channel view, or 0 where the row fails the view's test, which settles
 * its whole weight. */
static int channel_shift(const float *sums, int64_t columns, const struct rule *rule, float *shift)
{
    const float grad_norm = sqrtf(sums[1]), weight_norm = sqrtf(sums[2]), eps = rule->eps;
    const float cosine = fabsf(sums[0]) / (MAXIMUM(grad_norm, eps) * MAXIMUM(weight_norm, eps));
    const float part = sums[3] / ((weight_norm + eps) * (weight_norm + eps));
    *shift = part - rule->projected_decay;
    return cosine < rule->delta / sqrtf((float)columns) && fabsf(part) < RECOVERABLE;
}

/* A stretch of a row, tile by tile. With `at_once` tiles are written without projection, in the
 * loop that measures them; without, their steps are left in `step`. */
static void accumulate_stretch(const struct weight *w, int64_t at, int64_t n,
                               struct scalars scalars, const struct rule *rule, int at_once,
                               float *step, int8_t *written_as, float *sums)
{
    for (int k = 0; k < STATISTICS; k++)
        sums[k] = 0;
    for (int64_t begin = 0, tile = 0; begin < n; begin += TILE, tile++) {
        const int64_t length = MINIMUM(TILE, n - begin);
        float own[STATISTICS], old[TILE];
        if (at_once)
            FOR_TYPE(move, w, at + begin, length, old, rule, scalars, own);
        else
            FOR_TYPE(measure, w, at + begin, length, step + begin, rule, scalars, own);
        for (int k = 0; k < STATISTICS; k++)
            sums[k] += own[k];
        if (!written_as)
            continue;
        const int stays = at_once && recoverable(own);
        if (at_once && !stays)
            memcpy((float *)w->weight + at + begin, old, length * sizeof(float));
        written_as[tile] = stays ? NONE : UNTOUCHED;
    }
}

static void accumulate_task(const struct task *t, const struct weight *w, struct scalars scalars,
                            const struct rule *rule, int8_t guess, const struct buffers *b)
{
    float step[SEGMENT];
    const int is_part = t->slot >= 0, has_rows = w->first_row >= 0;
    const int64_t tiles = (w->columns + TILE - 1) / TILE;
    /* Numbers of 16 bits lose the old weight. */
    const int may_write = rule->dtype == FLOAT32 && rule->decay < RECOVERABLE;
    for (int64_t row = t->row; row < t->row + t->rows; row++) {
        const int64_t at = row * w->columns + t->column, place = w->first_row + row;
        float own[STATISTICS], *sums = is_part ? b->partials + STATISTICS * t->slot : own;
        if (!has_rows) {
            accumulate_stretch(w, at, t->columns, scalars, rule, 1, step, 0, sums);
            continue;
        }
        int8_t *written_as = b->written_as + w->first_tile + row * tiles + t->column / TILE;
        accumulate_stretch(w, at, t->columns, scalars, rule, may_write && guess == NONE, step,
                           written_as, sums);
        float shift = -rule->decay;
        /* A part of a row does not know the row's sums. */
        if (may_write && guess == CHANNEL && !is_part && recoverable(sums) &&
            channel_shift(sums, w->columns, rule, &shift)) {
            FOR_TYPE(write, w, at, t->columns, step, shift);
            for (int64_t tile = 0; tile < tiles; tile++)
                written_as[tile] = CHANNEL;
        }
        if (t->column == 0)
            b->written[place] = shift;
        if (!is_part)
            for (int k = 0; k < STATISTICS; k++)
                b->stats[k * b->stride + place] = sums[k];
    }
}

static void apply_task(const struct task *t, const struct weight *w, struct scalars scalars,
                       const struct rule *rule, int8_t view, const float *shift,
                       const struct buffers *b)
{
    const int64_t tiles = (w->columns + TILE - 1) / TILE;
    for (int64_t row = t->row; row < t->row + t->rows; row++) {
        const int64_t at = row * w->columns + t->column, place = w->first_row + row;
        const int8_t *written_as = b->written_as + w->first_tile + row * tiles + t->column / TILE;
        for (int64_t begin = 0, tile = 0; begin < t->columns; begin += TILE, tile++)
            if (written_as[tile] != view)
                FOR_TYPE(rewrite, w, at + begin, MINIMUM(TILE, t->columns - begin), rule, scalars,
                         shift[place], b->written[place], written_as[tile] != UNTOUCHED);
    }
}

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
        accumulate_task(&tasks[i], &weights[w], scalars[w], rule, guess[w], b);
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
            apply_task(&tasks[i], &weights[w], scalars[w], rule, view[w], shift, b);
    }
}

/* What native.py must agree with: the sizes of the structures, and what was compiled in. */
EXPORT void hf_adamp_build(int64_t *build)
{
    build[0] = sizeof(struct task);
    build[1] = sizeof(struct weight);
    build[2] = sizeof(struct rule);
    build[3] = sizeof(struct buffers);
    build[4] = SEGMENT;
    build[5] = TILE;
    build[6] = HAS_FLOAT16;
}
