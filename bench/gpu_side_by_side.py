"""How many steps a second several trainings of a small model take together, side by side on one GPU
(for the chapter on a GPU)

    python bench/gpu_side_by_side.py 1 8 [--seconds 4]

Each process trains `odd_cpu` on 32 triples of noise that lie on the device: forward, backward, clip,
AdamW. The processes wait for one another after three steps, then each counts its own for the same
seconds. To let kernels of different processes run at the same time, start NVIDIA's multi-process
service first: `nvidia-cuda-mps-control -d`, with CUDA_MPS_PIPE_DIRECTORY set to a folder.
"""

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import torch

from aclam.lam import PRESETS, LatentActionModel

PRESET = "odd_cpu"
ROWS = 32  # triples of a step


def train(seconds: float, ready: Barrier, pipe: Connection) -> None:
    """Take steps for some seconds with the others, then send how many a second there were."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = PRESETS[PRESET]
    lam = LatentActionModel(config).to(device).train()
    adam = torch.optim.AdamW(lam.parameters(), lr=1e-4)
    shape = (ROWS, 3, 3, config.image_size, config.image_size)
    frames = torch.randint(0, 255, shape, dtype=torch.uint8, device=device)
    proprio = torch.zeros(ROWS, 3, config.proprio_dim, device=device)
    known = torch.ones(ROWS, dtype=torch.bool, device=device)
    batch = {"frames": frames, "proprio": proprio, "has_proprio": known}

    def step() -> torch.Tensor:
        loss, _ = lam.loss(batch)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lam.parameters(), 1.0)
        adam.step()
        return loss

    for _ in range(3):
        step().item()
    ready.wait()
    start = time.monotonic()
    steps = 0
    while time.monotonic() - start < seconds:
        loss = step()
        steps += 1
        if steps % 5 == 0:
            loss.item()  # waits for the device
    loss.item()
    pipe.send(steps / (time.monotonic() - start))


def together(processes: int, seconds: float) -> float:
    """Steps a second of so many processes, summed."""
    context = multiprocessing.get_context("fork")  # nothing has touched the GPU yet
    ready = context.Barrier(processes)
    pipes = []
    for _ in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        context.Process(target=train, args=(seconds, ready, sender), daemon=True).start()
        pipes.append(receiver)
    return sum(pipe.recv() for pipe in pipes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("processes", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    for processes in options.processes:
        rate = together(processes, options.seconds)
        print(f"{processes} processes: {rate:.1f} steps/s together, {rate / processes:.1f} each")


if __name__ == "__main__":
    main()
