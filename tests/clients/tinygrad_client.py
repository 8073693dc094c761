"""tinygrad: a framework that makes its kernels itself, on the driver alone."""

import numpy as np
from tinygrad import Device, Tensor, TinyJit, dtypes

import report

STEPS = 16


def is_out_of_memory(error):
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error))


def main():
    import ctypes

    random = np.random.default_rng(1)
    a, b = (random.random((16, 16), dtype=np.float32) for _ in range(2))
    out = (Tensor(a).matmul(Tensor(b)) + Tensor(a)).relu().numpy()
    driver = ctypes.CDLL("libcuda.so.1")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    report.say(total=total.value)
    near = lambda x, y: abs(x - y) <= 1e-5 * abs(y)
    expected = np.maximum(a @ b + a, 0)
    report.say(numbers=report.numbers(out.ravel().tolist(), expected.ravel().tolist(), 0.0, near))

    kept = report.take(
        lambda size: Tensor.empty(size, dtype=dtypes.uint8).contiguous().realize().uop.buffer.ensure_allocated(),
        is_out_of_memory,
    )
    del kept

    @TinyJit
    def steps(x):
        for _ in range(STEPS):
            x = (x + 1).contiguous().realize()
        return x

    # The first call runs kernel by kernel, the second as a graph.
    state, graphs = Tensor.zeros(32).contiguous().realize(), 1
    for _ in range(2):
        steps(state)
    assert len(steps.captured.linear.src) == 1, "the steps are not one graph"

    def work():
        nonlocal graphs
        steps(state)
        graphs += 1
        Device["CUDA"].synchronize()

    def finish():
        Device["CUDA"].synchronize()
        report.say(graphs=graphs, graph_kernels=graphs * STEPS)

    report.until_told(work, finish)


main()
