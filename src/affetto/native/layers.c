// A decoder layer of a CSM-shaped base on a CPU, in float32, and its gradient. transformers' modules and autograd do
// the same in some two hundred passes over all activations (affetto.model.native_layers).
//
// A few sequences at a time go through the whole layer, forward or backward, so that activations between its products
// stay in the processor's cache. Base weights are frozen. Padding isn't computed, nor, after attention, the positions
// before the first one whose output is wanted.

#include "products.h"
#include "threads.h"

#define PARTS 3 // Queries, keys and values; gate and up; one.
#define QUERIES 32 // Per block of attention.

// A frozen matrix and its low-rank adapter (rank 0: none).
typedef struct {
    int64_t out, rank;
    const float *w_OI, *a_RI, *b_OR;
} Part;

// Frozen matrices of one input, side by side, with their adapters: y = x W + ((x A) * gate) B.
typedef struct {
    int64_t in, out, rank, num_parts; // `out` and `rank` are the sums over the parts.
    const float *w_IO, *gate; // All matrices transposed, or null: then panels of them are packed; (sequences, R).
    Part parts[PARTS];
} Site;

// Where the gradients of A and B are accumulated; null if they aren't needed.
typedef struct {
    float *a_RI, *b_RO;
} FactorGrads;

enum { QKV, OUT, GATE_UP, DOWN, SITES };

// The first `length` of a sequence's S positions are computed; of these, the outputs from `first` on are wanted. Saved
// activations of all sequences are contiguous: this one's begin at position `at`, those of wanted ones at `wanted_at`.
typedef struct {
    int64_t length, first, at, wanted_at;
} Sequence;

typedef struct {
    int64_t length, num_q, num_kv, head_dim, width, hidden, at_once; // S; positions in a group.
    double eps[2];
    const float *norms[2], *cos, *sin; // (D) before attention and before the MLP; (S, Dh).
    Site sites[SITES];
} Layer;

// Activations that the backward pass needs, of all positions; without a backward pass, of one group at a time. `qkv`
// and its `low` are of all computed positions, the rest of the wanted ones.
typedef struct {
    float *qkv, *attended, *mid, *gate_up, *low[SITES];
} Saved;

// A thread's workspace, for one group of sequences.
typedef struct {
    float *x, *narrow, *dmid, *wide, *other, *thin; // (m, D) thrice, (m, most) twice, (m, R).
    float *transposed, *scores, *panel, *factors_t[SITES]; // `transpose_factors`.
} Workspace;

// y (m, out) += the transpose of x (n, m) times w (n, out).
static void add_transposed(
    int64_t m, int64_t n, int64_t out, const float *x, int64_t xi, const float *w, int64_t ws, float *y, int64_t ys
) {
    multiply_by(m, n, out, x, 1, xi, w, ws, y, ys, 1);
}

// Sequences that go through a layer together: all their computed positions, or only the wanted ones.
typedef struct {
    const Sequence *sequences;
    int64_t from, to, is_wanted;
} Group;

INLINE int64_t positions_of(const Group *group, int64_t sequence) {
    const Sequence *one = group->sequences + sequence;
    return one->length - (group->is_wanted ? one->first : 0);
}

INLINE int64_t total_positions(const Group *group) {
    int64_t num = 0;
    for (int64_t s = group->from; s < group->to; s++) num += positions_of(group, s);
    return num;
}

static void gated(const Group *group, int64_t rank, const float *gate, float *low) {
    for (int64_t s = group->from; s < group->to; s++)
        for (int64_t p = positions_of(group, s); p; p--, low += rank)
            for (int64_t r = 0; r < rank; r++) low[r] *= gate[s * rank + r];
}

