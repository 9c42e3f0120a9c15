/* What Python and C share; library.py mirrors every structure. */
#ifndef HF_ADAMP_TYPES_H
#define HF_ADAMP_TYPES_H

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* One build serves every x86-64: each task is compiled for the sets of instructions that torch
 * compiles its own kernels for, and torch says which of them the processor has. */
#ifdef __x86_64__
#define LEVELS(f)                                                 \
    f(_plain, )                                                   \
    f(_avx2, __attribute__((target("avx2,fma,f16c"))))            \
    f(_avx512, __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))))
#else
#define LEVELS(f) f(_plain, )
#endif
#define INLINE static inline __attribute__((always_inline))

/* One more with every change of what library.py calls. */
#define VERSION 6
/* The longest stretch worked on at once: a longer row is split, and a weight up to this size is
 * decided on the spot, while its step is still in a buffer of the second cache. */
#define SEGMENT 32768
/* What is converted, or written again, at once: it stays in the first cache. */
#define TILE 512
/* Elements that are worked on side by side, whatever the width of the processor's registers. Sums
 * are added in this order everywhere, so results do not depend on the processor either. */
#define LANES 16
/* How far ahead memory is asked for, in elements. Of 256, 384, 512, 640, 768 and 1024 the fastest for
 * rows of 64 to 4608 float32 on an AMD EPYC: nearer comes too late, farther falls out of the first
 * cache again. */
#define AHEAD 512
/* A row that loses more than this of itself in a step cannot be recovered from what is left. */
#define RECOVERABLE 0.5f
#define MAXIMUM(a, b) ((a) > (b) ? (a) : (b))
#define MINIMUM(a, b) ((a) < (b) ? (a) : (b))

enum kind { ADAM, MOMENTUM, PLAIN };
enum view { NONE, CHANNEL, LAYER };
enum dtype { FLOAT32, BFLOAT16, FLOAT16 };
enum rounding { NEAREST, KAHAN, STOCHASTIC };
enum purpose { MOMENTS, WEIGHTS }; /* of random numbers */
enum statistic { DOT, GRAD_SQ, WEIGHT_SQ, STEP_DOT, STEP_SQ, STATISTICS };

/* How a block is worked on.
 *   VECTOR   it has no rows: written in the loop that reads it
 *   WHOLE    small: measured, decided and written by one task
 *   GUESS    rows are written at once, by what the task's own rows tell, and repaired if the whole
 *            weight turns out otherwise
 *   DEFER    measured first and written after the decision */
enum mode { VECTOR, WHOLE, GUESS, DEFER };

/* One for a param group; the first numbers are rules.Coefficients. */
struct rule {
    float keep1, add1;        /* first moment: m = keep1 m + add1 g */
    float keep2, add2;        /* second moment: v = keep2 v + add2 g² */
    float of_moment, of_grad; /* numerator: of_moment m + of_grad g (Nesterov) */
    float eps, sign;
    float decay, projected_decay, delta;
    int32_t padding;
    double lr, beta1, beta2; /* for the corrections of a count of steps, in float64 */
};

/* Weights with rows, or a bias, in a tensor: what is decided as one. */
struct block {
    int64_t tensor, mode;
    int64_t first_row, rows;      /* in the statistics */
    int64_t columns, numel;       /* of the whole weight, on all processes */
    int64_t first_vector, vectors; /* declared vectors; 0 where rows may stand for themselves */
    int64_t first_task, tasks;
};

/* Rows of a block, or a part of one row, whose sums go to a slot of their own. */
struct task {
    int64_t block, row, rows; /* row: counted in the block */
    int64_t offset, columns, stride; /* in elements of the tensor */
    int64_t slot;
};

struct scalars {
    float step_size, inverse_root; /* lr / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ); lr and unused for SGD */
};

/* A section and a step of it. Arrays are by tensor, block, task, row or vector. */
struct problem {
    int32_t kind, weight_dtype, moment_dtype, rounding;
    int32_t level; /* which of LEVELS */
    int64_t n_tensors, n_blocks, n_tasks, n_order;
    const struct rule *rules;
    const int64_t *rule_of;                /* by tensor */
    void *const *weights;                  /* by tensor, as all of these */
    const void *const *grads;              /* null where there is none in this step */
    void *const *moments1, *const *moments2;
    void *const *compensations;
    float *const *counts;
    const uint64_t *seeds;
    struct scalars *scalars;
    const struct block *blocks;
    const struct task *tasks;
    const int64_t *order; /* i: measure task i; −1 − i: write task i, some weights later */
    const int64_t *vectors; /* rows of each declared vector; negative: never projected */
    _Atomic int64_t *left;  /* by block: tasks that are to be measured before the decision */
    float *stats;           /* STATISTICS × n_rows */
    int64_t n_rows;
    float *partials;        /* STATISTICS a slot */
    float *written;         /* by row: the shift that it was written with; NaN where it was not */
    float *shift;           /* by row: the shift that was decided */
    int8_t *views;          /* by block */
};

/* GNU OpenMP's entry, which LLVM's and Intel's runtimes have too: call a function with `data` on so
 * many threads at once. */
typedef void (*parallel)(void (*)(void *), void *data, unsigned threads, unsigned flags);

/* Who helps with a queue: the threads of torch's OpenMP runtime, where `parallel` leads to it, or
 * threads that wait for `inside`. Whoever wants their help sets it to EXPECTED, wakes them and begins;
 * while it is open, it counts those who have come in. */
enum door { CLOSED = -1, EXPECTED = -2 };
struct crew {
    _Atomic int32_t inside;
    int32_t threads;
    struct queue *queue;
    parallel parallel;
};

#endif
