"""What a training costs: formulas beside counters, cards, plans, and the command."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from aclam.core import UserError
from aclam.kept import kept_result
from aclam.lam import PRESETS, LatentActionModel
from aclam.policy.model import PRESETS as POLICIES
from aclam.policy.model import TINY, Policy
from aclam.policy.vlm import REDUCED
from aclam.train.cards import (
    CARDS,
    card_of,
    choose_accumulate,
    largest_rows,
    mfu,
    out_of_memory_advice,
)
from aclam.train.cost import DAY, CostConfig, feed, main, run_mfu, run_seconds, run_steps, traffic
from aclam.train.flops import convolution
from aclam.train.memory import (
    Setup,
    check_kept,
    check_memory,
    idle_weights,
    memory,
    numbers,
)
from aclam.train.step import ThreePasses, add_gradients_exactly, places_of
from aclam.train.step_cost import (
    check_flops,
    counter,
    example_batch,
    flops_per_triple,
    row_cost,
    step_flops,
)

SETTINGS = PRESETS | POLICIES
SMALL = [
    "ac_lam_cpu",
    "no_ac_cpu",
    "potential_lam_cpu",
    "potential_frame_vq_cpu",
    "villa_x_cpu",
    "lapa_cpu",
    "univla_cpu",
    "univla_stage_1_cpu",
    "univla_stage_2_cpu",
    "odd_features_cpu",
    "potential_features_cpu",
    "policy_cpu",
    "policy_cpu_wo_lam",
]
PAPER = [
    "no_ac_paper",
    "potential_lam",
    "villa_x",
    "lapa",
    "univla",
    "univla_stage_1",
    "policy_paper",
    "policy_paper_wo_lam",
]
ROBOT = replace(PRESETS["ac_lam_cpu"], proprio_dim=7, action_dim=7, embodiments=2)
PALIGEMMA = replace(
    TINY,
    vlm=replace(REDUCED, layer=replace(TINY.vlm.layer, kv_heads=1)),
    expert=replace(TINY.expert, kv_heads=1),
)


# --- work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*SMALL, "ac_lam_paper", *(pytest.param(n, marks=pytest.mark.slow) for n in PAPER)]
)
def test_flops_by_formula_are_those_of_the_counter(name):
    check_flops(SETTINGS[name], tol=0.02)


@pytest.mark.parametrize(
    "name",
    [
        "ac_lam_cpu",
        "villa_x_cpu",
        "lapa_cpu",
        "univla_stage_2_cpu",
        "policy_cpu",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("ac_lam_paper", *PAPER)),
    ],
)
def test_flops_with_checkpointing(name):
    check_flops(SETTINGS[name], tol=0.02, checkpointed=True)


@pytest.mark.parametrize(
    "config", [ROBOT, PALIGEMMA, replace(PRESETS["lapa_cpu"], tokens=1, depth=2)]
)
def test_flops_of_other_settings(config):
    check_flops(config, tol=0.02)


def test_the_idm_form_decodes_no_sum():
    config = PRESETS["ac_lam_cpu"]
    idm_form = replace(config, objective=replace(config.objective, ac_form="idm"))
    check_flops(idm_form, tol=0.02)
    assert flops_per_triple(idm_form) == flops_per_triple(PRESETS["no_ac_cpu"])


def test_exact_accumulation_adds_an_encoder_pass():
    plain = step_flops(PRESETS["univla"])
    exact = step_flops(PRESETS["univla"], exact=True)
    row = row_cost(PRESETS["univla"])
    assert exact.model == plain.model and plain.again == 0
    assert exact.again == row.encoder.total.forward + 2 * row.vision.total.forward
    assert row.vision.total.backward == row.vision.total.bf16 == 0


@pytest.mark.parametrize("name", ["ac_lam_cpu", "univla_cpu", "villa_x_cpu"])
def test_exact_accumulation_is_counted(name):
    model = LatentActionModel(PRESETS[name]).train()
    parts = [example_batch(PRESETS[name], 2, "cpu") for _ in range(2)]
    places = places_of(parts, model, 0, 1, 2, torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH), counter() as seen:
        add_gradients_exactly(ThreePasses(model), parts, places, 0, 0)
    flops = step_flops(PRESETS[name], exact=True)
    assert seen.get_total_flops() == pytest.approx(4 * (flops.model + flops.again), rel=0.02)


def test_a_counter_that_forgets_groups_is_corrected():
    conv = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64)
    with counter() as seen:
        conv(torch.randn(2, 64, 8, 8, requires_grad=True)).sum().backward()
    depth_wise = 2 * convolution(64, 9, 1, 64)
    assert seen.get_total_flops() == depth_wise.forward + depth_wise.backward


def test_settings_without_a_formula():
    assert flops_per_triple(CostConfig()) is None
    with pytest.raises(UserError, match="no formula for the cost of a CostConfig"):
        row_cost(CostConfig())


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    "name", [*SMALL, "ac_lam_paper", *(pytest.param(n, marks=pytest.mark.slow) for n in PAPER)]
)
def test_bytes_kept_by_formula_are_those_that_autograd_holds(name, bf16):
    check_kept(SETTINGS[name], bf16, tol=0.15)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    "name",
    ["ac_lam_cpu", "potential_lam_cpu", "villa_x_cpu", "lapa_cpu", "univla_cpu", "policy_cpu"],
)
def test_memory_of_a_small_step(name, checkpointed):
    check_memory(SETTINGS[name], 32, Setup(bf16=False, checkpointed=checkpointed), tol=0.15)


def test_weights_without_a_gradient_are_known():
    """Counted by the backward pass of the small policy; in the large one, of the same build."""
    model = Policy(POLICIES["policy_cpu"])
    model.loss(example_batch(POLICIES["policy_cpu"], 2, "cpu"))[0].backward()
    idle = [p for p in model.parameters() if p.grad is None]
    assert {id(p) for p in idle} == {id(p) for p in idle_weights(model)} and idle
    assert numbers(POLICIES["policy_paper"]).idle == 109_056_000
    assert not numbers(PRESETS["ac_lam_cpu"]).idle


def test_the_memory_that_a_card_took():
    """An H200, one micro-batch a step: the policy of 3.55 billion numbers, and our model."""
    found = json.loads(kept_result("gpu.json").read_text())["sections"]
    cases = {"policy": POLICIES["policy_paper"], "sweep": PRESETS["ac_lam_paper"]}
    for section, config in cases.items():
        setup = Setup(checkpointed=section == "policy", accumulated=False)
        for row in found[section]["result"]["micro_batches"]:
            formula = memory(config, row["micro_batch"], setup).total / 2**30
            assert formula == pytest.approx(row["peak_memory_gib"], rel=0.03), row


def test_memory_of_the_papers_step():
    formula, _ = check_memory(PRESETS["ac_lam_paper"], 4, Setup(), tol=0.05)
    assert 6e9 < formula < 7e9


@pytest.mark.slow
@pytest.mark.timeout(900)  # every operation of two steps passes through Python
@pytest.mark.parametrize(
    "name",
    [
        "ac_lam_paper",
        "potential_lam",
        "villa_x",
        "lapa",
        "univla",
        "univla_stage_1",
        "policy_paper",
    ],
)
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_memory_of_large_steps(name, bf16, checkpointed):
    check_memory(SETTINGS[name], 4, Setup(bf16=bf16, checkpointed=checkpointed), tol=0.15)


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from aclam.lam import LatentActionModel
from aclam.lam.model import LamConfig
from aclam.train.memory import LiveBytes, Setup, memory
from aclam.train.activations import checkpoint_activations
from aclam.train.sharded import shard
from aclam.train.step_cost import example_batch

resize = torch.UntypedStorage.resize_

def noted(storage, size):  # FSDP gathers weights into memory that it makes larger and smaller
    answer = resize(storage, size)
    if storage._cdata in live.sizes:
        live.now += size - live.sizes[storage._cdata]
        live.sizes[storage._cdata] = size
        live.top = max(live.top, live.now)
    return answer

bf16, checkpointed = (word == "1" for word in sys.argv[1:])
config, rows = LamConfig(image_size=56, idm_width=384, fdm_width=384, idm_depth=4, fdm_depth=4), 2
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
model = LatentActionModel(config).train()
torch.UntypedStorage.resize_ = noted
with LiveBytes() as live:
    model = shard(checkpoint_activations(model) if checkpointed else model)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for first in (True, False):
        live.top = live.now
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = model.loss(example_batch(config, rows, "cpu"))
        loss.backward()
        if first:
            adam.step()
        del loss
print(live.top, memory(config, rows, Setup(bf16, checkpointed, shard=True, world=8)).total)
"""


