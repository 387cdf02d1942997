"""PyTorch's side of the bench: says "ready" and its version, then answers each line, "<name>
<number> ...", with seconds a run. Run by run.lua: python3 tests/bench/peer.py <threads>"""
import sys
import time

import torch

torch.set_num_threads(int(sys.argv[1]))


def timed(clock, runs, run):
    start = clock()
    for _ in range(runs):
        run()
    return (clock() - start) / runs


# A one-element operator runs on one thread: the processor's time, which leaves others' out.
def add(runs, requires_grad):
    x, y = torch.tensor([1.5], requires_grad=requires_grad), torch.tensor([2.0])
    return timed(time.process_time, runs, lambda: x + y)


def large(run):
    def answer(elements, runs):
        x, y = torch.ones(elements), torch.ones(elements)
        run(x, y)
        return timed(time.perf_counter, runs, lambda: run(x, y))
    return answer


def matmul(n, m, k, runs):
    x, y = torch.ones(n, k), torch.ones(k, m)
    torch.mm(x, y)
    return timed(time.perf_counter, runs, lambda: torch.mm(x, y))


answers = {
    "add": lambda runs: add(runs, False),
    "add_tape": lambda runs: add(runs, True),
    "large_copy": large(lambda x, y: x.clone()),
    "large_add": large(lambda x, y: x + y),
    "large_exp": large(lambda x, y: x.exp()),
    "matmul": matmul,
}

print("ready", torch.__version__, flush=True)
for line in sys.stdin:
    name, *numbers = line.split()
    print("%.9g" % answers[name](*map(int, numbers)), flush=True)
