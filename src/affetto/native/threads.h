// Shares of a piece of work for torch's own threads, which wait busily for their next work: others would have to wait for
// them. They are libgomp's, which torch makes known to all libraries; without it one thread does every share.

#include <stdint.h>

#if defined(__linux__)
void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
#endif

typedef struct {
    void (*share)(const void *, int64_t);
    const void *told;
    int64_t num, next;
} Shares;

static void shares_in_turn(void *given) {
    Shares *shares = given;
    for (int64_t share; (share = __atomic_fetch_add(&shares->next, 1, __ATOMIC_RELAXED)) < shares->num;)
        shares->share(shares->told, share);
}

static void in_threads(void (*share)(const void *, int64_t), const void *told, int64_t num) {
    Shares shares = {share, told, num, 0};
#if defined(__linux__)
    if (num > 1 && GOMP_parallel) {
        GOMP_parallel(shares_in_turn, &shares, (unsigned)num, 0);
        return;
    }
#endif
    shares_in_turn(&shares);
}
