// Matrix products and elementwise functions in float32, for frames.c, layers.c and products.c.
//
// Products keep a tile of sums in registers, in the processor's widest vectors. Arrays are C-contiguous unless a stride
// is given.

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define TILE 8 // Rows of a tile: with three vectors of outputs it fills the registers.
#elif defined(__AVX__)
#define LANES 8
#define TILE 4
#else
#define LANES 4
#define TILE 4
#endif
#define AHEAD 8 // Rows of weights to prefetch ahead.
#define PREFETCHES (LANES == 16) // Whether a full tile is so fast that it would wait for the next panel's weights.
#if defined(__x86_64__)
#define IN_REGISTER(one) __asm__("" : "+v"(one))
#else
#define IN_REGISTER(one)
#endif
// A scalar multiply-add, rounded as in vectors: once if the processor has FMA. A compiler may choose otherwise.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define ADDED(sum, a, b) fmaf(a, b, sum)
#else
#define ADDED(sum, a, b) ((sum) + (a) * (b))
#endif
#define INLINE static inline __attribute__((always_inline))
#define EACH _Pragma("GCC unroll 8") for

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t lanes __attribute__((vector_size(4 * LANES), aligned(4)));

// y (rows, vecs * LANES) = or += x (rows, n) w (n, vecs * LANES). x has row stride `xs` and element stride `xi`, so it
// may be transposed. The weights to prefetch are `next` numbers further on. Every sum runs over the inputs in order, so
// a row's result is the same to the last bit whatever rows are computed with it.
INLINE void tile(
    const int rows, const int vecs, const float *x, int64_t xs, int64_t xi, const float *w, int64_t ws, float *y,
    int64_t ys, int64_t n, int is_added, int64_t next
) {
    vec sum[8][8];
    EACH (int r = 0; r < rows; r++)
        EACH (int v = 0; v < vecs; v++) sum[r][v] = is_added ? *(const vec *)(y + r * ys + v * LANES) : (vec){0};
    for (int64_t i = 0; i < n; i++) {
        vec part[8];
        EACH (int v = 0; v < vecs; v++) {
            // With few rows, scattered weights are what takes time; a full tile has time to prefetch the next panel. In
            // between, weights should be loaded once, not by each multiply-add.
            if (rows <= TILE / 2) __builtin_prefetch(w + (i + AHEAD) * ws + v * LANES);
            if (PREFETCHES && rows == TILE) __builtin_prefetch(w + i * ws + v * LANES + next, 0, 2);
            part[v] = *(const vec *)(w + i * ws + v * LANES);
            if (rows >= TILE / 2 && rows < TILE) IN_REGISTER(part[v]);
        }
        EACH (int r = 0; r < rows; r++) {
            const float one = x[r * xs + i * xi];
            EACH (int v = 0; v < vecs; v++) sum[r][v] += one * part[v];
        }
    }
    EACH (int r = 0; r < rows; r++)
        EACH (int v = 0; v < vecs; v++) *(vec *)(y + r * ys + v * LANES) = sum[r][v];
}

// Tiles get as equal numbers of rows as possible: nine rows as eight and one take half as long again as five and four.
INLINE void panel(
    const int vecs, int64_t m, const float *x, int64_t xs, int64_t xi, const float *w, int64_t ws, float *y, int64_t ys,
    int64_t n, int is_added
) {
    for (int64_t left = (m + TILE - 1) / TILE, r = 0, rows; left > 0; left--, r += rows) {
        rows = (m - r + left - 1) / left;
        const int64_t next = left == 1 ? vecs * LANES : 0;
        const float *mine = x + r * xs;
        float *sums = y + r * ys;
        switch (rows) {
#define CASE(num) case num: tile(num, vecs, mine, xs, xi, w, ws, sums, ys, n, is_added, next); break;
            CASE(1) CASE(2) CASE(3) CASE(4)
#if TILE > 4
            CASE(5) CASE(6) CASE(7) CASE(8)
#endif
#undef CASE
        }
    }
}

