"""Labels for every pair: right, resumed after a kill, divided over processes, refused where
something does not fit.
"""

import errno
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from aclam import folders, train
from aclam.core import UserError, write_json
from aclam.data.declared import Declared
from aclam.data.lerobot_writer import write_lerobot
from aclam.data.source import open_dataset
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import fingerprint, synthetic_trajectory
from aclam.kept import kept_result
from aclam.lam import PRESETS, LatentActionModel
from aclam.lam.quantizer import LatentAction
from aclam.train import label_files, label_job, label_plan, label_work, pairs
from aclam.train.demonstrations import known_latents, missing_labels
from aclam.train.label import check_shards, label, main, missing, offset_notes, seen_note

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Seven episodes of different lengths in two parts, and an untrained model that quantises."""
    folder = tmp_path_factory.mktemp("label")
    write_store(
        folder / "data",
        (synthetic_trajectory(s, T=20 + s, size=40) for s in range(7)),
        shard_size=4,
    )
    torch.manual_seed(0)
    lam = LatentActionModel.from_preset("ac_lam_cpu")
    lam.save_pretrained(folder / "run" / "model")
    return folder


def config(place, **changes) -> label_job.LabelConfig:
    return label_job.LabelConfig(
        **{"model": place / "run" / "model", "data": place / "data", "piece_frames": 30} | changes
    )


def column(folder, name: str) -> np.ndarray:
    labels = label_files.read_labels(folder)
    return label_files.rows_of(labels, name, range(len(labels)))


def digest(folder) -> str:
    return hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted(folder.glob("part-*.parquet")))
    ).hexdigest()


@pytest.fixture(scope="module")
def whole(place):
    return label(config(place, offsets=(1, 4, -2), out=place / "whole"))


def test_every_pair_is_that_of_a_plain_loop(place, whole):
    store = read_store(place / "data")
    lam = LatentActionModel.from_pretrained(place / "run" / "model")
    for offset in (1, 4, -2):
        label_files.check_labels(place / "whole", lam, store, offset)
        assert whole["pairs"][str(offset)] == sum(20 + s - abs(offset) for s in range(7))
    tables = [
        table
        for _, table in label_files.blocks(
            label_files.read_labels(place / "whole"), ["episode_index", "frame_index"]
        )
    ]
    frames = [(e, n) for e, t in enumerate(store.trajectories) for n in range(len(t))]
    assert [
        (r["episode_index"], r["frame_index"]) for table in tables for r in table.to_pylist()
    ] == frames
    assert (
        whole["latent_dim"] == lam.config.latent_dim and not (place / "whole" / "pieces").exists()
    )


def test_a_dataset_in_a_foreign_format_is_labelled_too(place):
    write_lerobot(
        place / "lerobot", [synthetic_trajectory(s, T=12, size=40) for s in range(3)], "image", 5
    )
    done = label(config(place, data=place / "lerobot", offsets=(1,), out=place / "foreign"))
    lam = LatentActionModel.from_pretrained(place / "run" / "model")
    label_files.check_labels(place / "foreign", lam, open_dataset(place / "lerobot"), 1)
    assert done["pairs"] == {"1": 3 * 11}


def test_a_killed_job_ends_at_the_same_bytes(place, whole):
    out = place / "killed"
    code = "import sys; from aclam.train.label import main; main(sys.argv[1:])"
    words = [
        "--model",
        place / "run" / "model",
        "--data",
        place / "data",
        "--out",
        out,
        "--piece-frames",
        30,
    ]
    words = [sys.executable, "-c", code, *map(str, words), "--offsets", "1", "4", "-2"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(out.glob("pieces/part*.parquet")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="not complete"):
        label_files.read_labels(out)
    there = {p: p.stat().st_mtime_ns for p in out.rglob("part*.parquet")}
    assert there
    label(config(place, offsets=(1, 4, -2), out=out))
    assert digest(out) == digest(place / "whole")
    assert all(
        p.stat().st_mtime_ns == t for p, t in there.items() if p.exists()
    )  # nothing was done twice
    before = digest(out)
    assert label(config(place, offsets=(1, 4, -2), out=out))["done"] and digest(out) == before


class Phi(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.phi = torch.nn.Linear(3 * 8 * 8, 5)
        self.asked = 0

    def normalize(self, o):
        return o.float() / 255


class ByFrame(Phi):
    """z = phi(o_j) - phi(o_i), and how often phi was asked."""

    def codes(self, o):
        self.asked += len(o)
        phi = self.phi(o.flatten(1))
        return LatentAction(phi, phi, None, phi.new_zeros(()))

    def between(self, i, j):
        return LatentAction(j.z - i.z, j.z - i.z, None, i.loss)


class ByPair(Phi):
    """The same latents from pairs."""

    def encode(self, o_i, o_j):
        z = self.phi(self.normalize(o_j).flatten(1)) - self.phi(self.normalize(o_i).flatten(1))
        return LatentAction(z, z, None, z.new_zeros(()))


def test_a_model_that_reads_frames_reads_each_once():
    torch.manual_seed(0)
    one = ByFrame()
    frames = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    two = ByPair()
    two.load_state_dict(one.state_dict())
    rows = [pairs.pair_rows([20, 30], k) for k in (1, 7, -3)]
    assert pairs.reads_frames(one) and not pairs.reads_frames(two)
    fast, slow = (pairs.encode_pairs(lam, frames, rows, 16) for lam in (one, two))
    assert one.asked == 50
    assert all(np.allclose(a[0], b[0], atol=1e-5) for a, b in zip(fast, slow, strict=True))


def test_codes_are_kept_where_there_is_a_codebook(place, whole, tmp_path):
    preset = PRESETS["ac_lam_cpu"]
    quantised = replace(
        preset, bottleneck=replace(preset.bottleneck, continuous_steps=0, init="uniform")
    )
    lam = LatentActionModel(quantised)
    lam.save_pretrained(tmp_path / "model")
    label(config(place, model=tmp_path / "model", out=tmp_path / "labels"))
    assert label_files.read_labels(tmp_path / "labels").column_names[2:] == [
        "latent_action_1",
        "latent_codes_1",
    ]
    codes, z = (column(tmp_path / "labels", n) for n in ("latent_codes_1", "latent_action_1"))
    there = np.isfinite(z).all(1)
    assert (
        codes.shape == (len(z), preset.tokens)
        and (codes[~there] == -1).all()
        and (codes[there] >= 0).all()
    )


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
        label(config(place, out=place / "whole", **changes))


def test_the_command(place, capsys):
    words = [
        "--model",
        str(place / "run" / "model"),
        "--data",
        str(place / "data"),
        "--offsets",
        "3",
        "--json",
    ]
    main(words)
    found = json.loads(capsys.readouterr().out)
    assert found["folder"].endswith("labels/run") and found["pairs"] == {
        "3": sum(17 + s for s in range(7))
    }
    with pytest.raises(SystemExit) as stopped:
        main([*words[:2], "--data", str(place / "nowhere")])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1


@pytest.fixture(scope="module")
def vla(place, whole):
    """The episodes and their labels as one LeRobot dataset; the folder."""
    done = label(config(place, offsets=(1, 4, -2), out=place / "whole", lerobot=place / "vla"))
    assert done["lerobot"] == [
        f"latent_action_{k}{end}" for k in (1, 4, -2) for end in ("", "_is_pad")
    ]
    return place / "vla"


def bytes_of(folder) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_labels_become_columns_of_a_lerobot_dataset(place, vla):
    info = json.loads((vla / "meta" / "info.json").read_text())
    d = label_files.read_labels(place / "whole").about["latent_dim"]
    assert info["features"]["latent_action_4"] == {"dtype": "float32", "shape": [d], "names": None}
    assert info["features"]["latent_action_4_is_pad"] == {
        "dtype": "bool",
        "shape": [1],
        "names": None,
    }
    labels = column(place / "whole", "latent_action_4")
    got = open_dataset(vla, Declared(action=("latent_action_4",))).trajectories
    assert np.array_equal(np.concatenate([t.action for t in got]), np.nan_to_num(labels))
    pad = open_dataset(vla, Declared(action=("latent_action_4_is_pad",))).trajectories
    assert [int(t.action.sum()) for t in pad] == [4] * 7
    for t, u in zip(
        read_store(place / "data").trajectories, open_dataset(vla).trajectories, strict=True
    ):
        assert np.array_equal(t.proprio, u.proprio) and t.task == u.task


@pytest.mark.slow
def test_the_peer_reads_the_labels(place, vla, tmp_path):
    """As test_formats.py does it with data alone: set ACLAM_LEROBOT_PYTHON to a python that has
    lerobot-dataset 0.4.4.
    """
    python = os.environ.get("ACLAM_LEROBOT_PYTHON")
    if not python:
        pytest.skip("ACLAM_LEROBOT_PYTHON is not set")
    truth = {}
    for n, t in enumerate(open_dataset(vla).trajectories):
        truth |= {f"state{n}": t.proprio, f"frames{n}": t.frames[range(len(t))]}
    for name in ("latent_action_1", "latent_action_4", "latent_action_-2"):
        z = column(place / "whole", name)
        truth |= {f"column/{name}": np.nan_to_num(z), f"column/{name}_is_pad": np.isnan(z[:, :1])}
    np.savez(tmp_path / "truth.npz", **truth)
    run = [python, FIXTURES / "open_with_lerobot.py", vla, tmp_path / "truth.npz"]
    done = subprocess.run(
        list(map(str, run)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)


def test_padding_does_not_count_in_a_labelled_datasets_statistics(place, vla):
    labels = column(place / "whole", "latent_action_4")
    found = json.loads((vla / "meta" / "stats.json").read_text())["latent_action_4"]
    assert found["count"] == [int(np.isfinite(labels).all(1).sum())]
    assert np.allclose(found["mean"], np.nanmean(labels.astype(float), 0), atol=1e-6)


def test_a_labelled_dataset_goes_on_to_the_same_bytes_and_refuses_other_labels(
    place, vla, tmp_path
):
    before = bytes_of(vla)
    for path in [*vla.glob("meta/episodes/*/*"), *vla.glob("data/*/*"), vla / "meta" / "info.json"]:
        path.unlink()  # as if it had been killed before its first part was done
    label(config(place, offsets=(1, 4, -2), out=place / "whole", lerobot=vla))
    assert bytes_of(vla) == before
    with pytest.raises(UserError, match=r"vla holds another dataset \(extra"):
        label(config(place, offsets=(1,), out=tmp_path / "other", lerobot=vla))


def test_codes_of_a_labelled_dataset_are_whole_numbers(place, tmp_path):
    preset = PRESETS["ac_lam_cpu"]
    quantised = replace(
        preset, bottleneck=replace(preset.bottleneck, continuous_steps=0, init="uniform")
    )
    LatentActionModel(quantised).save_pretrained(tmp_path / "model")
    label(
        config(place, model=tmp_path / "model", out=tmp_path / "labels", lerobot=tmp_path / "vla")
    )
    codes = column(tmp_path / "labels", "latent_codes_1")
    got = open_dataset(tmp_path / "vla", Declared(action=("latent_codes_1",))).trajectories
    assert np.array_equal(np.concatenate([t.action for t in got]), np.maximum(codes, 0))
    info = json.loads((tmp_path / "vla" / "meta" / "info.json").read_text())
    assert info["features"]["latent_codes_1"] == {
        "dtype": "int64",
        "shape": [preset.tokens],
        "names": None,
    }


def test_extra_columns_must_fit_the_episodes(tmp_path):
    films = [synthetic_trajectory(s, T=12, size=40) for s in range(2)]
    ok, short, other = (
        {"z": np.zeros((n, 3), kind)}
        for n, kind in ((12, np.float32), (11, np.float32), (12, float))
    )
    for extra, words in (
        ([ok, short], "11 rows for 12 frames"),
        ([ok, other], "float64"),
        ([ok], "1 episodes for 2"),
    ):
        with pytest.raises(UserError, match=words):
            write_lerobot(tmp_path / "bad", films, extra=extra)


def test_statistics_of_large_columns_are_streamed(place, vla, tmp_path, monkeypatch):
    from aclam.data import lerobot_statistics

    monkeypatch.setattr(lerobot_statistics, "IN_MEMORY", 0)
    label(config(place, offsets=(1, 4, -2), out=place / "whole", lerobot=tmp_path / "streamed"))
    one, two = (
        json.loads((folder / "meta" / "stats.json").read_text())
        for folder in (vla, tmp_path / "streamed")
    )
    assert one.keys() == two.keys()
    for key, values in one.items():
        for name, numbers in values.items():
            assert np.allclose(
                np.array(numbers).ravel(), np.array(two[key][name]).ravel(), atol=1e-6
            ), (key, name)


# --- kinds of values, versions --------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantizing(place):
    """The folder of a model that quantizes from its first step."""
    preset = PRESETS["ac_lam_cpu"]
    changed = replace(preset.bottleneck, continuous_steps=0, init="uniform")
    LatentActionModel(replace(preset, bottleneck=changed)).save_pretrained(
        place / "quantizing" / "model"
    )
    return place / "quantizing" / "model"


@pytest.mark.parametrize("values", ["codes", "float16", "float32"])
def test_kinds_of_values_are_read_by_all_readers(place, quantizing, tmp_path, values):
    words = {"model": quantizing, "out": tmp_path / "labels", "offsets": (2,), "values": values}
    label(config(place, **words, lerobot=tmp_path / "vla"))
    lam = LatentActionModel.from_pretrained(quantizing)
    store = read_store(place / "data")
    label_files.check_labels(tmp_path / "labels", lam, store, 2)
    # none of a fixed size: pyarrow before 26 cannot read such a column where it has nulls
    kinds = {
        f.name: str(f.type) for f in pq.read_schema(tmp_path / "labels" / "part-00000.parquet")
    }
    number = {"codes": None, "float16": "halffloat", "float32": "float"}[values]
    assert kinds.get("latent_action_2") == (number and f"list<element: {number}>")
    assert kinds["latent_codes_2"] == "list<element: int32>"
    columns = [name for name in kinds if name.startswith("latent_")]
    files = sorted((tmp_path / "labels").glob("part-*.parquet"))
    whole = pa.concat_tables([pq.read_table(file) for file in files])
    assert all(whole.column(name).null_count == 2 * 7 for name in columns)  # no partner
    for file in (tmp_path / "vla" / "data").rglob("*.parquet"):  # lists of a fixed size, and whole
        assert not any(column.null_count for column in pq.read_table(file).columns)
    features = json.loads((tmp_path / "vla" / "meta" / "info.json").read_text())["features"]
    pad = "latent_codes_2_is_pad" if values == "codes" else "latent_action_2_is_pad"
    assert features[pad]["dtype"] == "bool" and features["latent_codes_2"]["dtype"] == "int64"
    assert features.get("latent_action_2", {}).get("dtype") == (
        None if values == "codes" else "float32"
    )
    got = open_dataset(tmp_path / "vla", Declared(action=(pad,))).trajectories
    assert [int(t.action.sum()) for t in got] == [2] * 7


def test_policies_find_latents_exact_ones_first_and_codes_only_when_asked(place, quantizing):
    lam = LatentActionModel.from_pretrained(quantizing)
    store = read_store(place / "data")
    for values, offsets in (("codes", (1, 2, 3)), ("float16", (1, 2)), ("float32", (1,))):
        label(
            config(place, model=quantizing, name=f"kept_{values}", offsets=offsets, values=values)
        )
    assert {k: f.name for k, f in label_files.labels_of(store, lam).items()} == {
        1: "kept_float32",
        2: "kept_float16",
    }
    assert sorted(label_files.labels_of(store, lam, ("codes",))) == [1, 2, 3]


def test_policies_find_labels_beside_the_dataset_that_was_written_with_them(place, tmp_path):
    """A LeRobot dataset is other data than its films; it says which labels it was written with."""
    others = shutil.ignore_patterns("labels")  # of other tests
    shutil.copytree(place / "data", tmp_path / "data", ignore=others)
    out = tmp_path / "lerobot"
    label(config(place, data=tmp_path / "data", offsets=(4,), lerobot=out, name="own"))
    lam = LatentActionModel.from_pretrained(place / "run")
    store = open_dataset(out)
    assert label_files.labels_of(store, lam) == {4: tmp_path / "lerobot.labels" / "own"}
    gap = 4 / store.trajectories[0].fps
    known = known_latents(store, lam, gap)
    assert missing_labels(store, lam, gap) == "" and known[1].first == 20
    assert known[1].stored.tolist() == [True] * 17 + [False] * 4

    said = missing_labels(open_dataset(tmp_path / "data"), lam, gap)  # it cannot know of OUT
    assert f"no labels of this model at offset 4: {sum(range(20, 27))} latents will be" in said
    assert "at offset 2, only at 4:" in missing_labels(store, lam, gap / 2)

    moved = tmp_path / "moved"
    shutil.copytree(out, moved)  # with other times of the files
    shutil.copytree(tmp_path / "lerobot.labels", tmp_path / "moved.labels")
    assert sorted(label_files.labels_of(open_dataset(moved), lam)) == [4]
    table = next((moved / "data").rglob("*.parquet"))
    rows = pq.read_table(table)
    name = "latent_action_4"
    other = rows.column(name).take(list(range(len(rows)))[::-1])
    pq.write_table(rows.set_column(rows.column_names.index(name), name, other), table)
    assert label_files.labels_of(open_dataset(moved), lam) == {}

    recipe = json.loads((out / "meta" / "aclam.json").read_text())
    recipe["source"]["labels"]["model"]["weights"] = "another"
    write_json(out / "meta" / "aclam.json", recipe)
    assert label_files.labels_of(store, lam) == {}


def test_codes_need_a_codebook_and_float16_needs_small_numbers(place, tmp_path):
    with pytest.raises(UserError, match="no codebook"):
        label(config(place, values="codes", out=tmp_path / "labels"))
    assert not (tmp_path / "labels").exists()
    field = label_files.schema((1,), 2, None, "float16").field(2)
    with pytest.raises(UserError, match="7e.04, float16 ends at 65504"):
        label_job._rows_or_null(np.array([[1, 70_000]], np.float32), np.array([0]), 1, field)


# a model whose encoder overflows -> a tensor of it; behind a codebook nothing would show it
OVERFLOWS = {
    "ac_lam_cpu": "idm.frame",
    "potential_lam_cpu": "phi.query",
    "lapa_cpu": "space.norm_out.gamma",
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_model_that_gives_no_numbers_makes_no_labels(place, tmp_path, outcome, name):
    lam = LatentActionModel.from_preset(name)
    with torch.no_grad():
        dict(lam.named_parameters())[OVERFLOWS[name]].fill_(1e38)
    lam.save_pretrained(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--data", place / "data", "--out", tmp_path / "labels"]
    kinds = ["float32", "codes"] if name == "lapa_cpu" else ["float32"]
    for values in kinds:
        status, out, err = outcome(main, *words, "--values", values, "--no-resume")
        *bar, line = err.splitlines()  # one of progress had begun
        assert (status, out) == (2, "") and "numbers of latents are not finite" in line, err
        assert all("frame/s]" in x or "does not quantize yet" in x for x in bar if x), err
        assert json.loads((tmp_path / "labels" / "labels.json").read_text())["done"] is False
        assert not list((tmp_path / "labels").rglob("part-*.parquet"))
        with pytest.raises(UserError):
            label_files.read_labels(tmp_path / "labels")


def to_version_1(folder: Path, **changes) -> None:
    """What `labels.json` was before there were kinds of values."""
    about = json.loads((folder / "labels.json").read_text())
    old = (
        {k: v for k, v in about.items() if k not in ("values", "tokens")}
        | {"format_version": 1}
        | changes
    )
    (folder / "labels.json").write_text(json.dumps(old))


def test_labels_of_version_1_are_read_and_go_on(place, whole, tmp_path):
    out = tmp_path / "old"
    label(config(place, offsets=(1, 4, -2), out=out))
    to_version_1(out)
    assert np.array_equal(
        column(out, "latent_action_4"), column(place / "whole", "latent_action_4"), equal_nan=True
    )
    assert label(config(place, offsets=(1, 4, -2), out=out))["done"]
    with pytest.raises(UserError, match="values was float32 and is float16"):
        label(config(place, offsets=(1, 4, -2), out=out, values="float16"))
    to_version_1(out, done=False)
    (out / "part-00001.parquet").unlink()
    label(config(place, offsets=(1, 4, -2), out=out))
    label_files.same_files(place / "whole", out)
    to_version_1(out, format_version=4)
    with pytest.raises(UserError, match="format version 4, this package reads 1 to 3"):
        label_files.read_labels(out)


def to_version_2(folder: Path) -> None:
    """Labels as they were: lists of a fixed size."""
    about = json.loads((folder / "labels.json").read_text())
    for file in folder.glob("part-*.parquet"):
        table = pq.read_table(file)
        for at, name in enumerate(table.column_names[2:], start=2):
            width = about["latent_dim" if "action" in name else "tokens"]
            kind = pa.list_(table.schema.field(name).type.value_type, width)
            rows = pa.array(table.column(name).to_pylist(), kind)
            table = table.set_column(at, name, rows)
        pq.write_table(table, file)
    (folder / "labels.json").write_text(json.dumps(about | {"format_version": 2}))


def test_labels_of_version_2_are_read(place, whole, tmp_path):
    out = tmp_path / "old"
    label(config(place, offsets=(1, 4, -2), out=out))
    to_version_2(out)
    kinds = [field.type for field in pq.read_schema(out / "part-00000.parquet")][2:]
    assert all(map(pa.types.is_fixed_size_list, kinds))
    for name in ("latent_action_4", "latent_action_-2"):
        new = column(place / "whole", name)
        assert np.array_equal(column(out, name), new, equal_nan=True) and np.isnan(new).any()
    assert label(config(place, offsets=(1, 4, -2), out=out))["done"]


def test_a_part_that_was_removed_is_noticed(place, whole, tmp_path):
    label(config(place, offsets=(1,), out=tmp_path / "labels"))
    (tmp_path / "labels" / "part-00000.parquet").unlink()
    with pytest.raises(UserError, match="a part was removed"):
        label_files.read_labels(tmp_path / "labels")


# --- division -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_shards_cover_the_pieces_once_and_evenly(place, count):
    pieces = label_plan.plan(read_store(place / "data"), 30)
    assert sorted({p.part for p in pieces}) == [0, 1] and len(pieces) > 3
    assert label_plan.check_shares(pieces, count) <= 1


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "a/b", "1/0", "1/2/3", "1.5/4"])
def test_shards_that_there_are_not(text):
    with pytest.raises(UserError, match="from 0/8 to 7/8"):
        label_plan.parse_shard(text)


def test_shards_stopped_and_resumed_write_the_bytes_of_one_process(place, whole, tmp_path):
    steps = check_shards(
        config(place, offsets=(1, 4, -2), out=tmp_path / "labels"), place / "whole", 2
    )
    assert steps[0]["shards"] == [0, 1] and steps[-1]["done"] and steps[-1]["pieces"] == 0


def test_more_shards_than_pieces_in_any_order(place, whole, tmp_path):
    out = config(place, offsets=(1, 4, -2), out=tmp_path / "labels")
    for index in np.random.default_rng(0).permutation(12).tolist():
        label(replace(out, shard=f"{index}/12"))
    label_files.same_files(place / "whole", tmp_path / "labels")


def test_what_is_missing_is_named_until_nothing_is(place, whole, tmp_path):
    out = config(place, offsets=(1, 4, -2), out=tmp_path / "labels")
    asked = replace(out, missing=4)
    first = missing(asked)
    assert (
        first["shards"] == [0, 1, 2, 3] and not first["done"] and not (tmp_path / "labels").exists()
    )
    label(replace(out, shard="1/4"))
    assert missing(asked)["shards"] == [0, 2, 3]
    job = label_job.open_job(out)
    with label_work.at_work(job):  # all pieces, but killed before parts were made of them
        for piece in job.pieces:
            if not job.has(piece):
                sizes = [job.store.trajectories[e] for e in piece.episodes]
                label_work.write_piece(
                    job, piece, label_job.frames_of(sizes, job.lam.config.image_size)
                )
    found = missing(asked)
    assert found["pieces"] == 0 and found["parts"] == [0, 1] and found["shards"] == [1, 3]
    label(replace(out, shard="3/4"))
    label_files.same_files(place / "whole", tmp_path / "labels")
    assert missing(asked)["shards"] == []
    about = json.loads((tmp_path / "labels" / "labels.json").read_text())
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(about | {"done": False}))
    assert missing(asked)["shards"] == [3]  # killed before labels.json was marked


def test_the_commands_of_shards(place, tmp_path, capsys):
    words = [
        "--model",
        place / "run" / "model",
        "--data",
        place / "data",
        "--offsets",
        3,
        "--piece-frames",
        30,
    ]
    words = [*map(str, words), "--out", str(tmp_path / "labels")]

    def outcome(*more):
        status = 0
        try:
            main([*words, *more])
        except SystemExit as e:
            status = e.code
        return status, *capsys.readouterr()

    assert outcome("--missing", "3")[:2] == (3, "0-2\n")
    status, out, _ = outcome("--shard", "1/3", "--json")
    assert status == 0 and json.loads(out)["done"] is False and json.loads(out)["missing"] > 0
    status, out, err = outcome("--missing", "3", "--json")
    assert (
        status == 3 and json.loads(out)["shards"] == [0, 2] and "work left in 2 of 3 shards" in err
    )
    assert outcome("--shard", "0/3")[0] == 0 and outcome("--shard", "2/3")[0] == 0
    assert outcome("--missing", "3")[:2] == (0, "")
    for more in (
        ["--shard", "3/3"],
        ["--shard", "0/3", "--no-resume"],
        ["--shard", "0/3", "--lerobot", "x"],
        ["--missing", "3", "--shard", "0/3"],
        ["--values", "int8"],
    ):
        status, out, err = outcome(*more)
        assert status == 2 and out == "" and err.count("\n") == 1, (more, err)


@pytest.mark.filterwarnings("ignore:'aclam.train.label' found in sys.modules")
def test_the_module_is_the_command(place, tmp_path, monkeypatch, capsys):
    """As `python -m aclam.train.label` runs it."""
    words = [
        "--model",
        place / "run" / "model",
        "--data",
        place / "data",
        "--out",
        tmp_path / "none",
        "--missing",
        2,
    ]
    monkeypatch.setattr(sys, "argv", ["label.py", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("aclam.train.label", run_name="__main__")
    assert stopped.value.code == 3 and capsys.readouterr().out == "0-1\n"


# --- two processes on one job ---------------------------------------------------------------------


def kills(place: Path, out: Path, shards: int, number: int, *more: str) -> dict:
    """What `label_kills.py` says of shards of the job of `out` that were killed at random."""
    words = [place / "run" / "model", place / "data", out, shards, number, 3, *more]
    command = [sys.executable, FIXTURES / "label_kills.py", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def by_one_process(place: Path, out: Path) -> None:
    """The labels that `label_kills.py` and the commands below write, by this process with one
    thread, as they have.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    label(config(place, offsets=(1, 4), out=out))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def longer(place, tmp_path_factory):
    """48 episodes in five parts, each a piece, and the same model."""
    folder = tmp_path_factory.mktemp("longer")
    write_store(
        folder / "data",
        (synthetic_trajectory(s, T=30 + s % 5, size=40) for s in range(48)),
        shard_size=11,
    )
    (folder / "run").symlink_to(place / "run")
    return folder


