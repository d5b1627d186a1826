"""Nothing stale: what decides a result changes under a run that is finished, or half finished, and
the same command notices it. Each change is named and refused, or carried out; none is passed over.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from aclam.core import UserError
from aclam.data.cache import decoded_once
from aclam.data.recipe import RECIPES, read_yaml
from aclam.data.source import open_dataset
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import LatentActionModel
from aclam.policy import rollout
from aclam.structure.held_out import origin, unseen
from aclam.studies.comparison import CompareConfig, compare, run_of
from aclam.train import label_files, lam, policy
from aclam.train.checkpoint import checkpoints
from aclam.train.label import label, stop_after
from aclam.train.label_job import LabelConfig, open_job
from aclam.train.log import read_metrics
from aclam.weights import read_tensors

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = (
    "--model.idm-width 16 --model.fdm-width 16 --model.bottleneck.continuous-steps 10 --probe-n 16 "
    "--train.steps 6 --train.batch-size 8 --train.probe-every 3 --train.checkpoint-every 3"
).split()


def episodes(first: int = 0, n: int = 6) -> list:
    return [synthetic_trajectory(seed=first + s, T=30, size=32, fps=20) for s in range(n)]


def noisy(t, seed: int):
    """The episode, with noise for pictures: names, lengths, times, states and actions agree."""
    shape = (len(t), *t.frames[[0]].shape[1:])
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return dataclasses.replace(t, frames=type(t.frames)(noise))


def other_actions(t):
    """The episode, with its actions reversed and three times as large."""
    return dataclasses.replace(t, action=np.ascontiguousarray(3 * t.action[::-1]))


def put(folder: Path, content: list) -> Path:
    """A store of these episodes at a path where there may have been another."""
    shutil.rmtree(folder, ignore_errors=True)
    write_store(folder, content, shard_size=3)
    return folder


def halve(run: Path) -> None:
    """Leave of a finished run what one has that was killed after its first checkpoint."""
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()
    shutil.rmtree(checkpoints(run)[-1])


def content(folder: Path) -> dict[Path, bytes]:
    """All files of a folder, but the name of the process that held it last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in files}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- train-lam ------------------------------------------------------------------------------------


def train_lam(data: Path, out: Path, *more: str) -> dict:
    words = ["--data", data, "--out", out, *SMALL, *more]
    return lam.run(lam.settings_from(list(map(str, words))))


@pytest.fixture(scope="module")
def lam_run(tmp_path_factory) -> Path:
    """A folder with `data` and the finished `run` of a small model."""
    root = tmp_path_factory.mktemp("lam")
    put(root / "data", episodes())
    train_lam(root / "data", root / "run")
    return root


@pytest.fixture
def trained(lam_run, tmp_path) -> Path:
    """A copy of it that may be changed."""
    shutil.copytree(lam_run, tmp_path / "lam")
    return tmp_path / "lam"


def test_the_same_data_elsewhere_are_the_same_run(trained, tmp_path):
    """The refusals below mean something: what has not changed is not refused."""
    result = (trained / "run" / "result.json").read_bytes()
    shutil.move(trained / "data", tmp_path / "moved")
    train_lam(tmp_path / "moved", trained / "run")
    assert (trained / "run" / "result.json").read_bytes() == result


@pytest.mark.parametrize("finished", [True, False])
def test_1_other_pixels_under_a_latent_action_model(trained, finished):
    if not finished:
        halve(trained / "run")
    put(trained / "data", [noisy(t, n) for n, t in enumerate(episodes())])
    before = content(trained / "run")
    with pytest.raises(UserError, match=r"another run \(data.identity.folder 1.bytes was "):
        train_lam(trained / "data", trained / "run")
    assert content(trained / "run") == before


def test_2_held_out_data_that_are_named_later_or_changed(trained, tmp_path, capsys):
    one = put(tmp_path / "one", episodes(20, 2))
    two = put(tmp_path / "two", [noisy(t, 7) for t in episodes(20, 2)])
    run = tmp_path / "run"
    first = train_lam(trained / "data", run, "--held-out", str(one))
    again = train_lam(trained / "data", run, "--held-out", str(one))
    assert again == first

    capsys.readouterr()
    other = train_lam(trained / "data", run, "--held-out", str(two))
    assert "held_out.bytes was" in capsys.readouterr().err
    assert other["probe/reconstruction"] != first["probe/reconstruction"]
    assert other["loss"] == first["loss"]
    assert (
        json.loads((run / "result.json").read_text())["probe/reconstruction"]
        == (other["probe/reconstruction"])
    )

    fresh = train_lam(trained / "data", tmp_path / "fresh", "--held-out", str(two))
    assert other["probe/reconstruction"] == pytest.approx(fresh["probe/reconstruction"], rel=1e-5)
    assert train_lam(trained / "data", run, "--held-out", str(one))["probe/reconstruction"] == (
        pytest.approx(first["probe/reconstruction"], rel=1e-5)
    )


