/* AdamP and SGDP on a CPU in one pass over memory, and one call a step.
 *
 * Plain C on raw addresses: no torch headers, no Python headers, so it survives upgrades of both.
 *
 * A weight's rows must be measured before anybody knows whether they are projected, and memory is
 * what a step costs. So rows are written in the pass that measures them, by a guess (rows.h), and
 * those that the decision (decision.h) proves wrong are recovered and written again. Nothing is
 * remembered from step to step.
 *
 * Threads take tasks from one queue. A weight's rows are written again a weight later in it, while
 * they are in a cache: whoever has measured a weight's last task decides, and a task that is to be
 * written waits for that. Statistics of a row are summed by one thread in one order, long rows in
 * parts that are added in order, so results do not depend on the number of threads.
 */
#include "types.h"

#ifdef _WIN32
/* All that is needed of windows.h. */
__declspec(dllimport) int __stdcall SwitchToThread(void);
#define GIVE_WAY SwitchToThread
#else
#include <sched.h>
#define GIVE_WAY sched_yield
#endif

typedef uint16_t bfloat16;

INLINE float from_bits(uint32_t bits)
{
    union { uint32_t bits; float value; } word = { .bits = bits };
    return word.value;
}

INLINE uint32_t to_bits(float x)
{
    union { float value; uint32_t bits; } word = { .value = x };
    return word.bits;
}

INLINE float load_bfloat16(bfloat16 x)
{
    return from_bits((uint32_t)x << 16);
}

INLINE bfloat16 store_bfloat16(float x)
{
    const uint32_t bits = to_bits(x), rounded = bits + 0x7fff + ((bits >> 16) & 1);
    /* A NaN's payload must not be rounded into infinity. */
    return x != x ? 0x7fc0 : (bfloat16)(rounded >> 16);
}

/* 32 random bits for an element, enough to round two numbers: a hash of where it is, of the seed of
 * its weight and step, and of what they are for. The mixer is Wellons' lowbias32,
 * https://nullprogram.com/blog/2018/07/31/. */
INLINE uint32_t noise_of(uint64_t seed, uint32_t i, enum purpose purpose)
{
    uint32_t x = i * 2 + purpose + (uint32_t)seed;
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= (x >> 15) ^ (uint32_t)(seed >> 32);
    x *= 0x846ca68bU;
    return x ^ (x >> 16);
}

/* One of the two neighbours of x that bfloat16 holds, right on average, by 16 random bits. */
INLINE float stochastic(float x, uint32_t noise)
{
    const float rounded = from_bits((to_bits(x) + (noise & 0xffffU)) & 0xffff0000U);
    /* Infinity plus noise would be NaN. */
    return fabsf(x) <= 3.4028235e38f ? rounded : x;
}

#include "elements.h"
#include "decision.h"

#define KEEP_FLOAT32(x) (x)
#define KEEP_BFLOAT16(x) ((bfloat16)(to_bits(x) >> 16))

#define WEIGHT float
#define LOAD(x) (x)
#define STORE(x) (x)
#define CUT 0.0f
#define TINY 0.0f
#define IS_16_BIT 0
#define MOMENT float
#define IS_LOW 0
#define LOAD_MOMENT(x) (x)
#define KEEP_MOMENT KEEP_FLOAT32
#define NAME(f) f##_float32
#include "rows.h"

#define WEIGHT float
#define LOAD(x) (x)
#define STORE(x) (x)
#define CUT 0.0f
#define TINY 0.0f
#define IS_16_BIT 0
#define MOMENT bfloat16
#define IS_LOW 1
#define LOAD_MOMENT load_bfloat16
#define KEEP_MOMENT KEEP_BFLOAT16
#define NAME(f) f##_float32_low
#include "rows.h"

#define WEIGHT bfloat16
#define LOAD load_bfloat16
#define STORE store_bfloat16
#define CUT 0x1p-8f
#define TINY 0x1p-133f
#define IS_16_BIT 1
#define MOMENT float
#define IS_LOW 0
#define LOAD_MOMENT(x) (x)
#define KEEP_MOMENT KEEP_FLOAT32
#define NAME(f) f##_bfloat16
#include "rows.h"

