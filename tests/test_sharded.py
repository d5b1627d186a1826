"""Sharded training: two processes with half a model each against one; checkpoints from any world to
any; one file.

Run by `torch.distributed.run`, this file is the program of one process; run by pytest, it starts
two and compares.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from aclam.core import UserError
from aclam.lam import LatentActionModel
from aclam.lam.global_batch import world_size
from aclam.lam.registry import preset
from aclam.policy import model as policies
from aclam.policy import promises
from aclam.policy.experts import LayerSize
from aclam.policy.vlm import REDUCED
from aclam.train import activations, sharded, sharded_files
from aclam.train.checkpoint import load_optimizer_tensors, optimizer_tensors

PALIGEMMA = dataclasses.replace(
    policies.TINY, vlm=REDUCED, expert=LayerSize(24, 48, 4, 1, 8), draws=2
)
POLICIES = {"policy": policies.TINY, "policy_paligemma": PALIGEMMA}
GROUPS = {
    "quick": (*POLICIES, "ac_lam_cpu", "lapa_cpu"),
    "slow": ("villa_x_cpu", "potential_lam_cpu", "univla_cpu"),
}
CASES = (*GROUPS["quick"], *(pytest.param(name, marks=pytest.mark.slow) for name in GROUPS["slow"]))
NAMES = (*GROUPS["quick"], *GROUPS["slow"])
EXTRAS = ("policy_paligemma", "ac_lam_cpu")  # that are also compiled, and trained in bf16
STEPS, HALF = 4, 2
pytestmark = pytest.mark.timeout(900)


def lam_config(name: str):
    """A preset whose codebook opens after two steps, where it has one. UniVLA's stays closed: with
    it open, losses of two processes came out 8e-5 apart after six steps, replicated as well as
    sharded.
    """
    config = preset(name)
    if not hasattr(config, "bottleneck"):
        return config
    later = 100 if name == "univla_cpu" else HALF
    return dataclasses.replace(
        config, bottleneck=dataclasses.replace(config.bottleneck, continuous_steps=later)
    )


def make(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return (
        policies.Policy(POLICIES[name]) if name in POLICIES else LatentActionModel(lam_config(name))
    )


def batch(name: str, s: int) -> dict:
    dice = torch.Generator().manual_seed(s)
    if name in POLICIES:
        return promises.toy_batch(8, POLICIES[name], dice, p_action=0.6)
    return {"frames": torch.randint(0, 256, (8, 3, 3, 32, 32), dtype=torch.uint8, generator=dice)}


def prepared(name: str, seed: int = 0, saving: bool = False, compiled: bool = False):
    """A model that is divided over the processes there are, and its optimizer."""
    model = make(name, seed)
    if saving:
        activations.checkpoint_activations(model)
    if compiled:
        sharded.compile_layers(model, backend="aot_eager")
    model = sharded.shard(model).train()
    groups = sharded.by_layout(list(model.parameters()))
    return model, torch.optim.AdamW([{"params": group} for group in groups], 1e-3, fused=True)


def train(name, model, optimizer, first: int, last: int, **options) -> list[float]:
    steps = range(first, last)
    return [
        sharded.sharded_step(model, optimizer, batch(name, s), s, **options)[0].item()
        for s in steps
    ]


def save(folder: Path, model, optimizer) -> None:
    sharded.reshard(model)
    main = world_size() == 1 or dist.get_rank() == 0
    if main:
        folder.mkdir(parents=True)
    sharded_files.write_gathered(folder / "model.safetensors" if main else None, model.state_dict())
    tensors = optimizer_tensors(model, optimizer)
    sharded_files.write_gathered(folder / "optimizer.safetensors" if main else None, tensors)


def load(folder: Path, model, optimizer) -> None:
    model.load_state_dict(
        sharded_files.read_sharded(folder / "model.safetensors", model.state_dict())
    )
    file = folder / "optimizer.safetensors"
    load_optimizer_tensors(
        model,
        optimizer,
        sharded_files.read_sharded(file, sharded_files.like_parameters(file, model)),
    )


def resumed(name: str, folder: Path) -> list[float]:
    """The losses of the second half from a checkpoint, by a model that began elsewhere."""
    model, optimizer = prepared(name, seed=1)
    load(folder, model, optimizer)
    return train(name, model, optimizer, HALF, STEPS)


def whole_run(name: str, root: Path) -> dict:
    """Four steps with a checkpoint after two, and what is left at the end."""
    model, optimizer = prepared(name)
    losses = train(name, model, optimizer, 0, HALF)
    save(root / name / "half", model, optimizer)
    losses += train(name, model, optimizer, HALF, STEPS)
    save(root / name / "end", model, optimizer)
    main = world_size() == 1 or dist.get_rank() == 0
    with sharded_files.gathered(model):
        if main:
            model.save_pretrained(root / name / "model")
    held = sum((p.to_local() if sharded.is_sharded(p) else p).numel() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        probe = answer(name, model)
    return {"losses": losses, "held": held, "probe": probe}


def answer(name: str, model) -> float:
    """Something that a probe asks a model."""
    if name in POLICIES:
        c, given = model.config, batch(name, 99)
        noise = policies.draw_noise(c, range(8))
        return (
            model.sample(given["frames"], given["text"], given["proprio"], noise)
            .action.double()
            .sum()
            .item()
        )
    frames = batch(name, 99)["frames"].float() / 255
    latent = model.encode(frames[:, 0], frames[:, 1])
    if hasattr(model, "triple_tokens"):  # what a training loop may ask for outside of `loss`
        model.quantize(model.triple_tokens(model.normalize(frames)))
    return model.decode(frames[:, 0], latent.z).double().sum().item()


def worker(group: str, two: Path, one: Path) -> None:
    """The program of one of two processes."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found = {}
    for name in GROUPS[group]:
        found[name] = whole_run(name, two)
        found[name]["resumed"] = resumed(name, two / name / "half")
        found[name]["resumed from one"] = resumed(name, one / name / "half")
        found[name]["recomputed"] = train(name, *prepared(name, saving=True), 0, STEPS)
        if name in POLICIES:
            found[name]["in parts"] = train(name, *prepared(name), 0, STEPS, parts=2)
    for name in EXTRAS if group == "slow" else ():
        found[f"{name} compiled"] = train(
            name, *prepared(name, saving=True, compiled=True), 0, STEPS
        )
        found[f"{name} bf16"] = train(name, *prepared(name, saving=True), 0, STEPS, bf16=True)
    if dist.get_rank() == 0:
        (two / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


# --- two processes against one --------------------------------------------------------------------


def compare(group: str, one: Path, two: Path) -> tuple[tuple[Path, dict], tuple[Path, dict]]:
    """Where one process and two have trained the models of a group, and what they found."""
    alone = {name: whole_run(name, one) for name in GROUPS[group]}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, *torchrun, __file__, group, str(two), str(one)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return (one, alone), (two, json.loads((two / "found.json").read_text()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name of a case -> its `compare`, done for all of its group when the first of them is asked
    for.
    """
    before, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)

    def of(name: str):
        group = next(g for g, names in GROUPS.items() if name in names)
        if group not in found:
            found[group] = compare(group, *(tmp_path_factory.mktemp(x) for x in ("one", "two")))
        return found[group]

    yield of
    torch.set_num_threads(before)


def relative(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_two_shards_train_as_one_process(runs, name):
    (_, one), (_, two) = runs(name)
    print(name, relative(one[name]["losses"], two[name]["losses"]))
    assert relative(one[name]["losses"], two[name]["losses"]) < 1e-5
    assert two[name]["held"] < 0.52 * one[name]["held"]  # each holds half
    assert two[name]["probe"] == pytest.approx(
        one[name]["probe"], rel=1e-3, abs=1e-2
    )  # and answers as a whole


@pytest.mark.parametrize("name", POLICIES)
def test_two_shards_in_two_parts_each_train_as_one_process(runs, name):
    (_, one), (_, two) = runs(name)
    assert relative(one[name]["losses"], two[name]["in parts"]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_checkpointed_activations_change_nothing_on_two_shards(runs, name):
    (_, _), (_, two) = runs(name)
    assert two[name]["recomputed"] == two[name]["losses"]


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_go_from_any_world_to_any(runs, name):
    (one, alone), (two, found) = runs(name)
    assert (
        found[name]["resumed"] == found[name]["losses"][HALF:]
    )  # two and on with two: to the last bit
    assert resumed(name, one / name / "half") == alone[name]["losses"][HALF:]
    assert (
        relative(found[name]["resumed from one"], alone[name]["losses"][HALF:]) < 1e-5
    )  # one and on with two
    assert (
        relative(resumed(name, two / name / "half"), alone[name]["losses"][HALF:]) < 1e-5
    )  # two and on with one


@pytest.mark.parametrize("name", CASES)
def test_one_file_that_from_pretrained_reads(runs, name):
    (one, _), (two, _) = runs(name)
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = (load_file(root / name / "half" / file) for root in (one, two))
        assert {k: (v.shape, v.dtype) for k, v in a.items()} == {
            k: (v.shape, v.dtype) for k, v in b.items()
        }
    kind = policies.Policy if name in POLICIES else LatentActionModel
    opened, end = (
        kind.from_pretrained(two / name / "model"),
        load_file(two / name / "end" / "model.safetensors"),
    )
    assert all(torch.equal(end[k], v) for k, v in opened.state_dict().items())
    assert (one / name / "model" / "config.json").read_bytes() == (
        two / name / "model" / "config.json"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRAS)
def test_two_shards_compiled_and_in_bf16(runs, name):
    _, (_, two) = runs("univla_cpu")
    one = train(name, *prepared(name), 0, STEPS)
    assert relative(one, two[f"{name} compiled"]) < 1e-5
    print(name, one, two[f"{name} bf16"])
    assert 1e-7 < relative(one, two[f"{name} bf16"]) < 0.01


# --- files ----------------------------------------------------------------------------------------


def test_the_bytes_of_a_file_are_the_librarys(tmp_path):
    tensors = make("ac_lam_cpu").state_dict() | {
        "half": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 4),
    }
    sharded_files.write_gathered(tmp_path / "ours", tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_wrong_files(tmp_path):
    model = make("ac_lam_cpu")
    state = model.state_dict()
    name = min(state)
    save_file({k: v for k, v in state.items() if k != name}, tmp_path / "less")
    save_file(state | {name: torch.zeros(7)}, tmp_path / "other")
    (tmp_path / "torn").write_bytes((tmp_path / "other").read_bytes()[:1000])
    expected = {
        "less": "missing",
        "other": r"shape \(7,\)",
        "torn": "cannot be read",
        "absent": "no such file",
    }
    for file, words in expected.items():
        with pytest.raises(UserError, match=words):
            sharded_files.read_sharded(tmp_path / file, state)


def test_a_full_disk_is_told_at_the_end(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sharded_files, "whole_tensor", lambda t: asked.append(t) or t)
    with pytest.raises(OSError):
        sharded_files.write_gathered(
            tmp_path / "nowhere" / "file", {"a": torch.zeros(1), "b": torch.zeros(1)}
        )
    assert len(asked) == 2  # it took part to the end
    with pytest.raises(OSError):
        sharded_files.write_files(
            tmp_path / "nowhere", {"one": {"a": torch.zeros(1)}, "two": {"b": torch.zeros(1)}}
        )
    assert len(asked) == 4
    sharded_files.write_files(tmp_path, {"one": {"a": torch.zeros(1)}})
    assert load_file(tmp_path / "one")["a"] == 0


# --- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_recomputed_activations(name):
    gap, before, after = activations.check_recomputed(make(name), batch(name, 0))
    print(name, gap, before, after)
    assert gap == 0 and after < 0.75 * before


def test_random_numbers_in_a_layer_are_replayed():
    model = make("ac_lam_cpu")
    for layer in sharded.layers_of(model).values():
        layer.mlp.drop1.p = 0.2
    gap, _, _ = activations.check_recomputed(model, batch("ac_lam_cpu", 0))
    assert gap == 0


def test_checkpointing_twice_is_once_and_evaluation_is_untouched():
    model = make("policy")
    kinds = [type(x) for x in sharded.layers_of(activations.checkpoint_activations(model)).values()]
    assert kinds == [
        type(x) for x in sharded.layers_of(activations.checkpoint_activations(model)).values()
    ]
    given = batch("policy", 0)
    noise = policies.draw_noise(model.config, range(8))
    plain = make("policy").eval().sample(given["frames"], given["text"], given["proprio"], noise)
    again = model.eval().sample(given["frames"], given["text"], given["proprio"], noise)
    assert torch.equal(plain.action, again.action)


def test_every_family_has_pieces_and_small_rests():
    for name in NAMES:
        model = make(name)
        assert sharded.layers_of(model)
        names = sharded.replicated_parameters(model)
        assert all(
            "bottleneck" in n or "vq" in n or not p.numel() or not p.ndim for n, p in names.items()
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["policy", "policy_paligemma", "ac_lam_cpu"])
def test_checkpointed_step_compiles_in_one_graph(name):
    class Step(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, given):
            return self.model.loss(given)[0]

    step, given = Step(activations.checkpoint_activations(make(name)).train()), batch(name, 0)
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = step(given)
    torch.manual_seed(0)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(given)
    compiled.backward()
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-6)


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
