// Frames of a CSM-shaped base on a CPU, in float32. Does what affetto.speak.numpy_frames does, in two calls a frame.
//
// Arrays are C-contiguous and named as in Python: (I, O) weights, (N, Dh, S) keys, (N, S, Dh) values.

#include "products.h"

#define STRETCHES 16 // Parts of a distribution that are summed side by side.

// One product: y = x W + (x A) B, with A and B for each chunk of rows, unless the rank is 0. B is block-diagonal.
typedef struct {
    const float *w, *a, *b;
    int64_t in, out, rank;
    int64_t has_own_w; // Whether each chunk has its own W.
    int64_t num_blocks;
    const int64_t *ranks, *widths; // Rows and columns of each block of B.
} Site;

typedef struct {
    int64_t num_layers, num_kv, group, head_dim, width, hidden, num_slots;
    double eps;
    const Site *sites; // Four for each layer: qkv, out, gate_up, down.
    float *keys, *values; // (L, N * num_kv, Dh, S) and (L, N * num_kv, S, Dh).
    const float *cos, *sin; // (positions, 2, Dh / 2); the first half of the sines is negated.
} Stack;

// Positions that go through a stack together, sorted by chunk, then by row, then by position.
typedef struct {
    int64_t num, num_chunks, num_wanted;
    const int64_t *rows, *slots, *turns; // Of each position: its row, its slot in the cache, its index in its row.
    const int64_t *starts; // First slot of each row.
    const int64_t *ends; // Where each chunk ends.
    const int64_t *wanted, *wanted_ends; // Ascending positions whose output is wanted; where chunks end among them.
} Positions;

typedef struct {
    float *x, *normed, *qkv, *attended, *hidden, *low, *scores, *logits;
} Scratch;

typedef struct {
    int64_t num_rows, num_books, num_codes, vocab, width;
    const float *heard, *spoken; // Embeddings (K * vocab, D) of codes, for the backbone and for the depth decoder.
    const float *norm, *c0_head; // (D), (D, C).
    const float *const *heads; // K - 1 of (Dd, C).
    const float *uniform; // (B, T, K).
    int64_t num_frames;
    const float *divisors[2]; // Temperatures (B) of the first codebook and of the others.
    const uint8_t *is_greedy[2];
    const int64_t *top_k; // (B); 0 means no cut-off.
    float *states; // (B, D).
    Site projector;
    Stack backbone, depth;
    Scratch scratch;
} Batch;

static void product(
    const Site *site, int64_t num_chunks, const int64_t *ends, const float *x, int64_t xs, float *y, int64_t ys,
    int is_added, float *low
) {
    const int64_t in = site->in, out = site->out, rank = site->rank;
    if (!site->has_own_w) multiply(ends[num_chunks - 1], in, out, x, xs, site->w, out, y, ys, is_added);
    for (int64_t g = 0, start = 0; g < num_chunks && (site->has_own_w || rank); start = ends[g++]) {
        const int64_t num = ends[g] - start;
        const float *mine = x + start * xs;
        if (site->has_own_w) {
            multiply(num, in, out, mine, xs, site->w + g * in * out, out, y + start * ys, ys, is_added);
        }
        if (rank) {
            multiply(num, in, rank, mine, xs, site->a + g * in * rank, rank, low, rank, 0);
            const float *from = low, *b = site->b + g * rank * out;
            float *to = y + start * ys;
            for (int64_t k = 0; k < site->num_blocks; k++) {
                multiply(num, site->ranks[k], site->widths[k], from, rank, b, out, to, ys, 1);
                from += site->ranks[k], b += site->ranks[k] * out + site->widths[k], to += site->widths[k];
            }
        }
    }
}

// RMSNorm without weights, which are multiplied into what follows.
static void normalise(int64_t m, int64_t n, const float *x, double eps, float *y) {
    for (int64_t r = 0; r < m; r++, x += n, y += n) {
        const float factor = (float)(1.0 / sqrt((double)square(x, n) / (double)n + eps));
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor;
    }
}

// Rotary embedding of queries and keys. Queries are scaled for the scores, in place; keys and values go into the cache.
static void place_heads(
    const Stack *s, int64_t layer, const float *cos, const float *sin, int64_t row, int64_t slot, int64_t num_rows,
    float *qkv
) {
    const int64_t half = s->head_dim / 2, num_q = s->num_kv * s->group;
    const float scale = 1.0f / sqrtf((float)s->head_dim);
    for (int64_t head = 0; head < num_q + s->num_kv; head++) {
        float *one = qkv + head * s->head_dim, *other = one + half;
        const float by = head < num_q ? scale : 1.0f;
        for (int64_t i = 0; i < half; i++) {
            const float a = one[i], b = other[i];
            one[i] = (a * cos[i] + b * sin[i]) * by;
            other[i] = (b * cos[half + i] + a * sin[half + i]) * by;
        }
    }
    for (int64_t kv = 0; kv < s->num_kv; kv++) {
        const int64_t head = (layer * num_rows + row) * s->num_kv + kv, at = head * s->head_dim * s->num_slots;
        const float *key = qkv + (num_q + kv) * s->head_dim, *value = key + s->num_kv * s->head_dim;
        for (int64_t d = 0; d < s->head_dim; d++) s->keys[at + d * s->num_slots + slot] = key[d];
        memcpy(s->values + at + slot * s->head_dim, value, 4 * (size_t)s->head_dim);
    }
}

