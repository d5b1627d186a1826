"""A trained model is named by its folder, its run, a checkpoint, a short name, or a name on the hub."""

import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from aclam.core import UserError
from aclam.hub import from_hub
from aclam.kept import find_model, kept_names, kept_result
from aclam.lam import LatentActionModel, list_models
from aclam.policy import Policy
from aclam.structure.held_out import origin


@pytest.mark.parametrize("name", kept_names())
def test_a_kept_model_is_trained_in_evaluation_mode_and_pure(name):
    lam = LatentActionModel.from_pretrained(name)
    assert not lam.training and name in lam.weights_from
    size = lam.config.image_size
    o_i, o_j = torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in lam.state_dict().items()}
    first, second = lam.encode(o_i, o_j), lam.encode(o_i, o_j)
    assert torch.equal(first.z, second.z)
    assert first.indices is not None or name == "potential_lam_cpu"
    for key, value in lam.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_every_kept_model_is_listed_and_says_what_it_was_trained_on():
    assert list_models() == kept_names() and len(list_models()) >= 8
    for name in list_models():
        assert [Path(f["folder"]).name for f in origin(name)["folders"]] == [
            "emoji",
            "metaworld",
            "robosuite",
        ]


@pytest.mark.parametrize("name", kept_names("policies"))
def test_a_kept_policy_loads_by_its_name(name):
    policy = Policy.from_pretrained(name)
    assert not policy.training and name in policy.weights_from


def test_an_untrained_model_says_so():
    lam = LatentActionModel.from_preset("ac_lam_cpu")
    assert "weights: untrained" in repr(lam)
    trained = LatentActionModel.from_pretrained("ac_lam_cpu")
    assert "untrained" not in repr(trained) and "ac_lam_cpu" in repr(trained)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps, with checkpoints."""
    place = tmp_path_factory.mktemp("run")
    words = "-m aclam.commands.data prepare emoji --episodes 3 --size 32 --out data"
    small = (
        "-m aclam.train.lam --data data --out run --train.steps 4 --train.checkpoint-every 2 "
        "--train.batch-size 4 --probe-n 8 --model.idm-width 16 --model.fdm-width 16"
    )
    for command in (words, small):
        subprocess.run([sys.executable, *command.split()], cwd=place, check=True)
    return place / "run"


def test_a_run_its_model_and_its_checkpoints_are_one_model(run, capsys):
    whole = LatentActionModel.from_pretrained(run / "model").state_dict()
    for place in (run, run / "checkpoints" / "step_000004"):
        other = LatentActionModel.from_pretrained(place)
        for key, value in other.state_dict().items():
            assert torch.equal(value, whole[key]), (place, key)
    assert origin(run) == origin(run / "model") == origin(run / "checkpoints" / "step_000004")
    assert capsys.readouterr().err == ""


def test_of_a_run_that_has_not_finished_the_newest_checkpoint_is_taken(run, tmp_path, capsys):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    shutil.rmtree(half / "model")
    lam = LatentActionModel.from_pretrained(half)
    assert lam.weights_from.endswith("step_000004")
    assert "has not finished: its newest checkpoint, step_000004" in capsys.readouterr().err


def test_a_checkpoint_without_its_run_is_one_line(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "step_000004", tmp_path / "checkpoints" / "step_000004")
    with pytest.raises(UserError, match="no such file: .*config.json"):
        LatentActionModel.from_pretrained(tmp_path / "checkpoints" / "step_000004")


@pytest.mark.parametrize("name", ["ac_lam_cup", "ac_lam", "./none", "/no/where", "", "a/b/c"])
def test_a_name_that_is_nothing_is_one_line(name):
    with pytest.raises(UserError) as caught:
        find_model(name)
    said = str(caught.value)
    assert "no latent action model at" in said and "ac_lam_cpu" in said and "\n" not in said


def test_a_folder_of_the_name_of_a_kept_model_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ac_lam_cpu").mkdir()
    assert find_model("ac_lam_cpu") == Path("ac_lam_cpu")
    with pytest.raises(UserError, match="no such file"):
        LatentActionModel.from_pretrained("ac_lam_cpu")


# --- the hub --------------------------------------------------------------------------------------


def test_a_model_of_the_hub(monkeypatch, tmp_path):
    asked = []

    def download(name, revision=None):
        asked.append((name, revision))
        return str(kept_result("models/ac_lam_cpu/model"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    lam = LatentActionModel.from_pretrained("somebody/first", revision="v1")
    assert asked == [("somebody/first", "v1")] and not lam.training


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), TimeoutError("slow"), OSError("disk")]
)
def test_a_hub_that_does_not_answer_is_one_line(monkeypatch, error):
    def download(name, revision=None):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match="nobody/nothing is no folder here, and cannot be had"):
        from_hub("nobody/nothing")


def test_what_is_sent_to_the_hub_is_whole_and_loads_again(monkeypatch, tmp_path):
    class Api:
        def create_repo(self, name, private=None, exist_ok=False):
            return f"hub:{name}"

        def upload_folder(self, folder_path, repo_id, revision, commit_message):
            shutil.copytree(folder_path, tmp_path / "sent")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    lam = LatentActionModel.from_pretrained("ac_lam_cpu")
    assert lam.push_to_hub("me/first", private=True) == "hub:me/first"
    sent = tmp_path / "sent"
    assert sorted(p.name for p in sent.iterdir() if p.name[0] != ".") == [
        "README.md",
        "config.json",
        "data.json",
        "model.safetensors",
    ]
    card = (sent / "README.md").read_text()
    assert "from aclam.lam import LatentActionModel" in card
    assert 'from_pretrained("me/first")' in card and "180 of 200 episodes" in card
    assert origin(sent) == origin("ac_lam_cpu")
    again = LatentActionModel.from_pretrained(sent)
    assert again.config == lam.config


def test_a_card_of_a_policy_names_its_class(monkeypatch, tmp_path):
    class Api:
        def create_repo(self, name, private=None, exist_ok=False):
            return name

        def upload_folder(self, folder_path, repo_id, revision, commit_message):
            shutil.copytree(folder_path, tmp_path / "sent")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    Policy.from_pretrained("policy_cpu_wo_lam").push_to_hub("me/policy")
    card = (tmp_path / "sent" / "README.md").read_text()
    assert "from aclam.policy import Policy" in card and "Policy.from_pretrained" in card