#define WEIGHT bfloat16
#define LOAD load_bfloat16
#define STORE store_bfloat16
#define CUT 0x1p-8f
#define TINY 0x1p-133f
#define IS_16_BIT 1
#define MOMENT bfloat16
#define IS_LOW 1
#define LOAD_MOMENT load_bfloat16
#define KEEP_MOMENT KEEP_BFLOAT16
#define NAME(f) f##_bfloat16_low
#include "rows.h"

#ifdef __FLT16_MAX__
#define HAS_FLOAT16 1
#define WEIGHT _Float16
#define LOAD(x) ((float)(x))
#define STORE(x) ((_Float16)(x))
#define CUT 0x1p-11f
#define TINY 0x1p-24f
#define IS_16_BIT 1
#define MOMENT float
#define IS_LOW 0
#define LOAD_MOMENT(x) (x)
#define KEEP_MOMENT KEEP_FLOAT32
#define NAME(f) f##_float16
#include "rows.h"

#define WEIGHT _Float16
#define LOAD(x) ((float)(x))
#define STORE(x) ((_Float16)(x))
#define CUT 0x1p-11f
#define TINY 0x1p-24f
#define IS_16_BIT 1
#define MOMENT bfloat16
#define IS_LOW 1
#define LOAD_MOMENT load_bfloat16
#define KEEP_MOMENT KEEP_BFLOAT16
#define NAME(f) f##_float16_low
#include "rows.h"
#else
#define HAS_FLOAT16 0
#endif

typedef void (*work)(const struct problem *p, const struct task *t);

/* By level, type of weight and whether moments are bfloat16. */
#if HAS_FLOAT16
#define OF_FLOAT16(f) {f##_float16, f##_float16_low}
#else
#define OF_FLOAT16(f) {0, 0}
#endif
#define OF_TYPES(f) {{f##_float32, f##_float32_low}, {f##_bfloat16, f##_bfloat16_low}, OF_FLOAT16(f)},
#define MEASURES(level, target) OF_TYPES(measure_task##level)
#define WRITES(level, target) OF_TYPES(write_task##level)
static const work MEASURE[][3][2] = {LEVELS(MEASURES)};
static const work WRITE[][3][2] = {LEVELS(WRITES)};

/* The sums of a block's split rows, from their parts in order. */
static void add_parts(const struct problem *p, int64_t block)
{
    const struct block *b = &p->blocks[block];
    int64_t row = -1;
    for (int64_t i = b->first_task; i < b->first_task + b->tasks; i++) {
        const struct task *t = &p->tasks[i];
        if (t->slot < 0)
            return;
        for (int k = 0; k < STATISTICS; k++) {
            float *sum = &p->stats[k * p->n_rows + b->first_row + t->row];
            *sum = (t->row == row ? *sum : 0) + p->partials[STATISTICS * t->slot + k];
        }
        row = t->row;
        p->written[b->first_row + row] = NAN;
    }
}

/* Count the step of each weight that has a gradient, and what follows from its count. */
static void count_steps(const struct problem *p)
{
    double count = -1, correction1 = 1, correction2 = 1;
    int64_t rule_of = -1;
    for (int64_t t = 0; t < p->n_tensors; t++) {
        const struct rule *rule = &p->rules[p->rule_of[t]];
        if (!p->grads[t])
            continue;
        if (p->kind != ADAM) {
            p->scalars[t] = (struct scalars){(float)rule->lr, 0};
            continue;
        }
        *p->counts[t] += 1;
        /* Almost always every weight has taken as many steps as the one before it. */
        if (*p->counts[t] != count || p->rule_of[t] != rule_of) {
            count = *p->counts[t];
            rule_of = p->rule_of[t];
            correction1 = 1 - pow(rule->beta1, count);
            correction2 = sqrt(1 - pow(rule->beta2, count));
        }
        p->scalars[t] = (struct scalars){(float)(rule->lr / correction1), (float)(1 / correction2)};
    }
}

INLINE int has_gradient(const struct problem *p, const struct task *t)
{
    return p->grads[p->blocks[t->block].tensor] != 0;
}

/* Measure a task and, if it was its weight's last one, decide. */
static void measure_one(const struct problem *p, const struct task *t, work measure, int decides)
{
    const struct block *b = &p->blocks[t->block];
    measure(p, t);
    if (b->mode == VECTOR || b->mode == WHOLE || atomic_fetch_sub(&p->left[t->block], 1) > 1)
        return;
    add_parts(p, t->block);
    if (!decides)
        return;
    decide(p, t->block);
    atomic_store(&p->left[t->block], -1);
}

