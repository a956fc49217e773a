// Products of float32 matrices on a CPU for torch's tensors, and K-FAC's quadratic form, which is made of them.

#include "products.h"
#include "threads.h"

// y (m, out) = or += x (m, n) w (n, out). `_row` is the stride of rows, `_step` that of the numbers in a row.
typedef struct {
    int64_t m, n, out, x_row, x_step, w_row, w_step, y_row, is_added, num_threads;
    const float *x, *w;
    float *y, *rooms; // (threads, DEEP, WIDE) if panels are packed.
} Product;

int64_t affetto_is_packed(int64_t m, int64_t n, int64_t out, int64_t w_step) { return is_packed(m, n, out, w_step); }

static void part_of_product(const void *argument, int64_t thread) {
    const Product *p = argument;
    const int64_t panels = (p->out + WIDE - 1) / WIDE, tiles = (p->m + TILE - 1) / TILE;
    // Each thread packs the panels that it needs, so columns are divided if there are enough of them, otherwise rows.
    const int is_by_columns = panels >= 2 * p->num_threads;
    const int64_t all = is_by_columns ? panels : tiles, size = is_by_columns ? WIDE : TILE;
    const int64_t from = all * thread / p->num_threads * size, to = all * (thread + 1) / p->num_threads * size;
    const int64_t first = is_by_columns ? 0 : from, o_from = is_by_columns ? from : 0;
    const int64_t end = is_by_columns || to > p->m ? p->m : to, o_end = !is_by_columns || to > p->out ? p->out : to;
    const float *x = p->x + first * p->x_row;
    float *y = p->y + first * p->y_row, *room = p->rooms ? p->rooms + thread * DEEP * WIDE : 0;
    multiply_any(
        end - first, p->n, o_end - o_from, x, p->x_row, p->x_step, p->w + o_from * p->w_step, p->w_row, p->w_step,
        y + o_from, p->y_row, (int)p->is_added, room
    );
}

void affetto_multiply(const Product *product) { in_threads(part_of_product, product, product->num_threads); }

// weight * tr[(B^T G B)(A C A^T)] of a layer, with symmetric C and G, and its gradients.
typedef struct {
    int64_t in, out, rank;
    double weight;
    const float *a_RI, *b_OR, *inputs_II, *gradients_OO;
    float *grad_a_RI, *grad_b_OR;
    double value;
} Square;

typedef struct {
    Square *squares;
    const int64_t *ends; // Where each thread's squares end.
    float *rooms; // Each thread's `room` numbers: two (most, R), two (R, R).
    int64_t num_threads, room, most;
} Squares;

static void part_of_squares(const void *argument, int64_t thread) {
    const Squares *all = argument;
    for (int64_t k = thread ? all->ends[thread - 1] : 0; k < all->ends[thread]; k++) {
        Square *s = all->squares + k;
        const int64_t in = s->in, out = s->out, rank = s->rank;
        float *wide = all->rooms + thread * all->room, *turned = wide + all->most * rank;
        float *left_RR = turned + all->most * rank, *right_RR = left_RR + rank * rank;
        const float twice = (float)(2 * s->weight);
        // A C, A C A^T, G B and B^T G B.
        multiply(rank, in, in, s->a_RI, in, s->inputs_II, in, wide, in, 0);
        for (int64_t r = 0; r < rank; r++)
            for (int64_t i = 0; i < in; i++) turned[i * rank + r] = s->a_RI[r * in + i];
        multiply(rank, in, rank, wide, in, turned, rank, right_RR, rank, 0);
        multiply(out, out, rank, s->gradients_OO, out, s->b_OR, rank, turned, rank, 0);
        multiply_by(rank, out, rank, s->b_OR, 1, rank, turned, rank, left_RR, rank, 0);
        s->value = 0;
        for (int64_t i = 0; i < rank * rank; i++) s->value += (double)left_RR[i] * right_RR[i];
        s->value *= s->weight;
        for (int64_t i = 0; i < rank * rank; i++) left_RR[i] *= twice, right_RR[i] *= twice;
        multiply(rank, rank, in, left_RR, rank, wide, in, s->grad_a_RI, in, 0);
        multiply(out, rank, rank, turned, rank, right_RR, rank, s->grad_b_OR, rank, 0);
    }
}

void affetto_squares(const Squares *squares) { in_threads(part_of_squares, squares, squares->num_threads); }
