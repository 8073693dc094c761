/* A C program on NVIDIA's CUDA runtime 10.2: streams, events, graphs, memory; its kernel lies in a fat binary as text.
 *
 * The runtime is opened by the path that is given, and declared here as far as it is used, so that no header of the
 * toolkit is needed. It prints one JSON object a line, stops its work at the first line that it is told, and ends at the
 * second. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned x, y, z; } dim3;
typedef void *stream_t, *event_t, *graph_t, *executable_t;

enum { TO_DEVICE = 1, TO_HOST = 2, CAPTURE_THREAD_LOCAL = 1, OUT_OF_MEMORY = 2, N = 1000 };

/* Every function of the runtime in use: name and arguments; all return an error code. */
#define RUNTIME(each)                                                                        \
    each(cudaMalloc, (void **, size_t)) each(cudaFree, (void *))                             \
    each(cudaMallocManaged, (void **, size_t, unsigned))                                     \
    each(cudaMemcpy, (void *, const void *, size_t, int))                                    \
    each(cudaMemcpyAsync, (void *, const void *, size_t, int, stream_t))                     \
    each(cudaMemset, (void *, int, size_t)) each(cudaMemGetInfo, (size_t *, size_t *))       \
    each(cudaStreamCreate, (stream_t *)) each(cudaStreamSynchronize, (stream_t))             \
    each(cudaStreamWaitEvent, (stream_t, event_t, unsigned))                                 \
    each(cudaStreamBeginCapture, (stream_t, int)) each(cudaStreamEndCapture, (stream_t, graph_t *)) \
    each(cudaGraphInstantiate, (executable_t *, graph_t, void *, char *, size_t))            \
    each(cudaGraphLaunch, (executable_t, stream_t))                                          \
    each(cudaEventCreate, (event_t *)) each(cudaEventRecord, (event_t, stream_t))            \
    each(cudaEventSynchronize, (event_t)) each(cudaEventElapsedTime, (float *, event_t, event_t)) \
    each(cudaLaunchKernel, (const void *, dim3, dim3, void **, size_t, stream_t))            \
    each(cudaDeviceSynchronize, (void)) each(cudaDeviceReset, (void)) each(cudaGetLastError, (void)) \
    each(cudaRuntimeGetVersion, (int *)) each(cudaFuncGetAttributes, (void *, const void *))

#define DECLARE(name, arguments) static int(*name) arguments;
RUNTIME(DECLARE)

static const char *(*error_name)(int);
static void **(*register_binary)(const void *);
static void (*register_binary_end)(void **);
static void (*register_function)(void **, const char *, char *, const char *, int, void *, void *, void *, void *, int *);

static void *runtime_symbol(void *runtime, const char *name) {
    void *found = dlsym(runtime, name);
    if (!found) {
        fprintf(stderr, "the runtime has no %s\n", name);
        exit(1);
    }
    return found;
}

static void check(int code, const char *what) {
    if (code != 0) {
        fprintf(stderr, "%s: %s\n", what, error_name(code));
        exit(1);
    }
}
#define CHECK(call) check(call, #call)

