"""Trainings of real presets in small, for tests of "one curve, whatever the world", and for
`tools/scale_table.py`.

As a script it does trainings in its own process (or as one of several, under torchrun):
`python scale_runs.py OUT.json '[{"name": "ac_lam_cpu", "accumulate": 2}]'` writes the losses of
each.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch

from aclam.core import write_json
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LatentActionModel
from aclam.policy.model import TINY, Policy
from aclam.policy.promises import toy_batch
from aclam.train.config import TrainConfig
from aclam.train.log import read_metrics
from aclam.train.loop import leave_group, train

FAMILIES = (
    "ac_lam_cpu",
    "no_ac_cpu",
    "potential_lam_cpu",
    "potential_vq_cpu",
    "potential_frame_vq_cpu",
    "villa_x_cpu",
    "lapa_cpu",
    "univla_cpu",
    "univla_stage_1_cpu",
    "univla_stage_2_cpu",
    "odd_features_cpu",
    "potential_features_cpu",
)
KINDS = ("nsvq", "rvq", "fsq", "vae")  # of ac_lam_cpu's bottleneck, as "ac_lam_cpu/nsvq"
OPENS = 10  # steps before the codes open


class Mixed(TripleDataset):
    """Triples of which every third film has no robot state, and with the words of an instruction."""

    def __init__(self):
        films = [
            synthetic_trajectory(seed, T=60, size=32) for seed in range(60)
        ]  # no pair of frames comes twice
        films = [
            dataclasses.replace(f, proprio=None) if n % 3 == 0 else f for n, f in enumerate(films)
        ]
        super().__init__(films, TripleConfig(), image_size=32)

    def batch(self, indices) -> dict:
        found = super().batch(indices)
        words = torch.stack(
            [torch.randn(3, 32, generator=torch.Generator().manual_seed(int(n))) for n in indices]
        )
        return {**found, "words": words, "word_mask": torch.ones(len(words), 3, dtype=torch.bool)}


class ToyMoments:
    """Moments for a policy, some without commands; each is a pure function of its number."""

    def batch(self, indices) -> dict:
        rows = [
            toy_batch(1, TINY, torch.Generator().manual_seed(int(n)), p_action=0.6) for n in indices
        ]
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def small(name: str):
    """The settings of a preset in small, whose codes open after `OPENS` steps."""
    preset, _, kind = name.partition("/")
    config = PRESETS[preset]
    if hasattr(config, "bottleneck"):
        changes = {"continuous_steps": OPENS} | ({"kind": kind} if kind else {})
        config = dataclasses.replace(
            config, bottleneck=dataclasses.replace(config.bottleneck, **changes)
        )
    narrow = {
        f: 32 for f in ("idm_width", "fdm_width", "width", "vision_width") if hasattr(config, f)
    }
    if preset == "lapa_cpu":
        narrow["head_dim"] = 8
    if preset.endswith("_features_cpu"):
        narrow["image_size"] = 32  # as the films
    if hasattr(config, "proprio_dim"):
        narrow |= {"proprio_dim": 7, "proprio_hidden": 16}
    return dataclasses.replace(config, **narrow)


def build(name: str) -> torch.nn.Module:
    """The untrained model, the same on every process."""
    torch.manual_seed(0)
    return Policy(TINY) if name == "policy" else LatentActionModel(small(name))


def curve(name: str, steps: int = 30, batch_size: int = 32, **settings) -> dict[str, list[float]]:
    """The losses of a training, and the perplexity of its codes: it moves when a single token
    chooses another code.
    """
    data = ToyMoments() if name == "policy" else Mixed()
    known = {
        "warmup_steps": 0,
        "lr": 1e-3,
        "log_every": 1,
        "probe_every": 0,
        "checkpoint_every": 0,
        "digest_every": 5,
    }
    config = TrainConfig(steps=steps, batch_size=batch_size, **known | settings)
    with tempfile.TemporaryDirectory() as folder:
        shared = torch.distributed.is_initialized()
        where = [folder]
        if shared:
            torch.distributed.broadcast_object_list(where)
        train(build(name), data, config, Path(where[0]) / "run")
        if shared:
            torch.distributed.barrier()
        rows = read_metrics(Path(where[0]) / "run")
        return {
            "losses": [row["loss"] for row in rows],
            "perplexity": [row.get("perplexity", 0.0) for row in rows],
        }


if __name__ == "__main__":
    from accelerate import PartialState

    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    found = [
        {**job, "world": state.num_processes, **curve(**job)} for job in json.loads(sys.argv[2])
    ]
    if state.is_main_process:
        write_json(sys.argv[1], found)
    leave_group()
