"""PyTorch's side of the bench: says "ready", its version and the library of its matrix products, then
answers each line, "<name> <number> ...", with seconds a run. Run by run.lua: python3
tests/bench/peer.py <threads>"""
import re
import statistics
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


# NT-Xent as a researcher writes it: normalise, product, mask, cross entropy; forward and backward.
# As on the other side, the median of the steps.
def nt_xent(rows, d, runs):
    z = torch.randn(rows, d, requires_grad=True)
    positives = (torch.arange(rows) + rows // 2) % rows
    self_mask = torch.eye(rows, dtype=torch.bool)
    # Before a process has freed as much at once, which training does, its C library takes every MB
    # that is freed back to the system, and 512 rows double in time.
    torch.empty(31 << 20, dtype=torch.uint8)

    def step():
        z.grad = None
        u = torch.nn.functional.normalize(z, dim=1)
        logits = (u @ u.T / 0.5).masked_fill(self_mask, float("-inf"))
        torch.nn.functional.cross_entropy(logits, positives).backward()
    step()
    return statistics.median(timed(time.perf_counter, 1, step) for _ in range(runs))


answers = {
    "nt_xent": nt_xent,
    "add": lambda runs: add(runs, False),
    "add_tape": lambda runs: add(runs, True),
    "large_copy": large(lambda x, y: x.clone()),
    "large_add": large(lambda x, y: x + y),
    "large_exp": large(lambda x, y: x.exp()),
    "matmul": matmul,
}

def products():
    """The library that a product runs in: Debian's reference BLAS takes twenty times OpenBLAS's.
    PyTorch knows MKL, which may be a part of it, while another's OpenBLAS, NumPy's, lies beside it;
    of others it only knows the interface that it was built for."""
    with open("/proc/self/maps") as maps:
        found = set(re.findall(r"/([^/\s]*(?:blas|mkl_core)[^/\s]*)$", maps.read(), re.M))
    built = re.search(r"\bBLAS_INFO=(\w+)", torch.__config__.show())
    has_mkl = built is not None and built[1] == "mkl"
    for name in ("mkl_core",) if has_mkl else ("mkl_core", "openblas", "blas"):
        match = sorted(library for library in found if name in library)
        if match:
            return match[0]
    return "MKL" if has_mkl else "its own products"


torch.mm(torch.ones(64, 64), torch.ones(64, 64))
print("ready", torch.__version__, "with", products(), flush=True)
for line in sys.stdin:
    name, *numbers = line.split()
    print("%.9g" % answers[name](*map(int, numbers)), flush=True)
