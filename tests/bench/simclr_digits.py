# The peer of scripts/simclr.lua in PyTorch: the same network, batch, epochs and rule, timed. Views
# are cut by one batched grid_sample, so that no time goes into Python loops over samples.
#   python3 tests/bench/simclr_digits.py [epochs]
import struct, sys, time
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(7)
torch.set_num_threads(2)
EPOCHS, BATCH, SIZE, TAU = int(sys.argv[1]) if len(sys.argv) > 1 else 60, 250, 16, 0.5
DIGITS = "lualib/lunce/data/digits/digits-"


def read(name, header):
    return torch.frombuffer(bytearray(open(DIGITS + name, "rb").read()[header:]), dtype=torch.uint8)


images = read("images.idx3-ubyte", 16).reshape(-1, 1, 8, 8).float() / 255
labels = read("labels.idx1-ubyte", 8).long()


def views(x):
    n = len(x)
    area = torch.empty(n).uniform_(0.6, 1)
    ratio = torch.empty(n).uniform_(-0.223, 0.223).exp()
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = w, h
    theta[:, 0, 2] = (1 - w) * torch.empty(n).uniform_(-1, 1)
    theta[:, 1, 2] = (1 - h) * torch.empty(n).uniform_(-1, 1)
    grid = F.affine_grid(theta, (n, 1, SIZE, SIZE), align_corners=False)
    y = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    y = y * torch.empty(n, 1, 1, 1).uniform_(0.6, 1.4)
    mean = y.mean((2, 3), keepdim=True)
    return ((y - mean) * torch.empty(n, 1, 1, 1).uniform_(0.6, 1.4) + mean).clamp(0, 1)


def block(a, b):
    return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]


encoder = nn.Sequential(*block(1, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2),
                        *block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten())
projector = nn.Sequential(nn.Linear(128, 128, bias=False), nn.ReLU(),
                          nn.Linear(128, 64, bias=False))
optimiser = torch.optim.Adam([*encoder.parameters(), *projector.parameters()], 1e-3)


def nt_xent(z):
    s = F.normalize(z) @ F.normalize(z).t() / TAU
    s.fill_diagonal_(-torch.inf)
    return F.cross_entropy(s, (torch.arange(len(z)) + len(z) // 2) % len(z))


start = time.perf_counter()
for epoch in range(EPOCHS):
    for rows in torch.randperm(1000).split(BATCH):
        x = images[rows]
        loss = nt_xent(projector(encoder(torch.cat([views(x), views(x)]))))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
seconds = time.perf_counter() - start

encoder.eval()
with torch.no_grad():
    h = F.normalize(encoder(F.interpolate(images, (SIZE, SIZE), mode="bilinear")))
nearest = (h[1000:] @ h[:1000].t()).argmax(1)
print(f"loss={loss.item():.4f} knn={(labels[nearest] == labels[1000:]).float().mean():.4f} "
      f"seconds={seconds:.1f}")
