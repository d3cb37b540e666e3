"""Measure one SGD step of stagger's `cnn` or `resnet18` in PyTorch, on the CPU or on CUDA, to compare with `stagger bench model`.

    pip install torch
    python3 pytorch_step.py --model cnn --batch 32 --threads 1 [--device cuda] [--compile] [--channels-last] [--seconds 5]

Prints one line of JSON: steps/s and samples/s (medians over blocks of steps), and the medians of the forward and of the backward pass in ms. On
CUDA the last two are the times until the calls return, because the device runs asynchronously.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(b // 8, b)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1, self.block2 = Block(3, 32), Block(32, 32)
        self.block3, self.block4 = Block(32, 64), Block(64, 64)
        self.fc1, self.norm, self.fc2 = nn.Linear(64 * 8 * 8, 128), nn.GroupNorm(1, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = F.max_pool2d(self.block2(self.block1(x)), 2)
        x = F.max_pool2d(self.block4(self.block3(x)), 2)
        return 0.25 * self.fc2(F.relu(self.norm(self.fc1(x.flatten(1)))))


class Basic(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(32, b)
        self.conv2, self.norm2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.GroupNorm(32, b)
        plain = a == b and stride == 1
        self.short = nn.Identity() if plain else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.GroupNorm(32, b))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(32, 64)
        plan = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.blocks = nn.Sequential(*[Basic(*p) for p in plan])
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--model", default="cnn", choices=["cnn", "resnet18"])
    args.add_argument("--batch", type=int, default=32)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args.add_argument("--seconds", type=float, default=5.0)
    args.add_argument("--compile", action="store_true")
    args.add_argument("--channels-last", action="store_true")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = (Cnn() if args.model == "cnn" else ResNet18()).to(args.device)
    x = torch.randn(args.batch, 3, 32, 32, device=args.device)
    y = torch.randint(0, 10, (args.batch,), device=args.device)
    if args.channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    run = torch.compile(net) if args.compile else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None

    def step():
        optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss = F.cross_entropy(run(x), y)
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        optimizer.step()
        return middle - start, end - middle

    for _ in range(3):
        step()
    wait()
    rates, forward, backward = [], [], []
    until = time.perf_counter() + args.seconds
    block = 1 if args.device == "cpu" else 20
    while time.perf_counter() < until or len(rates) < 5:
        start = time.perf_counter()
        for _ in range(block):
            f, b = step()
            forward.append(f)
            backward.append(b)
        wait()
        rates.append(block / (time.perf_counter() - start))
    rate, mean = statistics.median(rates), statistics.harmonic_mean(rates)
    print(json.dumps({
        "peer": f"PyTorch {torch.__version__}" + (" compiled" if args.compile else " eager") + (" channels-last" if args.channels_last else ""),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "model": args.model, "batch": args.batch, "threads": args.threads,
        "steps_per_second": round(rate, 3), "samples_per_second": round(rate * args.batch, 1),
        "mean_samples_per_second": round(mean * args.batch, 1),
        "forward_ms": round(1e3 * statistics.median(forward), 3), "backward_ms": round(1e3 * statistics.median(backward), 3),
    }))


if __name__ == "__main__":
    main()
