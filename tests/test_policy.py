"""Flow matching, the block mask, shared attention, the policy, its training, its trial on the
table.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from processes import end, start

from aclam.core import UserError
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import LatentActionModel
from aclam.policy import attention_mask as masks
from aclam.policy import (
    experts,
    flow,
    kept_episodes,
    model,
    promises,
    rates,
    rollout,
    small_vlm,
    vlm,
)
from aclam.train import demonstrations, scale
from aclam.train import policy as training
from aclam.train.config import TrainConfig

TINY = model.TINY
SQUARE = dataclasses.replace(TINY, latent_dim=32, action_dim=7, proprio_dim=7, control="recorded")


@pytest.fixture(autouse=True)
def same_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# --- flow -----------------------------------------------------------------------------------------


def test_the_exact_field_is_exact_and_gives_back_the_moments():
    assert flow.check_exact_field(n=30_000) < 4.5
    samples = flow.euler(flow.exact_field(flow.GaussianMixture(), 0.001), torch.randn(5000, 2), 100)
    mean, covariance = flow.moment_errors(samples, flow.GaussianMixture())
    assert mean < 0.1 and covariance < 0.05


def test_times_and_settings():
    assert flow.draw_times(1000, flow.FlowConfig(time="uniform")).mean() == pytest.approx(
        0.5, abs=0.05
    )
    with pytest.raises(UserError, match="sigma_min"):
        flow.FlowConfig(sigma_min=1.0)


def test_data_at_the_end_of_a_way_say_its_direction():
    x0, x1, t = torch.randn(6, 3, 2), torch.randn(6, 3, 2), torch.linspace(0, 0.99, 6)
    x, right = flow.path(x0, x1, t, 0.01), flow.velocity(x0, x1, 0.01)
    assert torch.allclose(flow.to_velocity(x1, x, t, 0.01), right, atol=1e-4)
    off = flow.to_velocity(x1 + 1, x, t, 0.01) - right
    assert torch.allclose(
        off * flow.remaining(t, 0.01)[:, None, None], torch.ones(6, 3, 2), atol=1e-4
    )


# --- mask and experts -----------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(5, 3, 4), (5, 0, 4), (5, 3, 0), (1, 1, 1)])
def test_every_entry_of_the_mask(blocks):
    blocks = masks.Blocks(*blocks)
    valid = torch.rand(3, blocks.vlm) < 0.7
    assert masks.check_block_mask(blocks) == sum(blocks) ** 2
    assert masks.check_block_mask(blocks, valid) == 3 * sum(blocks) ** 2
    masks.check_closed(masks.block_mask(blocks))


def test_hiding_touches_one_block_only_and_never_at_zero():
    blocks = masks.Blocks(4, 3, 2)
    mask = masks.block_mask(blocks).expand(50, -1, -1)
    assert torch.equal(masks.hide_latents(mask, blocks, masks.MaskConfig(0, 0)), mask)
    hidden = masks.hide_latents(mask, blocks, masks.MaskConfig(1.0, 0))
    assert not hidden[:, 7:, 4:7].any() and torch.equal(hidden[:, :7], mask[:, :7])
    with pytest.raises(UserError, match="p_mask"):
        masks.MaskConfig(p_mask=1.5)


def test_cached_prefix_is_exact():
    assert experts.check_cache_is_exact(seed=3) < 1e-5
    with pytest.raises(UserError, match="kv_heads"):
        experts.LayerSize(heads=8, kv_heads=3)


# --- vision and language --------------------------------------------------------------------------


def test_words():
    ids = small_vlm.tokenize(["Place it on the FOX", "place it on the fox"], small_vlm.SMALL)
    assert torch.equal(ids[0], ids[1])
    for bad in ("", "word " * 17):
        with pytest.raises(UserError, match="1 to 16 words"):
            small_vlm.tokenize([bad], small_vlm.SMALL)
    with pytest.raises(UserError, match=r"\(B, 3, 96, 96\)"):
        small_vlm.SmallVLM(small_vlm.SMALL)(torch.zeros(1, 3, 64, 64), ids[:1])


def test_labels_of_all_emoji_have_numbers_of_their_own():
    from aclam.sim.emoji import EMOJI

    rows = {
        word: small_vlm.hash_words(word)[0] % small_vlm.SMALL.vocab**2
        for label in EMOJI
        for word in label.split()
    }
    assert len(set(rows.values())) == len(rows)


def test_paligemma_in_small():
    pytest.importorskip("transformers")
    assert vlm.check_paligemma() < 1e-5
    assert vlm.check_library_forward() < 1e-5


def test_published_files_have_more_rows_than_words(tmp_path):
    pytest.importorskip("transformers")
    published = vlm.write_paligemma(tmp_path, more=64).model.state_dict()
    own = vlm.PaliGemma(dataclasses.replace(vlm.REDUCED, weights=str(tmp_path)))
    vlm.load_weights(own)
    for name, value in own.model.state_dict().items():
        assert torch.equal(
            value, published[name][: len(value)] if value.ndim else published[name]
        ), name
    assert len(published["language_model.embed_tokens.weight"]) == vlm.REDUCED.vocab + 64


@pytest.mark.parametrize(
    "change, words",
    [
        ({"depth": 1}, "text_config.num_hidden_layers 2, this policy 1"),
        ({"vision_depth": 2}, "vision_config.num_hidden_layers 1, this policy 2"),
        ({"vision_heads": 4}, "vision_config.num_attention_heads 2, this policy 4"),
        (
            {"image_size": 56},
            r"position_embedding.weight of shape \(4, 16\), this policy \(16, 16\)",
        ),
        ({"vocab": 600}, r"embed_tokens.weight of shape \(576, 32\), this policy \(600, 32\)"),
    ],
)
def test_published_files_that_do_not_fit(tmp_path, change, words):
    pytest.importorskip("transformers")
    vlm.write_paligemma(tmp_path)
    with pytest.raises(UserError, match=words):
        vlm.load_weights(
            vlm.PaliGemma(dataclasses.replace(vlm.REDUCED, weights=str(tmp_path), **change))
        )


def test_no_published_files(tmp_path):
    pytest.importorskip("transformers")
    vlm.write_paligemma(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    own = vlm.PaliGemma(dataclasses.replace(vlm.REDUCED, weights=str(tmp_path)))
    with pytest.raises(UserError, match="no PaliGemma at"):
        vlm.load_weights(own)
    with pytest.raises(UserError, match="no tokenizer at"):
        small_vlm.tokenize(["go"], own.config)


def test_transformers_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "aclam\[policy\]"'):
        model.Policy.from_preset("policy_paper")


# --- the policy -----------------------------------------------------------------------------------


def inputs(config, n=2):
    words = small_vlm.tokenize(["go left", "go", "go right now"][:n], config.vlm)
    S = config.vlm.image_size
    return (
        torch.randint(0, 256, (n, 3, S, S), dtype=torch.uint8),
        words,
        torch.rand(n, config.proprio_dim),
    )


@pytest.mark.parametrize("config", [TINY, model.without_latents(TINY), model.PRESETS["policy_cpu"]])
def test_promises(config):
    policy = model.Policy(config).eval()
    given = inputs(config)
    assert promises.check_cached_sample(policy, given) < 1e-5
    if config.latents:
        promises.check_plan_and_robot(policy, given)


def test_a_row_does_not_depend_on_its_neighbours():
    policy, (frames, text, proprio) = model.Policy(TINY).eval(), inputs(TINY, 3)
    noise = model.draw_noise(TINY, [5, 6, 7])
    assert torch.equal(noise.action[1:2], model.draw_noise(TINY, [6]).action)
    alone = policy.sample(frames[1:2], text[1:2], proprio[1:2], noise.apply(lambda x: x[1:2]))
    assert torch.allclose(
        policy.sample(frames, text, proprio, noise).action[1:2], alone.action, atol=1e-5
    )


def test_video_trains_the_plan_only():
    policy = model.Policy(TINY)
    loss, metrics = policy.loss(
        promises.toy_batch(4, TINY, torch.Generator().manual_seed(0), p_action=0.0)
    )
    loss.backward()
    assert metrics["action"] == 0 and policy.latent.embed.weight.grad is not None
    assert not any(p.grad.any() for p in policy.robot.parameters())  # it ran, and nothing moves it


def test_a_policy_that_says_data_is_judged_and_sampled_by_them():
    config = dataclasses.replace(model.without_latents(TINY), flow=flow.FlowConfig(predicts="data"))
    policy, batch = (
        model.Policy(config).eval(),
        promises.toy_batch(5, config, torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():  # whatever it sees, it says 0.25
        policy.robot.head.weight.zero_(), policy.robot.head.bias.fill_(0.25)
    loss = policy.loss(batch)[1]["action"].item()
    assert loss == pytest.approx((0.25 - batch["action"]).square().mean().item(), rel=1e-4)
    drawn = policy.sample(*inputs(config), model.draw_noise(config, [0, 1])).action
    assert torch.allclose(drawn, torch.full_like(drawn, 0.25), atol=0.01)


def test_overviews_are_tokens_of_the_small_encoder():
    plain = small_vlm.SmallVLM(dataclasses.replace(TINY.vlm, overviews=0))
    given = inputs(TINY)[:2]
    assert (
        plain.tokens(*given)[0].shape[1]
        == plain.config.tokens
        == TINY.vlm.tokens - TINY.vlm.overviews
    )
    with pytest.raises(UserError, match="overviews"):
        small_vlm.VlmConfig(overviews=2)


def test_rows_without_commands_count_nothing():
    policy = model.Policy(TINY).eval()
    batch = promises.toy_batch(6, TINY, torch.Generator().manual_seed(0))
    batch["has_action"] = torch.tensor([True] * 3 + [False] * 3)
    losses = []
    for other in (
        batch["action"],
        torch.cat([batch["action"][:3], torch.full_like(batch["action"][3:], 0.7)]),
    ):
        torch.manual_seed(1)
        losses.append(policy.loss(batch | {"action": other})[1]["action"])
    assert losses[0] == losses[1]


CPU = dataclasses.replace(
    model.PRESETS["policy_cpu"], latents=2, latent_dim=2, action_dim=2, proprio_dim=3
)
REDUCED = dataclasses.replace(TINY, vlm=vlm.REDUCED, expert=experts.LayerSize(24, 48, 4, 1, 8))
FORMS = {"tiny": TINY, "wo_lam": model.without_latents(TINY), "cpu": CPU, "paligemma": REDUCED}


def some_rows(config, n=12, seed=0):
    """A toy batch in which some rows have no commands, with places to aim at."""
    rng = torch.Generator().manual_seed(seed)
    states = {
        key: torch.rand(n, config.proprio_dim, generator=rng) for key in ("proprio", "turn", "end")
    }
    batch = promises.toy_batch(n, config, rng) | states
    return batch | {"has_action": torch.arange(n) % 7 < 3}  # 3, 1, 2 rows in thirds


@pytest.mark.parametrize("form", FORMS)
def test_a_divided_batch_teaches_what_the_whole_does(form):
    if form == "paligemma":
        pytest.importorskip("transformers")
    policy = model.Policy(dataclasses.replace(FORMS[form], draws=2)).train()
    gap = promises.check_divided(policy, some_rows(policy.config))
    print(form, gap)
    assert gap < 1e-5


def test_a_divided_batch_without_counts_teaches_something_else():
    """The comparison above can fail: means of parts are not the mean."""
    policy = model.Policy(TINY).train()
    batch = some_rows(TINY)
    losses = [model.mean_of_known("action", batch["action"].square(), batch["has_action"])]
    parts = [{k: v[rows] for k, v in batch.items()} for rows in torch.arange(12).chunk(3)]
    means = [model.mean_of_known("action", b["action"].square(), b["has_action"]) for b in parts]
    assert abs(torch.stack(means).mean() - losses[0]) > 1e-3 * losses[0]
    assert {k: v.item() for k, v in policy.counts(batch).items()} == {"action": 6, "latent": 12}


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operators for which the processor waits for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "masked_select",
            "unique",
            "aten.equal",
        )
        by_mask = "index" in name and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for a in args
            if isinstance(a, list)
            for i in a
        )
        if any(word in name for word in waits) or by_mask:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", FORMS)
def test_a_step_waits_for_nothing(form):
    policy = model.Policy(FORMS[form]).train()
    batch = some_rows(policy.config)
    with Waits() as waits:
        loss, metrics = policy.loss(batch)
        loss.backward()
    assert not waits.found
    assert all(
        isinstance(v, torch.Tensor) and v.ndim == 0 and not v.requires_grad
        for v in metrics.values()
    )
    with Waits() as waits:  # and it can fail
        loss.item()
    assert waits.found


def losses(form, steps=60, autocast=False):
    torch.manual_seed(0)
    policy = model.Policy(FORMS[form]).train()
    adam, found = torch.optim.AdamW(policy.parameters(), 1e-3), []
    for s in range(steps):
        torch.manual_seed(s)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, _ = policy.loss(some_rows(policy.config, seed=s))
        adam.zero_grad(), loss.backward(), adam.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.parametrize("form", ["tiny", "paligemma"])
def test_bf16_follows_float32(form):
    """Single losses wobble by rounding; their running means do not."""
    exact, rounded = losses(form), losses(form, autocast=True)
    gap = ((exact - rounded).abs() / exact).max().item()
    print(form, gap)
    assert gap < 0.03 and abs(rounded.mean() / exact.mean() - 1) < 0.01


@pytest.mark.parametrize("form", FORMS)
def test_a_step_under_cudas_rules_for_bf16(form):
    """No GPU is needed to see which types meet: shapes on a device that is not there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    policy, batch = model.Policy(FORMS[form]).train(), some_rows(FORMS[form])
    with FakeTensorMode(allow_non_fake_inputs=True):

        def there(t):
            return torch.empty(t.shape, dtype=t.dtype, device="cuda", requires_grad=t.requires_grad)

        named = dict([*policy.named_parameters(), *policy.named_buffers()])
        numbers = {f"model.{name}": there(t) for name, t in named.items()}
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            given = {name: there(t) for name, t in batch.items()}
            loss, keys = torch.func.functional_call(Step(policy), numbers, (given,))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
    assert loss.dtype == torch.float32 and keys.dtype == torch.bfloat16


