"""Still pictures that say what is where, the reader that learns from them, and policies that begin
from its encoder.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from aclam.commands import data as data_command
from aclam.core import UserError
from aclam.data.cache import cache_frames
from aclam.data.source import open_dataset
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.policy import grounding, small_vlm, vlm
from aclam.policy.experts import LayerSize
from aclam.sim.sources import prepare_source
from aclam.train import demonstrations
from aclam.train import grounding as training
from aclam.train import policy as policy_training
from aclam.train.config import TrainConfig
from aclam.weights import read_tensors

ENCODER = dataclasses.replace(
    small_vlm.SMALL,
    image_size=48,
    vision_width=32,
    depth=2,
    layer=LayerSize(32, 64, 4, 4, 8, "silu"),
)


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounding") / "stills"
    prepare_source("stills", folder, episodes=4, size=48, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def encoder(stills, tmp_path_factory):
    """A run of a few steps, and the folder of its encoder."""
    out = tmp_path_factory.mktemp("encoder")
    loop = TrainConfig(
        steps=6, batch_size=8, lr=1e-3, warmup_steps=0, probe_every=3, checkpoint_every=3
    )
    return out, training.run(
        training.GroundingTrainConfig(str(stills), str(out), ENCODER, probe_n=8, train=loop)
    )


def scenes(folder) -> list:
    return open_dataset(folder).trajectories


def test_stills_are_a_function_of_the_seed(stills, tmp_path):
    prepare_source("stills", tmp_path / "again", episodes=4, size=48, workers=1, progress=False)
    for a, b in zip(scenes(stills), scenes(tmp_path / "again"), strict=True):
        assert (
            np.array_equal(a.frames[list(range(8))], b.frames[list(range(8))]) and a.info == b.info
        )
    for t in scenes(stills):
        assert len(t) == 8 and len(t.info["cube"]) == 8 and len({*t.info["names"]}) == 3
        assert [s.split()[-1] for s in t.info["instructions"]] == [
            n.split()[-1] for n in t.info["names"]
        ]


def test_a_store_of_stills_knows_what_decides_its_bytes(stills):
    recipe = json.loads((stills / "recipe.json").read_text())
    assert (
        recipe["arm"] in ("meshes", "capsules")
        and recipe["cards"] in ("twemoji", "shapes")
        and recipe["mujoco"]
    )


def test_the_cube_is_on_the_table_or_in_the_hand(stills):
    heights = np.array([t.info["cube"] for t in scenes(stills)])[..., 2].ravel()
    assert (heights > 0.0149).all() and (heights < 0.02).sum() > 10 and (heights > 0.03).sum() > 3


def test_stills_from_the_command_line(tmp_path, capsys, refused):
    argv = [
        "prepare",
        "stills",
        "--episodes",
        "1",
        "--size",
        "32",
        "--split",
        "val100",
        "--workers",
        "1",
        "--json",
    ]
    data_command.main([*argv, "--out", str(tmp_path / "s")])
    assert json.loads(capsys.readouterr().out)["frames"] == 8
    from aclam.sim.emoji import SPLITS

    assert {*scenes(tmp_path / "s")[0].info["names"]} <= {*SPLITS["val100"]}
    wrong = ["prepare", "stills", "--use", "policy", "--out", tmp_path / "x"]
    refused(data_command.main, wrong, "--use policy")


def test_scores_by_hand():
    torch.manual_seed(0)
    reader = grounding.Reader(ENCODER, ["fox", "red apple", "key"]).requires_grad_(False)
    patches = torch.randn(2, 3, 32)
    scores = reader.name_scores(patches)
    table, numbers = reader.vlm.words, small_vlm.tokenize(["red apple"], ENCODER)
    said = reader.said(table(numbers)[0, :2].mean(0))
    cosine = torch.nn.functional.cosine_similarity(reader.seen(patches[1, 2]), said, dim=0)
    assert scores.shape == (2, 3, 3) and scores[1, 2, 1] == pytest.approx(
        cosine.item() * np.exp(2.0), rel=1e-5
    )
    frames, text = (
        torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8),
        small_vlm.tokenize(["a fox", "key"], ENCODER),
    )
    layer = reader.vlm.read(*reader.vlm.tokens(frames, text))[1]
    look, (L, N, D) = grounding.look_scores(layer, text > 0, 9), (ENCODER.text_length, 9, 8)
    for b, n in ((0, 2), (1, 1)):  # pictures, words
        q = layer.q[b, :, -L : n - L].mean(1)  # (H, D)
        by_hand = [2 * (q * layer.k[b, :, p]).sum(-1).mean().item() / D**0.5 for p in range(N)]
        assert look[b].tolist() == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


def test_padding_says_nothing():
    torch.manual_seed(0)
    reader = grounding.Reader(ENCODER, ["fox"]).eval()
    longer = grounding.Reader(dataclasses.replace(ENCODER, text_length=20), ["fox"]).eval()
    longer.load_state_dict({**reader.state_dict(), "names": longer.names})
    frames = torch.randint(256, (1, 3, 48, 48), dtype=torch.uint8)
    a, b = (
        r.locate(frames, small_vlm.tokenize(["on the fox"], r.vlm.config)) for r in (reader, longer)
    )
    assert torch.allclose(a, b, atol=1e-5)


def test_the_report_counts_the_nearest_card():
    cards = np.array([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]] * 2)
    found = np.array([[0.9, 0.0, 0, 0, 0], [0.9, 0.0, 0, 0, 0.003]])
    r = grounding.grounding_report(found, cards, np.array([1, 2]), np.zeros((2, 3)))
    assert r == pytest.approx({"right_card": 0.5, "card_mm": (100 + 1100) / 2, "cube_mm": 1.5})


def test_questions_say_what_scenes_say(stills):
    data = cache_frames(open_dataset(stills), 48)
    names = sorted({name for t in data for name in t.info["names"]})
    training.check_questions(training.Questions(data, names, ENCODER, shift=1, brightness=0.1))


def test_a_policy_begins_from_a_trained_encoder(encoder, stills):
    _, result = encoder
    film = synthetic_trajectory(seed=0, T=30, size=48, fps=20)
    wide = dataclasses.replace(
        policy_training.PRESETS["policy_cpu_wo_lam"],
        control="recorded",
        vlm=dataclasses.replace(ENCODER, weights=result["model"]),
        expert=ENCODER.layer,
    )
    config = policy_training.PolicyTrainConfig("policy_cpu_wo_lam", ("x",), model=wide)
    acting = [demonstrations.Episode(film, wide, None, True)]
    data = demonstrations.PolicyDataset(acting, [], wide)
    policy = policy_training.build(config, policy_training.PolicyData(data, data, wide, {}))
    trained = read_tensors(f"{result['model']}/model.safetensors")
    assert all(torch.equal(policy.vlm.state_dict()[k], v) for k, v in trained.items())


def test_another_encoder_is_another_run(encoder, tmp_path):
    """A policy's run that began from one encoder does not go on from another one at the same place."""
    write_store(
        tmp_path / "films", (synthetic_trajectory(n, T=30, size=48, fps=20) for n in range(3))
    )
    shutil.copytree(encoder[1]["model"], tmp_path / "encoder")
    preset = policy_training.settings_for("policy_cpu_wo_lam")
    seen = dataclasses.replace(ENCODER, weights=str(tmp_path / "encoder"))
    model = dataclasses.replace(preset.model, control="recorded", vlm=seen, expert=ENCODER.layer)
    loop = TrainConfig(steps=1, batch_size=2, warmup_steps=0, probe_every=0)
    config = dataclasses.replace(
        preset,
        data=(str(tmp_path / "films"),),
        model=model,
        train=loop,
        probe_n=2,
        out=str(tmp_path / "run"),
    )
    policy_training.run(config)
    policy_training.run(config)  # the same: nothing to do
    changed = small_vlm.SmallVLM(seen)
    shutil.rmtree(tmp_path / "encoder")
    small_vlm.save_small(changed, tmp_path / "encoder")
    with pytest.raises(UserError, match="encoder was"):
        policy_training.run(config)


