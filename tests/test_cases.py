"""Small inputs that went wrong once, after public bug reports of neighboring projects; each test names
its case. Those of a room are tested with the room: here are the ones that belong to none.
"""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from aclam.commands.entry import COMMANDS
from aclam.data.sampling import TripleConfig
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LatentActionModel
from aclam.train.config import TrainConfig
from aclam.train.loop import train

CPU_PRESETS = [name for name in PRESETS if name.endswith("_cpu")]


def run(
    *words: object, before: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess:
    """Python in a process of its own, perhaps started by another program; its bytes are kept."""
    env = {**os.environ, **environment}
    command = [*before, sys.executable, *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True)


def write_clip(file: Path) -> None:
    """Ten frames of a moving bar."""
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(10):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:, 5 * n : 5 * n + 8] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))


@pytest.mark.parametrize("opens", [0, 5], ids=["quantized", "continuous"])
@pytest.mark.parametrize("name", CPU_PRESETS)
def test_case_01_bfloat16_trains_every_family(name, opens):
    """Under autocast a training step gives a finite loss and gradients, quantized or not yet."""
    torch.manual_seed(0)
    bottleneck = getattr(PRESETS[name], "bottleneck", None)
    changes = {"bottleneck": replace(bottleneck, continuous_steps=opens)} if bottleneck else {}
    model = LatentActionModel.from_preset(name, **changes).train()
    size = model.config.image_size
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss({"frames": torch.rand(4, 3, 3, size, size)})
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and gradients and all(torch.isfinite(g).all() for g in gradients)


def test_case_02_continuous_steps_count_optimizer_steps(tmp_path):
    """The first quantized step is the same for any number of micro-batches."""
    config = PRESETS["ac_lam_cpu"]
    films = [synthetic_trajectory(s, T=16, size=32) for s in range(4)]
    data = TripleDataset(films, TripleConfig(), config.image_size)
    first = {}
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        bottleneck = replace(config.bottleneck, continuous_steps=4)
        lam = LatentActionModel(replace(config, bottleneck=bottleneck))
        whole = lam.bottleneck.forward
        calls = []

        def watched(x, whole=whole, lam=lam, calls=calls):
            calls.append(lam.bottleneck.continuous)
            return whole(x)

        lam.bottleneck.forward = watched
        loop = TrainConfig(steps=6, batch_size=8, warmup_steps=1, probe_every=0, checkpoint_every=0)
        train(lam, data, replace(loop, accumulate=parts), tmp_path / str(parts), resume=False)
        first[parts] = calls.index(False) // (len(calls) // 6)
    assert first == {1: 4, 2: 4, 4: 4}


@pytest.fixture
def read_only_store(tmp_path):
    """A small store in which nobody may write, not even its owner."""
    folder = tmp_path / "store"
    write_store(folder, [synthetic_trajectory(n, T=20, size=32) for n in range(6)])
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    yield folder
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.skipif(os.name != "posix", reason="needs the modes of files")
@pytest.mark.parametrize("place", ["elsewhere", "nowhere"])
def test_case_17_training_on_a_store_that_is_read_only(tmp_path, read_only_store, place):
    """The cache goes where caches go, or is done without, with one line; the store is as it was."""
    bound = []
    if os.geteuid() == 0:  # whom no mode stops, unless this is taken away
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere, and setpriv is not here")
        bound = ["setpriv", "--bounding-set", "-dac_override", "--"]
    caches = tmp_path / "elsewhere" if place == "elsewhere" else read_only_store / "caches"
    before = sorted(read_only_store.rglob("*"))
    words = ["-m", "aclam.train.lam", "--data", read_only_store, "--out", tmp_path / "run"]
    words += ["--train.steps", 2, "--train.batch-size", 8, "--probe-n", 8]
    done = run(*words, before=bound, ACLAM_CACHE=str(caches))
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert sorted(read_only_store.rglob("*")) == before
    assert bool(list(tmp_path.glob("elsewhere/*/cache/*"))) == (place == "elsewhere")
    assert (b"no place for a cache" in done.stderr) == (place == "nowhere"), done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_case_21_a_terminal_that_is_not_utf_8(tmp_path, encoding):
    """What it cannot show is replaced; it is no traceback, and no other status."""
    folder = tmp_path / "日本"
    folder.mkdir()
    write_clip(folder / "箱.mp4")
    words = ["-m", "aclam.commands.data", "triples", folder, "--n", "1"]
    done = run(*words, PYTHONIOENCODING=encoding, LC_ALL="C")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert b"?" in done.stdout or b"\\u" in done.stdout
    words = ["-m", "aclam.commands.data", "inspect", folder / "無"]
    missing = run(*words, PYTHONIOENCODING=encoding)
    assert missing.returncode == 2 and b"Traceback" not in missing.stderr, missing.stderr
    assert missing.stderr.count(b"\n") == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module was imported before
@pytest.mark.parametrize("module", sorted(set(COMMANDS.values())))
def test_case_24_the_module_of_a_command_runs_or_refuses(module, monkeypatch, refused):
    """`python -m` of a module that is a command is that command: not silence with status 0."""

    def main(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [module, *words])
        runpy.run_module(module, run_name="__main__")

    assert refused(main, ["--no-such-option"]).startswith("aclam-")
