"""The peer of resnet18.lua in PyTorch. Run: python3 tests/bench/resnet18.py [threads] [steps]"""
import sys
import time

import torch
import torchvision

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 9
torch.manual_seed(1)
model = torchvision.models.resnet18()
model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
model.maxpool = torch.nn.Identity()
model.fc = torch.nn.Identity()
x = torch.randn(64, 3, 32, 32)


def step():
    model.zero_grad(set_to_none=True)
    loss = model(x).square().mean()
    loss.backward()
    return loss.item()


for _ in range(2):
    step()
times = []
for _ in range(steps):
    start = time.perf_counter()
    step()
    times.append((time.perf_counter() - start) * 1e3)
times.sort()
print("resnet18_step_ms %.1f" % times[(steps - 1) // 2])
