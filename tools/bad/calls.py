"""The Python interface of latent action models: shapes, dtypes and ranges, in every family."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aclam.lam import LatentActionModel

from .base import FAMILIES
from .case import EITHER, Case, nothing

Frames = Callable[[int], Tensor]


def frames(size: int, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, 3, size, size, generator=generator)


def _encoded(first: Frames, second: Frames | None = None) -> Callable[[LatentActionModel], object]:
    def call(model: LatentActionModel) -> object:
        size = model.config.image_size
        with torch.no_grad():
            return model.encode(first(size), (second or first)(size))

    return call


def _decoded(latent: Callable[[int], Tensor]) -> Callable[[LatentActionModel], object]:
    def call(model: LatentActionModel) -> object:
        with torch.no_grad():
            return model.decode(frames(model.config.image_size), latent(model.config.latent_dim))

    return call


def one_nan(size: int) -> Tensor:
    found = frames(size)
    found[0, 0, 0, 0] = float("nan")
    return found


CALLS = {
    "floats of 0 to 255": _encoded(lambda s: 255 * frames(s)),
    "floats of -1 to 1": _encoded(lambda s: 2 * frames(s) - 1),
    "NaN": _encoded(lambda s: frames(s) * float("nan")),
    "one NaN": _encoded(one_nan),
    "infinity": _encoded(lambda s: frames(s) + float("inf")),
    "int64": _encoded(lambda s: (255 * frames(s)).long()),
    "bool": _encoded(lambda s: frames(s) > 0.5),
    "complex": _encoded(lambda s: frames(s).to(torch.complex64)),
    "bytes with floats": _encoded(lambda s: (255 * frames(s)).byte(), frames),
    "channels last": _encoded(lambda s: frames(s).permute(0, 2, 3, 1)),
    "no rows of frames": _encoded(lambda s: frames(s)[0]),
    "another size": _encoded(lambda s: frames(s + 8)),
    "four channels": _encoded(lambda s: torch.rand(2, 4, s, s)),
    "unequal batches": _encoded(frames, lambda s: frames(s, 3)),
    "a list": _encoded(lambda s: [1, 2, 3]),
    "None": _encoded(lambda s: None),
    "a latent of another width": _decoded(lambda d: torch.zeros(2, d + 1)),
    "a latent of one number": _decoded(lambda d: torch.zeros(2)),
    "latents of more rows": _decoded(lambda d: torch.zeros(3, d)),
    "a latent of NaN": _decoded(lambda d: torch.full((2, d), float("nan"))),
    "a latent of whole numbers": _decoded(lambda d: torch.zeros(2, d, dtype=torch.int64)),
}
CALLS_EITHER = {  # may be converted, or refused
    "float64": _encoded(lambda s: frames(s).double()),
    "float16": _encoded(lambda s: frames(s).half()),
    "NumPy": _encoded(lambda s: frames(s).numpy()),
    "NumPy bytes": _encoded(lambda s: (255 * frames(s)).byte().numpy()),
    "no rows": _encoded(lambda s: frames(s)[:0]),
    "a latent in float64": _decoded(lambda d: torch.zeros(2, d, dtype=torch.float64)),
    "a latent of NumPy": _decoded(lambda d: np.zeros((2, d), np.float32)),
}
SETTINGS = {
    "image_size 0": {"image_size": 0},
    "image_size -16": {"image_size": -16},
    "patch_size 0": {"patch_size": 0},
    "tokens 0": {"tokens": 0},
    "tokens -1": {"tokens": -1},
    "code_dim 0": {"code_dim": 0},
    "tokens a word": {"tokens": "4"},
    "tokens 10**12": {"tokens": 10**12},
}


def _with_model(preset: str, call: Callable) -> Callable[[Path], object]:
    def do(here: Path) -> object:
        torch.manual_seed(0)
        return call(LatentActionModel.from_preset(preset).eval())

    return do


def _built(preset: str, changes: dict) -> Callable[[Path], object]:
    return lambda here: LatentActionModel.from_preset(preset, **changes)


def cases() -> list[Case]:
    """All of this module."""
    found = []
    for preset in FAMILIES:
        for name, call in CALLS.items():
            do = _with_model(preset, call)
            found.append(Case("Python interface", f"{preset}: {name}", (), nothing, do))
        for name, call in CALLS_EITHER.items():
            do = _with_model(preset, call)
            found.append(Case("Python interface", f"{preset}: {name}", (), nothing, do, EITHER))
        for name, changes in SETTINGS.items():
            do = _built(preset, changes)
            found.append(Case("Python interface", f"{preset}: {name}", (), nothing, do))
    return found
