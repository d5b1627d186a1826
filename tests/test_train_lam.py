"""aclam-train-lam, aclam-demo, launch configurations: errors in one line, exact resume of a real
model, stages.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from aclam.commands.entry import COMMANDS
from aclam.core import UserError, read_json
from aclam.data.sampling import TripleConfig
from aclam.data.store import write_store
from aclam.data.trajectory import fingerprint, synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import LatentActionModel
from aclam.lam.instructions import TextConfig, hashed_words
from aclam.lam.model import parameter_counts
from aclam.lam.univla import UniVLAConfig
from aclam.structure.held_out import origin
from aclam.studies import demo
from aclam.train import lam, scale
from aclam.train.config import TrainConfig
from aclam.train.draws import Batches
from aclam.train.log import read_metrics
from aclam.train.loop import train
from aclam.weights import read_tensors

SMALL = (
    "--model.idm-width 16 --model.fdm-width 16 --model.bottleneck.continuous-steps 10 --probe-n 16 "
    "--train.steps 20 --train.batch-size 8 --train.probe-every 10 --train.checkpoint-every 10 --train.log-every 1"
).split()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "store"
    write_store(folder, (synthetic_trajectory(seed=n, size=32) for n in range(10)), shard_size=4)
    return folder


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """A finished run of a small model, and what it returned."""
    out = tmp_path_factory.mktemp("whole")
    return out, lam.run(lam.settings_from(["--data", str(store), "--out", str(out), *SMALL]))


def fails(capsys, *argv) -> str:
    """The one line on standard error of a command that ends with status 2."""
    with pytest.raises(SystemExit) as e:
        lam.main(list(map(str, argv)))
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("aclam-train-lam: ")]
    assert (
        e.value.code == 2
        and printed.out == ""
        and len(lines) == 1
        and lines[0] == printed.err.splitlines()[-1]
    )
    return lines[0]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--preset", "ac_lam_cup"], '"ac_lam_cpu"'),
        (["--preset", "xyz"], "no_ac_paper"),
        (["--train.stepz", "3"], "--train.steps"),
        (["--model.objective.lambda-ax", "3"], "--model.objective.lambda-ac"),
        (["--train.steps", "many"], "many"),
        ([], "which data?"),
        (["--data", "nowhere"], "nowhere"),
        # settings are looked at before data are
        (["--data", "nowhere", "--train.betas", "2", "3"], "--train.betas"),
        (["--data", "nowhere", "--train.batch-size", "3", "--train.accumulate", "2"], "batch_size"),
        (["--data", "nowhere", "--val-fraction", "nan"], "--val-fraction"),
        (["--data", "nowhere", "--cache-gib", "nan"], "--cache-gib"),
        (["--data", "nowhere", "--probe-n", "0"], "--probe-n"),
        (["--data", "nowhere", "--out", "/dev/null/run"], "/dev/null"),
    ],
)
def test_bad_command_lines(capsys, argv, message):
    assert message in fails(capsys, *argv)


def test_a_run_does_not_write_into_its_data(store, tmp_path, capsys):
    data = tmp_path / "home" / "store"
    shutil.copytree(store, data)
    (tmp_path / "run").symlink_to(data)
    before = sorted(data.rglob("*"))
    for out in (data, data / "run", data.parent, tmp_path / "run"):
        said = fails(capsys, "--data", data, "--out", out, "--no-resume", *SMALL)
        assert "what is read" in said or "is a link" in said, said
    assert sorted(data.rglob("*")) == before


def test_settings_follow_the_preset():
    paper, twin = (
        lam.settings_from(["--preset=ac_lam_paper"]),
        lam.settings_from(["--preset", "no_ac_cpu"]),
    )
    assert (paper.train.lr, paper.train.batch_size, paper.train.warmup_steps) == (1.5e-4, 512, 2000)
    assert paper.model.image_size == 224 and paper.augmentation
    assert (
        twin.model.objective.lambda_ac == 0 and twin.train == lam.settings_for("ac_lam_cpu").train
    )
    changed = lam.settings_from(["--model.objective.lambda-ac", "3", "--no-resume"])
    assert changed.model.objective.lambda_ac == 3 and not changed.resume


def test_json_is_one_object_and_a_finished_run_stays(whole, store, capsys):
    out, result = whole
    lam.main(["--data", str(store), "--out", str(out), "--json", *SMALL])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and json.loads(printed)["loss"] == pytest.approx(result["loss"])
    assert result["probe/additivity"] > 0 and result["parameters"] > 1000
    files = {
        "config.json",
        "data.json",
        "metrics.jsonl",
        "tb",
        "checkpoints",
        "model",
        "result.json",
    }
    assert {p.name for p in out.iterdir()} == files | {".lock", ".aclam", "probe.json"}
    model = LatentActionModel.from_pretrained(out / "model")
    assert model.config.proprio_dim == 7 and model.config.idm_width == 16


def test_a_mixture_trains_and_names_its_sources(store, tmp_path, capsys):
    """Two robots of different width and people; data.json knows what each source held out."""
    shutil.copytree(store, tmp_path / "root" / "emoji")
    other = [
        dataclasses.replace(synthetic_trajectory(s, size=16), layout=None, action=None)
        for s in range(4)
    ]
    for t in other:
        t.proprio = t.proprio[:, :3]
    people = [synthetic_trajectory(s, size=16, kind="human") for s in range(4)]
    for name, episodes in (("libero", other), ("hands", people)):
        write_store(tmp_path / "root" / name, episodes)
    weights = "".join(
        f"- {{recipe: {n}, weight: {w}}}\n" for n, w in (("emoji", 3), ("libero", 2), ("hands", 1))
    )
    (tmp_path / "m.yaml").write_text(f"name: m\nparts:\n{weights}")
    argv = [
        "--mixture",
        str(tmp_path / "m.yaml"),
        "--root",
        str(tmp_path / "root"),
        "--out",
        str(tmp_path / "run"),
    ]
    lam.main([*argv, *SMALL, "--train.steps", "4", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert np.isfinite(printed["proprio"]) and np.isfinite(printed["probe/additivity"])
    about, origin = (
        json.loads((tmp_path / "run" / f).read_text()) for f in ("config.json", "data.json")
    )
    assert (about["model"]["embodiments"], about["model"]["proprio_dim"]) == (3, 7)
    assert {n: s for n, (s, _) in about["data"]["sources"].items()} == {
        "emoji": 0.5,
        "libero": 1 / 3,
        "hands": 1 / 6,
    }
    assert [f["held_out"] for f in origin["folders"]][1:] == [[3, 4], [3, 4]]
    assert all(len(set(f["each"])) == f["episodes"] for f in origin["folders"])
    assert "leave out --data" in fails(capsys, *argv, *SMALL, "--data", store)


def test_another_setting_is_another_run(whole, store, capsys):
    argv = ["--data", store, "--out", whole[0], *SMALL]
    assert "train.lr was 0.002 and is 0.1" in fails(capsys, *argv, "--train.lr", "0.1")
    assert "triples.order was unordered" in fails(capsys, *argv, "--triples.order", "ordered")


def test_everything_that_a_real_model_knows_is_in_its_checkpoint(whole, store, tmp_path):
    """Cut at step 10, where quantisation begins, and run again: the same bits (codebooks, counters,
    running means).
    """
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000020")
    moved = tmp_path / "moved"
    shutil.copytree(store, moved)  # data may be moved between two sittings
    lam.run(lam.settings_from(["--data", str(moved), "--out", str(tmp_path / "run"), *SMALL]))
    a, b = (read_tensors(p / "model" / "model.safetensors") for p in (whole[0], tmp_path / "run"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_episodes_are_held_out(store, tmp_path):
    data = lam.open_data(lam.settings_from(["--data", str(store), "--val-fraction", "0.3"]))
    kept, out = ({t.name for t in d.trajectories} for d in (data.train, data.held_out))
    assert len(kept) == 7 and len(out) == 3 and not kept & out
    with pytest.raises(UserError, match="val_fraction 1.0 of 10 episodes"):
        lam.open_data(lam.settings_from(["--data", str(store), "--val-fraction", "1"]))
    others = [tmp_path / name for name in ("second", "third")]
    for seed, folder in enumerate(others, start=100):
        write_store(folder, [synthetic_trajectory(seed + 10 * n, T=12, size=32) for n in range(4)])
    words = ["--data", str(store), str(others[0]), "--held-out", str(others[1])]
    both = lam.open_data(lam.settings_from(words))
    assert len(both.train.trajectories) == 14 and len(both.held_out.trajectories) == 4
    with pytest.raises(UserError, match="are the same data: each folder has one use"):
        lam.open_data(lam.settings_from(["--data", str(store), str(store)]))


def test_a_single_film_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_store(tmp_path / "one", [synthetic_trajectory(0, T=12, size=32, kind="human")])
    monkeypatch.setattr(lam, "decoded_once", None)
    settings = lam.settings_from(["--data", str(tmp_path / "one")])
    with pytest.raises(
        UserError, match="you need at least two in each --data.*cut this one in two.*--held-out"
    ):
        lam.open_data(settings)


def test_films_are_said_to_count_as_human_video():
    films, robot = (
        TripleDataset([synthetic_trajectory(0, kind=kind)], image_size=32)
        for kind in ("human", "robot")
    )
    cure = "--triples.human-span-s 3 --triples.human-offset-s 0.1 3"
    assert f"up to 2 s (films of a robot: {cure})" in lam.kind_notes(films)[0]
    assert lam.kind_notes(robot) == ()
    said = lam.settings_from(cure.split()).triples  # what the note says is taken, and ends it
    (note,) = lam.kind_notes(TripleDataset(films.trajectories, said, 32))
    assert note.endswith("triples span up to 3 s")


def test_little_data_are_said_to_be_little(tmp_path, capsys):
    """Three frames to train on: a line before the start. The numbers are counted alike."""
    films = [synthetic_trajectory(n, T=3, size=32, kind="human") for n in range(2)]
    write_store(tmp_path / "films", films)
    words = ["--data", str(tmp_path / "films"), "--out", str(tmp_path / "run"), "--probe-n", "64"]
    words += (
        "--train.steps 20 --train.batch-size 16 --model.idm-width 16 --model.fdm-width 16".split()
    )
    lam.main([*words, "--model.bottleneck.continuous-steps", "4", "--json"])
    out, err = capsys.readouterr()
    assert "little to train on, which the model learns by heart: 320 draws of 3 pairs" in err
    assert "little is held out: 3 different pairs" in err
    told = read_json(tmp_path / "run" / "data.json")
    assert (
        told["triples"]["human_span_s"]
        == 2.0
        == origin(tmp_path / "run")["triples"]["human_span_s"]
    )

    model = LatentActionModel.from_pretrained(tmp_path / "run")
    assert json.loads(out)["parameters"] == parameter_counts(model)["total"]
    assert f"{parameter_counts(model)['total']:,d} parameters" in err

    lam.main([*words, "--model.bottleneck.continuous-steps", "4", "--json"])  # the same again
    again, err = capsys.readouterr()
    assert "complete already: nothing to do" in err and "going on" not in err
    assert json.loads(again) == json.loads(out)


def test_another_number_of_steps_is_named_and_not_what_follows_from_it(tmp_path, capsys):
    write_store(tmp_path / "data", [synthetic_trajectory(n, T=9, size=32) for n in range(2)])
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--probe-n", "8"]
    words += "--train.batch-size 4 --model.idm-width 16 --model.fdm-width 16 --json".split()
    lam.main([*words, "--train.steps", "4"])
    with pytest.raises(SystemExit):
        lam.main([*words, "--train.steps", "400"])
    assert "(train.steps was 4 and is 400)" in capsys.readouterr().err


def test_fingerprint_tells_data_apart():
    a, b = synthetic_trajectory(seed=1), synthetic_trajectory(seed=2)
    assert fingerprint([a, b]) == fingerprint([a, b]) != fingerprint([b, a])
    touched = dataclasses.replace(a, proprio=a.proprio + 1e-3)
    assert fingerprint([a]) != fingerprint([touched])


def test_the_proprio_fdm_is_as_wide_as_the_data():
    config = lam.settings_for("ac_lam_cpu").model
    robot, human = (
        TripleDataset([synthetic_trajectory(0, kind=k)], image_size=32) for k in ("robot", "human")
    )
    assert (
        lam.fit_to_data(config, robot).proprio_dim == 7
        and lam.fit_to_data(config, human).proprio_dim == 0
    )
    silent = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, lambda_proprio=0.0)
    )
    assert lam.fit_to_data(silent, robot).proprio_dim == 0
    acting = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, lambda_action=1.0)
    )
    assert lam.fit_to_data(acting, robot).action_dim == 7


class Broken:
    """Frames of which one cannot be read."""

    def __init__(self, frames, bad):
        self.frames, self.bad = frames, bad

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, indices):
        if self.bad in list(indices):
            raise UserError(f"toy/000003: the image of frame {self.bad} cannot be read")
        return self.frames[indices]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(tmp_path, workers):
    t = synthetic_trajectory(0, size=32)
    data = TripleDataset([dataclasses.replace(t, frames=Broken(t.frames, 9))], TripleConfig(), 32)
    model = LatentActionModel.from_preset("ac_lam_cpu", idm_width=16, fdm_width=16)
    config = TrainConfig(steps=20, batch_size=8, num_workers=workers)
    with pytest.raises(UserError) as e:
        train(model, data, config, tmp_path)
    assert str(e.value) == "toy/000003: the image of frame 9 cannot be read"


def test_a_loss_that_is_not_finite_names_trajectory_and_frames(tmp_path):
    t = synthetic_trajectory(0, size=32)
    data = TripleDataset([t], TripleConfig(), 32)
    model = LatentActionModel.from_preset("ac_lam_cpu", idm_width=16, fdm_width=16, proprio_dim=7)
    d = data.draw(12)
    data.parts.proprio.values[d.j] = np.nan
    with pytest.raises(UserError, match=rf"{t.name} frames \d+, \d+, \d+.*no checkpoint") as e:
        train(model, data, TrainConfig(steps=4, batch_size=8), tmp_path)
    assert "\n" not in str(e.value)


def interrupted(monkeypatch, capfd, main, words, at: int) -> tuple[int, str]:
    """Status and standard error of a training that gets Ctrl-C while its batch `at` is made."""
    made = []
    batches = Batches.__getitem__

    def batch(self, part):
        made.append(part)
        if len(made) == at:
            signal.raise_signal(signal.SIGINT)
        return batches(self, part)

    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(Batches, "__getitem__", batch)
        main(words)
    return e.value.code, capfd.readouterr().err


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(
    store, whole, tmp_path, monkeypatch, capfd
):
    words = ["--data", str(store), "--out", str(tmp_path / "run"), *SMALL]
    words += ["--train.num-workers", "0"]
    status, said = interrupted(monkeypatch, capfd, lam.main, words, at=7)
    kept = tmp_path / "run" / "checkpoints"
    assert status == 130 and [p.name for p in kept.iterdir()] == ["step_000007"]
    assert f"step 7 of 20 is saved, the same command goes on from {kept / 'step_000007'}" in said
    assert "Traceback" not in said and "Ctrl-C again ends at once" in said
    assert not list((tmp_path / "run" / "model").glob("*"))

    lam.run(lam.settings_from(words))
    model = "model/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (whole[0] / model).read_bytes()


# ---- the demo


def test_a_stage_is_done_once(tmp_path):
    calls = []

    def work():
        calls.append(1)
        (tmp_path / "made").mkdir()
        return {"calls": len(calls)}

    for settings, count in [({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2), ({"a": 2}, 2)]:
        assert demo.stage(tmp_path, "s", settings, ["made"], work) == {"calls": count}
    shutil.rmtree(tmp_path / "made")
    assert demo.stage(tmp_path, "s", {"a": 2}, ["made"], work) == {"calls": 3}


def test_a_stage_that_was_stopped_goes_on(tmp_path):
    def stopped():
        (tmp_path / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.stage(tmp_path, "s", 1, ["half"], stopped)
    assert (
        demo.stage(tmp_path, "s", 1, ["half"], lambda: (tmp_path / "half").read_text()) == "done"
    )  # kept
    with pytest.raises(KeyboardInterrupt):
        demo.stage(tmp_path, "s", 2, ["half"], stopped)
    assert (
        demo.stage(tmp_path, "s", 3, ["half"], lambda: (tmp_path / "half").exists()) is False
    )  # other settings


def test_the_demo_trains_both_alike():
    words = [set(demo.model_command(demo.DemoConfig(steps=30), p)) for p in demo.MODELS]
    assert words[0] ^ words[1] == {
        f"{folder}{p}" for folder in ("", "runs/demo/") for p in demo.MODELS
    }
    config = lam.settings_from(demo.model_command(demo.DemoConfig(steps=30), "no_ac_cpu")[3:])
    usual = lam.settings_for("no_ac_cpu")
    share = usual.model.bottleneck.continuous_steps / usual.train.steps
    assert config.train.steps == 30 and config.model.bottleneck.continuous_steps == round(
        30 * share
    )


def test_a_training_that_fails_stops_the_other(tmp_path, monkeypatch):
    def command(config, preset):
        work = (
            "import time; time.sleep(60)"
            if preset == "no_ac_cpu"
            else "raise SystemExit('no such luck')"
        )
        return [sys.executable, "-c", work]

    started, real = [], demo.start_training
    monkeypatch.setattr(demo, "model_command", command)
    monkeypatch.setattr(
        demo, "start_training", lambda *a, **k: started.append(real(*a, **k)) or started[-1]
    )
    with pytest.raises(UserError, match="training ac_lam_cpu failed: no such luck"):
        demo.train_both(demo.DemoConfig(out=str(tmp_path), steps=5), every=0.05)
    assert [p.poll() is not None for p in started] == [True, True]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quick_demo(tmp_path):
    pytest.importorskip("mujoco")
    command = [
        sys.executable,
        "-m",
        "aclam.studies.demo",
        "--quick",
        "--json",
        "--out",
        str(tmp_path / "demo"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert set(results["models"]) == set(demo.MODELS.values())
    for row in results["models"].values():
        assert {
            "additivity",
            "norm_correlation",
            "identity",
            "inverse",
            "reconstruction",
            "codes_used",
        } <= set(row)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<figure>") == 5 and "quick version" in page
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*.safetensors")}
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert json.loads(again.stdout) == results
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*.safetensors")}


@pytest.mark.slow
def test_a_real_model_on_two_processes(store, tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command = [
        *torchrun,
        "-m",
        "aclam.train.lam",
        "--data",
        str(store),
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    command += SMALL
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 20  # one object, from one of the two
    log = read_metrics(tmp_path / "run")
    assert [r["step"] for r in log if "loss" in r] == list(range(1, 21))
    assert LatentActionModel.from_pretrained(tmp_path / "run" / "model").config.idm_width == 16


# ---- from two cores to 32 GPUs


def test_the_plan_of_the_paper():
    p = scale.plan(nodes=4, gpus_per_node=8)
    assert (p.processes, p.per_process, p.idm_passes, p.fdm_passes) == (32, 16, 48, 64)
    assert p.frame_bytes == 48 * 3 * 224 * 224 and p.steps_per_epoch == 436_524
    assert scale.plan(nodes=4, additive=False).fdm_passes == 48
    with pytest.raises(UserError, match="for example 504"):
        scale.plan(nodes=3)


@pytest.mark.parametrize(
    "name, machines, processes",
    [("one_gpu", 1, 1), ("eight_gpus", 1, 8), ("nodes", 4, 32), ("two_cpu_processes", 1, 2)],
)
def test_launch_configurations(name, machines, processes):
    path = scale.launch_config(name)
    config = load_config_from_file(str(path))  # accelerate itself reads it
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"  # TrainConfig decides


def test_no_such_launch_configuration():
    with pytest.raises(UserError, match='Did you mean "one_gpu"'):
        scale.launch_config("one_gpus")


def test_console_scripts_point_here():
    assert COMMANDS["aclam-train-lam"] == "aclam.train.lam"
    assert COMMANDS["aclam-demo"] == "aclam.studies.demo"
    assert callable(lam.main) and callable(demo.main)


# --- UniVLA's two stages --------------------------------------------------------------------------

TINY = (
    "--model.width 16 --model.vision-width 16 --model.idm-depth 1 --model.fdm-depth 1 "
    "--model.vision-depth 1 --probe-n 16 --model.bottleneck.continuous-steps 2 "
    "--train.steps 4 --train.batch-size 4 --train.probe-every 4"
).split()


@pytest.fixture(scope="module")
def stage_1(store, tmp_path_factory):
    """A finished run of UniVLA's stage 1, told the tasks."""
    out = tmp_path_factory.mktemp("stage_1")
    words = ["--preset", "univla_stage_1_cpu", "--data", str(store), "--out", str(out), *TINY]
    lam.run(lam.settings_from(words))
    return out