class Step(torch.nn.Module):
    """A step as a module: the loss, and the encoder's first keys."""

    def __init__(self, policy):
        super().__init__()
        self.model = policy

    def forward(self, batch):
        return self.model.loss(batch)[0], self.model.vlm(batch["frames"], batch["text"]).keys[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["tiny", pytest.param("paligemma", marks=pytest.mark.slow)])
def test_a_step_compiles_in_one_graph(form):
    from torch._dynamo.testing import CompileCounterWithBackend

    from aclam.lam.global_batch import MicroBatch, micro_batch

    policy = model.Policy(FORMS[form]).train()
    batch = some_rows(policy.config, 4)
    step, counts = Step(policy), {"latent": torch.tensor(3.0), "action": torch.tensor(2.0)}
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for first in (0, 4):  # two micro-batches of a batch of eight: another place is no other graph
        losses = []
        for call in (step, compiled):
            torch.manual_seed(0)
            with micro_batch(MicroBatch(torch.arange(first, first + 4), 8, counts)):
                losses.append(call(batch)[0].item())
        assert losses[0] == losses[1]
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["tiny", "paligemma"])
def test_the_default_compiler_trains_what_eager_does(form):
    import copy

    torch._dynamo.reset()
    plain = model.Policy(FORMS[form]).train()
    other = copy.deepcopy(plain)
    compiled = torch.compile(Step(other), fullgraph=True, options={"fallback_random": True})
    adams = [torch.optim.AdamW(policy.parameters(), 1e-3) for policy in (plain, other)]
    for s in range(4):
        losses, batch = [], some_rows(plain.config, 4, seed=s)
        for call, adam in zip((Step(plain), compiled), adams, strict=True):
            torch.manual_seed(s)
            loss, _ = call(batch)
            adam.zero_grad(), loss.backward(), adam.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_times_are_one_operator_for_a_compiler():
    given = (5, 1.5, 1.0, torch.device("cpu"))
    torch.library.opcheck(flow.draw_beta, given, test_utils=("test_schema", "test_faketensor"))


