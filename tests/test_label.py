"""Labels for every pair: right, resumed after a kill, refused where something does not fit."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aclam.core import UserError
from aclam.data.lerobot import write_lerobot
from aclam.data.source import Declared, open_dataset
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import PRESETS, LatentActionModel
from aclam.lam.quantizer import Quantized
from aclam.train import label as L

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Seven episodes of different lengths in two parts, and an untrained model that quantises."""
    folder = tmp_path_factory.mktemp("label")
    write_store(folder / "data", (synthetic_trajectory(s, T=20 + s, size=40) for s in range(7)), shard_size=4)
    torch.manual_seed(0)
    lam = LatentActionModel.from_preset("ac_lam_cpu")
    lam.save_pretrained(folder / "run" / "model")
    return folder


def config(place, **changes) -> L.LabelConfig:
    return L.LabelConfig(**{"model": place / "run" / "model", "data": place / "data", "piece_frames": 30} | changes)


def digest(folder) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("part-*.parquet")))).hexdigest()


@pytest.fixture(scope="module")
def whole(place):
    return L.label(config(place, offsets=(1, 4, -2), out=place / "whole"))


def test_every_pair_is_that_of_a_plain_loop(place, whole):
    store, lam = read_store(place / "data"), LatentActionModel.from_pretrained(place / "run" / "model")
    for offset in (1, 4, -2):
        L.check_labels(place / "whole", lam, store, offset)
        assert whole["pairs"][str(offset)] == sum(20 + s - abs(offset) for s in range(7))
    table = L.read_labels(place / "whole")
    frames = [(e, n) for e, t in enumerate(store.trajectories) for n in range(len(t))]
    assert list(zip(*(table.column(c).to_pylist() for c in range(2)), strict=True)) == frames
    assert whole["latent_dim"] == lam.config.latent_dim and not (place / "whole" / "pieces").exists()


def test_a_dataset_in_a_foreign_format_is_labelled_too(place):
    write_lerobot(place / "lerobot", [synthetic_trajectory(s, T=12, size=40) for s in range(3)], "image", 5)
    done = L.label(config(place, data=place / "lerobot", offsets=(1,), out=place / "foreign"))
    lam = LatentActionModel.from_pretrained(place / "run" / "model")
    L.check_labels(place / "foreign", lam, open_dataset(place / "lerobot"), 1)
    assert done["pairs"] == {"1": 3 * 11}


