"""The edge of latent action models: what enters `encode`, `decode`, `latents`, `predict` and `loss`
of every family, what a model folder may hold, and that looking changes nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LatentActionModel
from aclam.lam.bottlenecks import KINDS
from aclam.lam.edge import check_pure
from aclam.lam.potential import encode_clip
from aclam.lam.registry import LAMS
from aclam.lam.sizes import limited, memory_bytes, weight_bytes

FIXTURES = Path(__file__).parent / "fixtures"
IDM = dict(image_size=16, idm_width=16, idm_depth=1, fdm_width=16, fdm_depth=1)
UNIVLA = dict(image_size=16, vision_width=16, vision_depth=1, width=16, idm_depth=1, fdm_depth=1)
SMALL = {
    "ac_lam_cpu": IDM,
    "potential_lam_cpu": IDM,
    "potential_frame_vq_cpu": IDM,
    "villa_x_cpu": IDM,
    "univla_cpu": UNIVLA,
    "univla_stage_1_cpu": UNIVLA,
    "univla_stage_2_cpu": UNIVLA,
    "odd_features_cpu": IDM,
    "potential_features_cpu": IDM,
    "lapa_cpu": dict(image_size=16, patch_size=2, width=16, heads=2, head_dim=8),
}
KINDS_OF = [(name, kind) for name in SMALL for kind in KINDS if name != "lapa_cpu"]
KINDS_OF.append(("lapa_cpu", None))
S = 16


def small(name: str, kind: str | None = None, **changes) -> LatentActionModel:
    """A small model of a preset, with a bottleneck of this kind that quantizes from the first step."""
    if kind is not None:
        own = replace(PRESETS[name].bottleneck, kind=kind, codes=8, continuous_steps=0)
        changes = {"bottleneck": own, **changes}
    torch.manual_seed(0)
    return LatentActionModel.from_preset(name, **{**SMALL[name], **changes})


@pytest.fixture(scope="module")
def batch() -> dict:
    films = [synthetic_trajectory(seed, T=16, size=S) for seed in range(4)]
    found = TripleDataset(films, TripleConfig(), image_size=S).batch(range(8))
    return {
        **found,
        "words": torch.randn(8, 3, 32),
        "word_mask": torch.ones(8, 3, dtype=torch.bool),
    }


def test_all_families_are_here():
    families = {LAMS.family_of(PRESETS[name]).family for name in SMALL}
    assert families == {LAMS.family_of(PRESETS[name]).family for name in PRESETS}


# ---- looking changes nothing


def trained(name: str, kind: str | None, batch: dict) -> LatentActionModel:
    lam = small(name, kind).train()
    lam.loss(batch)[0].backward()
    lam.zero_grad()
    return lam


@pytest.mark.parametrize("mode", ["train", "eval", "untouched"])
@pytest.mark.parametrize(("name", "kind"), KINDS_OF)
def test_encode_and_decode_change_nothing(name, kind, mode, batch):
    lam = small(name, kind).train() if mode == "untouched" else trained(name, kind, batch)
    if mode == "eval":
        lam.eval()
    o_i, o_j = batch["frames"][:, 0], batch["frames"][:, 1]
    z = torch.randn(8, lam.config.latent_dim)

    def ask() -> list[torch.Tensor]:
        a = lam.encode(o_i, o_j)
        rows = torch.zeros(0) if a.indices is None else a.indices
        return [a.z, a.pre_vq, rows, lam.decode(o_i, z)]

    check_pure(lam, ask)
    assert lam.training == (mode != "eval")
    quantizers = [m for m in lam.modules() if hasattr(m, "pending")]
    assert all(m.pending == [] for m in quantizers)


@pytest.mark.parametrize(("name", "kind"), KINDS_OF)
def test_training_goes_on_as_if_nobody_had_asked(name, kind, batch):
    """Between two micro-steps of one model, `encode` is called; of its twin, not."""
    ends = []
    for asked in (False, True):
        lam = small(name, kind).train()
        torch.manual_seed(1)
        for _ in range(3):
            loss, _ = lam.loss(batch)
            if asked:
                lam.encode(batch["frames"][:, 0], batch["frames"][:, 1])
            loss.backward()
        ends.append({**lam.state_dict(), "loss": loss.detach()})
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_a_step_is_counted_though_somebody_looks_before_its_end(batch):
    """The mark that a bottleneck has trained in this step is not wiped by a look."""
    lam = small("ac_lam_cpu", "vq").train()
    lam.bottleneck.trained = True
    lam.encode(batch["frames"][:, 0], batch["frames"][:, 1])
    lam.bottleneck.commit_step()
    assert lam.bottleneck.steps == 1


def test_clips_change_nothing_either(batch):
    o = batch["frames"][0].float() / 255
    for name, call in {
        "potential_lam_cpu": lambda lam: encode_clip(lam, o),
        "villa_x_cpu": lambda lam: lam.encode_clip(o),
    }.items():
        lam = small(name, "vq").train()
        check_pure(lam, lambda lam=lam, call=call: list(call(lam)[:2]))
        with pytest.raises(UserError, match="o holds numbers"):
            call_with = 255 * o
            encode_clip(lam, call_with) if name.startswith("p") else lam.encode_clip(call_with)
    with pytest.raises(UserError, match="at least 2"):
        small("villa_x_cpu").encode_clip(o[:1])


# ---- what enters


def frames(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, S, S)


WRONG_FRAMES = {
    "0 to 255": (lambda o: 255 * o, "numbers from .* to 25.*floats in .0, 1."),
    "-1 to 1": (lambda o: 2 * o - 1, "numbers from -.*floats in .0, 1."),
    "NaN": (lambda o: torch.full_like(o, float("nan")), "holds NaN"),
    "one NaN": (lambda o: torch.where(o == o.max(), float("nan"), o), "holds NaN"),
    "inf": (lambda o: torch.where(o == o.max(), float("inf"), o), "to inf"),
    "int64": (lambda o: (255 * o).long(), "numbers of type int64.*uint8 or float32"),
    "int8": (lambda o: (100 * o).to(torch.int8), "numbers of type int8"),
    "bool": (lambda o: o > 0.5, "numbers of type bool"),
    "float64": (lambda o: o.double(), "numbers of type float64"),
    "float16": (lambda o: o.half(), "numbers of type float16"),
    "bfloat16": (lambda o: o.bfloat16(), "numbers of type bfloat16"),
    "complex": (lambda o: o.to(torch.complex64), "numbers of type complex64"),
    "numpy": (lambda o: o.numpy(), "of type numpy.ndarray.*a tensor"),
    "list": (lambda o: o.tolist(), "of type list"),
    "None": (lambda o: None, "of type NoneType"),
    "no batch": (lambda o: o[0], "shape .3, 16, 16."),
    "colors last": (lambda o: o.movedim(1, 3), "shape .2, 16, 16, 3."),
    "larger": (lambda o: torch.rand(2, 3, 20, 20), "shape .2, 3, 20, 20."),
    "gray": (lambda o: o[:, :1], "shape .2, 1, 16, 16."),
    "video": (lambda o: o[None], "shape .1, 2, 3, 16, 16."),
}


def refused(call, words: str, *arguments, **options) -> str:
    with pytest.raises(UserError, match=words) as error:
        call(*arguments, **options)
    line = str(error.value)
    assert "\n" not in line and len(line) < 300
    return line


@pytest.mark.parametrize("what", WRONG_FRAMES)
@pytest.mark.parametrize("name", SMALL)
def test_frames_that_are_none(name, what):
    lam = small(name).eval()
    spoil, words = WRONG_FRAMES[what]
    good, bad = frames(), spoil(frames())
    assert "o_j" in refused(lam.encode, words, good, bad)
    assert "o_i" in refused(lam.encode, words, bad, good)
    z = torch.zeros(2, lam.config.latent_dim)
    assert "o_i" in refused(lam.decode, words, bad, z)


@pytest.mark.parametrize("name", SMALL)
def test_pairs_that_are_none(name):
    lam = small(name).eval()
    refused(lam.encode, "o_i 3, o_j 2", frames(3), frames(2))
    refused(lam.encode, "o_i 1, o_j 2", frames(1), frames(2))
    refused(lam.encode, "o_i uint8, o_j float32", (255 * frames()).byte(), frames())
    d = lam.config.latent_dim
    refused(lam.decode, "o_i 3, z 2", frames(3), torch.zeros(2, d))


@pytest.mark.parametrize("name", SMALL)
def test_latents_that_are_none(name):
    lam = small(name).eval()
    d = lam.config.latent_dim
    good = frames()
    refused(lam.decode, f"z has shape .2, {d - 1}..*B, {d}", good, torch.zeros(2, d - 1))
    refused(lam.decode, "z has shape", good, torch.zeros(2, lam.config.tokens, lam.config.code_dim))
    refused(lam.decode, "z has shape", good, torch.zeros(()))
    refused(lam.decode, "z holds NaN", good, torch.full((2, d), float("nan")))
    refused(lam.decode, "finite", good, torch.full((2, d), float("inf")))
    refused(lam.decode, "type float64", good, torch.zeros(2, d, dtype=torch.float64))
    refused(lam.decode, "type int64", good, torch.zeros(2, d, dtype=torch.int64))
    refused(lam.decode, "numpy.ndarray", good, np.zeros((2, d), np.float32))
    wide = torch.zeros(2, 2 * d)
    if name == "univla_stage_2_cpu":
        assert lam.decode(good, wide).shape[0] == 2
    else:
        refused(lam.decode, "z has shape", good, wide)


@pytest.mark.parametrize("name", SMALL)
def test_latents_and_predict_look_at_forms(name):
    lam = small(name).eval()
    x = lam.normalize(frames())
    z = torch.zeros(2, lam.config.latent_dim)
    assert lam.predict(x, lam.latents(x, x).z).shape == x.shape
    refused(lam.latents, "o_j has shape", x, x[0])
    refused(lam.latents, "o_i 2, o_j 1", x, x[:1])
    refused(lam.latents, "o_i has numbers of type float64", x.double(), x)
    refused(lam.latents, "numpy.ndarray", x.numpy(force=True), x)
    refused(lam.predict, "o_i has shape", x[:, :, :-1], z)
    refused(lam.predict, "z has shape", x, z[:, 1:])
    refused(lam.predict, "o_i 2, z 1", x, z[:1])
    refused(lam.predict, "z has numbers of type float64", x, z.double())


@pytest.mark.parametrize("name", SMALL)
def test_batches_that_are_none(name):
    lam = small(name).train()
    o = torch.rand(4, 3, 3, S, S)
    refused(lam.loss, "a tensor was given", o)
    refused(lam.loss, "no frames", {})
    refused(lam.loss, "shape .4, 2, 3, 16, 16.", {"frames": o[:, :2]})
    refused(lam.loss, "shape .3, 3, 16, 16.", {"frames": o[0]})
    refused(lam.loss, "numpy.ndarray", {"frames": o.numpy()})
    refused(lam.loss, "float64", {"frames": o.double()})
    refused(lam.loss, "int64", {"frames": o.long()})
    refused(lam.loss, "floats in .0, 1.", {"frames": 255 * o})
    refused(lam.loss, "NaN", {"frames": o * float("nan")})
    assert all(m.pending == [] for m in lam.modules() if hasattr(m, "pending"))


@pytest.mark.parametrize("name", ["ac_lam_cpu", "potential_lam_cpu", "villa_x_cpu"])
def test_a_proprio_fdm_wants_the_state(name):
    lam = small(name, proprio_dim=7).train()
    row = {"frames": torch.rand(4, 3, 3, S, S), "proprio": torch.zeros(4, 3, 7)}
    row |= {"has_proprio": torch.ones(4, dtype=torch.bool), "embodiment": torch.zeros(4).long()}
    assert torch.isfinite(lam.loss(row)[0])
    refused(lam.loss, "no proprio", {"frames": row["frames"]})
    refused(lam.loss, "proprio has shape .4, 3, 6.", row | {"proprio": torch.zeros(4, 3, 6)})
    refused(lam.loss, "embodiment has shape .3,.", row | {"embodiment": torch.zeros(3).long()})


def test_words_that_are_none():
    lam, o = small("univla_stage_1_cpu").eval(), frames()
    words, mask = torch.randn(2, 3, 32), torch.ones(2, 3, dtype=torch.bool)
    assert lam.encode(o, o, words, mask).z.shape == (2, lam.config.latent_dim)
    refused(lam.encode, "words has shape", o, o, words[:1], mask)
    refused(lam.encode, "words has shape", o, o, words[..., 1:], mask)
    refused(lam.encode, "words holds NaN", o, o, words * float("nan"), mask)
    refused(lam.encode, "word_mask is NoneType", o, o, words)
    refused(lam.encode, "word_mask is .2, 2.", o, o, words, mask[:, 1:])
    refused(lam.encode, "words is of type NoneType", o, o, None, mask)
    refused(lam.decode, "word_mask", o, torch.zeros(2, lam.config.latent_dim), words)
    refused(small("univla_cpu").encode, "takes no language", o, o, words, mask)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_right_stays_right(name):
    """Bytes and floats agree; edges of the range, autocast and an empty batch are welcome."""
    lam = small(name).eval()
    o = (255 * frames()).byte()
    a, b = lam.encode(o, o.flip(0)), lam.encode(o / 255, o.flip(0) / 255)
    assert torch.allclose(a.z, b.z, atol=1e-5)
    ends = torch.stack([torch.zeros(3, S, S), torch.ones(3, S, S)])
    lam.encode(ends - 5e-4, ends + 5e-4)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = lam.encode(o, o.flip(0))
        lam.decode(o, narrow.z.bfloat16())
    for other in (torch.float64, torch.bfloat16):
        refused(lam.to(other).encode, "weights of type", frames().to(other), frames().to(other))


class Waits:
    """Counts the calls with which the host asks for numbers of a tensor."""

    def __init__(self, monkeypatch):
        self.n = 0
        for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
            monkeypatch.setattr(torch.Tensor, name, self.counted(getattr(torch.Tensor, name)))

    def counted(self, own):
        def call(*arguments):
            self.n += 1
            return own(*arguments)

        return call


@pytest.mark.parametrize("name", SMALL)
def test_a_range_costs_one_wait_and_bytes_cost_none(name, monkeypatch, batch):
    lam = small(name).eval()
    bytes_, floats = batch["frames"], batch["frames"] / 255
    z = torch.zeros(8, lam.config.latent_dim)
    x = lam.normalize(floats[:, 0])
    waits = Waits(monkeypatch)
    for expected, call in {
        "encode bytes": (0, lambda: lam.encode(bytes_[:, 0], bytes_[:, 1])),
        "encode floats": (1, lambda: lam.encode(floats[:, 0], floats[:, 1])),
        "decode": (1, lambda: lam.decode(floats[:, 0], z)),
        "latents": (0, lambda: lam.latents(x, x)),
        "predict": (0, lambda: lam.predict(x, z)),
        "check_batch of bytes": (0, lambda: lam.check_batch(batch)),
    }.values():
        waits.n = 0
        call()
        assert waits.n == expected


# ---- settings


BAD_SIZES = {
    "patch_size": (0, -8, 10**6, 8.5, "8", True, None, 2**70),
    "image_size": (0, -16, 10**7, float("nan")),
    "tokens": (0, -1, 10**9),
    "code_dim": (0, -1, 10**9),
    "idm_depth": (0, -1, 10**6),
    "fdm_depth": (0, 10**6),
    "idm_heads": (0, -4),
    "fdm_heads": (0,),
    "idm_width": (0, -96, 2**24),
    "fdm_width": (0, 2**24),
    "pool_heads": (0,),
    "window": (0, 10**9),
    "mlp_ratio": (0.0, -1.0, float("nan"), float("inf"), 1e9),
    "vision_width": (0, 2**24),
    "vision_depth": (0, 10**6),
    "vision_heads": (0,),
    "registers": (-1, 10**9),
    "width": (0, -1, 2**24),
    "depth": (0, 10**6),
    "heads": (0,),
    "head_dim": (0, 10**9),
    "codes": (0, -1, 10**9),
    "dead_below": (float("nan"), -1.0),
    "text_dim": (-1, 10**9),
    "proprio_dim": (-1, 10**9),
    "action_dim": (-1,),
    "embodiments": (0, 10**9),
    "proprio_hidden": (0, 2**24),
}
FAMILIES = ["ac_lam_cpu", "potential_lam_cpu", "villa_x_cpu", "lapa_cpu", "univla_cpu"]


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_beyond_their_limits(name):
    tried = 0
    for field, values in BAD_SIZES.items():
        for value in values:
            if field in limited(type(PRESETS[name])):
                refused(LatentActionModel.from_preset, field, name, **{field: value})
                tried += 1
    assert tried >= 20


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_of_a_family_has_limits(name):
    """A field that is a number is limited: a new one cannot be forgotten."""
    config = PRESETS[name]
    numbers = {n for n, v in vars(config).items() if type(v) in (int, float)}
    assert numbers - {"stage"} <= set(limited(type(config)))


@pytest.mark.parametrize(
    "changes",
    [
        dict(beta=float("nan")),
        dict(beta=-1.0),
        dict(noise=float("inf")),
        dict(momentum=2.0),
        dict(decay=float("nan")),
        dict(continuous_steps=-1),
        dict(restart_below=float("nan")),
        dict(codes=10**9),
        dict(stages=10**6),
        dict(levels=(1001, 1001, 1001)),
    ],
)
def test_a_bottleneck_has_limits(changes):
    refused(replace, next(iter(changes)), PRESETS["ac_lam_cpu"].bottleneck, **changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_weights_of_the_objective_are_finite(value):
    for field in ("lambda_ac", "lambda_reg", "lambda_proprio", "lambda_action", "lambda_reverse"):
        refused(replace, field, PRESETS["ac_lam_cpu"].objective, **{field: value})


HUGE = {
    "ac_lam_paper": dict(idm_width=1 << 18, fdm_width=3 << 17),
    "potential_lam": dict(idm_width=1 << 18),
    "villa_x": dict(idm_width=3 << 17, fdm_width=1 << 18),
    "lapa": dict(width=1 << 18),
    "univla": dict(width=3 << 17),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_model_that_does_not_fit_takes_no_memory(name):
    """In a process that may take 4 GiB at most, and within seconds."""
    code = (
        "import resource, sys; from aclam.lam import LatentActionModel; "
        "from aclam.core import UserError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "try:\n"
        f"    LatentActionModel.from_preset({name!r}, **{HUGE[name]!r})\n"
        "except UserError as e:\n"
        "    print(e); sys.exit(2)\n"
    )
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert end.returncode == 2, end.stderr[-1000:]
    assert "GiB of weights" in end.stdout and end.stdout.count("\n") == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_counting_draws_nothing(name):
    """The weights of a seed are the same whether or not they were counted before."""
    torch.manual_seed(3)
    first = LatentActionModel.from_preset(name)
    torch.manual_seed(3)
    cls, config = type(first), first.config
    size = weight_bytes(lambda: cls(config))
    second = LatentActionModel.from_preset(name)
    assert 0 < size < memory_bytes()
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# ---- model folders


def saved(tmp_path: Path, name: str = "ac_lam_cpu") -> Path:
    small(name).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


BAD_CONFIGS = {
    "5": "5",
    "null": "null",
    "text": '"x"',
    "list": "[]",
    "nothing": "",
    "no family": "{}",
    "family is a list": '{"model": []}',
    "family is a dict": '{"model": {"a": 1}}',
    "family is null": '{"model": null}',
    "family is long": '{"model": "' + "x" * 100_000 + '"}',
    "unknown": '{"model": "gpt"}',
    "deep": "[" * 200_000,
    "deep dict": '{"model": "aclam", "objective": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}",
    "nested wrong": '{"model": "aclam", "bottleneck": []}',
    "number is text": '{"model": "aclam", "idm_width": "96"}',
    "objective": '{"model": "aclam", "objective": {"lambda_ac": "x"}}',
    "huge number": '{"model": "aclam", "idm_depth": 1' + "0" * 400 + "}",
    "levels": '{"model": "aclam", "bottleneck": {"levels": ["a"]}}',
    "not finite": '{"model": "aclam", "objective": {"lambda_ac": NaN}}',
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_a_config_that_is_none(what, tmp_path):
    folder = saved(tmp_path)
    (folder / "config.json").write_text(BAD_CONFIGS[what])
    with pytest.raises(UserError) as error:
        LatentActionModel.from_pretrained(folder)
    line = str(error.value)
    assert "\n" not in line and len(line) < 500 and "config.json" in line


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_from_a_file_meet_the_same_limits(name, tmp_path):
    folder = saved(tmp_path, name)
    file = folder / "config.json"
    good = json.loads(file.read_text())
    for field in ("patch_size", "tokens", "image_size", "code_dim"):
        for value in (0, -16, 10**9, "4", [4], None):
            file.write_text(json.dumps(good | {field: value}))
            assert field in refused(LatentActionModel.from_pretrained, field, folder)


BAD_TENSORS = {
    "missing": lambda t, n: t.pop(n),
    "extra": lambda t, n: t.update({"extra": t[n].clone()}),
    "shape": lambda t, n: t.update({n: t[n][:-1].clone()}),
    "no dimension": lambda t, n: t.update({n: torch.zeros(())}),
    "NaN": lambda t, n: t.update({n: torch.full_like(t[n], float("nan"))}),
    "inf": lambda t, n: t.update({n: torch.full_like(t[n], float("inf"))}),
    "int": lambda t, n: t.update({n: t[n].int()}),
    "bool": lambda t, n: t.update({n: t[n] > 0}),
}


@pytest.mark.parametrize("damage", BAD_TENSORS)
@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_that_do_not_fit(name, damage, tmp_path):
    folder = saved(tmp_path, name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    weight = next(n for n, t in tensors.items() if n.endswith("weight") and t.ndim == 2)
    BAD_TENSORS[damage](tensors, weight)
    save_file(tensors, file)
    line = refused(LatentActionModel.from_pretrained, "model.safetensors", folder)
    assert ("extra" if damage == "extra" else weight) in line


def test_a_count_that_is_no_whole_number(tmp_path):
    folder = saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["bottleneck.steps"] = torch.tensor(2.5)
    save_file(tensors, folder / "model.safetensors")
    refused(LatentActionModel.from_pretrained, "bottleneck.steps holds float", folder)


# ---- checkpoints of others (case 20)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
OFFICIAL = {
    "lapa": "lapa/laq.pt",
    "univla 1": "univla/stage_1/lam.ckpt",
    "univla 2": "univla/stage_2/lam.ckpt",
    "villa_x": "villa_x/model.safetensors",
}


def rewritten(file: Path, rename) -> None:
    """Give the tensors of a checkpoint other names, in place."""
    if file.suffix == ".safetensors":
        save_file({rename(n): t for n, t in load_file(file).items()}, file)
        return
    content = torch.load(file, weights_only=True)
    if "state_dict" not in content:
        torch.save({rename(n): t for n, t in content.items()}, file)
        return
    content["state_dict"] = {rename(n): t for n, t in content["state_dict"].items()}
    torch.save(content, file)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("which", OFFICIAL)
def test_prefixes_of_wrappers_come_off(which, prefix, tmp_path):
    source = FIXTURES / OFFICIAL[which]
    shutil.copytree(source.parent, tmp_path / "m")
    torch.manual_seed(0)  # of the counters that official files lack
    before = LatentActionModel.from_pretrained(source.parent)
    rewritten(tmp_path / "m" / source.name, lambda name: prefix + name)
    torch.manual_seed(0)
    after = LatentActionModel.from_pretrained(tmp_path / "m")
    for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", FAMILIES)
def test_prefixes_in_our_own_files_come_off(name, prefix, tmp_path):
    folder = saved(tmp_path, name)
    before = LatentActionModel.from_pretrained(folder).state_dict()
    rewritten(folder / "model.safetensors", lambda name: prefix + name)
    after = LatentActionModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items())


def test_a_compiled_part_is_read(tmp_path):
    folder = saved(tmp_path)
    rewritten(
        folder / "model.safetensors", lambda n: n.replace("idm.blocks", "idm._orig_mod.blocks")
    )
    LatentActionModel.from_pretrained(folder)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PT"])
def test_suffixes_of_lapa(suffix, tmp_path):
    shutil.copy(FIXTURES / "lapa/laq.pt", tmp_path / f"vae{suffix}")
    assert LatentActionModel.from_pretrained(tmp_path / f"vae{suffix}").family == "lapa"
    assert LatentActionModel.from_pretrained(tmp_path).family == "lapa"


def test_several_checkpoints_are_named(tmp_path):
    for n in (1000, 2000):
        shutil.copy(FIXTURES / "lapa/laq.pt", tmp_path / f"vae.{n}.pt")
    refused(LatentActionModel.from_pretrained, "vae.1000.pt, vae.2000.pt.*name one", tmp_path)
    shutil.copytree(FIXTURES / "villa_x", tmp_path, dirs_exist_ok=True)
    assert LatentActionModel.from_pretrained(tmp_path).family == "villa_x"


@pytest.mark.parametrize("which", ["lapa", "univla 1", "univla 2"])
@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        3,
        {"state_dict": 3},
        {"state_dict": {}},
        {"model": {"a": "b"}},
        {1: torch.ones(2)},
        {"a": 5},
        {"state_dict": {"w": torch.ones(2)}},
    ],
)
def test_checkpoints_that_hold_no_weights(which, content, tmp_path):
    file = tmp_path / Path(OFFICIAL[which]).name
    torch.save(content, file)
    assert str(file) in refused(LatentActionModel.from_pretrained, "", file)


@pytest.mark.parametrize("which", OFFICIAL)
def test_each_tensor_of_a_checkpoint_may_be_damaged(which, tmp_path):
    """Every name in turn loses its dimensions: one line, whatever reads it."""
    source = FIXTURES / OFFICIAL[which]
    shutil.copytree(source.parent, tmp_path / "m")
    file = tmp_path / "m" / source.name
    if file.suffix == ".safetensors":
        good = load_file(file)
        write = save_file
    else:
        content = torch.load(file, weights_only=True)
        good = content.get("state_dict", content)
        nested = good is not content

        def write(tensors, file):
            torch.save(content | {"state_dict": tensors} if nested else tensors, file)

    used = [n for n in good if "text_encoder" not in n and "mask_token" not in n]
    for name in used:
        for bad in (torch.zeros(()), torch.zeros(3), torch.zeros(2, 0)):
            write({**good, name: bad}, file)
            refused(LatentActionModel.from_pretrained, "", file.parent)


class Harm:
    """A pickle that would run a program."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_no_word_advises_to_run_code(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path(f"bad{suffix}")
    torch.save({"w": torch.ones(2), "harm": Harm()}, file)
    line = refused(LatentActionModel.from_pretrained, str(file), file)
    assert "weights_only" not in line and "never run" in line
    for content in (b"", b"PK\x03\x04 no archive", b"\x80\x02garbage", b"(" * 100_000):
        file.write_bytes(content)
        assert "weights_only" not in refused(LatentActionModel.from_pretrained, str(file), file)
    assert not Path("harmed").exists()


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "vae.pt")
    refused(LatentActionModel.from_pretrained, "", tmp_path / "vae.pt")
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(LatentActionModel.from_pretrained, "model.safetensors", folder)


