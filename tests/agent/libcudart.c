/* The CUDA runtime's functions that edgecnn calls, with the host's memory as the device's. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

static size_t allocated = 0;

int cudaMalloc(void **pointer, size_t bytes) {
    const char *limit = getenv("FAKE_CUDA_BYTES");
    allocated += bytes;
    if (limit && allocated > strtoull(limit, 0, 10)) return 2; /* cudaErrorMemoryAllocation */
    *pointer = malloc(bytes);
    return *pointer ? 0 : 2;
}
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { memcpy(to, from, bytes); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    memcpy(to, from, bytes);
    return stream ? 0 : 400; /* cudaErrorInvalidResourceHandle */
}
int cudaStreamCreate(void **stream) {
    const char *status = getenv("FAKE_CUDA_STATUS");
    *stream = malloc(1);
    return status ? atoi(status) : 0;
}
int cudaStreamSynchronize(void *stream) { return stream ? 0 : 400; }
int cudaStreamDestroy(void *stream) { free(stream); return 0; }

/* An event is the time at which it was recorded: all work is done when its call returns. */
int cudaEventCreate(void **event) { *event = calloc(1, sizeof(double)); return *event ? 0 : 2; }
int cudaEventRecord(void *event, void *stream) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *(double *)event = now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
    return stream ? 0 : 400;
}
int cudaEventSynchronize(void *event) { return *(double *)event ? 0 : 400; }
int cudaEventElapsedTime(float *milliseconds, void *start, void *end) {
    *milliseconds = (float)(*(double *)end - *(double *)start);
    return 0;
}