INLINE void wait_for_others(int spins)
{
    if (spins > 100)
        GIVE_WAY();
}

static void write_one(const struct problem *p, const struct task *t, work write)
{
    /* Whoever measures the weight's last task has taken it already, so this ends. */
    for (int spins = 0; atomic_load(&p->left[t->block]) >= 0;)
        wait_for_others(spins++);
    write(p, t);
}

/* The tasks of a problem that are measured, those that are written, or both. */
struct queue {
    const struct problem *problem;
    int measures, writes;
    _Atomic int64_t next;
};

static void work_through(void *data)
{
    struct queue *queue = data;
    const struct problem *p = queue->problem;
    const int low = p->moment_dtype != FLOAT32;
    const work measure = MEASURE[p->level][p->weight_dtype][low];
    const work write = WRITE[p->level][p->weight_dtype][low];
    for (int64_t i; (i = atomic_fetch_add(&queue->next, 1)) < p->n_order;) {
        const int64_t entry = p->order[i];
        const struct task *t = &p->tasks[entry < 0 ? -1 - entry : entry];
        if (!has_gradient(p, t))
            continue;
        if (entry < 0 && queue->writes)
            write_one(p, t, write);
        else if (entry >= 0 && queue->measures)
            measure_one(p, t, measure, queue->writes);
    }
}

/* Work through the queue, together with the threads of a crew that come to help. */
static void run(const struct problem *p, int measures, int writes, struct crew *crew)
{
    struct queue queue = {.problem = p, .measures = measures, .writes = writes};
    if (crew && crew->parallel) {
        crew->parallel(work_through, &queue, (unsigned)crew->threads, 0);
        return;
    }
    if (crew) {
        crew->queue = &queue;
        atomic_store(&crew->inside, 0);
    }
    work_through(&queue);
    /* The queue is empty, so those inside end. Who comes later finds it closed. */
    int32_t inside = 0;
    for (int spins = 0; crew && !atomic_compare_exchange_weak(&crew->inside, &inside, CLOSED);) {
        inside = 0;
        wait_for_others(spins++);
    }
}

/* What the threads of a crew call when they are woken. */
EXPORT void hf_adamp_help(struct crew *crew)
{
    int32_t inside = atomic_load(&crew->inside);
    for (int spins = 0; inside == EXPECTED; inside = atomic_load(&crew->inside))
        wait_for_others(spins++);
    while (inside >= 0)
        if (atomic_compare_exchange_weak(&crew->inside, &inside, inside + 1)) {
            work_through(crew->queue);
            atomic_fetch_sub(&crew->inside, 1);
            return;
        }
}

/* A step of weights that no other process has a say in. */
EXPORT void hf_adamp_step(const struct problem *p, struct crew *crew)
{
    count_steps(p);
    for (int64_t b = 0; b < p->n_blocks; b++)
        atomic_init(&p->left[b], p->blocks[b].tasks);
    run(p, 1, 1, crew);
}

/* The first half of one: moments, statistics and, by the guess, weights. */
EXPORT void hf_adamp_measure(const struct problem *p, struct crew *crew)
{
    count_steps(p);
    for (int64_t b = 0; b < p->n_blocks; b++)
        atomic_init(&p->left[b], p->blocks[b].tasks);
    run(p, 1, 0, crew);
}

/* The second half: what was not written, or by a wrong guess, with the shifts that were decided. */
EXPORT void hf_adamp_write(const struct problem *p, struct crew *crew)
{
    for (int64_t b = 0; b < p->n_blocks; b++)
        atomic_init(&p->left[b], -1);
    run(p, 0, 1, crew);
}

/* What library.py must agree with: the version, the sizes of the structures, what was compiled. */
EXPORT void hf_adamp_build(int64_t *build, int64_t n)
{
    const int64_t all[] = {VERSION, sizeof(struct rule), sizeof(struct block), sizeof(struct task),
                           sizeof(struct problem), sizeof(struct crew), SEGMENT, HAS_FLOAT16};
    for (int64_t i = 0; i < n; i++)
        build[i] = i < (int64_t)(sizeof all / sizeof *all) ? all[i] : -1;
}
