"""A PyTorch program that speaks as `gpufn audit-probe` does."""
import sys
import time

import torch

if not torch.cuda.is_available():
    sys.exit("torch finds no GPU")
x = torch.ones(1 << 22, device="cuda")


def some():
    for _ in range(16):
        x.mul_(1.0000001)
    torch.cuda.synchronize()


some()
if "--calibrate" in sys.argv:
    start = time.monotonic_ns()
    for _ in range(50):
        some()
    print("kernel 0", (time.monotonic_ns() - start) / 50e3)
    sys.exit()
print("ready", flush=True)
sys.stdin.readline()
done = 0
said = time.monotonic_ns()
while True:
    some()
    done += 1
    now = time.monotonic_ns()
    if now - said > 10_000_000:
        said = now
        print("done", now, done, flush=True)