def test_paper_size_on_the_meta_device():
    pytest.importorskip("transformers")
    policy = model.on_meta("policy_paper")
    counts, c = model.part_counts(policy), policy.config
    print(counts)
    assert counts == {
        "vlm": 2_923_335_408,
        "latent expert": 315_662_848,
        "robot expert": 314_636_295,
        "total": 3_553_634_551,
    }
    assert (c.vlm.depth, c.expert.width, c.expert.heads, c.latents, c.actions) == (
        18,
        1024,
        8,
        6,
        4,
    )
    twin = model.part_counts(model.on_meta("policy_paper_wo_lam"))
    assert "latent expert" not in twin and twin["vlm"] == counts["vlm"]


def test_save_and_load(tmp_path):
    policy = model.Policy(TINY).eval()
    policy.latent_units.fit(torch.randn(50, 2) * 3)
    policy.save_pretrained(tmp_path / "policy")
    again, given = model.Policy.from_pretrained(tmp_path / "policy"), inputs(TINY)
    noise = model.draw_noise(TINY, [1, 2])
    assert again.config == TINY and torch.equal(
        again.sample(*given, noise).latent, policy.sample(*given, noise).latent
    )
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    (tmp_path / "policy" / "config.json").write_text(json.dumps(config | {"latent_dim": 5}))
    with pytest.raises(UserError, match="latent"):
        model.Policy.from_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="no policy at"):
        model.Policy.from_pretrained(tmp_path / "nowhere")


