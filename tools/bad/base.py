"""Valid data of every kind, small: what the cases spoil."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aclam.commands import entry
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import LatentActionModel
from aclam.policy import model as policy
from aclam.structure.latent_file import save_latents
from aclam.train.label import label
from aclam.train.label_job import LabelConfig

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
FORMATS = (
    *("lerobot_v21", "lerobot_v30", "lerobot_lance", "rlds", "hdf5", "zarr", "webdataset", "mcap"),
)
FAMILIES = ("ac_lam_cpu", "potential_lam_cpu", "lapa_cpu", "villa_x_cpu", "univla_stage_1_cpu")
VLM = replace(policy.TINY.vlm, text_length=16)
POLICY = replace(
    policy.TINY, vlm=VLM, latent_dim=32, action_dim=7, proprio_dim=7, control="delta_pose"
)
LAM_TRAINING = (
    *("--model.image-size", "16", "--model.patch-size", "8", "--model.idm-width", "16"),
    *("--model.fdm-width", "16", "--model.idm-depth", "1", "--model.fdm-depth", "1"),
    *("--train.steps", "2", "--train.batch-size", "4", "--probe-n", "4", "--cache-gib", "0"),
)


def _store(folder: Path) -> None:
    films = [synthetic_trajectory(n, T=12, size=16) for n in range(4)]
    write_store(folder / "store", films, shard_size=2)


def _demonstrations(folder: Path) -> None:
    films = [synthetic_trajectory(n, T=24, size=24, fps=20) for n in range(4)]
    write_store(folder / "demos", films)
    films = [synthetic_trajectory(n, T=8, size=16) for n in range(24)]
    write_store(folder / "many", films)


def _copies(folder: Path) -> None:
    for name in FORMATS:
        shutil.copytree(FIXTURES / name, folder / name)
        (folder / name / "aclam_percentiles.json").unlink(missing_ok=True)
    videos = FIXTURES / "lerobot_v21" / "videos" / "chunk-000" / "observation.images.top"
    (folder / "videos").mkdir()
    for n in range(2):
        shutil.copy(videos / f"episode_{n:06d}.mp4", folder / "videos" / f"clip_{n}.mp4")


def _raw(folder: Path) -> None:
    if importlib.util.find_spec("h5py") is None:
        return
    sys.path.insert(0, str(FIXTURES))
    import make_raw

    make_raw.agibot(folder / "agibot")
    make_raw.droid(folder / "droid")


def _pictures(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for n in range(4):
        pixels = np.full((24, 32, 3), 40 * n, np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{n}.png")


def _models(folder: Path) -> None:
    torch.manual_seed(0)
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(folder / "lam")
    policy.Policy(POLICY).save_pretrained(folder / "policy")
    for name in ("lapa", "villa_x"):
        shutil.copytree(FIXTURES / name, folder / name)


def _latents(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(20, 3)) for name in ("z_ij", "z_jk", "z_ii", "z_ji")}
    arrays["z_ik"] = arrays["z_ij"] + arrays["z_jk"]
    (folder / "latents").mkdir()
    save_latents(folder / "latents" / "z.npz", arrays | {"ds": np.linspace(0.1, 1, 20)})


def _labels(folder: Path) -> None:
    shutil.copytree(folder / "store", folder / "labeled")
    label(LabelConfig(folder / "lam", folder / "labeled", offsets=(1,), name="mine"))


def _mixture(folder: Path) -> None:
    place = folder / "mixture"
    (place / "data").mkdir(parents=True)
    shutil.copytree(folder / "store", place / "data" / "jaco_play")
    text = "name: mine\nparts:\n  - {recipe: jaco_play, weight: 2}\n"
    (place / "mixture.yaml").write_text(text)
    recipe = Path(entry.__file__).parents[1] / "data_recipes" / "jaco_play" / "recipe.yaml"
    shutil.copy(recipe, place / "recipe.yaml")


def _runs(folder: Path) -> None:
    """A finished training and a finished rollout."""
    words = ["--data", str(folder / "store"), "--out", str(folder / "run" / "it"), *LAM_TRAINING]
    entry.main(words, "aclam-train-lam")
    words = ["--policy", "expert", "--split", "id", "--episodes", "1", "--max-steps", "2"]
    entry.main([*words, "--out", str(folder / "rollout" / "it"), "--envs", "1"], "aclam-rollout")


PARTS: tuple[Callable[[Path], None], ...] = (
    *(
        _store,
        _demonstrations,
        _copies,
        _raw,
        _pictures,
        _models,
        _latents,
        _labels,
        _mixture,
        _runs,
    ),
)


def make_base(folder: Path) -> None:
    """Write valid data of every kind below a folder."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["ACLAM_CACHE"] = str(folder / "cache")
    for part in PARTS:
        part(folder)


# --- how files are spoiled ------------------------------------------------------------------------


def edit_json(file: str, **values: object) -> Callable[[Path], None]:
    """Replace fields of a JSON object; `...` removes one."""

    def spoil(here: Path) -> None:
        path = here / file
        content = json.loads(path.read_text())
        for name, value in values.items():
            if value is ...:
                content.pop(name, None)
            else:
                content[name] = value
        path.write_text(json.dumps(content))

    return spoil


def write(file: str, content: bytes | str) -> Callable[[Path], None]:
    """Replace a file."""

    def spoil(here: Path) -> None:
        path = here / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def cut(file: str, share: float) -> Callable[[Path], None]:
    """Leave only the first part of a file."""

    def spoil(here: Path) -> None:
        data = (here / file).read_bytes()
        (here / file).write_bytes(data[: int(share * len(data))])

    return spoil


def flip(file: str, at: float) -> Callable[[Path], None]:
    """Change one byte, at this share of a file."""

    def spoil(here: Path) -> None:
        data = bytearray((here / file).read_bytes())
        data[int(at * (len(data) - 1))] ^= 0x55
        (here / file).write_bytes(data)

    return spoil


def remove(file: str) -> Callable[[Path], None]:
    """Remove a file or a folder."""

    def spoil(here: Path) -> None:
        path = here / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def both(*spoils: Callable[[Path], None]) -> Callable[[Path], None]:
    """Do one after the other."""

    def spoil(here: Path) -> None:
        for each in spoils:
            each(here)

    return spoil