// Attention of one position's queries over its row's slots from `start` to `slot`.
static void attend(
    const Stack *s, int64_t layer, int64_t row, int64_t start, int64_t slot, int64_t num_rows, const float *queries,
    float *scores, float *out
) {
    const int64_t width = s->head_dim, group = s->group, num = slot + 1 - start, slots = s->num_slots;
    // Scores are computed in whole vectors, beyond `slot`, too, and not used; the cache has room for that.
    const int64_t looked = whole_vectors(num), stride = whole_vectors(slots);
    for (int64_t kv = 0; kv < s->num_kv; kv++, queries += group * width, out += group * width) {
        const int64_t at = ((layer * num_rows + row) * s->num_kv + kv) * width * slots;
        multiply(group, width, looked, queries, width, s->keys + at + start, slots, scores, stride, 0);
        for (int64_t g = 0; g < group; g++) softmax((int32_t)num, 1.0f, scores + g * stride);
        multiply(group, num, width, scores, stride, s->values + at + start * width, width, out, width, 0);
    }
}

// Positions through all layers; x (num, D) becomes the outputs of the wanted ones, before the final norm.
static void step(const Stack *s, const Positions *p, int64_t num_rows, float *x, const Scratch *scratch) {
    const int64_t width = s->width, wide = s->num_kv * s->group * s->head_dim, all = wide + 2 * s->num_kv * s->head_dim;
    const int64_t *ends = p->ends;
    int64_t num = p->num;
    for (int64_t layer = 0; layer < s->num_layers; layer++) {
        const Site *sites = s->sites + 4 * layer;
        const int is_last = layer == s->num_layers - 1 && p->num_wanted < num;
        normalise(num, width, x, s->eps, scratch->normed);
        product(sites, p->num_chunks, ends, scratch->normed, width, scratch->qkv, all, 0, scratch->low);
        for (int64_t m = 0; m < num; m++) {
            const int64_t turn = p->turns[m] * s->head_dim;
            place_heads(
                s, layer, s->cos + turn, s->sin + turn, p->rows[m], p->slots[m], num_rows, scratch->qkv + m * all
            );
        }
        if (is_last) num = p->num_wanted, ends = p->wanted_ends;
        for (int64_t j = 0; j < num; j++) {
            const int64_t m = is_last ? p->wanted[j] : j;
            attend(
                s, layer, p->rows[m], p->starts[p->rows[m]], p->slots[m], num_rows, scratch->qkv + m * all,
                scratch->scores, scratch->attended + j * wide
            );
            if (m != j) memmove(x + j * width, x + m * width, 4 * (size_t)width);
        }
        product(sites + 1, p->num_chunks, ends, scratch->attended, wide, x, width, 1, scratch->low);
        normalise(num, width, x, s->eps, scratch->normed);
        product(
            sites + 2, p->num_chunks, ends, scratch->normed, width, scratch->hidden, 2 * s->hidden, 0, scratch->low
        );
        swiglu(num, s->hidden, scratch->hidden, scratch->hidden, 2 * s->hidden);
        product(sites + 3, p->num_chunks, ends, scratch->hidden, 2 * s->hidden, x, width, 1, scratch->low);
    }
}

// The k-th largest of n numbers, counted from 0 (Hoare's quickselect); reorders them.
static float largest(float *x, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        const float pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                const float kept = x[i];
                x[i++] = x[j], x[j--] = kept;
            }
        }
        if (k <= j) high = j;
        else if (k >= i) low = i;
        else break;
    }
    return x[k];
}

