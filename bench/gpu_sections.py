"""The measurements of bench/gpu.sh. Each is a function of a `Plan`, a `Page` to write numbers on
and a `Clock`.

A section writes every number as soon as it has it: what is on the page stays, whatever happens
next.
"""

import json
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from aclam.core import UserError, read_json, write_json
from aclam.data import loading
from aclam.data.cache import cache_frames
from aclam.data.loading import loader_settings
from aclam.data.sampling import TripleConfig
from aclam.data.store import finish_store, read_store, start_store, write_shard
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import LatentActionModel
from aclam.policy.model import TINY as TINY_POLICY
from aclam.policy.model import Policy, PolicyConfig
from aclam.train.activations import checkpoint_activations
from aclam.train.cards import card_of, largest_rows
from aclam.train.config import TrainConfig
from aclam.train.lam import LamTrainConfig, settings_for
from aclam.train.lam import run as train_lam
from aclam.train.log import read_metrics
from aclam.train.loop import train
from aclam.train.memory import Setup, memory
from aclam.train.optimizer import make_optimizer
from aclam.train.sharded import compile_layers
from aclam.train.step_cost import flops_per_triple

PACKAGES = (
    "torch",
    "triton",
    "torchvision",
    "timm",
    "accelerate",
    "safetensors",
    "transformers",
    "numpy",
    "pyarrow",
    "simplejpeg",
)
SYNCHRONIZING = (
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "is_nonzero",
    "equal",
    "masked_select",
)


@dataclass(frozen=True)
class Plan:
    """What is measured: paper sizes on a GPU, or the same sections with tiny models on a CPU."""

    tiny: bool
    device: str
    out: Path  # of everything that is written

    @property
    def lam(self) -> str:
        return "ac_lam_cpu" if self.tiny else "ac_lam_paper"

    @property
    def shrink(self) -> dict[str, int]:
        """Settings that make the model of `lam` tinier still: compiling costs a second for each
        kernel.
        """
        return (
            {"idm_width": 16, "idm_depth": 1, "fdm_width": 16, "fdm_depth": 1} if self.tiny else {}
        )

    @property
    def families(self) -> tuple[str, ...]:
        names = ("villa_x", "lapa", "univla", "potential_lam")
        return tuple(f"{name}_cpu" for name in names) if self.tiny else names

    @property
    def micro_batches(self) -> tuple[int, ...]:
        return (2, 4) if self.tiny else (8, 16, 32, 64, 128)

    @property
    def large(self) -> int:
        """Pixels of the store of large frames."""
        return 64 if self.tiny else 224

    @property
    def precision(self) -> str:
        return "bf16"


class Page:
    """The numbers of one section, in a file that is whole after each of them."""

    def __init__(self, file: Path):
        self.file = file
        self.values: dict[str, Any] = {}

    def put(self, **values: Any) -> None:
        self.values.update(values)
        write_json(self.file, self.values)

    def add(self, name: str, row: dict) -> None:
        """One more row of a list."""
        self.put(**{name: [*self.values.get(name, []), row]})


@dataclass(frozen=True)
class Clock:
    """When a section has to be through."""

    deadline: float  # of time.monotonic()

    def left(self) -> float:
        return self.deadline - time.monotonic()


# --- the card -------------------------------------------------------------------------------------


def card_name(plan: Plan) -> str:
    return torch.cuda.get_device_name() if plan.device == "cuda" else "cpu"


def peak_of(plan: Plan) -> float | None:
    """The card's stated bf16 peak in FLOP/s; None on a CPU and for cards that the cost chapter does
    not know.
    """
    card = card_of(card_name(plan))
    return card.peak("bf16") if card else None


def wait_for(plan: Plan) -> None:
    if plan.device == "cuda":
        torch.cuda.synchronize()


def forget_memory(plan: Plan) -> None:
    if plan.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib(plan: Plan) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if plan.device == "cuda" else None


def seconds_each(plan: Plan, work: Callable[[], Any], repeats: int, warm: int = 1) -> float:
    """Wall seconds of a call, the mean of `repeats` that follow each other."""
    for _ in range(warm):
        work()
    wait_for(plan)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait_for(plan)
    return (time.perf_counter() - start) / repeats


