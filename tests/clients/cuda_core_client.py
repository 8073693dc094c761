"""cuda.core: NVIDIA's Python programs, streams, memory resources and graphs, with a kernel that NVRTC compiles."""

import numpy as np
from cuda.bindings import driver
from cuda.core import Device, LaunchConfig, LegacyPinnedMemoryResource, Program, ProgramOptions, launch

import report

SOURCE = r"""
extern "C" __global__ void scaled_sum(const float *a, float *out, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * a[i] + out[i];
}
extern "C" __global__ void step(int *counter) { if (threadIdx.x == 0) counter[0] += 1; }
"""
N = 1000
# Kernels of the graph.
NODES = 4


def is_out_of_memory(error):
    return "CUDA_ERROR_OUT_OF_MEMORY" in str(error)


def compiled(device):
    options = ProgramOptions(arch="compute_%d%d" % tuple(device.compute_capability))
    return Program(SOURCE, code_type="c++", options=options).compile("ptx")


def numbers(device, stream, kernel):
    pinned = LegacyPinnedMemoryResource().allocate(4 * N)
    host = np.from_dlpack(pinned).view(np.float32)
    a, out = (device.allocate(4 * N, stream=stream) for _ in range(2))
    for buffer, values in ((a, np.arange(N)), (out, np.arange(N) / 2)):
        host[:] = values
        buffer.copy_from(pinned, stream=stream)
        stream.sync()
    config = LaunchConfig(grid=(N + 127) // 128, block=128)
    launch(stream, config, kernel, a, out, np.float32(3), np.int32(N))
    out.copy_to(pinned, stream=stream)
    stream.sync()
    return report.numbers(host.tolist(), (3.5 * np.arange(N)).tolist(), 0.0)


def captured(device, kernel, counter):
    """A graph of kernels one after the other, but for two side by side at its end."""
    builder = device.create_graph_builder().begin_building()
    config = LaunchConfig(grid=1, block=32)
    for _ in range(NODES - 2):
        launch(builder, config, kernel, counter)
    branches = builder.split(2)
    for branch in branches:
        launch(branch, config, kernel, counter)
    return builder.join(*branches).end_building().complete()


def main():
    device = Device()
    device.set_current()
    free, total = driver.cuMemGetInfo()[1:]
    report.say(total=int(total))
    module = compiled(device)
    stream = device.create_stream()
    report.say(numbers=numbers(device, stream, module.get_kernel("scaled_sum")))

    kept = report.take(lambda size: device.allocate(size, stream=stream), is_out_of_memory)
    # What is freed in the order of the stream can be taken again at once.
    size = kept.size
    kept.close(stream)
    device.allocate(size, stream=stream).close(stream)

    counter = device.allocate(4, stream=stream)
    graph, launched = captured(device, module.get_kernel("step"), counter), 0

    def work():
        nonlocal launched
        graph.launch(stream)
        launched += 1
        stream.sync()

    def finish():
        stream.sync()
        report.say(graphs=launched, graph_kernels=launched * NODES)

    report.until_told(work, finish)


main()
