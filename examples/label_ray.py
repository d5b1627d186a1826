"""Labels by Ray Data: the engine starts workers, watches them and hands out shards; the files say
what is done.

    pip install "ray[data]"
    python examples/label_ray.py --model RUN/model --data DATA --offsets 1 3 --shards 64 --workers 8
    --gpus 1

Each worker keeps a model in memory and labels shard after shard. One that dies is started again and
has lost a piece. The labels are the bytes that `aclam-label` writes. Without ray: "skipped".
"""

from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec

from aclam.command_line import cli
from aclam.core import say
from aclam.train.label import label, missing
from aclam.train.label_job import LabelConfig, open_job
from aclam.train.label_work import label_shard


@dataclass(frozen=True)
class RayConfig(LabelConfig):
    """Latent actions of all pairs (t, t + k) of a store, by Ray Data."""

    # pieces of work that Ray hands out; some for each worker, so that none waits long for the last
    shards: int = 8
    workers: int = 2  # processes with a model each
    gpus: float = 0.0  # of each worker


class Worker:
    """What Ray keeps in each of its processes."""

    def __init__(self, config: RayConfig):
        self.config = config
        self.job = open_job(
            config, "cuda" if config.gpus else "cpu"
        )  # Ray shows a worker its own GPU only

    def __call__(self, row: dict) -> dict:
        label_shard(self.job, f"{row['shard']}/{self.config.shards}")
        return row


def run(config: RayConfig) -> int:
    if find_spec("ray") is None:
        say("skipped: ray is not installed")
        return 0
    todo = missing(replace(config, missing=config.shards))["shards"]
    data = import_module("ray.data")
    if todo:
        rows = data.from_items([{"shard": n} for n in todo], override_num_blocks=len(todo))
        rows.map(
            Worker, fn_constructor_args=(config,), concurrency=config.workers, num_gpus=config.gpus
        ).materialize()
    found = label(config)  # finds all pieces there
    print(f"{found['folder']}: {found['frames']:,d} frames, {len(todo)} shards were missing")
    return 0


if __name__ == "__main__":
    cli(RayConfig, run, prog="label_ray.py")
