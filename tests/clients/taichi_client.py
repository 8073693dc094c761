"""Taichi: Python compiled to kernels by LLVM. It opens the driver so that preloaded functions do not reach it."""

import taichi as ti

import report

N = 1000

ti.init(arch=ti.cuda, log_level=ti.CRITICAL, offline_cache=False)
assert ti.cfg.arch == ti.cuda, "Taichi found no GPU"
a, b, out = (ti.field(ti.f32, N) for _ in range(3))
counter = ti.field(ti.i32, ())


@ti.kernel
def fill():
    for i in a:
        a[i] = i
        b[i] = i / 2


@ti.kernel
def scaled_sum(factor: ti.f32):
    for i in out:
        out[i] = factor * a[i] + b[i]


@ti.kernel
def total() -> ti.f64:
    result = ti.cast(0, ti.f64)
    for i in out:
        result += out[i]
    return result


@ti.kernel
def step():
    counter[None] += 1


def is_out_of_memory(error):
    return isinstance(error, RuntimeError) and "OUT_OF_MEMORY" in str(error)


def main():
    report.say(total=report.memory_of_the_gpu())
    fill()
    scaled_sum(3)
    numbers = report.numbers(out.to_numpy().tolist(), [3.5 * i for i in range(N)], 0.0)
    if numbers == "right" and total() != sum(3.5 * i for i in range(N)):
        numbers = "wrong: the sum over all elements"
    report.say(numbers=numbers)

    # Taichi counts elements in 31 bits.
    kept = report.take(lambda size: ti.ndarray(ti.f32, (size >> 22, 1 << 20)), is_out_of_memory)
    del kept

    queued = 0

    def work():
        nonlocal queued
        step()
        queued += 1
        if queued % 8 == 0:
            ti.sync()

    report.until_told(work, ti.sync)


main()