def test_a_killed_job_ends_at_the_same_bytes(place, whole):
    out = place / "killed"
    code = "import sys; from aclam.train.label import main; main(sys.argv[1:])"
    words = ["--model", place / "run" / "model", "--data", place / "data", "--out", out, "--piece-frames", 30]
    words = [sys.executable, "-c", code, *map(str, words), "--offsets", "1", "4", "-2"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(out.glob("pieces/part*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="not complete"):
        L.read_labels(out)
    there = {p: p.stat().st_mtime_ns for p in out.rglob("part*")}
    assert there
    L.label(config(place, offsets=(1, 4, -2), out=out))
    assert digest(out) == digest(place / "whole")
    assert all(p.stat().st_mtime_ns == t for p, t in there.items() if p.exists())  # nothing was done twice
    before = digest(out)
    assert L.label(config(place, offsets=(1, 4, -2), out=out))["done"] and digest(out) == before


class Phi(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.phi, self.asked = torch.nn.Linear(3 * 8 * 8, 5), 0

    def pixels(self, o):
        return o.float() / 255


class ByFrame(Phi):
    """z = phi(o_j) - phi(o_i), and how often phi was asked."""

    def codes(self, o):
        self.asked += len(o)
        phi = self.phi(o.flatten(1))
        return Quantized(phi, phi, None, phi.new_zeros(()))

    def between(self, i, j):
        return Quantized(j.z - i.z, j.z - i.z, None, i.loss)


class ByPair(Phi):
    """The same latents from pairs."""

    def encode(self, o_i, o_j):
        z = self.phi(self.pixels(o_j).flatten(1)) - self.phi(self.pixels(o_i).flatten(1))
        return Quantized(z, z, None, z.new_zeros(()))


def test_a_model_that_reads_frames_reads_each_once():
    torch.manual_seed(0)
    one, frames = ByFrame(), torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    two = ByPair()
    two.load_state_dict(one.state_dict())
    pairs = [L.pair_rows([20, 30], k) for k in (1, 7, -3)]
    assert L.reads_frames(one) and not L.reads_frames(two)
    fast, slow = (L.encode_pairs(lam, frames, pairs, 16) for lam in (one, two))
    assert one.asked == 50
    assert all(np.allclose(a[0], b[0], atol=1e-5) for a, b in zip(fast, slow, strict=True))


def test_codes_are_kept_where_there_is_a_codebook(place, whole, tmp_path):
    preset = PRESETS["ac_lam_cpu"]
    quantised = replace(preset, bottleneck=replace(preset.bottleneck, continuous_steps=0, init="uniform"))
    lam = LatentActionModel(quantised)
    lam.save_pretrained(tmp_path / "model")
    L.label(config(place, model=tmp_path / "model", out=tmp_path / "labels"))
    table = L.read_labels(tmp_path / "labels")
    assert table.column_names == ["episode_index", "frame_index", "latent_action_1", "latent_codes_1"]
    codes, z = (L.as_array(table.column(n)) for n in ("latent_codes_1", "latent_action_1"))
    there = np.isfinite(z).all(1)
    assert codes.shape == (len(table), preset.tokens) and (codes[~there] == -1).all() and (codes[there] >= 0).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offsets": (0,)}, "offset 0"),
        ({"offsets": (26,)}, "the longest episode has 26"),
        ({"offsets": (2, 2)}, "different"),
        ({"offsets": (1, 4)}, "holds other labels"),
        ({"offsets": (1, 4, -2), "batch_size": 7}, "batch_size was 256 and is 7"),
    ],
)
def test_jobs_that_are_refused(place, whole, changes, words):
    with pytest.raises(UserError, match=words):
        L.label(config(place, out=place / "whole", **changes))


def test_the_command(place, capsys):
    words = ["--model", str(place / "run" / "model"), "--data", str(place / "data"), "--offsets", "3", "--json"]
    L.main(words)
    found = json.loads(capsys.readouterr().out)
    assert found["folder"].endswith("labels/run") and found["pairs"] == {"3": sum(17 + s for s in range(7))}
    with pytest.raises(SystemExit) as stopped:
        L.main([*words[:2], "--data", str(place / "nowhere")])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1


@pytest.fixture(scope="module")
def vla(place, whole):
    """The episodes and their labels as one LeRobot dataset; the folder."""
    done = L.label(config(place, offsets=(1, 4, -2), out=place / "whole", lerobot=place / "vla"))
    assert done["lerobot"] == [f"latent_action_{k}{end}" for k in (1, 4, -2) for end in ("", "_is_pad")]
    return place / "vla"


def bytes_of(folder) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_labels_become_columns_of_a_lerobot_dataset(place, vla):
    info = json.loads((vla / "meta" / "info.json").read_text())
    d = L.read_labels(place / "whole").column("latent_action_1").type.list_size
    assert info["features"]["latent_action_4"] == {"dtype": "float32", "shape": [d], "names": None}
    assert info["features"]["latent_action_4_is_pad"] == {"dtype": "bool", "shape": [1], "names": None}
    labels = L.as_array(L.read_labels(place / "whole").column("latent_action_4"))
    got = open_dataset(vla, Declared(action=("latent_action_4",))).trajectories
    assert np.array_equal(np.concatenate([t.action for t in got]), np.nan_to_num(labels))
    pad = open_dataset(vla, Declared(action=("latent_action_4_is_pad",))).trajectories
    assert [int(t.action.sum()) for t in pad] == [4] * 7
    for t, u in zip(read_store(place / "data").trajectories, open_dataset(vla).trajectories, strict=True):
        assert np.array_equal(t.proprio, u.proprio) and t.task == u.task


@pytest.mark.slow
def test_the_peer_reads_the_labels(place, vla, tmp_path):
    "As test_formats.py does it with data alone: set ACLAM_LEROBOT_PYTHON to a python that has lerobot-dataset 0.4.4."
    python = os.environ.get("ACLAM_LEROBOT_PYTHON")
    if not python:
        pytest.skip("ACLAM_LEROBOT_PYTHON is not set")
    truth = {}
    for n, t in enumerate(open_dataset(vla).trajectories):
        truth |= {f"state{n}": t.proprio, f"frames{n}": t.frames[range(len(t))]}
    table = L.read_labels(place / "whole")
    for name in ("latent_action_1", "latent_action_4", "latent_action_-2"):
        z = L.as_array(table.column(name))
        truth |= {f"column/{name}": np.nan_to_num(z), f"column/{name}_is_pad": np.isnan(z[:, :1])}
    np.savez(tmp_path / "truth.npz", **truth)
    run = [python, FIXTURES / "open_with_lerobot.py", vla, tmp_path / "truth.npz"]
    done = subprocess.run(list(map(str, run)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)


def test_padding_does_not_count_in_a_labelled_datasets_statistics(place, vla):
    labels = L.as_array(L.read_labels(place / "whole").column("latent_action_4"))
    found = json.loads((vla / "meta" / "stats.json").read_text())["latent_action_4"]
    assert found["count"] == [int(np.isfinite(labels).all(1).sum())]
    assert np.allclose(found["mean"], np.nanmean(labels.astype(float), 0), atol=1e-6)


def test_a_labelled_dataset_goes_on_to_the_same_bytes_and_refuses_other_labels(place, vla, tmp_path):
    before = bytes_of(vla)
    for path in [*vla.glob("meta/episodes/*/*"), *vla.glob("data/*/*"), vla / "meta" / "info.json"]:
        path.unlink()  # as if it had been killed before its first part was done
    L.label(config(place, offsets=(1, 4, -2), out=place / "whole", lerobot=vla))
    assert bytes_of(vla) == before
    with pytest.raises(UserError, match="vla was begun with extra"):
        L.label(config(place, offsets=(1,), out=tmp_path / "other", lerobot=vla))


def test_codes_of_a_labelled_dataset_are_whole_numbers(place, tmp_path):
    preset = PRESETS["ac_lam_cpu"]
    quantised = replace(preset, bottleneck=replace(preset.bottleneck, continuous_steps=0, init="uniform"))
    LatentActionModel(quantised).save_pretrained(tmp_path / "model")
    L.label(config(place, model=tmp_path / "model", out=tmp_path / "labels", lerobot=tmp_path / "vla"))
    codes = L.as_array(L.read_labels(tmp_path / "labels").column("latent_codes_1"))
    got = open_dataset(tmp_path / "vla", Declared(action=("latent_codes_1",))).trajectories
    assert np.array_equal(np.concatenate([t.action for t in got]), np.maximum(codes, 0))
    info = json.loads((tmp_path / "vla" / "meta" / "info.json").read_text())
    assert info["features"]["latent_codes_1"] == {"dtype": "int64", "shape": [preset.tokens], "names": None}


def test_extra_columns_must_fit_the_episodes(tmp_path):
    films = [synthetic_trajectory(s, T=12, size=40) for s in range(2)]
    ok, short, other = ({"z": np.zeros((n, 3), kind)} for n, kind in ((12, np.float32), (11, np.float32), (12, float)))
    for extra, words in (([ok, short], "11 rows for 12 frames"), ([ok, other], "float64"), ([ok], "1 episodes for 2")):
        with pytest.raises(UserError, match=words):
            write_lerobot(tmp_path / "bad", films, extra=extra)