@pytest.mark.slow
@pytest.mark.parametrize("bf16", "01")
@pytest.mark.parametrize("checkpointed", "01")
def test_memory_of_one_of_eight_shards(bf16, checkpointed):
    """Eight processes of which one exists: messages to the others are made up, memory is real."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHARDED, bf16, checkpointed],
        check=True,
        capture_output=True,
        text=True,
    )
    found, formula = map(float, done.stdout.split())
    assert formula == pytest.approx(found, rel=0.15)


def test_shards_and_exact_accumulation_take_less():
    config = POLICIES["policy_paper"]
    whole = memory(config, 1)
    eight = memory(config, 1, Setup(shard=True, world=8))
    # shards are of all weights; a process alone keeps nothing for those that get no gradient
    idle = 8 * numbers(config).idle
    assert eight.optimizer == pytest.approx((whole.optimizer + idle) / 8, rel=1e-6)
    assert whole.gathered == 0 < eight.gathered and 0 < idle < 0.04 * whole.optimizer
    total = whole.weights + whole.gradients + whole.optimizer
    assert total + 1.5 * idle == pytest.approx(56.9e9, rel=0.01)
    row = PRESETS["ac_lam_paper"]
    assert memory(row, 8, Setup(exact=True)).kept < 0.7 * memory(row, 8).kept


# --- cards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, name",
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA RTX A6000", "a6000"),
    ],
)
def test_cards_by_the_name_that_pytorch_says(said, name):
    assert card_of(said) is CARDS[name]


@pytest.mark.parametrize(
    "said",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "AMD Instinct MI300X",
        "",
        "NVIDIA A1000",
    ],
)
def test_unknown_cards_have_no_peak(said):
    assert card_of(said) is None
    assert mfu(100.0, PRESETS["ac_lam_paper"], card_of(said)) is None


def test_peaks_are_dense_and_ordered():
    for card in CARDS.values():
        known = [p for p in (card.bf16, card.tf32, card.float32) if p is not None]
        assert known == sorted(known, reverse=True) and card.source
    assert CARDS["t4"].peak("bf16") is None and CARDS["a100-80"].peak("bf16") == 312e12
    assert mfu(275, PRESETS["ac_lam_paper"], CARDS["h100-sxm"]) == pytest.approx(0.4, rel=0.01)


# --- what fits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setup", [Setup(), Setup(bf16=False), Setup(checkpointed=True), Setup(shard=True, world=8)]
)
def test_the_largest_micro_batch_fits_and_one_more_does_not(setup):
    config = PRESETS["ac_lam_paper"]
    room = 0.9 * 24e9
    most = largest_rows(config, 24e9, setup)
    assert memory(config, most, setup).total <= room < memory(config, most + 1, setup).total


def test_accumulate_is_the_smallest_that_fits():
    config = PRESETS["ac_lam_paper"]
    assert choose_accumulate(config, 512, 80e9) == 8
    assert choose_accumulate(config, 512, 80e9, Setup(world=32)) == 1
    assert choose_accumulate(config, 96, 80e9, Setup(world=1)) == 2
    assert choose_accumulate(PRESETS["ac_lam_cpu"], 32, 24e9) == 1


def test_advice_is_one_line_that_helps():
    config = PRESETS["ac_lam_paper"]
    said = out_of_memory_advice(config, 512, 512, 80e9)
    assert said == (
        "512 rows at a time take 420.3 GiB, and the card has 74.5: take --train.accumulate 8 "
        "(64 at a time; at most 78 fit)"
    )
    tight = out_of_memory_advice(config, 1, 1, 3.4e9 / 0.9)
    assert "--train.checkpoint-activations" in tight and "\n" not in tight
    policy = POLICIES["policy_paper"]
    assert "--train.shard" in out_of_memory_advice(policy, 8, 64, 40e9, Setup(world=8))
    assert "not one row fits" in out_of_memory_advice(policy, 8, 64, 40e9)
    again = out_of_memory_advice(config, 64, 512, 80e9)  # by the formula it fits
    assert (
        "(does another program use it?)" in again and "--train.accumulate 16 (32 at a time" in again
    )
    assert "--train.checkpoint-activations" in out_of_memory_advice(config, 1, 1, 80e9)
    assert "a larger --train.accumulate" in out_of_memory_advice(CostConfig(), 8, 8, 80e9)
    with pytest.raises(UserError, match="not one row fits"):
        choose_accumulate(policy, 64, 24e9)


# --- messages, data, days -------------------------------------------------------------------------


def test_messages():
    config = PRESETS["ac_lam_paper"]
    weights = 4 * numbers(config).trained
    ring = traffic(config, 512, 1, Setup(world=4))
    assert (
        ring.gradients == pytest.approx(2 * 3 / 4 * weights)
        and ring.weights == 0 < ring.buffers < 0.02 * ring.total
    )
    sharded = traffic(config, 512, 2, Setup(world=4, shard=True))
    assert sharded.gradients == pytest.approx(3 / 4 * weights)
    assert sharded.weights == pytest.approx(2 * 2 * 3 / 4 * weights)
    assert traffic(config, 512, 1, Setup()).total == 0


def test_the_papers_ten_days_are_five_hours_or_many_more_steps():
    config = PRESETS["ac_lam_paper"]
    peak = CARDS["a100-80"].peak("bf16")
    assert run_seconds(config, 100_000, 512, 32, peak, 0.4) / 3600 == pytest.approx(5.1, rel=0.02)
    assert run_steps(config, 10 * DAY, 512, 32, peak, 0.4) == pytest.approx(4.7e6, rel=0.01)
    assert run_mfu(config, 10 * DAY, 100_000, 512, 32, peak) < 0.01


def test_a_demonstration_has_one_frame():
    assert feed(POLICIES["policy_paper"], 10).frames == 10
    assert feed(PRESETS["ac_lam_paper"], 10).frames == 30


# --- the command ----------------------------------------------------------------------------------


def test_command(capsys):
    main(["--gpus", "32", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (plan["micro_batch"], plan["accumulate"]) == (16, 1) and 0.2 < plan["days"] < 0.22
    main(["--preset", "lapa", "--card", "l4", "--checkpoint-activations"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lapa on 1 x L4") and len(lines) == 7


@pytest.mark.parametrize(
    "words, right",
    [
        ("--preset ac_lam_papr", 'Did you mean "ac_lam_paper"'),
        ("--card h100", "h100-sxm"),
        ("--gpus 3", "3 cards x 1"),
        ("--accumulate 1", "--train.accumulate 8"),
        ("--card t4", "--precision float32"),
        ("--mfu 40", "0 < mfu <= 1"),
        ("--gpus 0", "gpus is 0"),
        ("--crad x", "--card"),
        ("--exact-accumulation --shard", "do not go together"),
    ],
)
def test_command_refuses_in_one_line(words, right, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and right in said and said.count("\n") == 1


def test_the_training_loop_can_import_it():
    words = "import sys, aclam.train.cost; print('aclam.train.loop' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