// A site's factors transposed, as the forward products read them: A of all parts side by side, then each B.
static void transpose_factors(const Site *s, float *to) {
    float *a_IR = to, *b_RO = to + s->in * s->rank;
    for (int64_t part = 0; part < s->num_parts; part++) {
        const Part *one = s->parts + part;
        for (int64_t r = 0; r < one->rank; r++)
            for (int64_t i = 0; i < s->in; i++) a_IR[i * s->rank + r] = one->a_RI[r * s->in + i];
        for (int64_t o = 0; o < one->out; o++)
            for (int64_t r = 0; r < one->rank; r++) b_RO[r * one->out + o] = one->b_OR[o * one->rank + r];
        a_IR += one->rank, b_RO += one->rank * one->out;
    }
}

// y (m, out) = or += the site at x (m, in); `low` becomes (x A) * gate.
static void forward(
    const Site *s, const Group *group, const Workspace *space, const float *factors_t, const float *x, float *y,
    int is_added, float *low
) {
    const int64_t m = total_positions(group);
    if (s->w_IO) multiply(m, s->in, s->out, x, s->in, s->w_IO, s->out, y, s->out, is_added);
    for (int64_t k = 0, at = 0; k < s->num_parts && !s->w_IO; at += s->parts[k++].out)
        multiply_any(
            m, s->in, s->parts[k].out, x, s->in, 1, s->parts[k].w_OI, 1, s->in, y + at, s->out, is_added, space->panel
        );
    if (!s->rank) return;
    multiply(m, s->in, s->rank, x, s->in, factors_t, s->rank, low, s->rank, 0);
    gated(group, s->rank, s->gate, low);
    factors_t += s->in * s->rank;
    for (const Part *part = s->parts; part < s->parts + s->num_parts; part++) {
        multiply(m, part->rank, part->out, low, s->rank, factors_t, part->out, y, s->out, 1);
        low += part->rank, y += part->out, factors_t += part->rank * part->out;
    }
}

// Gradients of the input, dx (m, in), unless it is null, and of the factors.
static void backward(
    const Site *s, const Group *group, const Workspace *space, const float *x, const float *dy, const float *low,
    const FactorGrads *grads, float *dx
) {
    const int64_t m = total_positions(group);
    float *thin = space->thin;
    for (int64_t k = 0, from = 0; k < s->num_parts && dx; from += s->parts[k++].out)
        multiply_any(
            m, s->parts[k].out, s->in, dy + from, s->out, 1, s->parts[k].w_OI, s->in, 1, dx, s->in, k > 0,
            is_packed(m, s->parts[k].out, s->in, 1) ? space->panel : 0
        );
    if (!s->rank) return;
    int64_t at = 0;
    for (int64_t k = 0; k < s->num_parts; at += s->parts[k].rank, dy += s->parts[k++].out) {
        const Part *part = s->parts + k;
        multiply(m, part->out, part->rank, dy, s->out, part->b_OR, part->rank, thin + at, s->rank, 0);
        if (grads[k].b_RO)
            add_transposed(part->rank, m, part->out, low + at, s->rank, dy, s->out, grads[k].b_RO, part->out);
    }
    gated(group, s->rank, s->gate, thin);
    for (int64_t k = 0; k < s->num_parts; thin += s->parts[k++].rank) {
        const Part *part = s->parts + k;
        if (dx) multiply(m, part->rank, s->in, thin, s->rank, part->a_RI, s->in, dx, s->in, 1);
        if (grads[k].a_RI) add_transposed(part->rank, m, s->in, thin, s->rank, x, s->in, grads[k].a_RI, s->in);
    }
}

INLINE float scale_of(const float *x, int64_t n, double eps) {
    return (float)(1.0 / sqrt((double)square(x, n) / (double)n + eps));
}

// RMSNorm (Zhang & Sennrich 2019).
static void normalise(int64_t m, int64_t n, const float *x, const float *weight, double eps, float *y) {
    for (int64_t p = 0; p < m; p++, x += n, y += n) {
        const float factor = scale_of(x, n, eps);
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
    }
}

// dx += the gradient of RMSNorm's input x (m, n), from that of its output.
static void normalise_backward(
    int64_t m, int64_t n, const float *x, const float *weight, double eps, const float *dy, float *dx
) {
    for (int64_t p = 0; p < m; p++, x += n, dy += n, dx += n) {
        const float factor = scale_of(x, n, eps);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; i++) sum += weight[i] * dy[i] * x[i];
        const float share = factor * factor * factor * sum / (float)n;
        for (int64_t i = 0; i < n; i++) dx[i] += factor * weight[i] * dy[i] - share * x[i];
    }
}