// A few columns, less than a vector, of one row.
INLINE void narrow(
    const int columns, const float *x, int64_t xi, const float *w, int64_t ws, float *y, int64_t n, int is_added
) {
    float sum[8];
    EACH (int o = 0; o < columns; o++) sum[o] = is_added ? y[o] : 0;
    for (int64_t i = 0; i < n; i++)
        EACH (int o = 0; o < columns; o++) sum[o] = ADDED(sum[o], x[i * xi], w[i * ws + o]);
    EACH (int o = 0; o < columns; o++) y[o] = sum[o];
}

// The same for many rows: weights are copied into whole vectors, padded with zeros, some inputs at a time.
static void ragged(
    int64_t columns, int64_t m, const float *x, int64_t xs, int64_t xi, const float *w, int64_t ws, float *y,
    int64_t ys, int64_t n, int is_added
) {
    float filled[128 * LANES], sums[TILE * LANES];
    for (int64_t from = 0; from < n || !from; from += 128, is_added = 1) {
        const int64_t num = n - from < 128 ? n - from : 128;
        for (int64_t i = 0; i < num; i++)
            for (int64_t o = 0; o < LANES; o++) filled[i * LANES + o] = o < columns ? w[(from + i) * ws + o] : 0;
        for (int64_t r = 0; r < m; r += TILE) {
            const int64_t rows = m - r < TILE ? m - r : TILE;
            for (int64_t k = 0; k < rows; k++)
                for (int64_t o = 0; o < LANES; o++)
                    sums[k * LANES + o] = is_added && o < columns ? y[(r + k) * ys + o] : 0;
            panel(1, rows, x + r * xs + from * xi, xs, xi, filled, LANES, sums, LANES, num, 1);
            for (int64_t k = 0; k < rows; k++)
                for (int64_t o = 0; o < columns; o++) y[(r + k) * ys + o] = sums[k * LANES + o];
        }
    }
}

INLINE void multiply_by(
    int64_t m, int64_t n, int64_t out, const float *x, int64_t xs, int64_t xi, const float *w, int64_t ws, float *y,
    int64_t ys, int is_added
) {
    int64_t o = 0;
    // Each addition waits for the one before it, so a single row computes more sums side by side.
    if (m == 1) {
        for (; o + 8 * LANES <= out; o += 8 * LANES) tile(1, 8, x, xs, xi, w + o, ws, y + o, ys, n, is_added, 0);
        if (o + 4 * LANES <= out) tile(1, 4, x, xs, xi, w + o, ws, y + o, ys, n, is_added, 0), o += 4 * LANES;
    }
    for (; o + 3 * LANES <= out; o += 3 * LANES) panel(3, m, x, xs, xi, w + o, ws, y + o, ys, n, is_added);
    if (o + 2 * LANES <= out) panel(2, m, x, xs, xi, w + o, ws, y + o, ys, n, is_added), o += 2 * LANES;
    if (o + LANES <= out) panel(1, m, x, xs, xi, w + o, ws, y + o, ys, n, is_added), o += LANES;
    if (o < out && m >= 4) {
        ragged(out - o, m, x, xs, xi, w + o, ws, y + o, ys, n, is_added);
        return;
    }
    for (int64_t r = 0; r < m && o < out; r++) {
        int64_t k = o;
        for (; k + 8 <= out; k += 8) narrow(8, x + r * xs, xi, w + k, ws, y + r * ys + k, n, is_added);
        for (; k < out; k++) narrow(1, x + r * xs, xi, w + k, ws, y + r * ys + k, n, is_added);
    }
}

