"""One training whatever the precision, the number of processes and of micro-batches: over every
family of models.
"""

import shutil
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import scale_table
from scale_runs import FAMILIES, KINDS, OPENS, Mixed, ToyMoments, build, curve

from aclam.core import UserError
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import LatentActionModel
from aclam.lam.global_batch import MicroBatch, commit, micro_batch
from aclam.policy.model import Policy
from aclam.train import step
from aclam.train.checkpoint import checkpoints
from aclam.train.config import TrainConfig
from aclam.train.log import read_metrics
from aclam.train.loop import Run, train

MODELS = (*FAMILIES, *(f"ac_lam_cpu/{kind}" for kind in KINDS), "policy")
SHORT = {"steps": OPENS + 4, "batch_size": 8}  # through the opening of the codes


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return {True: ToyMoments(), False: Mixed()}  # for a policy, for a latent action model


def farthest(a: dict, b: dict) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a["losses"], b["losses"], strict=True))


def opened(model: torch.nn.Module, quantizes: bool) -> torch.nn.Module:
    """The model before or after the opening of its codes."""
    for module in model.modules():
        if hasattr(module, "open"):
            module.open = quantizes
        if hasattr(module, "started"):
            module.started = True
    return model.train()


@pytest.mark.parametrize("name", MODELS)
def test_bf16_trains_through_the_opening_of_the_codes(name):
    wide, narrow = curve(name, **SHORT), curve(name, mixed_precision="bf16", **SHORT)
    assert farthest(narrow, wide) < 0.05
    assert narrow["losses"] != wide["losses"]  # it was bfloat16


class HostCopies(TorchDispatchMode):
    """Notes where numbers of the host are copied to the device, for which the host waits."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (out, *args) if isinstance(x, torch.Tensor)]
        if func.__name__.startswith(("_to_copy", "copy_")) and len(tensors) > 1:
            on = {x.device.type for x in tensors}
            if on == {"cpu", "cuda"}:
                frames = [f for f in traceback.extract_stack() if "/aclam/" in f.filename]
                self.seen.add(f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?")
        return out


@pytest.mark.parametrize("quantizes", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_follows_the_rules_of_cuda(name, quantizes, data):
    """On fake CUDA tensors: layer norms give float32 there, whatever mixes precisions fails as on a
    GPU, and no constant is copied from the host.
    """
    objective = step.LossModule(opened(build(name), quantizes))
    batch = data[name == "policy"].batch(range(2))

    def fake(t: torch.Tensor) -> torch.Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device="cuda").requires_grad_(t.requires_grad)

    with FakeTensorMode():
        state = {k: fake(v) for k, v in [*objective.named_parameters(), *objective.named_buffers()]}
        inputs = {k: fake(v) for k, v in batch.items()}
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            with micro_batch(MicroBatch(fake(torch.arange(2)), 2)), HostCopies() as copies:
                loss, _ = functional_call(objective, state, (inputs,))
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert loss.device.type == "cuda" and loss.dtype == torch.float32
    assert not copies.seen


def test_a_copy_from_the_host_is_noticed():
    with FakeTensorMode():
        there = torch.empty(3, device="cuda")
        with HostCopies() as copies:
            there.new_full((), 0.5)
            there + 1
        assert not copies.seen
        with HostCopies() as copies:
            there.new_tensor((0.5, 0.2, 0.1))
        assert copies.seen


@pytest.mark.parametrize("quantizes", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_one_graph(name, quantizes, data):
    objective = step.LossModule(opened(build(name), quantizes))
    batch = data[name == "policy"].batch(range(4))
    torch._dynamo.reset()
    whole = torch.compile(objective, backend="eager", fullgraph=True)  # raises at a break
    with micro_batch(MicroBatch(torch.arange(4), 8)):
        torch.manual_seed(0)
        found = whole(batch)[0]
        step.forget(objective)
        torch.manual_seed(0)
        assert torch.allclose(found, objective(batch)[0], rtol=1e-5)


class Waits(TorchDispatchMode):
    """Counts the calls for which a host waits for its device."""

    NAMES = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(func.__name__.startswith(name) for name in self.NAMES):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_waits_for_the_device_once(name, data, tmp_path, monkeypatch):
    reads = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append(t.shape) or real(t))
    config = TrainConfig(steps=OPENS + 4, batch_size=8, log_every=1000, ema=0.9)
    run = Run(
        build(name), data[name == "policy"], config, tmp_path, torch.utils.data.default_collate
    )
    batches = run.batches(0)
    run.ddp_model.train()
    for s in range(config.steps):
        parts = next(batches)
        reads.clear()
        with Waits() as waits:
            run.optimize(s, parts)
        assert len(reads) == 1 and not waits.seen, (s, waits.seen)


@pytest.mark.parametrize("name", MODELS)
def test_accumulation_gives_the_curve_of_one_batch(name):
    """In three passes, where a model has statistics of a batch; in one where it has none."""
    exact = name not in ("policy", "lapa_cpu")
    whole = curve(name, **SHORT)
    parts = curve(name, accumulate=4, exact_accumulation=exact, **SHORT)
    assert farthest({"losses": parts["losses"][:OPENS]}, {"losses": whole["losses"][:OPENS]}) < 1e-5
    assert (
        farthest(parts, whole) < 1e-3
    )  # a token at the border of two codes may choose the other one


def test_plain_accumulation_says_what_it_costs():
    whole, parts = curve("ac_lam_cpu", **SHORT), curve("ac_lam_cpu", accumulate=4, **SHORT)
    assert (
        1e-4 < farthest(parts, whole) < 0.2
    )  # the normalizer's statistics are those of two triples


def test_two_processes_train_the_model_of_one():
    names = ["ac_lam_cpu", "ac_lam_cpu/nsvq", "univla_stage_1_cpu", "lapa_cpu", "policy"]
    todo = [
        {
            "name": name,
            "accumulate": 2,
            "exact_accumulation": name not in ("policy", "lapa_cpu"),
            **SHORT,
        }
        for name in names
    ]
    for run in scale_table.trained(2, todo):
        one = curve(run["name"], **SHORT)
        assert run["world"] == 2
        assert (
            farthest({"losses": run["losses"][:OPENS]}, {"losses": one["losses"][:OPENS]}) < 1e-5
        ), run["name"]
        assert farthest(run, one) < 1e-3, run["name"]


DRIFT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from accelerate import PartialState
from toy_lam import Blobs, ToyLam
from aclam.core import UserError
from aclam.train.config import TrainConfig
from aclam.train.loop import leave_group, train

class Drifts(ToyLam):
    def commit_step(self):
        with torch.no_grad():
            self.A.bias += 1e-3 * PartialState().process_index

PartialState(cpu=True)
torch.manual_seed(0)
try:
    train(Drifts(), Blobs(), TrainConfig(steps=6, batch_size=4, digest_every=3, probe_every=0), sys.argv[2])
except UserError as error:
    print(error)
leave_group()
"""