static void swiglu_backward(int64_t m, int64_t hidden, const float *x, const float *dy, float *dx) {
    for (int64_t p = 0; p < m; p++, x += 2 * hidden, dy += hidden, dx += 2 * hidden) {
#pragma omp simd
        for (int64_t i = 0; i < hidden; i++) {
            const float gate = x[i], share = 1.0f / (1.0f + exponential(-gate)), along = dy[i] * share;
            dx[i] = along * x[hidden + i] * (1.0f + gate * (1.0f - share));
            dx[hidden + i] = along * gate;
        }
    }
}

// Rotary position embedding (Su et al. 2021) of a group's queries and keys, or its inverse.
static void rotate(const Layer *l, const Group *group, float *qkv, int is_inverse) {
    const int64_t half = l->head_dim / 2, stride = (l->num_q + 2 * l->num_kv) * l->head_dim;
    for (int64_t s = group->from; s < group->to; s++) {
        for (int64_t p = 0; p < group->sequences[s].length; p++, qkv += stride) {
            const float *cos = l->cos + p * l->head_dim, *sin = l->sin + p * l->head_dim;
            for (int64_t head = 0; head < l->num_q + l->num_kv; head++) {
                float *one = qkv + head * l->head_dim, *other = one + half;
                if (is_inverse) {
                    for (int64_t i = 0; i < half; i++) {
                        const float a = one[i], b = other[i];
                        one[i] = a * cos[i] + b * sin[half + i], other[i] = b * cos[half + i] - a * sin[i];
                    }
                } else {
                    for (int64_t i = 0; i < half; i++) {
                        const float a = one[i], b = other[i];
                        one[i] = a * cos[i] - b * sin[i], other[i] = b * cos[half + i] + a * sin[half + i];
                    }
                }
            }
        }
    }
}

// `from` (S, Dh), with a row stride, to (Dh, padded S), zero beyond S.
static void transpose(int64_t length, int64_t padded, int64_t width, const float *from, int64_t stride, float *to) {
    for (int64_t d = 0; d < width; d++) {
        for (int64_t s = 0; s < length; s++) to[d * padded + s] = from[s * stride + d];
        for (int64_t s = length; s < padded; s++) to[d * padded + s] = 0;
    }
}

// Attention shares (num, padded) of `num` queries, from position `start` on, over keys (Dh, padded); zero beyond each.
static void shares_of(
    int64_t num, int64_t start, int64_t padded, int64_t width, const float *queries, int64_t stride, const float *keys,
    float *shares
) {
    const int64_t looked = whole_vectors(start + num);
    const float scale = 1.0f / sqrtf((float)width);
    multiply(num, width, looked, queries, stride, keys, padded, shares, padded, 0);
    for (int64_t q = 0; q < num; q++, shares += padded) {
        const int64_t seen = start + q + 1;
        softmax((int32_t)seen, scale, shares);
        for (int64_t k = whole_vectors(seen); k < looked; k++) shares[k] = 0;
    }
}

// A sequence's causal attention, after the rotary embedding: out (wanted, heads * Dh).
static void attend(const Layer *l, const Sequence *sequence, const float *qkv, float *out, const Workspace *space) {
    const int64_t width = l->head_dim, stride = (l->num_q + 2 * l->num_kv) * width, group = l->num_q / l->num_kv;
    const int64_t length = sequence->length, padded = whole_vectors(length), wide = l->num_q * width;
    for (int64_t head = 0; head < l->num_q; head++) {
        const float *queries = qkv + head * width, *keys = qkv + (l->num_q + head / group) * width;
        const float *values = keys + l->num_kv * width;
        float *mine = out + head * width;
        if (head % group == 0) transpose(length, padded, width, keys, stride, space->transposed);
        for (int64_t start = sequence->first; start < length; start += QUERIES) {
            const int64_t num = length - start < QUERIES ? length - start : QUERIES;
            shares_of(num, start, padded, width, queries + start * stride, stride, space->transposed, space->scores);
            multiply(num, start + num, width, space->scores, padded, values, stride, mine, wide, 0);
            mine += num * wide;
        }
    }
}

