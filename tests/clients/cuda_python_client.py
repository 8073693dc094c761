"""cuda-python: NVIDIA's bindings of the driver, with a kernel that NVRTC compiles."""

import ctypes
import struct
from collections import deque

from cuda.bindings import driver, nvrtc

import report

SOURCE = b"""
extern "C" __global__ void scaled_sum(const float *a, const float *b, float *out, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * a[i] + b[i];
}
extern "C" __global__ void step(int *counter) { if (threadIdx.x == 0) counter[0] += 1; }
"""
N = 1000


class Failed(Exception):
    def __init__(self, code):
        super().__init__(str(code))
        self.code = code


def call(answer):
    code, *values = answer
    if code.value != 0:
        raise Failed(code)
    return values[0] if len(values) == 1 else values


def compiled(major, minor):
    program = call(nvrtc.nvrtcCreateProgram(SOURCE, b"kernels.cu", 0, [], []))
    option = b"--gpu-architecture=compute_%d%d" % (major, minor)
    try:
        call(nvrtc.nvrtcCompileProgram(program, 1, [option]))
    except Failed:
        # A compiler too new for this card.
        call(nvrtc.nvrtcCompileProgram(program, 0, []))
    ptx = b" " * call(nvrtc.nvrtcGetPTXSize(program))
    call(nvrtc.nvrtcGetPTX(program, ptx))
    return ptx


def main():
    call(driver.cuInit(0))
    device = call(driver.cuDeviceGet(0))
    capability = driver.CUdevice_attribute
    major, minor = (
        call(driver.cuDeviceGetAttribute(getattr(capability, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_" + part), device))
        for part in ("MAJOR", "MINOR")
    )
    context = call(driver.cuDevicePrimaryCtxRetain(device))
    call(driver.cuCtxSetCurrent(context))
    free, total = call(driver.cuMemGetInfo())
    report.say(total=total)
    module = call(driver.cuModuleLoadData(compiled(major, minor)))
    scaled_sum = call(driver.cuModuleGetFunction(module, b"scaled_sum"))
    step = call(driver.cuModuleGetFunction(module, b"step"))
    stream = call(driver.cuStreamCreate(0))

    a, b = [float(i) for i in range(N)], [0.5 * i for i in range(N)]
    pointers = [call(driver.cuMemAlloc(4 * N)) for _ in range(3)]
    for pointer, values in zip(pointers, (a, b)):
        call(driver.cuMemcpyHtoD(pointer, struct.pack(f"{N}f", *values), 4 * N))
    call(driver.cuMemsetD8(pointers[2], 0, 4 * N))
    types = (ctypes.c_void_p,) * 3 + (ctypes.c_float, ctypes.c_int)
    arguments = (tuple(int(p) for p in pointers) + (3.0, N), types)
    call(driver.cuLaunchKernel(scaled_sum, (N + 127) // 128, 1, 1, 128, 1, 1, 0, stream, arguments, 0))
    call(driver.cuStreamSynchronize(stream))
    out = bytearray(4 * N)
    call(driver.cuMemcpyDtoH(out, pointers[2], 4 * N))
    got = struct.unpack(f"{N}f", bytes(out))
    report.say(numbers=report.numbers(got, [3.0 * x + y for x, y in zip(a, b)], 0.0))

    out_of_memory = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    kept = report.take(
        lambda size: call(driver.cuMemAlloc(size)),
        lambda error: isinstance(error, Failed) and error.code == out_of_memory,
    )
    call(driver.cuMemFree(kept))

    queued = deque()
    counter = ((int(pointers[2]),), (ctypes.c_void_p,))

    def work():
        call(driver.cuLaunchKernel(step, 1, 1, 1, 32, 1, 1, 0, stream, counter, 0))
        event = call(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        call(driver.cuEventRecord(event, stream))
        queued.append(event)
        if len(queued) >= 16:
            oldest = queued.popleft()
            call(driver.cuEventSynchronize(oldest))
            call(driver.cuEventDestroy(oldest))

    report.until_told(work, lambda: call(driver.cuCtxSynchronize()))


main()
