/* The test and what follows from it: projection.decide, for one weight.
 *
 * A row's cosine and shift are computed in one place, here, for the guess and for the decision: a
 * row that was guessed right has the very shift that is decided, and is not touched again. */

/* |cos(w, g)| with each norm at eps or above. NaN where one is not finite, which passes no test. */
INLINE float cosine_of(float dot, float grad_sq, float weight_sq, float eps)
{
    const float grad_norm = sqrtf(grad_sq), weight_norm = sqrtf(weight_sq);
    return fabsf(dot) / (MAXIMUM(grad_norm, eps) * MAXIMUM(weight_norm, eps));
}

/* The step's part along the weight, in units of the weight. */
INLINE float radial_part(float step_dot, float weight_sq, float eps)
{
    const float norm = sqrtf(weight_sq) + eps;
    return step_dot / (norm * norm);
}

/* The shift of a row in the channel view; false where the row fails the view's test, which settles
 * its whole weight. */
INLINE int channel_shift(const float *sums, float limit, const struct rule *rule, float *shift)
{
    *shift = radial_part(sums[STEP_DOT], sums[WEIGHT_SQ], rule->eps) - rule->projected_decay;
    return cosine_of(sums[DOT], sums[GRAD_SQ], sums[WEIGHT_SQ], rule->eps) < limit;
}

INLINE float channel_limit(const struct block *b, const struct rule *rule)
{
    return b->vectors ? 0 : rule->delta / sqrtf((float)b->columns);
}

/* The sums of the rows from begin to end, which make a vector. */
INLINE void add_rows(const struct problem *p, int64_t begin, int64_t end, float *totals)
{
    for (int k = 0; k < STATISTICS; k++) {
        const float *row = p->stats + k * p->n_rows;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t r = begin; r < end; r++)
            sum += row[r];
        totals[k] = sum;
    }
}

INLINE void set_shift(const struct problem *p, int64_t begin, int64_t end, float shift)
{
    for (int64_t r = begin; r < end; r++)
        p->shift[r] = shift;
}

/* Every vector as one, all of them or none (the layer view, or declared heads). */
INLINE int decide_vectors(const struct problem *p, const struct block *b, const struct rule *rule)
{
    const float limit = rule->delta / sqrtf((float)b->numel);
    int64_t begin = b->first_row;
    int passes = 1;
    for (int64_t v = 0; v < MAXIMUM(b->vectors, 1); v++) {
        const int64_t entry = b->vectors ? p->vectors[b->first_vector + v] : b->rows;
        const int64_t rows = entry < 0 ? -entry : entry;
        float t[STATISTICS];
        add_rows(p, begin, begin + rows, t);
        passes = passes && cosine_of(t[DOT], t[GRAD_SQ], t[WEIGHT_SQ], rule->eps) < limit;
        const float radial = radial_part(t[STEP_DOT], t[WEIGHT_SQ], rule->eps);
        set_shift(p, begin, begin + rows,
                  entry < 0 ? -rule->decay : radial - rule->projected_decay);
        begin += rows;
    }
    return passes;
}

/* Leaves a weight's view and the shift of each of its rows. */
static void decide(const struct problem *p, int64_t block)
{
    const struct block *b = &p->blocks[block];
    const struct rule *rule = &p->rules[p->rule_of[b->tensor]];
    const float limit = channel_limit(b, rule);
    int64_t passed = 0;
    if (!b->vectors)
        for (; passed < b->rows; passed++) {
            const int64_t r = b->first_row + passed;
            float sums[STATISTICS];
            for (int k = 0; k < STATISTICS; k++)
                sums[k] = p->stats[k * p->n_rows + r];
            if (!channel_shift(sums, limit, rule, &p->shift[r]))
                break;
        }
    p->views[block] = CHANNEL;
    if (!b->vectors && passed == b->rows)
        return;
    p->views[block] = decide_vectors(p, b, rule) ? LAYER : NONE;
    if (p->views[block] == NONE)
        set_shift(p, b->first_row, b->first_row + b->rows, -rule->decay);
}