def test_wrong_settings():
    with pytest.raises(UserError, match='"policy_cpu"'):
        model.POLICIES.preset("policy_cup")
    with pytest.raises(UserError, match='"latents"'):
        model.POLICIES.preset("policy_cpu", latent=3)
    with pytest.raises(UserError, match="share attention"):
        dataclasses.replace(TINY, expert=experts.LayerSize(48, 64, 2, 2, 8))
    lam = LatentActionModel.from_preset("ac_lam_cpu")
    with pytest.raises(UserError, match="latents of 32 numbers, this policy was made for 2"):
        model.check_latents_fit(model.Policy(TINY), lam)
    with pytest.raises(UserError, match="no latent expert"):
        model.check_latents_fit(model.Policy(model.without_latents(TINY)), lam)


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small store of moving squares at 20 Hz and an untrained latent action model."""
    root = tmp_path_factory.mktemp("policy")
    write_store(
        root / "data",
        (synthetic_trajectory(seed=n, T=40, size=24, fps=20) for n in range(6)),
        shard_size=3,
    )
    write_store(
        root / "slow",
        (synthetic_trajectory(seed=n, T=12, size=24, fps=5) for n in range(3)),
        shard_size=3,
    )
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(root / "lam")
    return root


def small(folders, out, **changes):
    loop = TrainConfig(steps=6, batch_size=8, probe_every=3, checkpoint_every=3, log_every=1)
    settings = dataclasses.replace(
        training.settings_for("policy_cpu"),
        data=(str(folders / "data"),),
        lam=str(folders / "lam"),
        out=str(out),
        model=SQUARE,
        probe_n=4,
        train=loop,
    )
    return dataclasses.replace(settings, **changes)


def test_rows_are_what_the_episodes_say(folders):
    data = training.open_data(small(folders, "", demonstrations=3))
    assert [len(g) for g in data.train.groups] == [3, 2, 0] and len(data.held_out.groups[0]) == 1
    demonstrations.check_rows(data.train, training.open_lam(str(folders / "lam")))


def test_other_robots_are_video_and_labels_are_read(folders, tmp_path):
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

    from aclam.train.label import label
    from aclam.train.label_job import LabelConfig

    other = dataclasses.replace(
        synthetic_trajectory(seed=9, T=12, size=24, fps=5), embodiment="other"
    )
    four = dataclasses.replace(
        other, action=other.action[:, :2], proprio=None, layout=None
    )  # another robot's commands
    write_store(tmp_path / "video", [four], shard_size=1)
    done = label(LabelConfig(folders / "lam", tmp_path / "video", offsets=(2,)))  # 0.4 s at 5 Hz
    part = Path(done["folder"]) / "part-00000.parquet"
    table = pq.read_table(part)
    marked = pa.array([[7.0] * 32] * 10 + [None] * 2, table.column("latent_action_2").type)
    pq.write_table(
        table.set_column(2, "latent_action_2", marked), part
    )  # a mark: whoever reads it has read the labels
    data = training.open_data(
        small(folders, "", video=(str(tmp_path / "video"),), demonstrations=5)
    )
    (video,), lam = data.train.groups[1], training.open_lam(str(folders / "lam"))
    assert (
        video.commands is None
        and (video.latents[:10] == 7).all()
        and not (video.latents[10:] == 7).any()
    )
    batch = data.train.batch(range(40))
    assert not batch["has_action"].all() and batch["has_latent"].all() and batch["has_action"].any()
    label(LabelConfig(folders / "lam", tmp_path / "video", offsets=(3,), name="three"))
    torch.nn.init.normal_(next(lam.parameters()))
    store = training.open_dataset(tmp_path / "video")
    assert demonstrations.known_latents(store, lam, 0.4) == [None]  # other weights
    assert "no labels of this model at offset 2:" in demonstrations.missing_labels(store, lam, 0.4)


@pytest.mark.parametrize("roles", [("data", "video"), ("data", "other"), ("video", "other")])
def test_a_folder_has_one_role(folders, roles):
    """Whatever two options name it, both are said."""
    slow = (str(folders / "slow"),)
    config = small(folders, "", **{role: slow for role in roles})
    with pytest.raises(
        UserError, match=f"--{roles[0]} .*slow and --{roles[1]} .*slow are the same"
    ):
        training.open_data(config)


def test_a_share_of_no_other_folders_is_refused(folders, refused):
    from aclam.studies import policy_comparison as pc

    share = ["--data", folders / "data", "--other-share", "0.25"]
    refused(pc.main, [*share, "--lams", f"a={folders / 'lam'}"], "from --other")
    refused(training.main, [*share, "--lam", folders / "lam"], "from --other")


@pytest.mark.parametrize("preset", ["policy_cpu", "policy_cpu_wo_lam"])
def test_another_dataset_has_its_share_of_the_rows_with_commands(folders, preset):
    without = {} if preset == "policy_cpu" else dict(model=model.without_latents(SQUARE), lam="")
    changes = dict(preset=preset, demonstrations=3, other=(str(folders / "slow"),), **without)
    data = training.open_data(small(folders, "", other_share=0.25, **changes))
    videos = 2 if preset == "policy_cpu" else 0
    assert [len(group) for group in data.train.groups] == [3, videos, 3]
    acting = [e for e, _, _ in map(data.train.draw, range(800)) if e.commands is not None]
    share = np.mean([episode.trajectory.fps < 10 for episode in acting])
    assert 0.2 < share < 0.3 and (len(acting) == 800) == (not videos)
    first, _, other = data.train.groups
    ends = [
        np.quantile(np.concatenate([e.commands for e in part]), [0.01, 0.99], axis=0)
        for part in (first, other)
    ]
    assert np.allclose(*ends, atol=1e-5)
    raw = demonstrations.commands_of(other[0].trajectory, data.model, any_rate=True)
    assert np.corrcoef(raw[:, 0], other[0].commands[:, 0])[0, 1] > 0.999
    assert data.held_out.groups[2] == []
    lam = training.open_lam(str(folders / "lam")) if videos else None
    demonstrations.check_rows(data.train, lam, n=60)


def test_a_column_that_never_changes_comes_to_the_middle(folders, tmp_path):
    still = synthetic_trajectory(seed=9, T=12, size=24, fps=5)
    closed = still.action.copy()
    closed[:, 0] = 0.9
    write_store(tmp_path / "still", [dataclasses.replace(still, action=closed)], shard_size=1)
    data = training.open_data(small(folders, "", other=(str(tmp_path / "still"),)))
    policy = training.build(small(folders, ""), data)
    commands = torch.from_numpy(data.train.groups[2][0].commands)
    assert policy.action_units.normalize(commands)[:, 0].abs().max() < 1e-5


def test_the_hand_lags_by_a_quarter_of_a_second_at_any_rate():
    gripper = np.repeat([0.0, 1.0], 20)  # closes at frame 20
    assert demonstrations.next_grips(gripper, fps=20)[0] == 25
    assert demonstrations.next_grips(gripper, fps=5)[0] == 21


def test_another_dataset_is_of_the_same_widths_and_another_run(folders, tmp_path):
    wide = synthetic_trajectory(seed=9, T=12, size=24, fps=5)
    wide = dataclasses.replace(wide, action=wide.action[:, :5])
    write_store(tmp_path / "wide", [wide], shard_size=1)
    with pytest.raises(UserError, match="wide has commands of 5 numbers.*have 7.*--video"):
        training.open_data(small(folders, "", other=(str(tmp_path / "wide"),)))
    video = dataclasses.replace(wide, action=None)
    write_store(tmp_path / "video", [video], shard_size=1)
    with pytest.raises(UserError, match="no actions.*--video"):
        training.open_data(small(folders, "", other=(str(tmp_path / "video"),)))
    with pytest.raises(UserError, match="are the same data"):
        training.open_data(small(folders, "", other=(str(folders / "data"),)))
    other = (str(folders / "slow"),)
    described = [
        training.open_data(small(folders, "", **changes)).description
        for changes in (dict(), dict(other=other), dict(other=other, other_share=0.1))
    ]
    assert len({json.dumps(d, sort_keys=True) for d in described}) == 3


def test_the_encoders_folder_is_not_the_runs(folders, tmp_path):
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    settings = training.settings_for("policy_cpu_wo_lam")
    vlm = dataclasses.replace(settings.model.vlm, weights=str(encoder))
    model = dataclasses.replace(settings.model, vlm=vlm)
    settings = dataclasses.replace(settings, data=(str(folders / "data"),), model=model)
    for out, words in ((encoder, "is what is read"), (encoder / "run", "lies in what is read")):
        with pytest.raises(UserError, match=words):
            training.run(dataclasses.replace(settings, out=str(out)))
    assert not list(encoder.iterdir())


def test_labels_of_another_offset_are_named(folders, tmp_path):
    import shutil

    from aclam.train.label import label
    from aclam.train.label_job import LabelConfig

    shutil.copytree(folders / "slow", tmp_path / "slow")
    label(LabelConfig(folders / "lam", tmp_path / "slow", offsets=(1,)))
    store, lam = training.open_dataset(tmp_path / "slow"), training.open_lam(str(folders / "lam"))
    assert demonstrations.known_latents(store, lam, 0.4) == [None] * 3
    said = demonstrations.missing_labels(store, lam, 0.4)
    assert "at offset 2, only at 1: " in said and said.endswith("slow --offsets 2")


def test_random_weights_are_said_aloud(folders, tmp_path, capsys):
    training.run(small(folders, tmp_path / "run"))
    said = capsys.readouterr().err
    assert said.count("weights are random") == 1
    assert said.count("no labels of this model at offset 8: ") == 1
    assert "google/paligemma" in training.random_weights(small_vlm.VlmConfig())
    assert training.random_weights(small_vlm.VlmConfig(weights="somewhere")) == ""


def test_a_run_resumes_at_the_same_bits(folders, tmp_path):
    import shutil

    from aclam.weights import read_tensors

    whole = training.run(small(folders, tmp_path / "a"))
    assert whole["probe/action_error"] > 0 and whole["latent"] > 0 and "action" in whole
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "model")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step_000006")
    training.run(small(folders, tmp_path / "b"))
    a, b = (read_tensors(tmp_path / x / "model" / "model.safetensors") for x in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(UserError, match="another run"):
        training.run(small(folders, tmp_path / "b", shift=0))


def test_bad_input_to_training(folders, refused):
    main, data = training.main, ["--data", folders / "data"]
    refused(main, ["--preset", "policy_cup"], '"policy_cpu"')
    refused(main, [], "which demonstrations?")
    refused(main, data, "which latent actions?")
    refused(main, [*data, "--preset", "policy_cpu_wo_lam", "--lam", "x"], "leave out --lam")
    refused(main, [*data, "--lam", folders / "lam"], '"square"', "recorded")
    both = ["--data", folders / "slow", "--lam", folders / "lam"]  # both cures in one line
    refused(main, both, "--model.control-hz 5", "--model.control recorded")
    slow = ["--data", folders / "slow", "--lam", folders / "lam", "--model.control", "recorded"]
    refused(main, slow, "5 frames a second", "20 commands", "--use policy")
    refused(
        main,
        [*data, "--lam", folders / "nowhere", "--model.control", "recorded"],
        "nowhere",
    )


def with_tokenizer(folder):
    """A folder of PaliGemma's files in small, with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vlm.write_paligemma(folder)
    words = {
        w: n
        for n, w in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "\n", "move", "the", "square"])
    }
    own = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    named = {f"{kind}_token": f"<{kind}>" for kind in ("pad", "eos", "bos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=own, **named).save_pretrained(folder)
    return str(folder)


def papers_form(folders, out, processes, *words):
    """Run the paper's policy in small by its command, on so many processes: what it said on stderr,
    and its losses.
    """
    from aclam.train.log import read_metrics

    sizes = {
        "vlm.image-size": 28,
        "vlm.vision-width": 16,
        "vlm.vision-depth": 1,
        "vlm.vision-heads": 2,
        "vlm.vision-mlp": 32,
        "vlm.depth": 2,
        "vlm.layer.width": 32,
        "vlm.layer.mlp": 64,
        "vlm.layer.heads": 4,
        "vlm.layer.head-dim": 8,
        "vlm.vocab": 512,
        "vlm.text-length": 6,
        "expert.width": 24,
        "expert.mlp": 48,
        "expert.heads": 4,
        "expert.head-dim": 8,
    }
    argv = [word for name, value in sizes.items() for word in (f"--model.{name}", str(value))]
    argv += [
        "--data",
        str(folders / "data"),
        "--lam",
        str(folders / "lam"),
        "--out",
        str(out),
        "--preset",
        "policy_paper",
        "--model.control",
        "recorded",
        "--train.steps",
        "2",
        "--train.batch-size",
        "4",
        "--train.num-workers",
        "0",
        "--train.log-every",
        "1",
        "--demonstrations",
        "2",
        "--probe-n",
        "2",
        "--json",
    ]
    config = scale.launch_config("two_cpu_processes")
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config),
        "--main_process_port",
        "0",
    ]
    command = [
        sys.executable,
        *(launch if processes > 1 else []),
        "-m",
        "aclam.train.policy",
        *argv,
        *words,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=550,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [
        line for line in done.stdout.splitlines() if line.startswith("{")
    ]  # Gloo greets on stdout, too
    assert len(answers) == 1 and json.loads(answers[0])["steps"] == 2, done.stdout
    progress = json.loads((out / "checkpoints" / "step_000002" / "progress.json").read_text())
    assert progress["world"] == processes
    return done.stderr, [row["loss"] for row in read_metrics(out) if "loss" in row]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_papers_form_in_small_by_its_command(folders, tmp_path):
    """One process, two, and two with half of it each, from published weights: one curve.

    Without: said aloud.
    """
    pytest.importorskip("transformers")
    weights = ("--model.vlm.weights", with_tokenizer(tmp_path / "paligemma"))
    saving = ("--train.shard", "--train.checkpoint-activations")
    runs = {
        "one": (1, *weights),
        "two": (2, *weights),
        "halves": (2, *weights, *saving),
        "random": (2, *saving),
    }
    found = {name: papers_form(folders, tmp_path / name, *words) for name, words in runs.items()}
    print({name: losses for name, (_, losses) in found.items()})
    for name in ("two", "halves"):
        assert found[name][1] == pytest.approx(found["one"][1], rel=1e-5)
    assert [("weights are random" in said) for said, _ in found.values()] == [
        False,
        False,
        False,
        True,
    ]
    assert (
        model.Policy.from_pretrained(tmp_path / "halves" / "model").config.vlm.weights == weights[1]
    )


# --- rollouts -------------------------------------------------------------------------------------


def test_wilson():
    low, high = rates.wilson(23, 40)
    assert (low, high) == pytest.approx(
        (0.4220, 0.7149), abs=1e-3
    )  # by hand, from the formula's two roots
    for p in (low, high):  # both are roots of |k/n - p| = z sqrt(p (1 - p) / n)
        assert abs(23 / 40 - p) == pytest.approx(1.96 * (p * (1 - p) / 40) ** 0.5)
    assert rates.wilson(0, 0) == (0, 1) and rates.wilson(0, 10)[0] == 0


def test_lines_cut_in_half_and_other_rollouts(tmp_path):
    row = json.dumps({"split": "id", "seed": 10, "S": True, "S/A": True, "crashed": False})
    (tmp_path / "episodes.jsonl").write_text(row + "\n" + row[:13])
    assert len(kept_episodes.resume(tmp_path, {"policy": "a"})) == 1
    assert (tmp_path / "episodes.jsonl").read_text() == row + "\n"
    with pytest.raises(UserError, match="policy was a and is b"):
        kept_episodes.resume(tmp_path, {"policy": "b"})


@pytest.mark.parametrize(
    "line", ["5", "null", '{"split": "id"}', "half", '{"seed": -1}', "[" * 9999]
)
def test_a_list_that_is_no_list_of_episodes_is_left_alone(tmp_path, line):
    text = f"{line}\n{line}\n"
    (tmp_path / "episodes.jsonl").write_text(text)
    with pytest.raises(UserError, match="line 1") as found:
        kept_episodes.read_episodes(tmp_path)
    assert (tmp_path / "episodes.jsonl").read_text() == text and len(str(found.value)) < 600


def test_units_of_commands(folders):
    for units, reach in (("percentiles", 1.0), ("spread", 4.0)):
        config = dataclasses.replace(SQUARE, units=units, latents=0)
        acting = [
            demonstrations.Episode(
                synthetic_trajectory(seed=n, T=40, size=24, fps=20), config, None, True
            )
            for n in range(3)
        ]
        policy, data = model.Policy(config), demonstrations.PolicyDataset(acting, [], config)
        training.set_units(policy, data)
        commands = torch.from_numpy(np.concatenate([e.commands for e in acting]))
        normalized = policy.action_units.normalize(commands)
        moving = commands.std(0) > 1e-6
        assert policy.action_units.reach == reach and normalized.abs().max() <= reach
        if units == "spread":
            assert torch.allclose(
                normalized.std(0, correction=0)[moving], torch.ones(int(moving.sum())), atol=0.05
            )


def test_bad_input_to_a_rollout(refused, tmp_path):
    pytest.importorskip("gymnasium")
    model.Policy(SQUARE).save_pretrained(tmp_path / "square")
    joints = dataclasses.replace(SQUARE, control="joints")
    model.Policy(joints).save_pretrained(tmp_path / "joints")
    LatentActionModel.from_preset("ac_lam_cpu", tokens=4, code_dim=4).save_pretrained(
        tmp_path / "lam"
    )
    main, out = rollout.main, ["--out", tmp_path / "out"]
    refused(main, out, "which policy?")
    refused(main, [*out, "--policy", tmp_path / "nobody"], "no policy at", "nobody")
    refused(main, [*out, "--policy", "expert", "--split", "trian"], '"train"')
    other = [*out, "--policy", "expert", "--split", "metawrld_mt10"]
    refused(main, other, "begin with libero_ or metaworld_")
    wrong = [*out, "--policy", tmp_path / "joints", "--control", "delta_pose"]
    refused(main, wrong, 'commands "joints"', 'expects "delta_pose"')
    square = [*out, "--policy", tmp_path / "square"]
    refused(main, square, 'commands "recorded"', 'Emoji Table-Top expects "delta_pose"')
    refused(
        main,
        [*square, "--split", "id", "libero_object"],
        "one run is of Emoji Table-Top, of LIBERO or of Meta-World",
    )
    seldom = dataclasses.replace(SQUARE, control="delta_pose", control_hz=5)
    model.Policy(seldom).save_pretrained(tmp_path / "seldom")
    wrong = [*out, "--policy", tmp_path / "seldom", "--split", "val"]
    refused(main, wrong, "trained to send 5 commands a second", "Emoji Table-Top takes 20")
    refused(main, [*square, "--split", "train", "--max-steps", "-1"], "--max-steps", "-1")
    refused(main, [*square, "--split", "train", "train"], "each of them once")
    refused(main, [*square, "--episodes", 10**12], "at most")
    refused(main, [*square, "--device", "bogus"], 'no device is called "bogus"')
    refused(main, [*square, "--lam", tmp_path / "lam"], "--videos")
    other = [*out, "--policy", tmp_path / "joints", "--lam", tmp_path / "lam", "--videos", "1"]
    refused(main, other, "16 numbers", "made for 32")
    assert not (tmp_path / "out").exists()


def test_a_rollout_takes_no_folder_of_others(refused, tmp_path):
    pytest.importorskip("mujoco")
    model.Policy(dataclasses.replace(SQUARE, control="joints")).save_pretrained(tmp_path / "policy")
    argv = ["--policy", tmp_path / "policy", "--split", "val", "--out"]
    (tmp_path / "photos").mkdir()
    for name in ("config.json", "episodes.jsonl"):
        (tmp_path / "photos" / name).write_text("{}")
    refused(rollout.main, [*argv, tmp_path / "photos"], "photos is not empty")
    refused(rollout.main, [*argv, tmp_path / "policy"], "is what is read")
    refused(rollout.main, [*argv, tmp_path], "holds what is read")
    assert (tmp_path / "photos" / "episodes.jsonl").read_text() == "{}"


# package, title, a split, it with a slip of the finger, numbers of a command
MANY_TASKS = [
    ("libero", "LIBERO", "libero_spatial", "libero_spacial", 7),
    ("metaworld", "Meta-World", "metaworld_mt10", "metaworld_m10", 4),
    ("metaworld", "Meta-World", "metaworld_reach", "metaworld_reech", 4),
]


@pytest.mark.parametrize("package, title, split, slip, width", MANY_TASKS)
def test_bad_input_to_a_benchmark_of_many_tasks(
    package, title, split, slip, width, refused, tmp_path
):
    pytest.importorskip(package)
    model.Policy(SQUARE).save_pretrained(tmp_path / "square")
    argv = ["--out", tmp_path / "out", "--policy", tmp_path / "square", "--split", split]
    fits = f"{title} takes commands of {width} numbers and gives states of 8"
    refused(rollout.main, argv, "reads 7", fits)
    for option in (["--few"], ["--data", "somewhere"], ["--control", "joints"]):
        refused(rollout.main, [*argv, *option], option[0], f"{title} has none")
    refused(rollout.main, [*argv[:-1], slip], f'"{split}"', f'"{slip}"')
    refused(rollout.main, [*argv, "val"], "one run is of Emoji Table-Top, of LIBERO or of")
    for name, changed in {"joints": {"control": "joints"}, "slow": {"control_hz": 5}}.items():
        fitting = dataclasses.replace(SQUARE, action_dim=width, proprio_dim=8, **changed)
        model.Policy(fitting).save_pretrained(tmp_path / name)
    argv[3] = tmp_path / "joints"
    refused(rollout.main, argv, 'commands "joints"', f'{title} expects "recorded"')
    argv[3] = tmp_path / "slow"
    refused(rollout.main, argv, "5 commands a second", f"{title} takes 20")
    assert not (tmp_path / "out").exists()


def test_rates_of_tasks():
    rows = [{"S": n < 3, "task": "ab"[n % 2], "crashed": False} for n in range(6)]
    found = rates.task_rates([*rows, {"S": False, "crashed": True}])
    assert (found["S"]["k"], found["S"]["n"], found["crashed"]) == (3, 6, 1) and found["tasks"][
        "a"
    ]["k"] == 2
    text = rollout.table({"libero_object": found, "shares": {}, "episodes_per_second": 1.0})
    assert "2 of 3: a" in text and "0.50 (0.19 to 0.81)" in text


@pytest.fixture(scope="module")
def reaching(tmp_path_factory):
    """Four demonstrations of Meta-World's reach, with a frame at each command."""
    pytest.importorskip("metaworld")
    from aclam.sim.metaworld import metaworld_settings
    from aclam.sim.sources import prepare_source

    folder = tmp_path_factory.mktemp("reaching") / "data"
    settings = metaworld_settings("metaworld_reach", acts=True)
    prepare_source("metaworld", folder, 4, size=24, workers=1, progress=False, **settings)
    return folder


@pytest.mark.parametrize("preset", ["policy_cpu", "policy_cpu_wo_lam"])
def test_a_policy_of_meta_world_is_trained_and_played(reaching, folders, preset, tmp_path):
    """From demonstrations to a rollout that is stopped, goes on, and is filmed with its plan."""
    words = dataclasses.replace(SQUARE.vlm, text_length=16)
    sizes = dataclasses.replace(SQUARE, vlm=words, latents=2 if preset == "policy_cpu" else 0)
    lam = str(folders / "lam") if preset == "policy_cpu" else ""
    changes = {"data": (str(reaching),), "preset": preset, "model": sizes, "lam": lam}
    training.run(small(folders, tmp_path / "run", **changes))
    trained = model.Policy.from_pretrained(tmp_path / "run" / "model")
    assert (trained.config.action_dim, trained.config.proprio_dim) == (4, 8)

    settings = rollout.RolloutConfig(
        str(tmp_path / "run" / "model"),
        split=("metaworld_mt10",),
        episodes=2,
        seed=20,
        envs=1,
        max_steps=8,
        out=str(tmp_path / "rollout"),
    )
    first = rollout.evaluate(settings)
    rows = kept_episodes.read_episodes(tmp_path / "rollout", rates.TaskRow)
    assert first["played_now"] == 2 and [r["task"] for r in rows] == ["reach-v3", "push-v3"]
    assert list(first["metaworld_mt10"]["tasks"]) == ["push-v3", "reach-v3"]
    more = dataclasses.replace(settings, episodes=3, videos=1, lam=lam)
    again = rollout.evaluate(more)
    kept = kept_episodes.read_episodes(tmp_path / "rollout", rates.TaskRow)
    assert kept[:2] == rows and again["played_now"] == 1 and kept[2]["task"] == "pick-place-v3"
    films = {path.name for path in (tmp_path / "rollout" / "videos").iterdir()}
    plans = {"metaworld_mt10_20_plan.png"} if lam else set()
    assert films == {"metaworld_mt10_20.mp4"} | plans


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "package, split, width", [("libero", "libero_object", 7), ("metaworld", "metaworld_mt10", 4)]
)
def test_a_rollout_of_many_tasks_is_killed_and_goes_on(package, split, width, tmp_path):
    pytest.importorskip(package)
    words = dataclasses.replace(SQUARE.vlm, text_length=16)
    sizes = {"action_dim": width, "proprio_dim": 8}
    model.Policy(dataclasses.replace(SQUARE, vlm=words, **sizes)).save_pretrained(
        tmp_path / "policy"
    )
    argv = [
        "--policy",
        str(tmp_path / "policy"),
        "--split",
        split,
        "--max-steps",
        "8",
        "--envs",
        "1",
    ]
    argv += ["--episodes", "2", "--seed", "10", "--out", str(tmp_path / "rollout"), "--json"]
    command = [sys.executable, "-c", "from aclam.policy.rollout import main; main()", *argv]
    lines = tmp_path / "rollout" / "episodes.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (lines.exists() and lines.read_text().count("\n")):
            time.sleep(0.05)
        process.kill()
    first = lines.read_text().splitlines()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)  # simulators print; this is one JSON object all the same
    assert lines.read_text().startswith(first) and lines.read_text().count("\n") == 2
    suite = result[split]
    assert result["played_now"] == 1 and suite["S"]["n"] == 2 and len(suite["tasks"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rollout_on_the_table_is_killed_and_goes_on(tmp_path):
    pytest.importorskip("mujoco")
    argv = ["--policy", "expert", "--split", "val", "--envs", "2", "--episodes", "4", "--json"]
    command = [sys.executable, "-c", "from aclam.policy.rollout import main; main()", *argv]
    lines = tmp_path / "killed" / "episodes.jsonl"
    killed = [*command, "--out", str(tmp_path / "killed")]
    with subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (lines.exists() and lines.read_text().count("\n")):
            time.sleep(0.02)
        process.kill()
    before = lines.read_text().splitlines()
    result = json.loads(subprocess.run(killed, capture_output=True, text=True, check=True).stdout)
    after = [json.loads(line) for line in lines.read_text().splitlines()]
    assert lines.read_text().startswith("\n".join(before[:1])) and result["played_now"] >= 4 - len(
        before
    )
    assert sorted(row["seed"] for row in after) == [10, 11, 12, 13] and result["val"]["S"]["n"] == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_rollouts_into_one_folder_play_each_episode_once(tmp_path):
    """Started at once: the second is refused, or comes when the first has ended and goes on."""
    pytest.importorskip("mujoco")
    argv = ["--policy", "expert", "--split", "train", "val", "--episodes", "2", "--envs", "1"]
    argv += ["--few", "--max-steps", "20", "--out", tmp_path / "out"]
    twins = [start("aclam.policy.rollout", "main()", *argv) for _ in range(2)]
    answers = sorted(end(twin, 300) for twin in twins)
    assert answers[0][0] == 0 and answers[1][0] in (0, 2), answers
    if answers[1][0] == 2:
        assert "in use by process" in answers[1][1] and "Traceback" not in answers[1][1]
    status, said = end(start("aclam.policy.rollout", "main()", *argv), 300)
    assert status == 0, said
    lines = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    played = sorted((row["split"], row["seed"]) for row in map(json.loads, lines))
    assert played == [("train", 10), ("train", 11), ("val", 10), ("val", 11)]


def test_missing_renderer(tmp_path, refused, monkeypatch):
    pytest.importorskip("mujoco")
    model.Policy(dataclasses.replace(SQUARE, control="joints")).save_pretrained(tmp_path / "policy")
    for name in ("PYOPENGL_PLATFORM", "ACLAM_RENDERER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "nosuch")  # for the environment's process, which is new
    argv = [
        "--policy",
        tmp_path / "policy",
        "--out",
        tmp_path / "out",
        "--envs",
        "1",
        "--split",
        "val",
    ]
    refused(rollout.main, argv, "MUJOCO_GL=nosuch gives no renderer")


# --- the environment ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    pytest.importorskip("mujoco")
    gym = pytest.importorskip("gymnasium")
    from aclam.sim import benchmark

    env = gym.make(benchmark.ENVIRONMENT, image_size=32).unwrapped
    yield env
    env.close()


def test_environment_rules(table):
    seen, info = table.reset(seed=3)
    assert seen["image"].shape == (32, 32, 3) and info == {"S": False, "S/A": False}
    assert table.observation_space.contains(seen)
    again, _ = table.reset(seed=3)
    assert (
        np.array_equal(seen["image"], again["image"])
        and seen["instruction"] == again["instruction"]
    )
    before = table.world.proprio()
    for _ in range(4):
        table.step(np.float32([0, 0, 0.03, 0, 0, 0, 1]))
    assert table.world.proprio()[2] > before[2] + 0.01  # up is up
    with pytest.raises(UserError, match="seven finite numbers"):
        table.step(np.zeros(6))
    with pytest.raises(UserError, match='"rocket"|rocket'):
        table.reset(options={"cards": ("rokcet", "fox", "key")})
    with pytest.raises(UserError, match="unknown option"):
        table.reset(options={"card": 1})


def test_environment_settings():
    pytest.importorskip("gymnasium")
    from aclam.sim import benchmark as e
    from aclam.sim.control import find_control

    with pytest.raises(UserError, match='"val"'):
        e.emoji_split("vel", False)
    with pytest.raises(UserError, match='"joints"'):
        find_control("joint")
    layouts = e.demonstration_layouts(few=True, episodes=5)
    assert len(layouts) == 5 and all(
        len(set(cards)) == 3 and target in (0, 1, 2) for cards, target in layouts
    )
    with pytest.raises(UserError, match="does not say which cards"):
        e.recorded_layouts([synthetic_trajectory(0)])


def test_delta_commands_replay_what_joint_commands_did(table):
    from aclam.sim import benchmark as e

    for control in ("delta_pose", "joints"):
        env = e.EmojiTableTopEnv(image_size=0, control=control)
        info = env.run_expert(10)
        assert info["S"] and env.steps < 150
        env.close()


@pytest.mark.slow
@pytest.mark.parametrize("split", ["id", "train", "val"])
def test_expert_on_each_split(split):
    pytest.importorskip("mujoco")
    from aclam.sim.benchmark import expert_rate

    rate = expert_rate(split)
    print(split, rate)
    assert rate["S"] >= 0.95


def test_same_frames_in_two_processes():
    pytest.importorskip("mujoco")
    from aclam.sim.benchmark import EnvConfig, episode_hash
    from aclam.sim.environment import EnvProcess

    hashes = []
    for _ in range(2):
        process = EnvProcess(EnvConfig(image_size=32))
        assert process.receive() is None
        hashes.append(episode_hash(process, 7, 4))
        process.close()
    assert len(hashes[0]) == 64 and hashes[0] == hashes[1]


@pytest.mark.parametrize("split", ["ood_d", "ood_b"])
def test_other_looks_same_task(split):
    pytest.importorskip("gymnasium")
    from aclam.sim import benchmark as e
    from aclam.sim.scenery import check_task_in_sight

    plain, other = (e.EmojiTableTopEnv(split=s, image_size=48) for s in ("id", split))
    a, b = (env.reset(seed=5)[0] for env in (plain, other))
    assert plain.world.scene == other.world.scene and np.array_equal(a["proprio"], b["proprio"])
    assert not np.array_equal(a["image"], b["image"])
    assert np.array_equal(b["image"], other.reset(seed=5)[0]["image"])
    share, worst = check_task_in_sight(plain.world, split, range(3))
    assert share > 0.001 and worst <= 2
    plain.close(), other.close()


def test_two_worlds_in_one_process_show_their_own_cards():
    pytest.importorskip("mujoco")
    from aclam.sim.emoji_tabletop import EmojiConfig, EmojiTableTop

    with EmojiTableTop(EmojiConfig(size=48)) as alone:
        alone.reset(1)
        expected = alone.render()
    with (
        EmojiTableTop(EmojiConfig(size=48)) as first,
        EmojiTableTop(EmojiConfig(size=48)) as second,
    ):
        first.reset(1), second.reset(2)
        assert np.array_equal(first.render(), expected)


# --- the comparison -------------------------------------------------------------------------------


def test_bad_input_to_a_comparison(folders, refused):
    from aclam.studies import policy_comparison as pc

    data = ["--data", folders / "data"]
    refused(pc.main, ["--lams", f"a={folders / 'lam'}"], "--data FOLDER")
    refused(pc.main, [*data, "--lams", folders / "lam"], "NAME=FOLDER")
    refused(pc.main, [*data, "--lams", "a=nowhere"], 'no latent action model at "nowhere"')
    refused(pc.main, [*data, "--preset", "policy_cpu_wo_lam"], "a policy with latents")


def test_a_comparison_labels_once_and_knows_both_tables(folders, tmp_path):
    import shutil

    from aclam.studies import policy_comparison as pc
    from aclam.train.label_files import labels_of

    shutil.copytree(folders / "data", tmp_path / "data")
    shutil.copytree(folders / "slow", tmp_path / "slow")
    c = pc.PolicyCompareConfig(
        (str(tmp_path / "data"),), (f"a={folders / 'lam'}",), video=(str(tmp_path / "slow"),)
    )
    pc.label_all(c)
    lam = training.open_lam(str(folders / "lam"))
    at = [labels_of(training.open_dataset(tmp_path / name), lam) for name in ("data", "slow")]
    assert [list(found) for found in at] == [[8], [2]]  # 0.4 s at 20 Hz and at 5 Hz
    written = at[0][8].joinpath("part-00000.parquet").stat().st_mtime_ns
    pc.label_all(c)
    assert at[0][8].joinpath("part-00000.parquet").stat().st_mtime_ns == written
    assert pc.training_of(c, pc.entries(c)[0]).video == (str(tmp_path / "slow"),)
    mixed = dataclasses.replace(c, other=(str(tmp_path / "slow"),), other_share=0.25)
    asked = pc.training_of(mixed, pc.entries(mixed)[0])  # the policy without latents
    assert asked.other == (str(tmp_path / "slow"),) and asked.other_share == 0.25
    assert "--other" in pc.command_of(mixed) and "--other-share 0.25" in pc.command_of(mixed)
    real = pc.paper_rows(("id", "ood_d", "ood_b"))
    assert real[-1] == [
        "170, paper, real arm",
        "AC-LAM",
        "?",
        "0.60",
        "-",
        "-",
        "0.53",
        "-",
        "-",
        "0.33",
        "-",
        "-",
    ]
    assert [r[0] for r in pc.paper_rows(("id", "val", "ood_b"))] == ["paper"] * 5 + [
        "170, paper, real arm"
    ] * 5


# --- what a policy's file may say -----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"vlm": {"image_size": 0}},
        {"vlm": {"image_size": -16}},
        {"vlm": {"patch_size": 0}},
        {"vlm": {"vision_heads": 0}},
        {"vlm": {"vision_width": 10**9}},
        {"vlm": {"depth": "ten"}},
        {"vlm": {"layer": {"kv_heads": 0}}},
        {"vlm": 5},
        {"expert": {"mlp": 10**12}},
        {"flow": {"alpha": float("nan")}},
        {"flow": {"steps": 0}},
        {"mask": {"p_mask": "often"}},
        {"latents": -1},
        {"action_dim": 0},
        {"control_hz": 0},
        {"control": "dance"},
        {"lambda_action": float("inf")},
    ],
)
def test_a_config_that_no_policy_can_have(tmp_path, change):
    """One line that names the field, before memory is taken."""
    model.Policy(SQUARE).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    key = next(iter(change))
    if isinstance(change[key], dict):
        inner = next(iter(change[key]))
        old = config[key][inner]
        new = change[key][inner]
        config[key][inner] = {**old, **new} if isinstance(new, dict) else new
    else:
        config |= change
    file.write_text(json.dumps(config))
    with pytest.raises(UserError) as found:
        model.Policy.from_pretrained(tmp_path)
    assert "\n" not in str(found.value) and len(str(found.value)) < 600


@pytest.mark.parametrize("text", ["5", "null", '"x"', "{}", "[1]", "[" * 50_000, ""])
def test_a_config_that_is_none(tmp_path, text):
    model.Policy(SQUARE).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        model.Policy.from_pretrained(tmp_path)


@pytest.mark.parametrize("patch, width", [(1, 128), (16, 36), (16, 8), (14, 100)])
def test_a_small_encoder_whose_stem_cannot_be_made_is_refused(patch, width):
    with pytest.raises(UserError, match="a small encoder needs patch_size >= 2"):
        small_vlm.stem(patch, width)


def test_a_stem_ends_with_the_width_it_was_asked_for():
    for patch, width in ((2, 16), (7, 64), (8, 96), (16, 128)):
        out = small_vlm.stem(patch, width)(torch.zeros(1, 3, 2 * patch, 2 * patch))
        assert out.shape == (1, width, 2, 2)