// Gradients of a sequence's rotated queries and keys, and of its values, from that of attention's output.
static void attend_backward(
    const Layer *l, const Sequence *sequence, const float *qkv, const float *dout, float *dqkv, const Workspace *space
) {
    const int64_t width = l->head_dim, stride = (l->num_q + 2 * l->num_kv) * width, group = l->num_q / l->num_kv;
    const int64_t length = sequence->length, padded = whole_vectors(length), wide = l->num_q * width;
    const float scale = 1.0f / sqrtf((float)width);
    float *keys_t = space->transposed, *values_t = keys_t + padded * width;
    float *shares = space->scores, *dscores = shares + QUERIES * padded;
    // Unwanted queries have no gradient; keys' and values' are accumulated over queries.
    memset(dqkv, 0, 4 * (size_t)(sequence->first * stride));
    for (int64_t p = sequence->first; p < length; p++)
        memset(dqkv + p * stride + wide, 0, 4 * (size_t)(2 * l->num_kv * width));
    for (int64_t head = 0; head < l->num_q; head++) {
        const int64_t q = head * width, k = (l->num_q + head / group) * width, v = k + l->num_kv * width;
        const float *mine = dout + q;
        if (head % group == 0) {
            transpose(length, padded, width, qkv + k, stride, keys_t);
            transpose(length, padded, width, qkv + v, stride, values_t);
        }
        for (int64_t start = sequence->first, num; start < length; start += num, mine += num * wide) {
            num = length - start < QUERIES ? length - start : QUERIES;
            const int64_t seen = start + num, looked = whole_vectors(seen);
            const float *queries = qkv + start * stride + q;
            shares_of(num, start, padded, width, queries, stride, keys_t, shares);
            multiply(num, width, looked, mine, wide, values_t, padded, dscores, padded, 0);
            for (int64_t r = 0; r < num; r++) {
                const float *share = shares + r * padded;
                float *dscore = dscores + r * padded, mean = 0;
#pragma omp simd reduction(+ : mean)
                for (int64_t i = 0; i < looked; i++) mean += share[i] * dscore[i];
                for (int64_t i = 0; i < looked; i++) dscore[i] = share[i] * (dscore[i] - mean) * scale;
            }
            multiply(num, seen, width, dscores, padded, qkv + k, stride, dqkv + start * stride + q, stride, 0);
            add_transposed(seen, num, width, dscores, padded, queries, stride, dqkv + k, stride);
            add_transposed(seen, num, width, shares, padded, mine, wide, dqkv + v, stride);
        }
    }
}

// Where to write a site's input and the gradient at its output: (sequences, S, in) and (sequences, S, out).
typedef struct {
    float *x, *dy;
} Record;

// A pass through the layer, forward (dy is null) or backward, whose sequences are divided among threads.
typedef struct {
    const Layer *layer;
    const Saved *saved; // One for all; without a backward pass, one for each thread.
    const Workspace *spaces; // One for each thread.
    const FactorGrads *grads; // [thread][site][part].
    const Sequence *sequences;
    const int64_t *ends; // Where each thread's sequences end.
    int64_t is_saved, num_threads;
    const float *x, *dy; // (sequences, S, D).
    float *y, *dx; // dx may be null.
    const Record *records; // Of each site; or null.
} Pass;

// A group's positions of (sequences, S, D), made contiguous.
static void gather(const Layer *l, const Group *group, const float *from, float *to) {
    for (int64_t s = group->from; s < group->to; s++) {
        const int64_t num = positions_of(group, s), first = group->sequences[s].length - num;
        memcpy(to, from + (s * l->length + first) * l->width, 4 * (size_t)(num * l->width));
        to += num * l->width;
    }
}