def test_killed_shards_end_at_the_bytes_of_one_process(longer, tmp_path):
    found = kills(longer, tmp_path / "killed", 4, 5)
    assert found["kills"] >= 5 and found["starts"] == found["kills"] + 4, found
    by_one_process(longer, tmp_path / "one")
    assert label_files.same_files(tmp_path / "one", tmp_path / "killed") == 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", [(), ("--processes",)])
def test_eight_shards_survive_twenty_kills(longer, tmp_path, how):
    found = kills(longer, tmp_path / "killed", 8, 20, *how)
    print(found)
    assert found["kills"] >= 20 and found["starts"] == found["kills"] + 8
    by_one_process(longer, tmp_path / "one")
    assert label_files.same_files(tmp_path / "one", tmp_path / "killed") == 6


def side_by_side(config: label_job.LabelConfig, number: int = 3) -> list[dict]:
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(label, [config] * number))


def counted(monkeypatch) -> list:
    """Pieces that are computed from now on, in their order."""
    seen = []
    work = label_work.label_piece

    def counting(job, piece, frames):
        seen.append(piece.name)
        return work(job, piece, frames)

    monkeypatch.setattr(label_work, "label_piece", counting)
    return seen


def test_jobs_share_the_work_and_no_piece_is_done_twice(place, whole, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    out = config(place, offsets=(1, 4, -2), out=tmp_path / "labels")
    assert all(found["done"] for found in side_by_side(out))
    assert sorted(seen) == [p.name for p in label_plan.plan(read_store(place / "data"), 30)]
    label_files.same_files(place / "whole", tmp_path / "labels")


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_jobs_without_locks_are_right_too(place, whole, tmp_path, monkeypatch, locks):
    """A file system whose locks do nothing, and one that says that it has none."""

    def answer(*_):
        if locks == "refused":
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.fcntl, "flock", answer)
    out = config(place, offsets=(1, 4, -2), out=tmp_path / "labels")
    for _ in range(3):
        assert all(found["done"] for found in side_by_side(replace(out, resume=True)))
        label_files.same_files(place / "whole", tmp_path / "labels")
        for path in [*(tmp_path / "labels").glob("part*"), tmp_path / "labels" / "labels.json"]:
            path.unlink()