def test_3_more_probed_triples_and_a_probe_that_was_off(trained, tmp_path, capsys):
    first = train_lam(trained / "data", trained / "run")
    more = train_lam(trained / "data", trained / "run", "--probe-n", "32")
    assert "probe_n was 16 and is 32): it is probed again" in capsys.readouterr().err
    assert more["probe/additivity"] != first["probe/additivity"]

    run = tmp_path / "run"
    off = train_lam(trained / "data", run, "--train.probe-every", "0")
    assert not any(name.startswith("probe/") for name in off)
    on = train_lam(trained / "data", run)
    assert on["probe/additivity"] == pytest.approx(first["probe/additivity"], rel=1e-5)

    halve(trained / "run")
    train_lam(trained / "data", trained / "run")
    said = capsys.readouterr().err
    assert "probe_n was 32 and is 16): after step 3 the new is" in said


def test_4_a_run_that_lost_its_settings(trained):
    (trained / "run" / "config.json").unlink()
    with pytest.raises(UserError, match="checkpoints, and no config.json"):
        train_lam(trained / "data", trained / "run", "--train.seed", "5", "--train.lr", "0.1")
    assert not (trained / "run" / "config.json").exists()


def test_an_older_run_goes_on_and_has_an_identity_from_then_on(trained):
    file = trained / "run" / "config.json"
    config = json.loads(file.read_text())
    known = config["data"].pop("identity")
    file.write_text(json.dumps(config))
    for name in (".aclam", "probe.json"):
        (trained / "run" / name).unlink()
    for mark in (trained / "run").rglob(".aclam"):
        mark.unlink()
    halve(trained / "run")
    train_lam(trained / "data", trained / "run")
    assert json.loads(file.read_text())["data"]["identity"] == known
    put(trained / "data", [noisy(t, n) for n, t in enumerate(episodes())])
    with pytest.raises(UserError, match="bytes was"):
        train_lam(trained / "data", trained / "run")


def test_a_result_that_was_lost_is_that_of_the_log(trained):
    """Killed between the last checkpoint and the result."""
    file = trained / "run" / "result.json"
    whole = json.loads(file.read_text())
    file.unlink()
    shutil.rmtree(trained / "run" / "model")
    train_lam(trained / "data", trained / "run")
    assert json.loads(file.read_text()) == whole
    assert read_metrics(trained / "run")[-1]["step"] == 6