// The inverse, to (sequences, S, width); other positions become zero.
static void scatter(const Layer *l, const Group *group, int64_t width, const float *from, float *to) {
    for (int64_t s = group->from; s < group->to; s++) {
        const int64_t num = positions_of(group, s), end = group->sequences[s].length, first = end - num;
        float *mine = to + s * l->length * width;
        memset(mine, 0, 4 * (size_t)(first * width));
        memcpy(mine + first * width, from, 4 * (size_t)(num * width));
        memset(mine + end * width, 0, 4 * (size_t)((l->length - end) * width));
        from += num * width;
    }
}

static void record(const Pass *pass, int site, const Group *group, const float *x, const float *dy) {
    if (!pass->records) return;
    scatter(pass->layer, group, pass->layer->sites[site].in, x, pass->records[site].x);
    scatter(pass->layer, group, pass->layer->sites[site].out, dy, pass->records[site].dy);
}

// The sequences from `from` on that go through the layer together: `at_once` positions, or one sequence.
INLINE Group next_group(const Pass *pass, int64_t from, int64_t end) {
    Group group = {pass->sequences, from, from + 1, 0};
    int64_t num = pass->sequences[from].length;
    while (group.to < end && (num += pass->sequences[group.to].length) <= pass->layer->at_once) group.to++;
    return group;
}

static void forward_share(const Pass *pass, int64_t thread) {
    const Layer *l = pass->layer;
    const Saved *saved = pass->saved + (pass->is_saved ? 0 : thread);
    const Workspace *space = pass->spaces + thread;
    const int64_t width = l->width, wide = l->num_q * l->head_dim, all = wide + 2 * l->num_kv * l->head_dim;
    const int64_t end = pass->ends[thread];
    for (int site = 0; site < SITES; site++) transpose_factors(l->sites + site, space->factors_t[site]);
    for (int64_t from = thread ? pass->ends[thread - 1] : 0; from < end;) {
        const Group group = next_group(pass, from, end), wanted = {group.sequences, group.from, group.to, 1};
        const int64_t m = total_positions(&group), n = total_positions(&wanted);
        const int64_t at = pass->is_saved ? group.sequences[from].at : 0;
        const int64_t wanted_at = pass->is_saved ? group.sequences[from].wanted_at : 0;
        float *qkv = saved->qkv + at * all, *attended = saved->attended + wanted_at * wide;
        float *mid = saved->mid + wanted_at * width, *gate_up = saved->gate_up + wanted_at * 2 * l->hidden, *low[SITES];
        for (int site = 0; site < SITES; site++)
            low[site] = saved->low[site] + (site == QKV ? at : wanted_at) * l->sites[site].rank;
        gather(l, &group, pass->x, space->narrow);
        normalise(m, width, space->narrow, l->norms[0], l->eps[0], space->narrow);
        forward(l->sites + QKV, &group, space, space->factors_t[QKV], space->narrow, qkv, 0, low[QKV]);
        rotate(l, &group, qkv, 0);
        for (int64_t s = from, p = 0, w = 0; s < group.to; s++) {
            attend(l, group.sequences + s, qkv + p * all, attended + w * wide, space);
            p += positions_of(&group, s), w += positions_of(&wanted, s);
        }
        gather(l, &wanted, pass->x, mid);
        forward(l->sites + OUT, &wanted, space, space->factors_t[OUT], attended, mid, 1, low[OUT]);
        normalise(n, width, mid, l->norms[1], l->eps[1], space->narrow);
        forward(l->sites + GATE_UP, &wanted, space, space->factors_t[GATE_UP], space->narrow, gate_up, 0, low[GATE_UP]);
        swiglu(n, l->hidden, gate_up, space->wide, l->hidden);
        if (n) memcpy(space->narrow, mid, 4 * (size_t)(n * width));
        forward(l->sites + DOWN, &wanted, space, space->factors_t[DOWN], space->wide, space->narrow, 1, low[DOWN]);
        scatter(l, &wanted, width, space->narrow, pass->y);
        from = group.to;
    }
}

