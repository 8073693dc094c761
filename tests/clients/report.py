"""What each Python client tells the runner, one JSON object a line, and when it has to end."""

import json
import sys
import threading

GIB = 1 << 30


def say(**facts):
    print(json.dumps(facts), flush=True)


def memory_of_the_gpu():
    """What the management library says of the only GPU, for programs that can't be asked themselves."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total


def numbers(got, expected, before, like=lambda a, b: a == b):
    """Whether a kernel gave the right numbers, left what was there before (it only takes time), or gave others."""
    pairs = list(zip(got, expected, strict=True))
    if all(like(a, b) for a, b in pairs):
        return "right"
    if all(value == before for value in got):
        return "time only"
    wrong = next((index, a, b) for index, (a, b) in enumerate(pairs) if not like(a, b))
    return "wrong: element %d is %r, not %r" % wrong


def take(allocate, is_refusal):
    """Asks for more memory than the share has, and for half as much as long as that is refused."""
    size, refused = 4 * GIB, []
    while True:
        try:
            kept = allocate(size)
            break
        except Exception as error:
            if not is_refusal(error):
                raise
            refused.append(str(error).splitlines()[0])
            size //= 2
    say(refused=len(refused), error=refused[0] if refused else None, taken=size)
    return kept


def until_told(work, finish):
    """Calls `work` again and again until whoever started this program tells it a line, and then `finish`.

    It stays until it is told another line, so that what it did can be counted while it is there."""
    told = threading.Event()

    def watch():
        sys.stdin.readline()
        told.set()

    threading.Thread(target=watch, daemon=True).start()
    say(ready=True)
    while not told.is_set():
        work()
    finish()
    say(done=True)
    sys.stdin.readline()