def installed() -> dict[str, str | None]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def nvidia_smi() -> str | None:
    words = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,power.limit",
        "--format=csv,noheader",
    ]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def host() -> dict[str, Any]:
    """What limits the processes that load data: memory, shared memory, open files."""
    pages = {name: os.sysconf(f"SC_{name}") for name in ("PHYS_PAGES", "AVPHYS_PAGES", "PAGE_SIZE")}
    return {
        "host_memory_gib": pages["PHYS_PAGES"] * pages["PAGE_SIZE"] / 2**30,
        "host_memory_free_gib": pages["AVPHYS_PAGES"] * pages["PAGE_SIZE"] / 2**30,
        "shared_memory_gib": loading.shared_memory()[1] / 2**30,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def machine(plan: Plan, page: Page, clock: Clock) -> None:
    """Versions, the card, and what it reaches by itself: a large matrix product and a large copy."""
    page.put(
        card=card_name(plan),
        peak_tflops=peak_of(plan) and peak_of(plan) / 1e12,
        cores=os.cpu_count(),
        python=sys.version.split()[0],
        cuda=torch.version.cuda,
        versions=installed(),
    )
    page.put(**host())
    if plan.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        page.put(
            memory_gib=about.total_memory / 2**30,
            multiprocessors=about.multi_processor_count,
            smi=nvidia_smi(),
        )
    n = 256 if plan.tiny else 8192
    a, b = (torch.randn(n, n, device=plan.device, dtype=torch.bfloat16) for _ in range(2))
    page.put(matmul_bf16_tflops=2 * n**3 / seconds_each(plan, lambda: a @ b, 10, 3) / 1e12)
    large = torch.empty(2**20 if plan.tiny else 2**31, dtype=torch.uint8, device=plan.device)
    page.put(copy_tb_per_second=2 * large.numel() / seconds_each(plan, large.clone, 5) / 1e12)


# --- data -----------------------------------------------------------------------------------------


def _part(folder: Path, part: int, episodes: range, frames: int, size: int) -> None:
    made = [synthetic_trajectory(n, T=frames, size=size, fps=5) for n in episodes]
    write_shard(folder, part, made, first_episode=episodes[0], quality=90)


def make_store(folder: Path, episodes: int, frames: int, size: int, each: int) -> None:
    """A store of synthetic episodes, `each` to a part, the parts written side by side."""
    start_store(folder, {"synthetic": episodes, "size": size})
    parts = [range(first, min(first + each, episodes)) for first in range(0, episodes, each)]
    with ProcessPoolExecutor(max_workers=min(len(parts), os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_part, folder, n, part, frames, size) for n, part in enumerate(parts)]
        for job in jobs:
            job.result()
    finish_store(folder)


def stores(plan: Plan, page: Page, clock: Clock) -> None:
    """Two stores of JPEG frames, large and small, made here; and what one core makes of the large
    one.
    """
    sizes = (
        {"large": (4, 30, plan.large, 2), "small": (24, 27, 32, 12)}
        if plan.tiny
        else {"large": (24, 60, plan.large, 2), "small": (240, 27, 32, 15)}
    )
    for name, (episodes, frames, size, each) in sizes.items():
        start = time.perf_counter()
        make_store(plan.out / name, episodes, frames, size, each)
        page.add(
            "made",
            {
                "store": name,
                "episodes": episodes,
                "frames": frames,
                "pixels": size,
                "seconds": time.perf_counter() - start,
            },
        )
    torch.set_num_threads(1)
    data = TripleDataset(
        read_store(plan.out / "large").trajectories, TripleConfig(), plan.large, length=10**6
    )
    data.batch(range(4))
    start = time.process_time()
    n = 16 if plan.tiny else 128
    data.batch(range(n))
    page.put(triples_per_core_second=n / (time.process_time() - start))


# --- steps ----------------------------------------------------------------------------------------


def lam_batch(config: Any, rows: int, device: str) -> dict[str, Tensor]:
    """Triples of noise, as a model of `config` takes them."""
    size = config.image_size
    generator = torch.Generator(device=device).manual_seed(0)
    frames = torch.randint(
        0, 256, (rows, 3, 3, size, size), dtype=torch.uint8, device=device, generator=generator
    )
    return {"frames": frames}


def policy_batch(c: PolicyConfig, rows: int, device: str) -> dict[str, Tensor]:
    """What `Policy.loss` takes, at random."""
    size = c.vlm.image_size
    yes = torch.ones(rows, dtype=torch.bool, device=device)
    return {
        "frames": torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, device=device),
        "text": torch.randint(1, c.vlm.vocab, (rows, c.vlm.text_length), device=device),
        "proprio": torch.rand(rows, c.proprio_dim, device=device),
        "action": torch.rand(rows, c.actions, c.action_dim, device=device),
        "latent": torch.randn(rows, c.latents, c.latent_dim, device=device),
        "has_action": yes,
        "has_latent": yes,
    }


