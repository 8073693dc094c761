"""Dr.Jit: traced array code, which it compiles to PTX by itself; also the core of the renderer Mitsuba."""

import drjit as dr
from drjit.cuda import Float, UInt32
from drjit.cuda.ad import Float as Differentiable

import report

N = 1000


def is_out_of_memory(error):
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


def filled(size):
    """Memory is taken when something is to be written to it."""
    array = dr.arange(UInt32, size // 4)
    dr.eval(array)
    return array


def numbers():
    a = dr.arange(Float, N)
    got = dr.fma(a, 3, a / 2)
    scaled = report.numbers(list(got), [3.5 * i for i in range(N)], 0.0)
    if scaled != "right":
        return scaled
    if dr.sum(got)[0] != sum(3.5 * i for i in range(N)):
        return "wrong: the sum over all elements"
    # Each element calls another function.
    branches = [lambda x: x + 1, lambda x: x * 10, lambda x: x - 5]
    switched = dr.switch(UInt32([0, 1, 2, 0]), branches, Float([1, 2, 3, 4]))
    if list(switched) != [2, 20, -2, 5]:
        return "wrong: calls by a table of functions"
    x = Differentiable([1, 2, 3])
    dr.enable_grad(x)
    dr.backward(dr.sum(x * x))
    return "right" if list(x.grad) == [2, 4, 6] else "wrong: the gradient"


def main():
    report.say(total=report.memory_of_the_gpu(), numbers=numbers())

    kept = report.take(filled, is_out_of_memory)
    del kept
    dr.flush_malloc_cache()

    counter, queued = dr.arange(UInt32, 32), 0
    dr.eval(counter)

    def work():
        nonlocal counter, queued
        counter = counter + 1
        dr.eval(counter)
        queued += 1
        if queued % 8 == 0:
            dr.sync_thread()

    report.until_told(work, dr.sync_thread)


main()