static void backward_share(const Pass *pass, int64_t thread) {
    const Layer *l = pass->layer;
    const Saved *saved = pass->saved;
    const Workspace *space = pass->spaces + thread;
    const FactorGrads *grads = pass->grads + thread * SITES * PARTS;
    const int64_t width = l->width, wide = l->num_q * l->head_dim, all = wide + 2 * l->num_kv * l->head_dim;
    const int64_t end = pass->ends[thread];
    for (int64_t from = thread ? pass->ends[thread - 1] : 0; from < end;) {
        const Group group = next_group(pass, from, end), wanted = {group.sequences, group.from, group.to, 1};
        const int64_t m = total_positions(&group), n = total_positions(&wanted);
        const int64_t at = group.sequences[from].at, wanted_at = group.sequences[from].wanted_at;
        const float *qkv = saved->qkv + at * all, *attended = saved->attended + wanted_at * wide;
        const float *mid = saved->mid + wanted_at * width, *gate_up = saved->gate_up + wanted_at * 2 * l->hidden;
        const float *low[SITES];
        for (int site = 0; site < SITES; site++)
            low[site] = saved->low[site] + (site == QKV ? at : wanted_at) * l->sites[site].rank;
        float *dmid = space->dmid;
        gather(l, &wanted, pass->dy, dmid);
        // The inputs of the MLP's products are recomputed.
        swiglu(n, l->hidden, gate_up, space->other, l->hidden);
        record(pass, DOWN, &wanted, space->other, dmid);
        backward(l->sites + DOWN, &wanted, space, space->other, dmid, low[DOWN], grads + DOWN * PARTS, space->wide);
        swiglu_backward(n, l->hidden, gate_up, space->wide, space->other);
        normalise(n, width, mid, l->norms[1], l->eps[1], space->narrow);
        record(pass, GATE_UP, &wanted, space->narrow, space->other);
        backward(
            l->sites + GATE_UP, &wanted, space, space->narrow, space->other, low[GATE_UP], grads + GATE_UP * PARTS,
            space->wide
        );
        normalise_backward(n, width, mid, l->norms[1], l->eps[1], space->wide, dmid);
        record(pass, OUT, &wanted, attended, dmid);
        backward(l->sites + OUT, &wanted, space, attended, dmid, low[OUT], grads + OUT * PARTS, space->wide);
        for (int64_t s = from, p = 0, w = 0; s < group.to; s++) {
            attend_backward(
                l, group.sequences + s, qkv + p * all, space->wide + w * wide, space->other + p * all, space
            );
            p += positions_of(&group, s), w += positions_of(&wanted, s);
        }
        rotate(l, &group, space->other, 1);
        gather(l, &group, pass->x, space->x);
        normalise(m, width, space->x, l->norms[0], l->eps[0], space->narrow);
        record(pass, QKV, &group, space->narrow, space->other);
        backward(
            l->sites + QKV, &group, space, space->narrow, space->other, low[QKV], grads + QKV * PARTS,
            pass->dx ? space->wide : 0
        );
        if (pass->dx) {
            // Move the residual's gradient from the wanted positions to their places among all, last sequence first.
            for (int64_t s = group.to - 1, p = m, w = n; s >= from; s--) {
                const int64_t length = positions_of(&group, s), num = positions_of(&wanted, s);
                p -= length, w -= num;
                memmove(dmid + (p + length - num) * width, dmid + w * width, 4 * (size_t)(num * width));
                memset(dmid + p * width, 0, 4 * (size_t)((length - num) * width));
            }
            normalise_backward(m, width, space->x, l->norms[0], l->eps[0], space->wide, dmid);
            scatter(l, &group, width, dmid, pass->dx);
        }
        from = group.to;
    }
}

static void run_thread(const void *work, int64_t thread) {
    const Pass *pass = work;
    (pass->dy ? backward_share : forward_share)(pass, thread);
}

void affetto_layer(const Pass *pass) { in_threads(run_thread, pass, pass->num_threads); }