def test_a_run_goes_on_at_the_same_bits(encoder, stills, tmp_path, capsys):
    _, whole = encoder
    loop = TrainConfig(
        steps=6, batch_size=8, lr=1e-3, warmup_steps=0, probe_every=3, checkpoint_every=3
    )
    shutil.copytree(encoder[0], tmp_path / "run")
    for late in ("checkpoints/step_000006", "model"):
        shutil.rmtree(tmp_path / "run" / late)
    c = training.GroundingTrainConfig(
        str(stills), str(tmp_path / "run"), ENCODER, probe_n=8, train=loop
    )
    result = training.run(c)
    assert not capsys.readouterr().err.count("0/6")  # it did not begin anew
    a, b = (read_tensors(f"{r['model']}/model.safetensors") for r in (whole, result))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_bad_input(encoder, refused, tmp_path):
    out, _ = encoder
    write_store(tmp_path / "films", (synthetic_trajectory(n, T=9, size=48) for n in range(2)))
    refused(training.main, [], "aclam-data prepare stills")
    refused(training.main, ["--data", tmp_path / "nothing"], "nothing")
    films = ["--data", tmp_path / "films", "--out", tmp_path / "o"]
    refused(training.main, films, 'does not say "instructions"')
    large = ["--data", "x", "--vlm.kind", "paligemma", "--vlm.overviews", "0"]
    refused(training.main, large, "--vlm.kind small")
    for folder, word in (
        (tmp_path / "no", "no small encoder"),
        (out, "is not a small encoder's folder"),
    ):
        with pytest.raises(UserError, match=word):
            vlm.load_weights(small_vlm.SmallVLM(dataclasses.replace(ENCODER, weights=str(folder))))
    wrong = dataclasses.replace(ENCODER, vocab=64, weights=str(out / "model"))
    with pytest.raises(UserError, match="vocab"):
        vlm.load_weights(small_vlm.SmallVLM(wrong))


def test_the_kept_policy_still_points_at_the_named_card(tmp_path):
    """Where it expects the hand to end is nearest to the card that the instruction names, in most
    of 48 pictures.
    """
    from pathlib import Path

    from aclam.policy.model import Policy

    policy = Policy.from_pretrained(
        Path(__file__).parent.parent / "nbs/results/policies/policy_cpu_wo_lam"
    )
    prepare_source("stills", tmp_path / "s", episodes=2, seed=7, size=96, workers=1, progress=False)
    right = []
    for t in scenes(tmp_path / "s"):
        frames = torch.from_numpy(np.stack([t.frames[[n]][0] for n in range(8)])).permute(
            0, 3, 1, 2
        )
        for card, words in enumerate(t.info["instructions"]):
            with torch.no_grad():
                aims = policy.predict_aims(
                    policy.vlm(frames, small_vlm.tokenize([words] * 8, policy.config.vlm))
                )
            ends = torch.nn.functional.pad(
                aims[:, 3:], (0, 4)
            )  # a state begins with the hand's place
            place = policy.proprio_units.unnormalize(ends)[:, :2].numpy()  # (8, 2) metres
            far = np.linalg.norm(place[:, None] - np.array(t.info["cards_xy"]), axis=-1)
            right += (far.argmin(1) == card).tolist()
    assert (
        len(right) == 48 and np.mean(right) > 0.6
    )  # chance: a third; most of these poses are in no demonstration