def test_stage_1_hears_the_task_of_each_episode(stage_1, store):
    films = [
        dataclasses.replace(synthetic_trajectory(seed=n, size=32), task=f"do {'ab'[n % 2]}")
        for n in range(4)
    ]
    data = lam.with_tasks(
        TripleDataset(films, TripleConfig(), 32), UniVLAConfig(stage=1, text_dim=6)
    )
    batch, alone = data.batch(range(8)), data.triples.batch(range(8))
    own = [films[n].task for n in batch["index"][:, 0].tolist()]
    assert len(set(own)) == 2 and torch.equal(batch["frames"], alone["frames"])
    for n, task in enumerate(own):
        said, mask = hashed_words([task], 6)
        assert torch.equal(batch["words"][n], said[0]) and torch.equal(
            batch["word_mask"][n], mask[0]
        )
    trained = LatentActionModel.from_pretrained(stage_1 / "model")
    assert trained.config.text_dim == 32 and "words" in json.loads(
        (stage_1 / "config.json").read_text()
    )
    torch.manual_seed(0)
    fresh = LatentActionModel(trained.config)
    assert not torch.equal(trained.language.weight, fresh.language.weight)  # it had a gradient


def test_stage_2_keeps_the_codes_of_stage_1_and_nothing_else(stage_1, store, tmp_path):
    words = ["--preset", "univla_stage_2_cpu", "--data", str(store), "--out", str(tmp_path), *TINY]
    lam.run(lam.settings_from([*words, "--stage-1", str(stage_1 / "model")]))
    first, second = (
        LatentActionModel.from_pretrained(p / "model").state_dict() for p in (stage_1, tmp_path)
    )
    assert torch.equal(second["aside.bottleneck.book.codes"], first["codes.bottleneck.book.codes"])
    assert not torch.equal(
        second["codes.bottleneck.book.codes"], first["codes.bottleneck.book.codes"]
    )
    assert not torch.equal(
        second["idm.blocks.0.mlp.fc1.weight"], first["idm.blocks.0.mlp.fc1.weight"]
    )
    assert all(torch.equal(second[n], first[n]) for n in first if n.startswith("eye."))
    assert not any(n.startswith("language") for n in second)