// y (m, out) = or += x (m, n) w (n, out), with row strides xs, ws and ys.
static __attribute__((noinline, noclone)) void multiply(
    int64_t m, int64_t n, int64_t out, const float *x, int64_t xs, const float *w, int64_t ws, float *y, int64_t ys,
    int is_added
) {
    multiply_by(m, n, out, x, xs, 1, w, ws, y, ys, is_added);
}

#define WIDE (3 * LANES) // Columns of a packed panel, …
#define DEEP 1024 // … and its rows: it stays in the second-level cache while all rows of x are multiplied with it.
#define ROWS 32 // Fewest rows of x that make packing worthwhile, …
#define LARGE 262144 // … and the most numbers of a matrix that is fast without it.

#if defined(__GNUC__) && !defined(__clang__)
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));

// Transpose a square of numbers by swapping ever larger blocks.
INLINE void transpose_square(vec *rows) {
    EACH (int half = 1; half < LANES; half *= 2) {
        lanes upper, lower;
        for (int j = 0; j < LANES; j++) {
            upper[j] = j & half ? LANES + (j ^ half) : j;
            lower[j] = j & half ? LANES + j : j ^ half;
        }
        for (int i = 0; i < LANES; i++) {
            if (i & half) continue;
            const vec one = rows[i], other = rows[i + half];
            rows[i] = __builtin_shuffle(one, other, upper);
            rows[i + half] = __builtin_shuffle(one, other, lower);
        }
    }
}
#endif

// Pack a panel (num, columns) of w whose rows have element stride `step`, column by column.
static void pack_transposed(int64_t num, int64_t columns, const float *w, int64_t row, int64_t step, float *to) {
    int64_t whole = 0;
#if defined(__GNUC__) && !defined(__clang__)
    if (row == 1) {
        whole = columns / LANES * LANES;
        for (int64_t o = 0; o < whole; o += LANES) {
            int64_t i = 0;
            for (; i + LANES <= num; i += LANES) {
                vec square[LANES];
                for (int k = 0; k < LANES; k++) square[k] = *(const vec *)(w + i + (o + k) * step);
                transpose_square(square);
                for (int k = 0; k < LANES; k++) *(vec *)(to + (i + k) * WIDE + o) = square[k];
            }
            for (; i < num; i++)
                for (int64_t k = o; k < o + LANES; k++) to[i * WIDE + k] = w[i + k * step];
        }
    }
#endif
    for (int64_t o = whole; o < columns; o++)
        for (int64_t i = 0; i < num; i++) to[i * WIDE + o] = w[i * row + o * step];
}

// Pack a panel (num, columns) of w.
static void pack(int64_t num, int64_t columns, const float *w, int64_t row, int64_t step, float *to) {
    if (step != 1) {
        pack_transposed(num, columns, w, row, step, to);
        return;
    }
    for (int64_t i = 0; i < num; i++) memcpy(to + i * WIDE, w + i * row, 4 * (size_t)columns);
}

// Numbers in a packed panel.
int64_t affetto_packed_panel(void) { return DEEP * WIDE; }

INLINE int is_packed(int64_t m, int64_t n, int64_t out, int64_t w_step) {
    return w_step != 1 || (m >= ROWS && n * out > LARGE);
}

// y (m, out) = or += x (m, n) w (n, out); `_row` is the stride of rows, `_step` that of the numbers in a row. Panels of
// w are packed in `room` (DEEP, WIDE) unless it is null.
static inline void multiply_any(
    int64_t m, int64_t n, int64_t out, const float *x, int64_t x_row, int64_t x_step, const float *w, int64_t w_row,
    int64_t w_step, float *y, int64_t y_row, int is_added, float *room
) {
    const int64_t deep = room ? DEEP : n, wide = room ? WIDE : out;
    for (int64_t k = 0; k < n || !k; k += deep) {
        const int64_t num = n - k < deep ? n - k : deep;
        for (int64_t o = 0; o < out; o += wide) {
            const int64_t columns = out - o < wide ? out - o : wide;
            const float *panel = room ? room : w, *mine = x + k * x_step;
            const int64_t row = room ? WIDE : w_row;
            if (room) pack(num, columns, w + k * w_row + o * w_step, w_row, w_step, room);
            if (x_step == 1) multiply(m, num, columns, mine, x_row, panel, row, y + o, y_row, k > 0 || is_added);
            else multiply_by(m, num, columns, mine, x_row, x_step, panel, row, y + o, y_row, k > 0 || is_added);
        }
        if (!deep) break;
    }
}