def test_a_slower_job_is_waited_for_and_at_last_done_without(place, whole, tmp_path, monkeypatch):
    out = config(place, offsets=(1, 4, -2), out=tmp_path / "labels")
    job = label_job.open_job(out)
    with label_work.at_work(job):
        slow = label_work.claim(job, job.pieces[1])  # stopped in the midst of a piece
        assert slow is not None and label_work.claim(job, job.pieces[1]) is None
        monkeypatch.setattr(label_work, "PATIENCE_S", 0.3)
        start = time.monotonic()
        assert label(out)["done"] and time.monotonic() - start > 0.3
        label_work.write_piece(
            job,
            job.pieces[1],
            label_job.frames_of(
                [job.store.trajectories[e] for e in job.pieces[1].episodes],
                job.lam.config.image_size,
            ),
        )
        slow.free()
        assert label_work.finish(job)["done"]  # what it left is swept, and nobody is harmed
    label_files.same_files(place / "whole", tmp_path / "labels")


def test_work_goes_on_when_its_holder_ends(place, whole, tmp_path):
    out = config(place, offsets=(1, 4, -2), out=tmp_path / "labels")
    job = label_job.open_job(out)
    with label_work.at_work(job):
        held = label_work.claim(job, job.pieces[0])
        threading.Timer(0.5, held.free).start()
        assert label(out)["done"]
    label_files.same_files(place / "whole", tmp_path / "labels")


