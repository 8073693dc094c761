"""numba-cuda: Python compiled to kernels."""

from collections import deque

import numpy as np
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError

import report

N = 1000


@cuda.jit
def scaled_sum(a, b, out, factor):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = factor * a[i] + b[i]


@cuda.jit
def step(counter):
    if cuda.threadIdx.x == 0:
        counter[0] += 1


def is_out_of_memory(error):
    return isinstance(error, CudaAPIError) and int(error.code) == 2


def main():
    free, total = cuda.current_context().get_memory_info()
    report.say(total=int(total))
    a, b = np.arange(N, dtype=np.float32), np.arange(N, dtype=np.float32) / 2
    device_a, device_b = cuda.to_device(a), cuda.to_device(b)
    out = cuda.to_device(np.zeros(N, dtype=np.float32))
    scaled_sum[(N + 127) // 128, 128](device_a, device_b, out, np.float32(3))
    got = out.copy_to_host()
    report.say(numbers=report.numbers(got.tolist(), (3 * a + b).tolist(), 0.0))

    kept = report.take(lambda size: cuda.device_array(size, dtype=np.uint8), is_out_of_memory)
    del kept

    stream, queued = cuda.stream(), deque()
    counter = cuda.to_device(np.zeros(1, dtype=np.int32))

    def work():
        step[1, 32, stream](counter)
        event = cuda.event(timing=False)
        event.record(stream)
        queued.append(event)
        if len(queued) >= 16:
            queued.popleft().synchronize()

    report.until_told(work, stream.synchronize)


main()