def test_a_model_whose_checkpoints_are_gone_is_not_replaced_by_another(trained):
    shutil.rmtree(trained / "run" / "checkpoints")
    weights = read_tensors(trained / "run" / "model" / "model.safetensors")
    with pytest.raises(UserError, match="train.seed was 0 and is 3"):
        train_lam(trained / "data", trained / "run", "--train.seed", "3")
    train_lam(trained / "data", trained / "run")
    again = read_tensors(trained / "run" / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("words", [("--data", "{0}", "{0}"), ("--held-out", "{0}")])
def test_data_that_are_named_twice(trained, words):
    given = [word.format(trained / "data") for word in words]
    with pytest.raises(UserError, match="are the same data: each folder has one use"):
        train_lam(trained / "data", trained / "new", *given)


@pytest.mark.parametrize("what", ["pixels", "weight", "filter"])
def test_5_a_mixture_whose_source_changed(tmp_path, what):
    write_store(tmp_path / "sources" / "emoji", episodes())
    write_store(tmp_path / "sources" / "libero", episodes(30))
    mixture = tmp_path / "mix.yaml"
    text = "name: mix\nparts: [{recipe: emoji, weight: 3}, {recipe: libero, weight: 1}]\n"
    mixture.write_text(text)
    words = ["--mixture", mixture, "--root", tmp_path / "sources", "--out", tmp_path / "run"]

    def run():
        return lam.run(lam.settings_from(list(map(str, [*words, *SMALL]))))

    assert run() == run()
    if what == "pixels":
        put(tmp_path / "sources" / "libero", [noisy(t, 1) for t in episodes(30)])
        change = "data.identity.libero.bytes was"
    elif what == "weight":
        mixture.write_text(text.replace("weight: 1", "weight: 2"))
        change = "data.sources.emoji was"
    else:
        mixture.write_text(text.replace("weight: 1", "weight: 1, max_rotation_deg: 5"))
        change = "data.identity.triples.libero.max_rotation_deg was 30.0 and is 5"
    with pytest.raises(UserError, match=change):
        run()


# --- train-policy ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy_run(tmp_path_factory) -> Path:
    """A folder with `data`, a model `lam` and the finished run of a small `policy`."""
    root = tmp_path_factory.mktemp("policy")
    put(root / "data", episodes())
    torch.manual_seed(0)
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(root / "lam")
    train_policy(root)
    return root


def train_policy(root: Path, **changes) -> dict:
    small = policy.settings_for("policy_cpu")
    model = dataclasses.replace(small.model, control="recorded")
    loop = dataclasses.replace(
        small.train, steps=6, batch_size=4, probe_every=3, checkpoint_every=3, log_every=1
    )
    settings = dataclasses.replace(
        small,
        data=(str(root / "data"),),
        lam=str(root / "lam"),
        out=str(root / "policy"),
        model=model,
        train=loop,
        probe_n=2,
    )
    return policy.run(dataclasses.replace(settings, **changes))


@pytest.mark.parametrize("finished", [True, False])
def test_6_other_commands_and_other_pixels_under_a_policy(policy_run, tmp_path, finished):
    shutil.copytree(policy_run, tmp_path / "root")
    root = tmp_path / "root"
    if not finished:
        halve(root / "policy")
    for change in (other_actions, lambda t: noisy(t, 3)):
        put(root / "data", list(map(change, episodes())))
        with pytest.raises(UserError, match="data.identity.folder 1.bytes was"):
            train_policy(root)
    put(root / "data", episodes())
    train_policy(root)


def test_7_another_latent_action_model_under_a_policy(policy_run, tmp_path):
    shutil.copytree(policy_run, tmp_path / "root")
    torch.manual_seed(1)
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(tmp_path / "root" / "lam")
    with pytest.raises(UserError, match="data.lam was"):
        train_policy(tmp_path / "root")


def test_more_probed_moments_of_a_policy(policy_run, tmp_path, capsys):
    shutil.copytree(policy_run, tmp_path / "root")
    before = json.loads((policy_run / "policy" / "result.json").read_text())
    after = train_policy(tmp_path / "root", probe_n=4)
    assert "probe_n was 2 and is 4" in capsys.readouterr().err
    assert after["probe/loss"] != before["probe/loss"] and after["loss"] == before["loss"]


# --- label ----------------------------------------------------------------------------------------


def label_config(root: Path, **changes) -> LabelConfig:
    words = {"model": root / "lam", "data": root / "data", "piece_frames": 60}
    return LabelConfig(**words | changes)


@pytest.mark.parametrize("finished", [True, False])
def test_8_other_pixels_under_labels(policy_run, tmp_path, finished):
    shutil.copytree(policy_run, tmp_path / "root")
    config = label_config(tmp_path / "root", out=tmp_path / "labels")
    if finished:
        label(config)
    else:
        job = open_job(config)
        stop_after(job, job.pieces, 2)
    put(tmp_path / "root" / "data", [noisy(t, 5) for t in episodes()])
    before = content(tmp_path / "labels")
    with pytest.raises(UserError, match=r"holds other labels \(data.bytes was"):
        label(config)
    assert content(tmp_path / "labels") == before


def recipe_of(camera: str, channels: str, skip_first: int = 0) -> str:
    """A recipe for the RLDS fixture, which is none of the published ones."""
    told = read_yaml(RECIPES / "bridge" / "recipe.yaml")
    told["camera"] |= {"key": camera, "channels": channels}
    told |= {"name": "pattern", "proprio": None, "lerobot_proprio": None, "table6_row": None}
    return yaml.safe_dump(told | {"skip_first": skip_first, "percent": None})


@pytest.mark.parametrize(
    ("camera", "channels", "skip_first", "change"),
    [
        ("wrist_image", "rgb", 0, "data.camera was .*image and is .*wrist_image"),
        ("image", "bgr", 0, "data.declared.bgr was"),
        ("image", "rgb", 1, "data.declared.skip_first was|frames was"),
    ],
)
def test_9_a_recipe_that_was_mended(policy_run, tmp_path, camera, channels, skip_first, change):
    """Labels of the old camera, and cached frames of the old colors, answer for nothing."""
    data = tmp_path / "set"
    shutil.copytree(FIXTURES / "rlds", data)
    (data / "recipe.yaml").write_text(recipe_of("image", "rgb"))
    config = label_config(policy_run, data=data, out=tmp_path / "labels")
    label(config)
    old = decoded_once(open_dataset(data), 16, 1.0)[0].frames[[0, 1]]

    (data / "recipe.yaml").write_text(recipe_of(camera, channels, skip_first))
    with pytest.raises(UserError, match=change):
        label(config)
    assert not np.array_equal(decoded_once(open_dataset(data), 16, 1.0)[0].frames[[0, 1]], old)
    label(dataclasses.replace(config, out=tmp_path / "fresh"))
    one, two = (read_column(tmp_path / name) for name in ("labels", "fresh"))
    assert one.shape != two.shape or not np.array_equal(one, two, equal_nan=True)


def read_column(folder: Path) -> np.ndarray:
    labels = label_files.read_labels(folder)
    return label_files.rows_of(labels, "latent_action_1", range(len(labels)))


def test_labels_of_other_pixels_are_not_found_by_a_policy(policy_run, tmp_path):
    shutil.copytree(policy_run, tmp_path / "root")
    label(label_config(tmp_path / "root"))
    model = LatentActionModel.from_pretrained(tmp_path / "root" / "lam")
    data = tmp_path / "root" / "data"
    assert list(label_files.labels_of(read_store(data), model)) == [1]
    shutil.copytree(data / "labels", tmp_path / "kept")
    put(data, [noisy(t, 5) for t in episodes()])
    shutil.copytree(tmp_path / "kept", data / "labels")
    assert label_files.labels_of(read_store(data), model) == {}


def test_older_labels_go_on(policy_run, tmp_path):
    config = label_config(policy_run, out=tmp_path / "labels")
    label(config)
    file = tmp_path / "labels" / "labels.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in about.items() if key != "data"}))
    (tmp_path / "labels" / ".aclam").unlink()
    assert label(config)["done"]


# --- structure, compare, rollout ------------------------------------------------------------------


def compare_config(root: Path, out: Path) -> CompareConfig:
    return CompareConfig(
        data=(root / "data",),
        models=("ac_lam_cpu",),
        out=out,
        steps=6,
        seeds=1,
        n=16,
        probe_n=16,
        intervals=0,
        device="cpu",
    )


def test_10_other_pixels_under_a_comparison(tmp_path):
    """Neither models that were trained on the old ones nor numbers that were measured on them."""
    put(tmp_path / "data", episodes(n=20))
    train_lam(tmp_path / "data", tmp_path / "run")
    config = compare_config(tmp_path, tmp_path / "out")

    def train(config, deadline):
        shutil.copytree(tmp_path / "run", run_of(config, "ac_lam_cpu", 0), dirs_exist_ok=True)
        yield "ac_lam_cpu", 0

    first = compare(config, train)
    assert compare(config, train)["models"] == first["models"]
    put(tmp_path / "data", [noisy(t, 5) for t in episodes(n=20)])
    with pytest.raises(UserError, match="bytes was"):
        compare(config, train)


def test_11_structure_of_data_that_were_trained_on(lam_run, tmp_path):
    """What is held out is found by content: data that changed are not the training's."""
    known = origin(lam_run / "run" / "model")
    store = read_store(lam_run / "data")
    assert unseen(store, known) == [5]
    changed = put(tmp_path / "data", [other_states(t) for t in episodes()])
    assert unseen(read_store(changed), known) == [0, 1, 2, 3, 4, 5]

    # a store that was made anew, larger, in the place of the training's: half of it may be known
    same_place = {"folders": [known["folders"][0] | {"folder": str(changed)}]}
    with pytest.raises(UserError, match="has changed, or is read otherwise"):
        unseen(read_store(changed), same_place)
    assert unseen(read_store(changed), same_place, first=3) == [3, 4, 5]


def other_states(t):
    return dataclasses.replace(t, proprio=t.proprio + 1)


@pytest.fixture
def environment():
    sim = pytest.importorskip("aclam.sim.benchmark")
    return sim.EnvConfig(control="joints", image_size=32, max_steps=5)


@pytest.mark.parametrize("what", ["weights", "demonstrations"])
def test_12_another_policy_or_other_layouts_under_a_rollout(
    policy_run, tmp_path, environment, what
):
    shutil.copytree(policy_run, tmp_path / "root")
    model = tmp_path / "root" / "policy" / "model"
    data = tmp_path / "root" / "data"
    config = rollout.RolloutConfig(policy=str(model), data=str(data), out=str(tmp_path / "out"))
    rollout.resume(config.out, rollout.rules_of(config, environment))
    rollout.resume(config.out, rollout.rules_of(config, environment))
    if what == "weights":
        shutil.copy(tmp_path / "root" / "lam" / "model.safetensors", model)
    else:
        put(data, [other_actions(t) for t in episodes()])
    with pytest.raises(UserError, match="another rollout .* was "):
        rollout.resume(config.out, rollout.rules_of(config, environment))