/* out[i] = factor * a[i] + b[i] for i < n */
static const char KERNELS[] =
    ".version 6.5\n.target sm_30\n.address_size 64\n"
    ".visible .entry scaled_sum(.param .u64 a, .param .u64 b, .param .u64 out, .param .f32 factor, .param .u32 n)\n{\n"
    "    .reg .pred %p<2>;\n    .reg .f32 %f<5>;\n    .reg .b32 %r<6>;\n    .reg .b64 %d<12>;\n"
    "    ld.param.u64 %d1, [a];\n    ld.param.u64 %d2, [b];\n    ld.param.u64 %d3, [out];\n"
    "    ld.param.f32 %f1, [factor];\n    ld.param.u32 %r1, [n];\n"
    "    mov.u32 %r2, %ctaid.x;\n    mov.u32 %r3, %ntid.x;\n    mov.u32 %r4, %tid.x;\n"
    "    mad.lo.s32 %r5, %r2, %r3, %r4;\n    setp.ge.s32 %p1, %r5, %r1;\n    @%p1 bra END;\n"
    "    cvta.to.global.u64 %d4, %d1;\n    cvta.to.global.u64 %d5, %d2;\n    cvta.to.global.u64 %d6, %d3;\n"
    "    mul.wide.s32 %d7, %r5, 4;\n    add.s64 %d8, %d4, %d7;\n    add.s64 %d9, %d5, %d7;\n    add.s64 %d10, %d6, %d7;\n"
    "    ld.global.f32 %f2, [%d8];\n    ld.global.f32 %f3, [%d9];\n    fma.rn.f32 %f4, %f1, %f2, %f3;\n"
    "    st.global.f32 [%d10], %f4;\nEND:\n    ret;\n}\n";

/* A fat binary with one entry, as the compiler lays it out. */
static struct {
    uint32_t magic;
    uint16_t version, head;
    uint64_t bytes;
    uint16_t kind, entry_version;
    uint32_t entry_head;
    uint64_t entry_bytes;
    uint32_t packed_bytes, options_at, options_bytes, capability, word_bits, name_bytes;
    uint64_t flags, reserved, unpacked_bytes;
    char text[(sizeof KERNELS + 8) & ~7ul];
} binary = {0xba55ed50, 1, 16, 64 + sizeof binary.text, 1, 0x101, 64, sizeof binary.text, 0, 0, 0, 30, 64, 0, 0x11, 0, 0, {0}};

static const struct {
    uint32_t magic, version;
    const void *data;
    void *file;
} wrapper = {0x466243b1, 1, &binary, NULL};

static void scaled_sum(void) {} /* Its address names the kernel. */

static void load_runtime(const char *path) {
    void *runtime = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!runtime) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
#define LOAD(name, arguments) *(void **)&name = runtime_symbol(runtime, #name);
    RUNTIME(LOAD)
    *(void **)&error_name = runtime_symbol(runtime, "cudaGetErrorName");
    *(void **)&register_binary = runtime_symbol(runtime, "__cudaRegisterFatBinary");
    *(void **)&register_binary_end = runtime_symbol(runtime, "__cudaRegisterFatBinaryEnd");
    *(void **)&register_function = runtime_symbol(runtime, "__cudaRegisterFunction");
    memcpy(binary.text, KERNELS, sizeof KERNELS);
    void **handle = register_binary(&wrapper);
    register_function(handle, (const char *)scaled_sum, "scaled_sum", "scaled_sum", -1, 0, 0, 0, 0, 0);
    register_binary_end(handle);
}

static void launch(const float *a, const float *b, float *out, float factor, int n, stream_t stream) {
    void *arguments[] = {&a, &b, &out, &factor, &n};
    dim3 grid = {(unsigned)(n + 127) / 128, 1, 1}, block = {128, 1, 1};
    CHECK(cudaLaunchKernel((const void *)scaled_sum, grid, block, arguments, 0, stream));
}

static float *device[3]; /* a, b, out */

static void numbers(void) {
    float a[N], b[N], out[N];
    for (int i = 0; i < N; i++) {
        a[i] = (float)i;
        b[i] = 0.5f * (float)i;
    }
    for (int i = 0; i < 3; i++) CHECK(cudaMalloc((void **)&device[i], sizeof a));
    CHECK(cudaMemcpy(device[0], a, sizeof a, TO_DEVICE));
    CHECK(cudaMemcpy(device[1], b, sizeof b, TO_DEVICE));
    CHECK(cudaMemset(device[2], 0, sizeof out));
    launch(device[0], device[1], device[2], 3, N, NULL);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(out, device[2], sizeof out, TO_HOST));
    int right = 0, untouched = 0;
    for (int i = 0; i < N; i++) {
        right += out[i] == 3.5f * (float)i;
        untouched += out[i] == 0;
    }
    printf("{\"numbers\": \"%s\"}\n", right == N ? "right" : untouched == N ? "time only" : "wrong");
}

