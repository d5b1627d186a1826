"""A tiny linear latent action model and an endless toy dataset: what the tests of the training loop
train.

As a script it does training runs in its own process:
`python toy_lam.py '[{"folder": "run", "settings": {"steps": 60}}]'`.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from aclam.train.config import TrainConfig
from aclam.train.loop import leave_group, train


class ToyLam(nn.Module):
    """o_hat_j = A o_i + B z with z = C o_i + D o_j, dropout on z (random) and a running mean of z
    (a buffer).
    """

    def __init__(self, pixels: int = 3 * 8 * 8, d_z: int = 6):
        super().__init__()
        self.C, self.D, self.A = (nn.Linear(pixels, n) for n in (d_z, d_z, pixels))
        self.B, self.drop = nn.Linear(d_z, pixels, bias=False), nn.Dropout(0.1)
        self.register_buffer("mean_z", torch.zeros(d_z))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def loss(self, batch: dict) -> tuple[torch.Tensor, dict]:
        o_i, o_j, o_k = (batch["frames"].float() / 255).flatten(2).unbind(1)  # (B, 3 H W)
        z_ij, z_jk = self.C(o_i) + self.D(o_j), self.C(o_j) + self.D(o_k)  # (B, d_z)
        if self.training:
            self.mean_z.lerp_(z_ij.detach().mean(0), 0.1)
            self.count += 1
        rec = (self.A(o_i) + self.B(self.drop(z_ij)) - o_j).square().mean()
        ac = (self.A(o_i) + self.B(z_ij + z_jk) - o_k).square().mean()
        return rec + ac, {"rec": rec.item(), "ac": ac.item()}

    def save_pretrained(self, folder) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), Path(folder) / "model.safetensors")


class Blobs(Dataset):
    """Draw g: three frames (3, 3, 8, 8) uint8 of a blob that jumps, a pure function of g."""

    def __init__(self, seed: int = 0, wait: float = 0.0, log: Path | None = None):
        self.seed, self.wait, self.log, self.asked = seed, wait, log, []

    def __getitem__(self, g: int) -> dict:
        time.sleep(self.wait)
        self.asked.append(int(g))
        x = np.random.default_rng([self.seed, g]).uniform(1, 6, size=(3, 2, 1))
        bump = np.exp(-0.5 * (np.arange(8) - x) ** 2)
        frame = 255 * bump[:, 0, :, None] * bump[:, 1, None, :]  # (3, 8, 8)
        return {"frames": torch.tensor(frame, dtype=torch.uint8)[:, None].repeat(1, 3, 1, 1)}


def toy(dropout: float = 0.1) -> ToyLam:
    """The same fresh model in every process."""
    torch.manual_seed(0)
    model = ToyLam()
    model.drop.p = dropout
    return model


def run(folder: str, settings: dict, wait: float = 0.0, dropout: float = 0.1) -> None:
    """One training run; the draws that this rank asked for are left in asked_RANK.json."""
    data = Blobs(wait=wait)
    train(toy(dropout), data, TrainConfig(**settings), folder)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    Path(folder, f"asked_{rank}.json").write_text(json.dumps(data.asked))


def helpers() -> list[str]:
    """The threads with which this process talks to others, as Linux names them."""
    return sorted(
        t.read_text().strip()
        for t in Path("/proc/self/task").glob("*/comm")
        if "gloo" in t.read_text()
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[1]):
        run(**job)
    before = helpers()
    leave_group()
    rank = os.environ.get("RANK", "0")
    Path(job["folder"], f"helpers_{rank}.json").write_text(json.dumps([before, helpers()]))