def test_stage_1_is_told_by_t5_where_it_is_asked_to(store, tmp_path, capsys):
    pytest.importorskip("transformers")
    t5 = "--model.text.kind t5 --model.text.depth 1 --model.text.heads 2 --model.text.vocab 64".split()
    words = ["--preset", "univla_stage_1_cpu", "--data", str(store), "--out", str(tmp_path), *TINY]
    lam.run(lam.settings_from([*words, *t5]))
    assert "T5 of random weights" in capsys.readouterr().err
    trained = LatentActionModel.from_pretrained(tmp_path / "model")
    assert trained.config.text == TextConfig("t5", depth=1, heads=2, vocab=64)


def test_stages_that_do_not_fit_are_one_line(stage_1, store, tmp_path, capsys):
    start = ["--data", store, "--out", tmp_path / "x", "--stage-1", stage_1 / "model"]
    assert "--stage-1 belongs to stage 2" in fails(capsys, "--preset", "univla_cpu", *TINY, *start)
    second = ["--preset", "univla_stage_2_cpu", *TINY, *start]
    assert "code_dim is 8, but 4" in fails(capsys, *second, "--model.code-dim", "8")
    assert "codebook of stage 1 has another size" in fails(
        capsys, *second, "--model.bottleneck.codes", "8"
    )
    silent = tmp_path / "silent"
    films = (dataclasses.replace(synthetic_trajectory(seed=n, size=32), task="") for n in range(3))
    write_store(silent, films)
    argv = ["--preset", "univla_stage_1_cpu", "--data", silent, "--out", tmp_path / "y", *TINY]
    assert "no episode has a task: give --model.text-dim 0" in fails(capsys, *argv)
