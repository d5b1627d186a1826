"""A policy of lerobot that learns latent actions beside its own: ACT with an auxiliary target.

    aclam-label --model MODEL --data DATASET --offsets 5 --lerobot LABELED
    pip install "lerobot[dataset]"                      (0.6.1 was used; aclam is not needed here)
    python examples/lerobot_auxiliary.py LABELED --latent latent_action_5 --seeds 0 1 2

`LatentACT` is the whole difference: twenty lines. Each seed trains it beside lerobot's own ACT, on
the same episodes, in the same order, for the same number of steps; the last episodes are held out,
and the error of the actions there is printed. With `--labeled N`, only the first N episodes have
actions: ACT learns from these, and LatentACT from the latents of the others, too.

`nbs/results/lerobot_auxiliary.json` keeps a small run of both kinds, whatever it showed.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import lerobot
import torch
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.act.processor_act import make_act_pre_post_processors
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch import Tensor, nn
from torch.utils.data import default_collate


class LatentACT(ACTPolicy):
    """ACT whose decoder also predicts the latent action of each step of its chunk."""

    def __init__(self, config: ACTConfig, latent: str, stats: dict, weight: float):
        super().__init__(config)
        self.latent, self.weight = latent, weight
        self.mean, self.std = (torch.as_tensor(stats[latent][k]).float() for k in ("mean", "std"))
        self.latent_head = nn.Linear(config.dim_model, len(self.mean))
        self.model.decoder.register_forward_hook(self.remember)

    def remember(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.decoded = output.transpose(0, 1)  # (B, chunk, dim)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        loss, parts = super().forward(batch)
        target = (batch[self.latent] - self.mean) / self.std.clamp_min(1e-6)
        error = (self.latent_head(self.decoded) - target).square().mean(-1)
        known = ~(batch[f"{self.latent}_is_pad"] | batch[f"{self.latent}_is_pad_is_pad"])
        latent_loss = (error * known).sum() / known.sum().clamp_min(1)
        return loss + self.weight * latent_loss, parts | {"latent_loss": latent_loss.item()}


def windows(options: argparse.Namespace, meta: LeRobotDatasetMetadata) -> dict[str, Tensor]:
    """All frames of the dataset, decoded once, with the actions and latents that follow them.

    lerobot gives a window of KEY a KEY_is_pad of its own, which says where the episode ends; that
    of the dataset, which also says where a pair ends, is asked for as a window itself.
    """
    steps = [n / meta.fps for n in range(options.chunk)]
    keys = ("action", options.latent, f"{options.latent}_is_pad")
    times = dict.fromkeys(keys, steps)
    dataset = LeRobotDataset(
        "local/labeled", root=options.dataset, delta_timestamps=times, video_backend="pyav"
    )
    return default_collate([dataset[n] for n in range(len(dataset))])


def make_config(options: argparse.Namespace, meta: LeRobotDatasetMetadata) -> ACTConfig:
    """A small ACT on two cores, without a VAE, since that reads the actions."""
    features = dataset_to_policy_features(meta.features)
    inputs = {"observation.state": features["observation.state"]}
    inputs |= {key: f for key, f in features.items() if f.type == FeatureType.VISUAL}
    return ACTConfig(
        input_features=inputs,
        output_features={"action": features["action"]},
        chunk_size=options.chunk,
        n_action_steps=options.chunk,
        pretrained_backbone_weights=None,
        dim_model=128,
        n_heads=4,
        dim_feedforward=256,
        n_encoder_layers=2,
        use_vae=False,
        device="cpu",
        push_to_hub=False,
    )


def batches(data: dict, rows: Tensor, size: int, seed: int) -> Iterator[dict]:
    """Batches of some rows, drawn with the seed, without end."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        chosen = rows[torch.randint(len(rows), (size,), generator=draw)]
        yield {key: v[chosen] for key, v in data.items() if isinstance(v, Tensor)}


def train(options: argparse.Namespace, policy: ACTPolicy, data: dict, rows: Tensor, seed: int):
    """Train a policy on some rows; episodes from `labeled` on have no actions."""
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=options.lr, weight_decay=1e-4)
    for step, batch in enumerate(batches(data, rows, options.batch, seed)):
        if step == options.steps:
            return
        batch["action_is_pad"] |= (batch["episode_index"] >= options.labeled)[:, None]
        loss, _ = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()


@torch.no_grad()
def held_out_error(policy: ACTPolicy, data: dict, rows: Tensor) -> float:
    """The mean error of normalized actions, |a - a'|, on rows that were held out."""
    policy.eval()
    errors = []
    for some in rows.split(256):
        batch = {key: v[some] for key, v in data.items() if isinstance(v, Tensor)}
        known = ~batch["action_is_pad"]
        actions = policy.predict_action_chunk(batch)
        errors.append((actions - batch["action"]).abs().mean(-1)[known])
    return torch.cat(errors).mean().item()


def normalized(config: ACTConfig, meta: LeRobotDatasetMetadata, data: dict) -> dict:
    """The data as lerobot's own processor gives them to a policy; it leaves out other columns."""
    process, _ = make_act_pre_post_processors(config, meta.stats)
    return data | process(data)


def compare(options: argparse.Namespace) -> dict:
    """Both policies with each seed: the held-out errors, and what they were made with."""
    meta = LeRobotDatasetMetadata("local/labeled", root=options.dataset)
    config = make_config(options, meta)
    data = normalized(config, meta, windows(options, meta))
    train_episodes = meta.total_episodes - options.held_out
    options.labeled = options.labeled or train_episodes
    episode = data["episode_index"]
    with_actions = (episode < options.labeled).nonzero()[:, 0]
    with_latents = (episode < train_episodes).nonzero()[:, 0]
    held_out = (episode >= train_episodes).nonzero()[:, 0]

    rows = []
    for seed in options.seeds:
        row = {"seed": seed}
        for name in ("act", "latent_act"):
            start = time.process_time()
            torch.manual_seed(seed)
            if name == "act":
                policy, own = ACTPolicy(config), with_actions
            else:
                policy = LatentACT(config, options.latent, meta.stats, options.weight)
                own = with_latents
            train(options, policy, data, own, seed)
            row[name] = round(held_out_error(policy, data, held_out), 4)
            row[f"{name}_cpu_s"] = round(time.process_time() - start)
        print(json.dumps(row), flush=True)
        rows.append(row)
    constant = data["action"][held_out].abs().mean(-1)[~data["action_is_pad"][held_out]]
    return {
        "settings": vars(options) | {"dataset": options.dataset.name},
        "lerobot": lerobot.__version__,
        "torch": torch.__version__,
        "frames": {
            "labeled": len(with_actions),
            "all": len(with_latents),
            "held_out": len(held_out),
        },
        "mean_action": round(constant.mean().item(), 4),  # the error of always the mean action
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path, help="folder that aclam-label --lerobot wrote")
    parser.add_argument("--latent", default="latent_action_1", help="the column of latents")
    parser.add_argument("--weight", type=float, default=1.0, help="of the latents in the loss")
    parser.add_argument("--labeled", type=int, default=0, help="episodes with actions; 0: all")
    parser.add_argument("--held-out", type=int, default=10, help="episodes at the end")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=16, help="actions that are predicted at once")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    out = options.__dict__.pop("json")
    found = compare(options)
    print(json.dumps(found))
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
