// Divides work among torch's own threads, which spin while they wait for work, so that others would compete with them.
// They are libgomp's, whose symbols torch exports to all libraries; without libgomp one thread does all the work.

#include <stdint.h>

#if defined(__linux__)
void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
#endif

typedef struct {
    void (*part)(const void *, int64_t);
    const void *argument;
    int64_t num, next;
} Work;

static void next_parts(void *pointer) {
    Work *work = pointer;
    for (int64_t part; (part = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->num;)
        work->part(work->argument, part);
}

static void in_threads(void (*part)(const void *, int64_t), const void *argument, int64_t num) {
    Work work = {part, argument, num, 0};
#if defined(__linux__)
    if (num > 1 && GOMP_parallel) {
        GOMP_parallel(next_parts, &work, (unsigned)num, 0);
        return;
    }
#endif
    next_parts(&work);
}
