"""PyTorch's side of the bench on a GPU: says "ready" and its versions, then answers each line,
"time" or "memory" <name> <precision> <number> ..., with seconds a run, bytes, or "none: " and why.
Run by run.lua: python3 tests/bench/peer_cuda.py <device> <seconds that a measure fills>"""
import gc
import math
import sys
import time

import torch
import torch.nn.functional as F

device, fill = sys.argv[1], float(sys.argv[2])
on_gpu = device != "cpu"
if on_gpu:
    torch.zeros(1, device=device)  # fails here where there is none


def synchronize():
    if on_gpu:
        torch.cuda.synchronize()


def random(*shape, seed=1, dtype=torch.float32):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


# ---- The losses as a researcher writes them: normalise, product, masks, forward and backward ----

def cosines(z):
    u = F.normalize(z, dim=1)
    rows = torch.arange(len(z), device=device)
    return u @ u.T, rows, (rows + len(z) // 2) % len(z)


def nt_xent(z):
    s, rows, positives = cosines(z)
    self_mask = torch.eye(len(z), dtype=torch.bool, device=device)
    return F.cross_entropy((s / 0.5).masked_fill(self_mask, float("-inf")), positives)


def line(x, y):
    """The slope and the squared error of least squares of y on each row of x."""
    dx, dy = x - x.mean(1, keepdim=True), y - y.mean()
    slope = (dx * dy).sum(1) / dx.square().sum(1).clamp(min=1e-12)
    return slope, (dy - slope[:, None] * dx).square().sum(1).clamp(min=1e-12)


@torch.no_grad()
def evidence(negatives):
    """WEINCE's lambda, from the tenth of each row's similarities that are largest."""
    rows, candidates = len(negatives), len(negatives) - 2
    k = min(max(32, round(0.1 * candidates)), candidates)
    d = (1 - negatives.topk(k, dim=1).values.double()).clamp(min=1e-6)
    burnt = max(1, k // 20)
    log_f = (torch.arange(burnt + 1, k + 1, device=device).double() / (k + 1)).log()
    x = d[:, burnt:].log()
    slope_w, error_w = line(x, log_f)
    slope_g, error_g = line(x, (-log_f).log())
    error_w, error_g = error_w + 1e6 * (slope_w <= 0), error_g + 1e6 * (slope_g >= 0)
    aic = (k - burnt) * (error_g.log() - error_w.log())
    rho = d[:, 0]
    rho0 = rho.sort().values[round(0.2 * (rows - 1))]
    return (torch.sigmoid(10 * (rho0.log() - rho.log())) * torch.sigmoid(aic - 2)).float()[:, None]


def weince(z):
    s, rows, positives = cosines(z)
    mask = torch.eye(len(z), dtype=torch.bool, device=device)
    mask[rows, positives] = True
    s = s.float()
    weight = evidence(s.detach().masked_fill(mask, float("-inf")))
    logits = (1 - weight) * s / 0.5 - weight * torch.log(1 - s.clamp(max=1 - 1e-6))
    positive = logits[rows, positives]
    lse = logits.masked_fill(mask, float("-inf")).logsumexp(1)
    return F.softplus(lse - positive).mean()


def half(precision, dtype):
    """Mixed precision, where the precision is a half."""
    return torch.autocast("cuda" if on_gpu else "cpu", dtype if on_gpu else torch.bfloat16,
                          enabled=precision in ("float16", "bfloat16"))


def loss_step(loss, compiled=False):
    def make(precision, rows, d):
        z = random(rows, d).requires_grad_()
        run = torch.compile(loss) if compiled else loss

        def step():
            z.grad = None
            with half(precision, torch.float16):
                value = run(z)
            value.backward()
        return step
    return make


# ---- Operators and networks ----

def large(run):
    def make(_, elements):
        x, y = random(elements), random(elements, seed=2)
        return lambda: run(x, y)
    return make


def matmul(precision, n):
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
    x, y = random(n, n, dtype=dtype), random(n, n, seed=2, dtype=dtype)
    return lambda: x @ y


def resnet18(precision, batch, extent, compiled=False):
    import torchvision

    model = torchvision.models.resnet18()
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    model.fc = torch.nn.Identity()
    model.to(device, memory_format=torch.channels_last)
    forward = torch.compile(model, mode="reduce-overhead") if compiled else model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = random(batch, 3, extent, extent).contiguous(memory_format=torch.channels_last)

    def step():
        optimiser.zero_grad(set_to_none=True)
        with half(precision, torch.bfloat16):
            loss = forward(x).float().square().mean()
        loss.backward()
        optimiser.step()
    return step


makers = {
    "nt_xent": loss_step(nt_xent),
    "nt_xent_compiled": loss_step(nt_xent, compiled=True),
    "weince": loss_step(weince),
    "add": large(lambda x, y: x + y),
    "exp": large(lambda x, y: x.exp()),
    "copy": large(lambda x, y: x.clone()),
    "matmul": matmul,
    "resnet18": resnet18,
    "resnet18_compiled": lambda *given: resnet18(*given, compiled=True),
}

# ---- Answers ----


def seconds(runs, run):
    start = time.perf_counter()
    for _ in range(runs):
        run()
    synchronize()
    return time.perf_counter() - start


def timed(run):
    """The mean of as many runs as fill the time, after as long without a measure; sides.lua has the
    same."""
    seconds(1, run)
    spent = runs = 0
    while runs == 0 or spent < fill:
        spent, runs = spent + seconds(1, run), runs + 1
    runs = max(1, math.ceil(runs * fill / spent))
    return seconds(runs, run) / runs


def peak(run):
    """What the allocator took from the device, inputs included."""
    if not on_gpu:
        return "none: the memory of the CPU is not counted"
    run()
    synchronize()
    return float(torch.cuda.max_memory_reserved())


def answer(kind, name, precision, *numbers):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = makers[name](precision, *map(int, numbers))
    return (timed if kind == "time" else peak)(run)


torch.manual_seed(1)
print("ready", torch.__version__, "with CUDA", torch.version.cuda if on_gpu else "(not used)",
      flush=True)
for question in sys.stdin:
    try:
        text = answer(*question.split())
    except Exception as error:  # out of memory, a dtype that the device has not, no torchvision
        text = "none: %s" % str(error).split("\n")[0][:120]
    gc.collect()
    print(text if isinstance(text, str) else "%.9g" % text, flush=True)