def test_nobody_starts_anew_under_another(place, whole, tmp_path):
    out = config(place, offsets=(1, 4, -2), out=tmp_path / "labels")
    job = label_job.open_job(out)
    with label_work.at_work(job):
        label_work.label_pieces(job, job.pieces[:2])
        with pytest.raises(UserError, match="being written by another process"):
            label(replace(out, resume=False))
    assert label(replace(out, resume=False))["done"]
    label_files.same_files(place / "whole", tmp_path / "labels")
    assert label(replace(out, resume=False, offsets=(1,)))["offsets"] == [1]
    assert len(list((tmp_path / "labels").glob("part*"))) == 2


def test_finished_labels_may_lie_where_nobody_can_write(place, tmp_path, capsys):
    out = config(place, offsets=(2,), out=tmp_path / "labels")
    label(out)
    there = {p.name for p in (tmp_path / "labels").iterdir()}
    (tmp_path / "labels" / ".lock").unlink()
    assert label(out)["done"] and {p.name for p in (tmp_path / "labels").iterdir()} == there - {
        ".lock"
    }
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder, so that"):
        label(replace(out, out=tmp_path / "file" / "labels"))


def test_a_folder_of_something_else_is_left_alone(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        label(config(place, out=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_ranks_begin_at_their_share_and_go_round(place):
    job = label_job.open_job(config(place))
    for world in (1, 2, 3, 9):
        orders = [label_work.order_of(job, rank, world) for rank in range(world)]
        assert all(sorted(order) == sorted(job.pieces) for order in orders)
        for rank, order in enumerate(orders):
            own = label_plan.share(job.pieces, label_plan.Shard(rank, world))
            assert order[: len(own)] == own
    in_shard = label_job.open_job(config(place, shard="1/2"))
    assert sorted(label_work.order_of(in_shard, 1, 2)) == label_plan.share(
        job.pieces, label_plan.Shard(1, 2)
    )


def job_words(place: Path) -> list[str]:
    """The options of a job of several pieces, but for --out."""
    given = {"--model": place / "run" / "model", "--data": place / "data", "--piece-frames": 30}
    return [*(str(word) for pair in given.items() for word in pair), "--offsets", "1", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launched_ranks_write_the_bytes_of_one_process(place, tmp_path, launcher):
    words = job_words(place)
    words = [*map(str, words), "--out", str(tmp_path / "ranks"), "--json"]
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    if launcher == "accelerate":
        settings = ROOT / "aclam" / "configs" / "two_cpu_processes.yaml"
        start = ["-m", "accelerate.commands.launch", "--config_file", str(settings)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for more in ((), ("--no-resume",), ()):
        command = [sys.executable, *start, "-m", "aclam.train.label", *words, *more]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["done"]  # one object, of the main process
    by_one_process(place, tmp_path / "one")
    label_files.same_files(tmp_path / "one", tmp_path / "ranks")


# --- clusters -------------------------------------------------------------------------------------

ARRAY = ROOT / "aclam" / "configs" / "slurm" / "label_array.sh"
SBATCH = """#!{python}
import os, re, subprocess, sys
words = sys.argv[1:]
script = next(n for n, w in enumerate(words) if w.endswith(".sh"))
options = dict(w[2:].partition("=")[::2] for w in words[:script])
with open({log!r}, "a") as log:
    print(*words[:script], file=log)
print(len(open({log!r}).readlines()))
sys.stdout.flush()
spans = re.findall(r"(\\d+)(?:-(\\d+))?", options.get("array", ""))
tasks = [str(n) for a, b in spans for n in range(int(a), int(b or a) + 1)] or [None]
for task in tasks:
    env = os.environ | ({{"SLURM_ARRAY_TASK_ID": task}} if task else {{}})
    lost = os.path.join({folder!r}, "lost", task or "none")
    if os.path.exists(lost):  # a node that dies, once
        os.remove(lost)
        continue
    subprocess.run(["bash", *words[script:]], env=env, stdout=subprocess.DEVNULL)
"""
STUB = """#!{python}
import sys
from pathlib import Path
words = dict(zip(sys.argv[3::2], sys.argv[4::2]))
there = Path(words["--out"])
if "--shard" in words:
    (there / words["--shard"].replace("/", "of")).touch()
    sys.exit(0)
count = int(words["--missing"])
todo = [n for n in range(count) if not (there / f"{{n}}of{{count}}").exists()]
print(",".join(map(str, todo)))
sys.exit(3 if todo else 0)
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path):
    """A Slurm that runs what it is sent at once, and the environment that knows it."""
    folder = tmp_path / "slurm"
    (folder / "lost").mkdir(parents=True)
    executable(
        folder / "sbatch",
        SBATCH.format(python=sys.executable, log=str(folder / "log"), folder=str(folder)),
    )
    executable(folder / "srun", '#!/bin/bash\nexec "${@:2}"\n')
    path = f"{folder}:{os.environ['PATH']}"
    return folder, {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "SHARDS": "4",
        "PYTHON": sys.executable,
    }


def test_the_slurm_script_parses():
    assert subprocess.run(["bash", "-n", ARRAY], capture_output=True).returncode == 0


def test_the_job_array_sends_again_what_is_missing(slurm, tmp_path):
    folder, env = slurm
    executable(folder / "label", STUB.format(python=sys.executable))
    (tmp_path / "out").mkdir()
    for lost in ("1", "2"):
        (folder / "lost" / lost).touch()
    env["PYTHON"] = str(folder / "label")
    done = subprocess.run(
        ["bash", ARRAY, "--out", tmp_path / "out"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sent = (folder / "log").read_text().splitlines()
    assert [re.search(r"--(array|dependency)=\S+", line).group(0) for line in sent] == [
        "--array=0,1,2,3",
        "--dependency=afterany:1",
        "--array=1,2",
        "--dependency=afterany:3",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{n}of4" for n in range(4)]
    again = subprocess.run(
        ["bash", ARRAY, "--out", tmp_path / "out"], env=env, capture_output=True, text=True
    )
    assert again.returncode == 0 and len((folder / "log").read_text().splitlines()) == 4
    (tmp_path / "out" / "0of4").unlink()
    none = subprocess.run(
        ["bash", ARRAY, "--out", tmp_path / "out"],
        env=env | {"ROUNDS": "0"},
        capture_output=True,
        text=True,
    )
    assert none.returncode == 3 and "shards 0 of 4 are missing" in none.stderr


@pytest.mark.slow
def test_the_job_array_writes_the_bytes_of_one_process(slurm, place, tmp_path):
    folder, env = slurm
    (folder / "lost" / "2").touch()
    words = job_words(place)
    command = ["bash", ARRAY, *words, "--out", tmp_path / "array"]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "--array=0-3" in (folder / "log").read_text()
        and "--array=2 " in (folder / "log").read_text()
    )
    by_one_process(place, tmp_path / "one")
    label_files.same_files(tmp_path / "one", tmp_path / "array")


def ray_python() -> str | None:
    """A Python that has ray: this one, or that of ACLAM_RAY_PYTHON."""
    return sys.executable if find_spec("ray") else os.environ.get("ACLAM_RAY_PYTHON")


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_the_example_of_ray_skips_with_a_word(place, monkeypatch, capsys):
    example = ROOT / "examples" / "label_ray.py"
    words = [example, "--model", place / "run" / "model", "--data", place / "data"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    runpy.run_path(str(example), run_name="__main__")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "skipped: ray is not installed\n")


@pytest.mark.slow
def test_ray_data_writes_the_bytes_of_one_process(place, tmp_path):
    if not (python := ray_python()):
        pytest.skip("ray is not installed; or set ACLAM_RAY_PYTHON to a python that has it")
    words = job_words(place)
    command = [
        python,
        ROOT / "examples" / "label_ray.py",
        *words,
        "--out",
        tmp_path / "ray",
        "--shards",
        4,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "4 shards were missing" in done.stdout, done.stderr[-2000:]
    by_one_process(place, tmp_path / "one")
    label_files.same_files(tmp_path / "one", tmp_path / "ray")


# --- memory ---------------------------------------------------------------------------------------


def memory(folder: Path, rows: int, width: int) -> dict:
    """What `label_memory.py` says of reading so many rows, in a process of its own."""
    script = FIXTURES / "label_memory.py"
    runpy.run_path(str(script))["write"](folder, rows, width, "float16")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, "read", folder, rows, width]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_readers_of_many_rows_stay_small(tmp_path):
    found = memory(tmp_path, 400_000, 512)  # 781 MiB of latents in float32
    assert found["after_mib"] - found["before_mib"] < 600, found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_million_rows_are_read_in_less_than_two_gigabytes(tmp_path):
    found = memory(tmp_path, 10_000_000, 512)  # 20 GB of latents in float32
    print(found)
    assert found["after_mib"] < 2000, found


def test_rows_are_read_in_any_order_by_copies_and_by_spawned_workers(place, whole):
    import pickle  # as a DataLoader does that spawns its workers

    labels = label_files.read_labels(place / "whole")
    every = column(place / "whole", "latent_action_-2")
    rows = np.random.default_rng(0).integers(len(labels), size=200)
    for reader in (labels, pickle.loads(pickle.dumps(labels))):
        assert np.array_equal(
            label_files.rows_of(reader, "latent_action_-2", rows), every[rows], equal_nan=True
        )
    for own in (labels.open_files, labels.recent):
        own.owner = -1  # as in a process that was forked
    assert np.array_equal(
        label_files.rows_of(labels, "latent_action_-2", rows), every[rows], equal_nan=True
    )
    assert labels.open_files.owner == labels.recent.owner == os.getpid()
    assert labels.open_files.inherited and labels.recent.inherited


def test_a_part_that_is_cut_or_gone_is_one_line(place, whole, tmp_path):
    folder = shutil.copytree(place / "whole", tmp_path / "labels")
    part = sorted(folder.glob("part-*.parquet"))[0]
    opened = label_files.read_labels(folder)
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    for read in (lambda: label_files.read_labels(folder), lambda: opened.read(0, ["frame_index"])):
        with pytest.raises(UserError, match="is not a whole Parquet file .*label again"):
            read()
    part.unlink()
    with pytest.raises(UserError, match="no such file"):
        opened.read(0, ["frame_index"])


# --- what an offset means ------------------------------------------------------------------------


def test_an_offset_outside_of_what_the_training_drew_is_said(tmp_path):
    shutil.copytree(kept_result("models/ac_lam_cpu") / "model", tmp_path / "run" / "model")
    film = synthetic_trajectory(0, T=90, size=16, fps=30.0, kind="human")
    settings = SimpleNamespace(model=tmp_path / "run", offsets=(1, 3, -60, 75))
    job = SimpleNamespace(config=settings, store=SimpleNamespace(trajectories=[film]))
    assert offset_notes(job) == [] and seen_note(job) == ""  # nothing is known
    part = {"folder": "any", "content": fingerprint([film]), "held_out": [1, 1]}
    write_json(tmp_path / "run" / "data.json", {"folders": [part]})
    assert seen_note(job) == "the model was trained on 1 of 1 episode"
    triples = {"human_offset_s": [0.1, 2.0], "offset_s": [0.1, 3.0]}
    write_json(tmp_path / "run" / "config.json", {"triples": triples})
    drew = "the model's training drew 0.1 to 2 s: --offsets from 3 to 60"
    assert offset_notes(job) == [f"offset 1 is 0.0333 s, {drew}", f"offset 75 is 2.5 s, {drew}"]


def test_rows_are_read_by_the_name_that_the_book_has():
    assert train.rows_of is label_files.rows_of and train.read_labels is label_files.read_labels
