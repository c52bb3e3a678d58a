"""Measures what a machine manages: batches made, and training steps on a batch that is there.

    python training/speed.py --data build/training/data --batch 8 16 32

The slower of the two is about what `train.py` will reach, as they run side by side. With a GPU, also
holds the CUDA graph of `train.py --graphs` against the plain network.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch

from data import Sweeps, View, numbered
from model import CenterPoint, Grid
from train import capture, loss_of


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--seconds", type=float, default=2, help="for each figure")
    args = parser.parse_args()
    device, cuda = numbered(args.device), args.device.startswith("cuda")
    torch.backends.cudnn.benchmark = True
    sweeps = Sweeps(device, 10**8)
    for folder in sorted(Path(args.data).glob("train-*"))[:4]:
        sweeps.add(folder)
    rng = np.random.default_rng(0)

    def rate(act, frames):
        for _ in range(3):
            act()
        if cuda:
            torch.cuda.synchronize()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < args.seconds or count < 2:
            for _ in range(5 if cuda else 1):
                act()
            count += 5 if cuda else 1
        host = time.perf_counter() - began
        if cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        return f"{count * frames / took:.0f} frames/s ({1e3 * took / count:.1f} ms a batch, host {1e3 * host / count:.1f} ms)"

    for size in args.batch:
        model = CenterPoint(Grid()).to(device, memory_format=torch.channels_last)
        twin = copy.deepcopy(model)
        make = lambda: sweeps.batch(
            [(int(i), View.draw(rng, 0.9)) for i in rng.integers(0, len(sweeps), size)], model.grid)
        with torch.no_grad():
            print(f"batch {size}: made {rate(make, size)}", flush=True)
            batch = make()

        def learn(net, optimizer):
            outputs = net(batch["features"], batch["counts"], batch["cells"], size, torch.bfloat16)
            loss, *_ = loss_of(outputs, batch, 0.5)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0, foreach=True)
            optimizer.step()
            return loss.detach()

        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=cuda)
        print(f"batch {size}: learnt {rate(lambda: learn(model, optimizer), size)}", flush=True)
        if cuda:
            plain = copy.deepcopy(twin)
            capture(twin, size, torch.bfloat16)
            losses = [[float(learn(net, torch.optim.SGD(net.parameters(), 1e-3))) for _ in range(3)] for net in (plain, twin)]
            print(f"batch {size}: three losses {losses[0]}, with a graph {losses[1]}")
            optimizer = torch.optim.AdamW(twin.parameters(), 1e-4, fused=True)
            print(f"batch {size}: learnt with a graph {rate(lambda: learn(twin, optimizer), size)}", flush=True)
            print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of device memory at most", flush=True)


if __name__ == "__main__":
    main()
