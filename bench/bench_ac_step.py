"""What the additive-composition loss costs: a step with it against a step of the twin, per pass
through IDM and FDM.

The IDM reads 3 pairs a triple in both; the FDM paints 3 frames for the twin and 4 with AC. So the
twin is also timed on 4/3 of the FDM work, which is what "per pass" means: the ratio of the two
should be near 1.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from aclam.lam import PRESETS, LatentActionModel

BATCH, ROUNDS = 32, 12


def model(lambda_ac: float) -> LatentActionModel:
    """A CPU-preset model in its continuous phase, without proprio FDM."""
    torch.manual_seed(0)
    config = PRESETS["ac_lam_cpu"]
    return LatentActionModel(
        replace(config, objective=replace(config.objective, lambda_ac=lambda_ac))
    )


def step_seconds(lam: LatentActionModel, frames: torch.Tensor) -> float:
    """CPU seconds of one forward and backward pass."""
    start = time.process_time()
    lam.loss({"frames": frames})[0].backward()
    lam.zero_grad()
    return time.process_time() - start


def paint_seconds(lam: LatentActionModel, frames: torch.Tensor) -> float:
    """CPU seconds of painting one frame a triple and going back: the FDM work that AC adds."""
    o, z = (
        lam.normalize(frames[:, 0]),
        torch.randn(len(frames), lam.config.latent_dim, requires_grad=True),
    )
    start = time.process_time()
    lam.predict(o, z).square().mean().backward()
    lam.zero_grad()
    return time.process_time() - start


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def rows() -> Iterator[tuple[str, float, str]]:
    """The AC step, the twin's step, one more FDM pass, and the two ratios; rounds interleaved,
    medians.
    """
    torch.set_num_threads(1)
    frames = torch.rand(BATCH, 3, 3, 32, 32)
    ac, twin = model(1.0), model(0.0)
    times = {"ac": [], "twin": [], "paint": []}
    for _ in range(ROUNDS):
        times["ac"].append(step_seconds(ac, frames))
        times["twin"].append(step_seconds(twin, frames))
        times["paint"].append(paint_seconds(twin, frames))
    t = {name: 1e3 * median(v[2:]) for name, v in times.items()}
    yield "AC step", t["ac"], "CPU ms"
    yield "twin's step", t["twin"], "CPU ms"
    yield "AC step / twin's step", t["ac"] / t["twin"], "x"
    yield "AC step / (twin's step + one FDM pass)", t["ac"] / (t["twin"] + t["paint"]), "x"