INLINE float square(const float *x, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

INLINE int64_t whole_vectors(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// exp, to two units in the last place: x = n ln 2 + r, and Cephes' polynomial (expf) of r. NaN stays NaN.
INLINE float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float scaled = x * 1.44269504088896341f;
    const int32_t n = (int32_t)rintf(scaled), bits = (n + 127) << 23;
    const float r = (x - (float)n * 0.693359375f) + (float)n * 2.12194440e-4f;
    float power, p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    memcpy(&power, &bits, 4);
    return (p * r * r + r + 1.0f) * power;
}

// x = exp((x - most) scale), in place.
INLINE void exponentials(int64_t n, float *x, float most, float scale) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] = exponential((x[i] - most) * scale);
}

// A vector with its numbers `half` apart swapped. GCC would do it number by number if left to find the shuffle itself.
INLINE vec swapped(vec x, const int half) {
#if defined(__GNUC__) && !defined(__clang__)
    static const int32_t from[9][16] = {
        [1] = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14},
        [2] = {2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13},
        [4] = {4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11},
        [8] = {8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7},
    };
    return __builtin_shuffle(x, *(const lanes *)from[half]);
#else
    vec y;
    for (int j = 0; j < LANES; j++) y[j] = x[j ^ half];
    return y;
#endif
}

INLINE vec chosen(lanes is_first, vec first, vec second) {
    return (vec)(((lanes)first & is_first) | ((lanes)second & ~is_first));
}

// The larger of each pair of numbers; `a` if `b` is NaN.
INLINE vec larger(vec a, vec b) { return chosen(b > a, b, a); }

// Softmax of `seen` numbers times `scale`, in place; whatever follows them in the last vector becomes zero.
INLINE void softmax(int32_t seen, float scale, float *x) {
    static const int32_t is_there[2 * 16] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    const int32_t full = seen / LANES * LANES;
    const lanes is_seen = *(const lanes *)(is_there + 16 - (seen - full)); // In the last vector, unless it is full.
    const vec first = x[0] - (vec){0};
    vec most = first, sum = {0};
    for (int32_t k = 0; k < full; k += LANES) most = larger(most, *(const vec *)(x + k));
    if (full < seen) most = larger(most, chosen(is_seen, *(const vec *)(x + full), first));
    EACH (int half = LANES / 2; half; half /= 2) most = larger(most, swapped(most, half));
    exponentials(whole_vectors(seen), x, most[0], scale);
    if (full < seen) *(vec *)(x + full) = chosen(is_seen, *(const vec *)(x + full), (vec){0});
    for (int32_t k = 0; k < seen; k += LANES) sum += *(const vec *)(x + k);
    EACH (int half = LANES / 2; half; half /= 2) sum += swapped(sum, half);
    const vec part = 1.0f / sum;
    for (int32_t k = 0; k < seen; k += LANES) *(vec *)(x + k) *= part;
}

// y = SiLU(gate) up (Shazeer 2020) for rows (gate, up) of x; y has row stride ys, and may be x.
INLINE void swiglu(int64_t m, int64_t hidden, const float *x, float *y, int64_t ys) {
    for (int64_t r = 0; r < m; r++, x += 2 * hidden, y += ys) {
#pragma omp simd
        for (int64_t i = 0; i < hidden; i++) y[i] = x[i] / (1.0f + exponential(-x[i])) * x[hidden + i];
    }
}