BAD_IGOR = {
    "5": 5,
    "null": None,
    "empty": {},
    "architecture is a list": {"architecture": []},
    "config is a list": {"architecture": "IgorModel", "config": []},
    "patch of 0": {"architecture": "IgorModel", "config": {"patch_size": 0}},
    "patch is text": {"architecture": "IgorModel", "config": {"patch_size": "8"}},
    "heads of 0": {"architecture": "IgorModel", "config": {"encoder_n_heads": 0}},
    "codes": {"architecture": "IgorModel", "config": {"n_codes": "32"}},
    "depth": {"architecture": "IgorModel", "config": {"encoder_depth": 10**6}},
}


@pytest.mark.parametrize("what", BAD_IGOR)
def test_settings_of_villa_x_are_checked(what, tmp_path):
    shutil.copytree(FIXTURES / "villa_x", tmp_path / "v")
    (tmp_path / "v" / "model_config.json").write_text(json.dumps(BAD_IGOR[what]))
    refused(LatentActionModel.from_pretrained, "", tmp_path / "v")


@pytest.mark.parametrize("heads", [0, -1, "4", 7, 10**9, [4]])
def test_heads_of_univla_are_checked(heads, tmp_path):
    file = tmp_path / "lam.ckpt"
    content = torch.load(FIXTURES / OFFICIAL["univla 2"], weights_only=True)
    torch.save(content | {"hyper_parameters": {"lam_num_heads": heads}}, file)
    refused(LatentActionModel.from_pretrained, "heads", file)


def test_settings_survive_a_file():
    """What `asdict` writes of every preset is what `from_dict` reads."""
    from aclam.core import from_dict

    for config in PRESETS.values():
        values = json.loads(json.dumps(asdict(config)))
        assert from_dict(type(config), values) == config