/* Two streams that meet, with events around. */
static void streams(stream_t one, stream_t other) {
    event_t start, middle, end;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&middle));
    CHECK(cudaEventCreate(&end));
    CHECK(cudaEventRecord(start, one));
    launch(device[0], device[1], device[2], 1, N, one);
    CHECK(cudaEventRecord(middle, one));
    CHECK(cudaStreamWaitEvent(other, middle, 0));
    launch(device[0], device[1], device[2], 2, N, other);
    CHECK(cudaEventRecord(end, other));
    CHECK(cudaEventSynchronize(end));
    float first, both;
    CHECK(cudaEventElapsedTime(&first, start, middle));
    CHECK(cudaEventElapsedTime(&both, start, end));
    printf("{\"first_ms\": %.3f, \"both_ms\": %.3f}\n", first, both);
    if (!(0 < first && first < both)) {
        fprintf(stderr, "the second kernel did not wait for the first one\n");
        exit(1);
    }
}

static executable_t captured(stream_t stream, int kernels) {
    graph_t graph;
    executable_t executable;
    CHECK(cudaStreamBeginCapture(stream, CAPTURE_THREAD_LOCAL));
    for (int i = 0; i < kernels; i++) launch(device[0], device[1], device[2], (float)i, N, stream);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, NULL, NULL, 0));
    return executable;
}

static void memory(void) {
    size_t size = 4ul << 30;
    int refused = 0, code;
    const char *error = NULL;
    void *taken;
    while ((code = cudaMalloc(&taken, size)) != 0) {
        if (code != OUT_OF_MEMORY) check(code, "cudaMalloc");
        cudaGetLastError();
        refused++;
        error = error_name(code);
        size /= 2;
    }
    CHECK(cudaFree(taken));
    int *shared;
    CHECK(cudaMallocManaged((void **)&shared, 4096, 1));
    shared[0] = 7;
    CHECK(cudaFree(shared));
    printf("{\"refused\": %d, \"error\": \"%s\", \"taken\": %zu}\n", refused, error ? error : "none", size);
}

static volatile int told;

/* Reads a line, or up to the end of the input. */
static void read_line(void) {
    char byte = 0;
    while (byte != '\n' && read(0, &byte, 1) > 0) {}
}

static void *watch(void *unused) {
    read_line();
    told = 1;
    return unused;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: cudart PATH-OF-LIBCUDART\n");
        return 64;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    load_runtime(arguments[1]);
    int version;
    CHECK(cudaRuntimeGetVersion(&version));
    size_t free, total;
    CHECK(cudaMemGetInfo(&free, &total));
    printf("{\"total\": %zu, \"version\": \"%d\"}\n", total, version);
    numbers();
    stream_t one, other;
    CHECK(cudaStreamCreate(&one));
    CHECK(cudaStreamCreate(&other));
    streams(one, other);
    memory();

    enum { NODES = 8 };
    executable_t executable = captured(one, NODES);
    pthread_t watcher;
    pthread_create(&watcher, NULL, watch, NULL);
    printf("{\"ready\": true}\n");
    long launched = 0;
    while (!told) {
        CHECK(cudaGraphLaunch(executable, one));
        launched++;
        launch(device[0], device[1], device[2], 4, N, other);
        CHECK(cudaStreamSynchronize(one));
    }
    CHECK(cudaDeviceSynchronize());
    pthread_join(watcher, NULL);
    printf("{\"done\": true, \"graph_kernels\": %ld, \"graphs\": %ld}\n", launched * NODES, launched);
    read_line();
    CHECK(cudaDeviceReset());
    return 0;
}