// A row's code, as `NumpySampling.pick`: the first at which the cumulative probability exceeds `uniform` of the whole;
// or n, which is no code, if a logit is NaN or infinite, also for a greedy row. Overwrites the logits, and as many
// numbers behind them.
static int64_t pick(const Batch *b, int64_t row, int64_t book, float uniform, float *logits) {
    const int64_t n = b->num_codes, top_k = b->top_k[row];
    if (b->is_greedy[book > 0][row]) {
        int64_t best = 0;
        for (int64_t i = 1; i < n; i++)
            if (logits[i] > logits[best] || (isnan(logits[i]) && !isnan(logits[best]))) best = i;
        return logits[best] < INFINITY ? best : n;
    }
    const float divisor = b->divisors[book > 0][row];
    float most = logits[0] / divisor;
    int is_nan = 0;
    for (int64_t i = 0; i < n; i++) {
        logits[i] /= divisor;
        is_nan |= isnan(logits[i]);
        most = logits[i] > most ? logits[i] : most;
    }
    if (is_nan || most == INFINITY) return n;
    if (top_k > 0) {
        memcpy(logits + n, logits, 4 * (size_t)n);
        const float least = largest(logits + n, n, top_k - 1);
        for (int64_t i = 0; i < n; i++) logits[i] = logits[i] < least ? -INFINITY : logits[i];
    }
    exponentials(n, logits, most, 1.0f);
    // What was cut off has the smallest exponential, which isn't 0.
    for (int64_t i = 0; i < n; i++) logits[i] = logits[i] < 1.7e-38f ? 0 : logits[i];
    // Each addition waits for the one before it, so parts are summed side by side.
    const int64_t stretch = (n + STRETCHES - 1) / STRETCHES;
    double sums[STRETCHES] = {0}, whole = 0, passed = 0;
    for (int64_t i = 0; i < stretch; i++)
        for (int64_t s = 0; s < STRETCHES; s++)
            if (s * stretch + i < n) sums[s] += logits[s * stretch + i];
    for (int64_t s = 0; s < STRETCHES; s++) whole += sums[s];
    // Below the whole, so that a code of probability zero is never drawn.
    const double target = fmin(uniform * whole, nextafter(whole, 0));
    for (int64_t s = 0; s < STRETCHES; s++) {
        double sum = 0;
        for (int64_t i = s * stretch; passed + sums[s] > target && i < n; i++)
            if (passed + (sum += logits[i]) > target) return i;
        passed += sums[s];
    }
    return n;
}

// Draws a codebook's codes from the logits in `scratch`.
void affetto_draw(const Batch *b, int64_t frame, int64_t book, int64_t *codes) {
    const int64_t books = b->num_books, stride = b->num_codes * 2;
    for (int64_t row = 0; row < b->num_rows; row++) {
        const float uniform = b->uniform[(row * b->num_frames + frame) * books + book];
        codes[row * books + book] = pick(b, row, book, uniform, b->scratch.logits + row * stride);
    }
}

// Logits of every row, each followed by as much free memory.
static void logits_of(const Batch *b, int64_t width, const float *x, const float *head) {
    multiply(b->num_rows, width, b->num_codes, x, width, head, b->num_codes, b->scratch.logits, 2 * b->num_codes, 0);
}

// Draws all codebooks (B, K) of a frame from the backbone's states. `first` has two positions of every row, of which
// the second is wanted; `next` has one, whose slots and turns are `moving`, set here.
void affetto_frame(const Batch *b, const Positions *first, const Positions *next, int64_t *moving, int64_t frame,
                   int64_t *codes) {
    const int64_t num = b->num_rows, books = b->num_books, from = b->width, width = b->depth.width;
    const Scratch *scratch = &b->scratch;
    logits_of(b, from, b->states, b->c0_head);
    affetto_draw(b, frame, 0, codes);
    for (int64_t book = 1; book < books; book++) {
        const Positions *p = book == 1 ? first : next;
        float *input = scratch->hidden;
        for (int64_t row = 0; row < num; row++) {
            const float *said = b->spoken + ((book - 1) * b->vocab + codes[row * books + book - 1]) * from;
            if (book == 1) {
                memcpy(input, b->states + row * from, 4 * (size_t)from);
                input += from;
            }
            memcpy(input, said, 4 * (size_t)from);
            input += from;
            moving[row] = book;
        }
        product(&b->projector, p->num_chunks, p->ends, scratch->hidden, from, scratch->x, width, 0, scratch->low);
        step(&b->depth, p, num, scratch->x, scratch);
        normalise(num, width, scratch->x, b->depth.eps, scratch->normed);
        logits_of(b, width, scratch->normed, b->heads[book - 1]);
        affetto_draw(b, frame, book, codes);
    }
}

static void new_states(const Batch *b, int64_t num, const float *x, float *states) {
    normalise(num, b->width, x, b->backbone.eps, states);
    for (int64_t row = 0; row < num; row++)
        for (int64_t i = 0; i < b->width; i++) states[row * b->width + i] *= b->norm[i];
}

// The backbone reads a frame into the next slot, which gives the states for the next frame.
void affetto_hear(const Batch *b, const Positions *p, const int64_t *codes) {
    for (int64_t row = 0; row < b->num_rows; row++) {
        float *x = b->scratch.x + row * b->width;
        memset(x, 0, 4 * (size_t)b->width);
        for (int64_t book = 0; book < b->num_books; book++) {
            const float *heard = b->heard + (book * b->vocab + codes[row * b->num_books + book]) * b->width;
            for (int64_t i = 0; i < b->width; i++) x[i] += heard[i];
        }
    }
    step(&b->backbone, p, b->num_rows, b->scratch.x, &b->scratch);
    new_states(b, b->num_rows, b->scratch.x, b->states);
}

// The backbone reads prompts x (positions, D) into an empty cache and writes the states after the wanted positions, the
// last of each prompt. Overwrites x.
void affetto_read(const Batch *b, const Positions *p, float *x) {
    step(&b->backbone, p, b->num_rows, x, &b->scratch);
    new_states(b, p->num_wanted, x, b->states);
}