class Trainer:
    """A model, its optimizer, and a step without a loop around it: forward, backward, clip, AdamW."""

    def __init__(self, plan: Plan, model: nn.Module, compiled: bool = False):
        self.plan = plan
        self.model = model.train()
        self.optimizer = make_optimizer(model, TrainConfig())
        self.loss = torch.compile(model.loss, dynamic=False) if compiled else model.loss

    def forward_backward(self, batch: dict) -> Tensor:
        with torch.autocast(
            self.plan.device, dtype=torch.bfloat16, enabled=self.plan.precision == "bf16"
        ):
            loss, _ = self.loss(batch)
        loss.backward()
        return loss.detach()

    def step(self, batch: dict) -> Tensor:
        loss = self.forward_backward(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def count_flops(trainer: Trainer, batch: dict) -> float:
    """FLOPs of a row, forward and backward, as PyTorch counts them: without fused attention, of
    which it knows not all.
    """
    rows = len(batch["frames"])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.forward_backward(batch)
    trainer.optimizer.zero_grad()
    return counter.get_total_flops() / rows


def throughput(
    plan: Plan, trainer: Trainer, batch: dict, flops: float, repeats: int
) -> dict[str, Any]:
    """Rows a second, MFU and memory of a step at one batch; {'fits': False} where memory runs out."""
    rows = len(batch["frames"])
    peak = peak_of(plan)
    forget_memory(plan)
    try:
        spent = seconds_each(plan, lambda: trainer.step(batch), repeats, warm=2)
        loss = trainer.step(batch).item()
    except torch.cuda.OutOfMemoryError:
        trainer.optimizer.zero_grad()
        forget_memory(plan)
        return {"micro_batch": rows, "fits": False}
    rate = rows / spent
    return {
        "micro_batch": rows,
        "fits": True,
        "seconds_per_step": spent,
        "rows_per_second": rate,
        "mfu": rate * flops / peak if peak else None,
        "peak_memory_gib": peak_memory_gib(plan),
        "loss": loss,
    }


def build(plan: Plan, name: str) -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel.from_preset(name, **(plan.shrink if name == plan.lam else {})).to(
        plan.device
    )


def set_arithmetic(plan: Plan, tf32: bool = True) -> None:
    if plan.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32


def formula_memory_gib(config: Any, rows: int, checkpointed: bool = False) -> float:
    """What the cost chapter's plan says that a step of so many rows takes in bf16."""
    setup = Setup(checkpointed=checkpointed, accumulated=False)
    return memory(config, rows, setup).total / 2**30


def largest(plan: Plan, config: Any) -> int | None:
    """The largest micro-batch that the plan of memory gives this card."""
    return largest_rows(config, torch.cuda.mem_get_info()[1]) if plan.device == "cuda" else None


def sweep(plan: Plan, page: Page, clock: Clock) -> None:
    """The model of the paper's size in bf16, without compiling, over micro-batches: what fits, and
    how fast.
    """
    set_arithmetic(plan)
    model = build(plan, plan.lam)
    trainer = Trainer(plan, model)
    counted = count_flops(trainer, lam_batch(model.config, 1, plan.device))
    flops = flops_per_triple(model.config) or counted
    page.put(
        preset=plan.lam,
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_triple=flops,
        flops_counted=counted,
        largest_by_formula=largest(plan, model.config),
    )
    for rows in plan.micro_batches:
        row = throughput(
            plan, trainer, lam_batch(model.config, rows, plan.device), flops, 2 if plan.tiny else 6
        )
        page.add(
            "micro_batches",
            {**row, "memory_by_formula_gib": formula_memory_gib(model.config, rows)},
        )
        if not row["fits"] or clock.left() < 10:
            return


NEAR = 0.98  # of the highest throughput: more memory for the rest buys nothing


def best_micro_batch(plan: Plan) -> int:
    """The smallest micro-batch of `sweep` that is about as quick as the quickest; the smallest of
    all where it has not run.
    """
    page = plan.out / "pages" / "sweep.json"
    rows = read_json(page).get("micro_batches", []) if page.exists() else []
    fitting = [r for r in rows if r["fits"]]
    if not fitting:
        return plan.micro_batches[0]
    quickest = max(r["rows_per_second"] for r in fitting)
    return min(r["micro_batch"] for r in fitting if r["rows_per_second"] >= NEAR * quickest)


def families(plan: Plan, page: Page, clock: Clock) -> None:
    """The other families at their papers' sizes: a few steps each, at the largest of some batches
    that fits.
    """
    set_arithmetic(plan)
    for place, name in enumerate(plan.families):
        share = clock.left() / (len(plan.families) - place)
        page.add("models", one_family(plan, name, time.monotonic() + share))
        forget_memory(plan)


def one_family(plan: Plan, name: str, until: float) -> dict[str, Any]:
    """One row of the table of families; what went wrong, where something did."""
    try:
        model = build(plan, name)
        trainer = Trainer(plan, model)
        counted = count_flops(trainer, lam_batch(model.config, 1, plan.device))
        flops = flops_per_triple(model.config) or counted
        row = {
            "preset": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "flops_per_triple": flops,
            "flops_counted": counted,
        }
        for rows in (2,) if plan.tiny else (32, 16, 8):
            found = throughput(
                plan,
                trainer,
                lam_batch(model.config, rows, plan.device),
                flops,
                2 if plan.tiny else 5,
            )
            if found["fits"] or time.monotonic() > until:
                break
        batch = lam_batch(model.config, found["micro_batch"], plan.device)
        return {**row, **found, "kernels": longest_kernels(plan, trainer, batch)}
    except (RuntimeError, UserError) as e:
        return {"preset": name, "error": first_line(e)}


def longest_kernels(plan: Plan, trainer: Trainer, batch: dict, most: int = 6) -> list[dict]:
    """What ran longest in a step: names, and shares of all."""
    trainer.step(batch)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if plan.device == "cuda" else []
    with torch.profiler.profile(activities=kinds) as recorded:
        trainer.step(batch)
        wait_for(plan)
    ran = kernels_of(plan, recorded.key_averages())
    whole = sum(t for _, t, _ in ran) or 1.0
    return [{"name": name[:90], "share": t / whole, "calls": n} for name, t, n in ran[:most]]


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


# --- the policy -----------------------------------------------------------------------------------


def policy(plan: Plan, page: Page, clock: Clock) -> None:
    """One optimizer step after another of the policy of the paper's size, with random weights and
    checkpointing.
    """
    set_arithmetic(plan)
    config = TINY_POLICY if plan.tiny else PolicyConfig()
    start = time.perf_counter()
    with torch.device(plan.device):
        model = Policy(config)
    page.put(
        seconds_to_build=time.perf_counter() - start,
        parameters=sum(p.numel() for p in model.parameters()),
    )
    trainer = Trainer(plan, checkpoint_activations(model))
    again = count_flops(trainer, policy_batch(config, 1, plan.device))
    flops = flops_per_triple(config) or again
    page.put(weights="random", flops_per_sample=flops, flops_with_recomputing=again)
    for rows in (1, 2) if plan.tiny else (16, 64):
        row = throughput(
            plan, trainer, policy_batch(config, rows, plan.device), flops, 1 if plan.tiny else 3
        )
        page.add(
            "micro_batches",
            {**row, "memory_by_formula_gib": formula_memory_gib(config, rows, True)},
        )
        if not row["fits"] or clock.left() < 8:
            return


# --- the loop -------------------------------------------------------------------------------------


def loop_settings(
    plan: Plan, name: str, preset: str, data: str, **train_fields: Any
) -> LamTrainConfig:
    """Settings of a run of `aclam-train-lam` that logs often, probes never and keeps one
    checkpoint.
    """
    base = settings_for(preset)
    common = dict(
        probe_every=0,
        checkpoint_every=0,
        keep_checkpoints=1,
        log_every=5,
        mixed_precision=plan.precision,
    )
    whole = replace(base.train, **{**common, **train_fields})
    return replace(
        base,
        data=(str(plan.out / data),),
        out=str(plan.out / "runs" / name),
        train=whole,
        probe_n=16,
        resume=False,
    )


def steady(folder: str | Path, rows: int) -> dict[str, Any]:
    """What a run's log says of its speed, without its beginning: the mean over the second half of
    its lines.
    """
    lines = [line for line in read_metrics(folder) if "seconds" in line]
    half = lines[len(lines) // 2 :]
    found = {
        key: statistics.fmean(line[key] for line in half)
        for key in ("data_wait", "mfu")
        if key in half[-1]
    }
    first = lines[max(len(lines) // 2 - 1, 0)]
    last = lines[-1]
    steps = last["step"] - first["step"]
    seconds = last["seconds"] - first["seconds"]
    rate = steps * rows / seconds if seconds > 0 else None
    memory = max(
        (line["peak_memory_gib"] for line in lines if "peak_memory_gib" in line), default=None
    )
    return {
        "triples_per_second": rate,
        "peak_memory_gib": memory,
        "first_line_at_s": lines[0]["seconds"],
        "steps": last["step"],
        **found,
    }


def loop_row(
    plan: Plan, name: str, rows: int, steps: int, cache_gib: float, **train_fields: Any
) -> dict[str, Any]:
    """One run of the real loop, from the store of large frames, augmented as the paper does."""
    few = {"num_workers": 0} if plan.tiny else {}  # else the preset's: chosen from the machine
    config = loop_settings(
        plan, name, plan.lam, "large", steps=steps, batch_size=rows, **few, **train_fields
    )
    size = {"image_size": plan.large, **plan.shrink} if plan.tiny else {}
    config = replace(
        config, cache_gib=cache_gib, augmentation=True, model=replace(config.model, **size)
    )
    train_lam(config)
    found = steady(config.out, rows)
    peak = peak_of(plan)
    flops = page_number(plan, "sweep", "flops_per_triple")
    if peak and flops and found["triples_per_second"]:
        found["mfu"] = found["triples_per_second"] * flops / peak
    settings = loader_settings(config.train.num_workers, plan.device, in_memory=cache_gib > 0)
    return {"run": name, "micro_batch": rows, "num_workers": settings["num_workers"], **found}


def page_number(plan: Plan, section: str, name: str) -> Any:
    page = plan.out / "pages" / f"{section}.json"
    return read_json(page).get(name) if page.exists() else None


def loop_steps(plan: Plan, rows: int, seconds: float) -> int:
    """Steps that take about so many seconds, by what the sweep has measured."""
    if plan.tiny:
        return 12
    swept = page_number(plan, "sweep", "micro_batches") or []
    each = next(
        (r["seconds_per_step"] for r in swept if r["micro_batch"] == rows and r["fits"]), 0.5
    )
    return int(min(max(seconds / each, 20), 300)) // 5 * 5


LOADER_S = 22  # until the loading processes have brought a few batches
WAYS = ("forkserver", "fork")  # how they may come to be; the first is what training takes


def loader_alone(plan: Plan, rows: int) -> list[dict[str, Any]]:
    """What the loading processes do without a model, each way in a process of its own: seconds to
    the first batch, triples a second. A way that hangs says where, in the log.
    """
    found = []
    for way in WAYS:
        words = [sys.executable, str(Path(__file__).parent / "gpu_loader.py")]
        words += [way, str(plan.out / "large"), str(plan.large), str(rows), str(LOADER_S - 4)]
        try:
            ran = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LOADER_S)
            said = ran.stdout.strip().splitlines()
            found.append({"way": way, **json.loads(said[-1])} if said else {"way": way})
        except subprocess.TimeoutExpired:
            found.append({"way": way, "error": f"no batches within {LOADER_S} s"})
        if "triples_per_second" in found[-1]:
            break
    return found


def usable_ways(tried: list[dict[str, Any]]) -> str:
    return next((row["way"] for row in tried if "triples_per_second" in row), WAYS[0])


def workers_come_by(way: str) -> None:
    """Have training start its loading processes this way."""
    if way != WAYS[0]:
        loading._context = lambda device: multiprocessing.get_context(way)


def loop(plan: Plan, page: Page, clock: Clock) -> None:
    """The real training loop without compiling: from JPEG frames, and from frames that were decoded
    once.
    """
    rows = best_micro_batch(plan)
    if not plan.tiny:
        page.put(loader=loader_alone(plan, rows))
        page.put(workers_are=usable_ways(page.values["loader"]))
        workers_come_by(page.values["workers_are"])
    for name, cache_gib in (("jpeg", 0.0), ("decoded", 8.0)):
        if clock.left() > 15:
            page.add("runs", loop_row(plan, name, rows, loop_steps(plan, rows, 12), cache_gib))


def layers(plan: Plan, page: Page, clock: Clock) -> None:
    """A step alone with each transformer block compiled: seconds to compile, and how fast."""
    set_arithmetic(plan)
    model = build(plan, plan.lam)
    trainer = Trainer(plan, model)
    batch = lam_batch(model.config, best_micro_batch(plan), plan.device)
    flops = flops_per_triple(model.config)
    compile_layers(model, dynamic=False)
    start = time.perf_counter()
    trainer.step(batch)
    wait_for(plan)
    page.put(first_step_s=time.perf_counter() - start)
    page.put(**throughput(plan, trainer, batch, flops, 2 if plan.tiny else 6))
    page.put(kernels=longest_kernels(plan, trainer, batch, 12))


def compiled(plan: Plan, page: Page, clock: Clock) -> None:
    """The real training loop, compiled."""
    rows = best_micro_batch(plan)
    workers_come_by(page_number(plan, "loop", "workers_are") or "forkserver")
    page.add(
        "runs", loop_row(plan, "compiled", rows, loop_steps(plan, rows, 15), 0.0, compile=True)
    )


# --- where the time goes --------------------------------------------------------------------------

KINDS = {  # of kernels, by what their names contain
    "matrix products": r"gemm|cutlass|nvjet|cublas|xmma|aten::(mm|addmm|bmm|linear)\b",
    "attention": r"flash|fmha|sdpa|attention|softmax",
    "optimizer": r"multi_tensor|adam|lpnorm|foreach|Optimizer",
    "copies": r"memcpy|memset|copy_",
}


def kind_of(kernel: str) -> str:
    """Matrix products, attention, optimizer, copies, or everything else: element by element, norms,
    sums.
    """
    return next(
        (kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.I)),
        "element by element",
    )


def profile(plan: Plan, page: Page, clock: Clock) -> None:
    """The ten longest kernels of a step, and what share of the time each kind of kernel has."""
    set_arithmetic(plan)
    model = build(plan, plan.lam)
    trainer = Trainer(plan, model)
    rows = best_micro_batch(plan)
    batch = lam_batch(model.config, rows, plan.device)
    for _ in range(2):
        trainer.step(batch)
    wait_for(plan)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if plan.device == "cuda" else []
    start = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as recorded:
        trainer.step(batch)
        trainer.step(batch)
        wait_for(plan)
    page.put(micro_batch=rows, seconds_of_two_steps=time.perf_counter() - start)
    put_kernels(plan, page, recorded.key_averages())
    page.put(synchronizations_per_step=synchronizations(plan, clock))


def put_kernels(plan: Plan, page: Page, events: Any) -> None:
    """Names, times and kinds of what ran on the device."""
    by = "self_device_time_total" if plan.device == "cuda" else "self_cpu_time_total"
    ran = kernels_of(plan, events)
    whole = sum(t for _, t, _ in ran) or 1.0
    page.put(
        kernels=[
            {"name": name[:120], "share": t / whole, "calls": count} for name, t, count in ran[:10]
        ]
    )
    shares: dict[str, float] = {}
    for name, t, _ in ran:
        shares[kind_of(name)] = shares.get(kind_of(name), 0.0) + t / whole
    page.put(
        shares=shares, device_seconds=whole / 1e6, table=events.table(sort_by=by, row_limit=10)
    )


def kernels_of(plan: Plan, events: Any) -> list[tuple[str, float, int]]:
    """Names, microseconds and calls of what ran on the device, the longest first."""
    if plan.device == "cuda":
        ran = [(e.key, e.self_device_time_total, e.count) for e in events if on_device(e)]
    else:
        times = [(e.key, e.self_cpu_time_total, e.count) for e in events]
        ran = [r for r in times if r[1] > 0]
    return sorted(ran, key=lambda r: -r[1])


def on_device(event: Any) -> bool:
    return event.self_device_time_total > 0 and "CUDA" in str(event.device_type)


class Waits(TorchDispatchMode):
    """Counts what makes the program wait for numbers of the device: operators, and `tolist`, which
    is none.
    """

    def __init__(self):
        super().__init__()
        self.seen: dict[str, int] = {}

    def count(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in SYNCHRONIZING:
            self.count(name)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.tolist = Tensor.tolist

        def tolist(tensor: Tensor) -> list:
            self.count("tolist")
            return self.tolist(tensor)

        Tensor.tolist = tolist
        return super().__enter__()

    def __exit__(self, *error):
        Tensor.tolist = self.tolist
        return super().__exit__(*error)


@contextmanager
def noticed(plan: Plan) -> Iterator[list]:
    """On a GPU, the warnings of PyTorch's own detector of waits."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if plan.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if plan.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def waits_of(plan: Plan, steps: int) -> dict[str, int]:
    """How often a run of the loop without log lines in between waits for the device, by operator."""
    episodes = cache_frames(read_store(plan.out / "small"), 32)
    data = TripleDataset(episodes, TripleConfig(), 32, length=10**6)
    torch.manual_seed(0)
    model = LatentActionModel.from_preset("ac_lam_cpu", idm_width=16, fdm_width=16)
    config = TrainConfig(
        steps=steps,
        batch_size=8,
        warmup_steps=1,
        log_every=10**6,
        probe_every=0,
        checkpoint_every=0,
        digest_every=0,
        mixed_precision=plan.precision,
    )
    with Waits() as waits, noticed(plan) as found:
        train(model, data, config, plan.out / "runs" / f"waits_{steps}", resume=False)
    if plan.device != "cuda":
        return waits.seen
    flagged = [w for w in found if "synchroniz" in str(w.message).lower()]
    places: dict[str, int] = {}
    for w in flagged:
        place = f"noticed_at {Path(w.filename).name}:{w.lineno}"
        places[place] = places.get(place, 0) + 1
    return {**waits.seen, "noticed_by_cuda": len(flagged), **places}


def synchronizations(plan: Plan, clock: Clock) -> dict[str, float]:
    """Waits of a step beside those of a log line: the difference between a run of 12 and one of 4,
    by the step.
    """
    few = waits_of(plan, 4)
    many = waits_of(plan, 12)
    return {name: (many[name] - few.get(name, 0)) / 8 for name in sorted(many)}


# --- precision ------------------------------------------------------------------------------------


def curves(plan: Plan, page: Page, clock: Clock) -> None:
    """The same 200 steps in float32, in float32 with TF32, and in bf16: losses, and how far apart
    they are.
    """
    steps = 20 if plan.tiny else 200
    ways = {"float32": ("no", False), "tf32": ("no", True), "bf16": ("bf16", True)}
    losses: dict[str, list[float]] = {}
    for name, (precision, tf32) in ways.items():
        if plan.tiny and name == "tf32":
            continue
        config = loop_settings(
            plan,
            f"curve_{name}",
            "ac_lam_cpu",
            "small",
            steps=steps,
            log_every=1,
            tf32=tf32,
            mixed_precision=precision,
            batch_size=8 if plan.tiny else 32,
        )
        set_arithmetic(plan, tf32)
        train_lam(config)
        losses[name] = [line["loss"] for line in read_metrics(config.out) if "loss" in line]
        page.put(losses=losses)
        rate = steady(config.out, config.train.batch_size)["triples_per_second"]
        page.add(
            "seconds", {"run": name, "each_step": config.train.batch_size / rate if rate else None}
        )
    page.put(
        apart={
            name: apart(losses["float32"], other)
            for name, other in losses.items()
            if name != "float32"
        }
    )


def apart(a: list[float], b: list[float], window: int = 20) -> dict[str, float]:
    """Relative differences of two curves: the largest of any step, the largest of a mean over
    `window` steps, the last.
    """
    single = max(abs(y - x) / x for x, y in zip(a, b, strict=True))
    means = [
        [statistics.fmean(c[n : n + window]) for n in range(len(c) - window + 1)] for c in (a, b)
    ]
    smooth = [abs(y - x) / x for x, y in zip(*means, strict=True)]
    return {
        "largest_step": single,
        "largest_mean_of_20": max(smooth),
        "last_mean_of_20": smooth[-1],
    }


# --- structure ------------------------------------------------------------------------------------


WHOLE = settings_for("ac_lam_cpu").train.steps


def twins(plan: Plan, page: Page, clock: Clock) -> None:
    """AC-LAM and its twin without the additive loss, side by side from the command line, as long as
    time allows.

    A shortened training of synthetic squares need not tell them apart: 800 steps on a CPU did not.
    """
    steps = twin_steps(plan, clock.left())
    page.put(steps=steps, whole_training=WHOLE, shortened=steps < WHOLE)
    running = {name: start_twin(plan, name, steps) for name in ("ac_lam_cpu", "no_ac_cpu")}
    try:
        for name, process in running.items():
            said, complaint = process.communicate(timeout=max(clock.left() - 2, 1))
            if process.returncode:
                page.add(
                    "models",
                    {"preset": name, "error": (complaint.strip().splitlines() or ["?"])[-1][:300]},
                )
            else:
                page.add("models", twin_row(name, json.loads(said.strip().splitlines()[-1])))
    finally:
        for process in running.values():
            process.kill()


def twin_steps(plan: Plan, seconds: float) -> int:
    """Two trainings share a card: as many steps as fit into the time by the speed that `curves` has
    measured.

    25 s go to imports and the probe at the end; two small models side by side are hardly slower
    than one.
    """
    if plan.tiny:
        return 20
    rows = [r["each_step"] for r in page_number(plan, "curves", "seconds") or [] if r["each_step"]]
    each = 1.4 * (rows[-1] if rows else 0.02)
    return int(min(WHOLE, max(100, 0.9 * (seconds - 25) / each)))


def start_twin(plan: Plan, preset: str, steps: int) -> subprocess.Popen:
    words = [
        sys.executable,
        "-m",
        "aclam.train.lam",
        "--preset",
        preset,
        "--data",
        plan.out / "small",
        "--json",
        "--out",
        plan.out / "runs" / preset,
        "--no-resume",
        "--probe-n",
        64 if plan.tiny else 512,
        "--train.steps",
        steps,
        "--train.probe-every",
        steps,
        "--train.checkpoint-every",
        0,
        "--train.batch-size",
        8 if plan.tiny else 32,
        "--model.bottleneck.continuous-steps",
        int(0.65 * steps),
    ]
    return subprocess.Popen(
        [str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def twin_row(preset: str, result: dict) -> dict[str, Any]:
    wanted = (
        "probe/additivity",
        "probe/identity",
        "probe/inverse",
        "probe/reconstruction",
        "probe/codes_used",
        "rec",
        "triples_per_second",
        "seconds",
    )
    return {
        "preset": preset,
        **{name.removeprefix("probe/"): result[name] for name in wanted if name in result},
    }


# --- in this order --------------------------------------------------------------------------------


SECTIONS: dict[str, Callable[[Plan, Page, Clock], None]] = {
    "machine": machine,
    "stores": stores,
    "sweep": sweep,
    "loop": loop,
    "layers": layers,
    "compiled": compiled,
    "profile": profile,
    "families": families,
    "policy": policy,
    "curves": curves,
    "twins": twins,
}
