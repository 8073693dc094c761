"""PyTorch 1.12.1, whose CUDA runtime, cuBLAS and cuDNN are of CUDA 10.2. Its kernels are machine code: they take time only."""

from collections import deque

import torch

import report


def is_out_of_memory(error):
    return isinstance(error, RuntimeError) and "out of memory" in str(error)


def main():
    assert torch.cuda.is_available()
    total = torch.cuda.get_device_properties(0).total_memory
    report.say(total=total, name=torch.cuda.get_device_name(0), version=torch.__version__)

    there_and_back = torch.arange(1000.0).cuda().cpu()
    moved = torch.equal(there_and_back, torch.arange(1000.0))
    a = torch.ones(64, 64, device="cuda")
    product = (a @ a).cpu()
    kernels = report.numbers(product.flatten().tolist(), [64.0] * 64 * 64, product[0, 0].item())
    report.say(numbers=kernels if moved else "wrong: what was copied there came back different")

    convolution = torch.nn.Conv2d(3, 8, 3).cuda()
    image = torch.zeros(4, 3, 32, 32, device="cuda")
    assert convolution(image).shape == (4, 8, 30, 30)
    loss = convolution(image).sum()
    loss.backward()
    assert convolution.weight.grad.shape == convolution.weight.shape
    torch.cuda.synchronize()

    kept = report.take(lambda size: torch.empty(size, dtype=torch.uint8, device="cuda"), is_out_of_memory)
    del kept
    torch.cuda.empty_cache()

    queued = deque()

    def work():
        a @ a
        convolution(image)
        event = torch.cuda.Event()
        event.record()
        queued.append(event)
        if len(queued) >= 8:
            queued.popleft().synchronize()

    with torch.no_grad():
        report.until_told(work, torch.cuda.synchronize)


main()