def test_processes_that_drift_apart_are_stopped(tmp_path):
    (tmp_path / "drift.py").write_text(DRIFT)
    torchrun = Path(sys.executable).parent / "torchrun"
    env = {
        **scale_table.os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(scale_table.ROOT),
    }
    where = [tmp_path / "drift.py", Path(__file__).parent, tmp_path / "run"]
    done = subprocess.run(
        [torchrun, "--nproc_per_node=2", "--master_port=29893", *where],
        env=env,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert "step 3: the processes no longer hold the same model: A.bias differs" in done.stdout, (
        done.stderr[-2000:]
    )


def test_exact_accumulation_is_refused_where_it_cannot_be(tmp_path, data):
    config = TrainConfig(steps=1, batch_size=4, accumulate=2, exact_accumulation=True)
    with pytest.raises(UserError, match="leave out --train.exact-accumulation"):
        Run(build("policy"), data[True], config, tmp_path, torch.utils.data.default_collate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ac_lam_cpu", "potential_vq_cpu"])
def test_compiled_losses_are_those_of_the_eager_step(name):
    settings = {**SHORT, "mixed_precision": "no"}
    assert farthest(curve(name, compile=True, **settings), curve(name, **settings)) < 1e-4


@pytest.mark.slow
def test_the_bf16_curve_stays_within_a_percent(monkeypatch):
    """200 steps of ac_lam_cpu as it is, through an opening at step 100."""
    import scale_runs

    preset = scale_runs.PRESETS["ac_lam_cpu"]
    whole = replace(
        preset, proprio_dim=7, bottleneck=replace(preset.bottleneck, continuous_steps=100)
    )
    monkeypatch.setattr(scale_runs, "small", lambda name: whole)
    settings = {"steps": 200, "batch_size": 16, "schedule": "one_cycle", "lr": 2e-3}
    wide, narrow = (
        curve("ac_lam_cpu", **settings),
        curve("ac_lam_cpu", mixed_precision="bf16", **settings),
    )
    smooth = [
        [sum(c["losses"][s : s + 20]) / 20 for s in range(0, 200, 20)] for c in (wide, narrow)
    ]
    gaps = [abs(b / a - 1) for a, b in zip(*smooth, strict=True)]
    print([f"{g:.1e}" for g in gaps], f"largest of a single step {farthest(narrow, wide):.1e}")
    assert max(gaps) < 0.01


def test_commit_is_needed_once_only():
    lam = build("ac_lam_cpu").train()
    batch = Mixed().batch(range(4))
    with micro_batch(MicroBatch(torch.arange(4), 8)):
        lam.loss(batch)
        lam.loss(batch)
    assert lam.bottleneck.steps == 0
    commit(lam)
    commit(lam)
    assert lam.bottleneck.steps == 1


def losses_in(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def launched(world: int, *words: object) -> None:
    """Run `python -m aclam.train.lam words...` on so many processes."""
    env = {
        **scale_table.os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(scale_table.ROOT),
    }
    torchrun = [
        str(Path(sys.executable).parent / "torchrun"),
        f"--nproc_per_node={world}",
        "--master_port=29897",
        "-m",
    ]
    command = [
        *(torchrun if world > 1 else [sys.executable, "-m"]),
        "aclam.train.lam",
        *map(str, words),
    ]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_sharded_run_goes_on_whole_and_a_whole_run_goes_on_sharded(tmp_path):
    write_store(
        tmp_path / "store", (synthetic_trajectory(seed, T=20, size=32) for seed in range(6))
    )
    words = [
        "--data",
        tmp_path / "store",
        "--model.idm-width",
        16,
        "--model.fdm-width",
        16,
        "--probe-n",
        8,
        "--model.bottleneck.continuous-steps",
        5,
        "--train.steps",
        12,
        "--train.batch-size",
        8,
        "--train.checkpoint-every",
        6,
        "--train.probe-every",
        6,
        "--train.log-every",
        1,
        "--train.ema",
        0.5,
        "--out",
    ]
    launched(1, *words, tmp_path / "whole")
    launched(2, *words, tmp_path / "sharded", "--train.shard", "--train.checkpoint-activations")
    one = losses_in(tmp_path / "whole")
    assert farthest({"losses": losses_in(tmp_path / "sharded")[:5]}, {"losses": one[:5]}) < 1e-5
    for name in ("whole", "sharded"):  # back to step 6, and on in the other way
        for path in [
            *(tmp_path / name / "checkpoints").glob("step_000012"),
            tmp_path / name / "model",
        ]:
            shutil.rmtree(path)
    launched(2, *words, tmp_path / "whole", "--train.shard")
    launched(1, *words, tmp_path / "sharded")
    for name in ("whole", "sharded"):
        assert (
            farthest({"losses": losses_in(tmp_path / name)}, {"losses": one}) < 1e-3
        )  # a token at a border: step 6
        model = LatentActionModel.from_pretrained(tmp_path / name / "model")
        assert model.bottleneck.steps == 12 and model.bottleneck.book.started
        check_average(tmp_path / name, model)


def check_average(run: Path, model: torch.nn.Module) -> None:
    """The model of a run is its newest checkpoint's average, and not its last weights."""
    newest = checkpoints(run)[-1]
    last = load_file(newest / "model.safetensors")
    average = load_file(newest / "average.safetensors")
    state = model.state_dict()
    assert all(torch.equal(t, (last | average)[name]) for name, t in state.items())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name in average for name in names)
    assert any(not torch.equal(last[name], average[name]) for name in names)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_of_every_family_is_the_average(name, data, tmp_path):
    config = TrainConfig(steps=OPENS + 4, batch_size=8, warmup_steps=0, lr=1e-3, ema=0.5)
    train(build(name), data[name == "policy"], config, tmp_path)
    kind = Policy if name == "policy" else LatentActionModel
    check_average(tmp_path, kind.from_pretrained(tmp_path / "model"))
