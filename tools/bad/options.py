"""Options of every command: outside their range, of another type, without effect, not finite."""

import re
from importlib.resources import files

from .base import LAM_TRAINING
from .case import EITHER, REFUSED, Case, nothing

STORE = ("--data", "store")
TRAIN_LAM = ("aclam-train-lam", *STORE, "--out", "new", *LAM_TRAINING)
TRAIN_POLICY = (
    *("aclam-train-policy", "--data", "demos", "--lam", "lam", "--out", "new", "--probe-n", "2"),
    *("--train.steps", "1", "--train.batch-size", "4", "--cache-gib", "0"),
    *("--model.vlm.image-size", "32", "--model.vlm.patch-size", "8"),
    *("--model.control", "recorded"),
)
LABEL = ("aclam-label", "--model", "lam", *STORE, "--offsets", "1")
STRUCTURE = ("aclam-structure", "--model", "lam", *STORE, "--n", "8")
LATENTS = ("aclam-structure", "--latents", "latents/z.npz")
LEAKAGE = ("aclam-structure", "leakage", "--model", "lam", *STORE, "--n", "8")
COMPARE = (
    *("aclam-structure", "compare", "--data", "many", "--out", "new", "--models", "ac_lam_cpu"),
    *("--steps", "1", "--batch-size", "4", "--n", "8", "--probe-n", "8", "--seeds", "1"),
)
WORTH = (
    *("aclam-structure", "worth", "--data", "store", "--out", "new", "--models", "lam"),
    *("--baselines", "displacement", "--pairs", "100", "--probe.steps", "2", "--budgets", "0"),
)
LARY = (
    *("aclam-structure", "lary", "--data", "store", "--out", "new", "--models", "lam"),
    *("--pairs", "100"),
)
ROLLOUT = (
    *("aclam-rollout", "--policy", "expert", "--split", "id", "--episodes", "1", "--max-steps"),
    *("2", "--envs", "1", "--out", "new"),
)
LOOK = ("aclam-look", "videos", "--n", "16", "--out", "new")
LINEAR = ("aclam-linear", "--steps", "2", "--d-o", "16")
PREPARE = ("aclam-data", "prepare", "emoji", "--out", "new", "--episodes", "1", "--workers", "1")
INSPECT = ("aclam-data", "inspect", "store")
FRAME = ("aclam-data", "frame", "store", "--episode", "0", "--index", "0", "--out", "f.png")
CONVERT = ("aclam-data", "convert", "store", "--out", "new")
LEROBOT = (*CONVERT, "--to", "lerobot")
TRIPLES = ("aclam-data", "triples", "store", "--n", "2")
PLAN = ("aclam-data", "plan", "mixture/mixture.yaml")
DEMO = ("aclam-demo", "--quick", "--out", "new", "--episodes", "2", "--steps", "1", "--n", "8")
NEEDS = {
    "store": ("store",),
    "demos": ("demos",),
    "many": ("many",),
    "lam": ("lam",),
    "mixture/mixture.yaml": ("mixture",),
    "latents/z.npz": ("latents",),
    "policy": ("policy",),
    "rlds": ("rlds",),
    "videos": ("videos",),
    "pictures": ("pictures",),
    "lerobot_v30": ("lerobot_v30",),
    "run/it": ("run",),
}
BY_HAND: list[tuple[tuple[str, ...], list[str]]] = [  # a command, and words that it must refuse
    (
        TRAIN_LAM,
        [
            "--train.betas 2 3",
            "--train.betas 0.9",
            "--train.betas nan 0.9",
            "--val-fraction nan",
            "--val-fraction -1",
            "--val-fraction 1.5",
            "--val-fraction 1",
            "--model.patch-size 0",
            "--model.idm-heads 0",
            "--model.fdm-heads 0",
            "--model.tokens 0",
            "--model.image-size -16",
            "--model.image-size 0",
            "--model.code-dim 0",
            "--model.idm-width 0",
            "--model.idm-width 400000000",
            "--model.idm-depth 1000000",
            "--train.one-cycle-rise 5",
            "--train.one-cycle-rise -1",
            "--train.one-cycle-rise nan",
            "--train.one-cycle-betas 2 3",
            "--cache-gib nan",
            "--cache-gib -1",
            "--train.lr nan",
            "--train.lr -1",
            "--train.lr inf",
            "--train.steps 0",
            "--train.steps -5",
            "--train.steps ten",
            "--train.steps 1e3",
            "--train.batch-size 0",
            "--train.batch-size 99999999999999",
            "--train.accumulate 3",
            "--train.schedule sine",
            "--train.mixed-precision fp8",
            "--train.clip-norm nan",
            "--train.num-workers -7",
            "--train.prefetch -1",
            "--train.prefetch 0",
            "--triples.rule never",
            "--triples.order backwards",
            "--triples.offset-s 3 1",
            "--triples.offset-s nan 1",
            "--triples.span-s -1",
            "--triples.span-s nan",
            "--triples.p-repeat 2",
            "--triples.max-rotation-deg -1",
            "--triples.max-rotation-deg nan",
            "--triples.max-tries 0",
            "--augment.brightness -1",
            "--augment.crop 0",
            "--augment.crop 5",
            "--augment.hue nan",
            "--model.bottleneck.codes 0",
            "--model.bottleneck.decay 2",
            "--model.bottleneck.levels 0",
            "--model.bottleneck.kind none2",
            "--model.objective.lambda-ac nan",
            "--model.objective.lambda-ac -1",
            "--model.objective.lambda-reverse -1",
            "--model.odd --model.objective.lambda-reverse 1",
            "--model.bottleneck.signed",
            "--data store store",
            "--held-out store",
            "--held-out nowhere",
            "--preset no_such",
            "--stage-1 lam",
            "--mixture cpu",
            "--probe-n -1",
            "--no-such-option",
            "word",
            "--train.steps",
            "--model lam",
        ],
    ),
    (
        TRAIN_POLICY,
        [
            "--val-fraction nan",
            "--val-fraction 2",
            "--video-share 5",
            "--video-share nan",
            "--other nowhere",
            "--other demos",
            "--other-share 1",
            "--other-share nan",
            "--demonstrations -1",
            "--demonstrations 999999",
            "--shift -1",
            "--brightness nan",
            "--brightness -1",
            "--proprio-noise nan",
            "--proprio-noise -1",
            "--cache-gib nan",
            "--probe-n -1",
            "--data demos demos",
            "--data nowhere",
            "--lam nowhere",
            "--preset no_such",
            "--train.betas 2 3",
            "--train.one-cycle-rise 5",
            "--train.steps 0",
            "--model.latents -1",
            "--model.actions 0",
            "--model.execute 0",
            "--model.execute 99",
            "--model.action-dim 3",
            "--model.control nothing",
            "--model.control-hz 0",
            "--model.control-hz nan",
            "--model.draws 0",
            "--model.vlm.patch-size 0",
            "--model.vlm.vision-heads 0",
            "--model.vlm.depth -1",
            "--model.vlm.vocab 0",
            "--model.expert.heads 0",
            "--model.expert.width 0",
            "--model.flow.steps 0",
            "--model.flow.alpha -1",
            "--model.flow.sigma-min nan",
            "--model.mask.p-mask 2",
            "--model.mask.p-drop nan",
            "--model.latent-gap-s nan",
        ],
    ),
    (
        LABEL,
        [
            "--offsets 0",
            "--offsets 1 1",
            "--offsets 99999999",
            "--offsets x",
            "--offsets",
            "--name ../x",
            "--name /etc",
            "--name .",
            "--values float64",
            "--shard 2/2",
            "--shard -1/2",
            "--shard a/b",
            "--shard 0/0",
            "--shard 1",
            "--missing -1",
            "--batch-size 0",
            "--batch-size -1",
            "--piece-frames 0",
            "--piece-frames -1",
            "--prefetch -1",
            "--device bogus",
            "--device cuda",
            "--device cuda:99",
            "--device meta",
            "--model nowhere",
            "--data nowhere",
            "--model store",
            "--data lam",
            "--out store",
        ],
    ),
    (
        STRUCTURE,
        [
            "--n 0",
            "--n -1",
            "--n 1",
            "--n 99999999999999",
            "--first -1",
            "--first 99",
            "--first 2 --last 1",
            "--last 99",
            "--last 0",
            "--batch-size 0",
            "--intervals -1",
            "--intervals 1000000000",
            "--device bogus",
            "--device cuda",
            "--order sideways",
            "--seed -1",
            "--latents latents/z.npz",
            "--model nowhere",
        ],
    ),
    (
        LATENTS,
        [
            "--intervals -1",
            "--intervals 1000000000",
            "--model lam",
            "--data store",
            "--first 1",
            "--device bogus",
            "--latents nowhere.npz",
            "--save x.npz",
        ],
    ),
    (LEAKAGE, ["--n 0", "--n -5", "--data store store", "--batch-size 0", "--device bogus"]),
    (
        COMPARE,
        [
            "--models no_such",
            "--models",
            "--models ac_lam_cpu ac_lam_cpu",
            "--models ac_lam_cpu ac_lam_paper",
            "--steps -1",
            "--batch-size -1",
            "--seeds 0",
            "--n 0",
            "--probe-n -1",
            "--intervals -1",
            "--workers 0",
            "--minutes nan",
            "--minutes -1",
            "--device bogus",
            "--data many many",
            "--ood many",
            "--ood nowhere",
        ],
    ),
    (
        ROLLOUT,
        [
            "--policy nowhere",
            "--policy store",
            "--split nonsense",
            "--split",
            "--split id id",
            "--split id libero_object",
            "--split id metaworld_mt10",
            "--split metaworld_reech",
            "--split metaworld_mt10 --few",
            "--split metaworld_mt10 --max-steps 126",
            "--episodes 0",
            "--episodes 999999999999",
            "--seed -1",
            "--data nowhere",
            "--data store",
            "--control wheels",
            "--envs 0",
            "--envs 99999",
            "--max-steps -1",
            "--device bogus",
            "--videos -1",
            "--lam nowhere",
        ],
    ),
    (
        LINEAR,
        [
            "--d-o 0",
            "--d-a 0",
            "--d-z 0",
            "--d-z 999",
            "--d-a 999",
            "--d-b 999",
            "--d-o 100000000",
            "--gain nan",
            "--gain 0",
            "--gain -1",
            "--sigma-iid -1",
            "--sigma-iid nan",
            "--sigma-agents nan",
            "--chi 2",
            "--chi nan",
            "--augment-var -1",
            "--label-ratio 2",
            "--label-ratio nan",
            "--label-weight nan",
            "--lambda-ac nan",
            "--steps -1",
            "--batch 0",
            "--lr nan",
            "--lr -1",
            "--seed -1",
            "--readout x",
        ],
    ),
    (
        PREPARE,
        [
            "--episodes 0",
            "--episodes -1",
            "--episodes 1000000000000",
            "--size 0",
            "--size -64",
            "--size 100000",
            "--seed -1",
            "--split nonsense",
            "--workers 0",
            "--workers -2",
            "--workers 100000",
            "--quality 0",
            "--quality 101",
            "--clips x",
            "--use nothing",
        ],
    ),
    (INSPECT, ["--rate 99", "--rate nan", "--rate 0", "--rate -1", "--recipe nowhere"]),
    (
        FRAME,
        [
            "--episode -1",
            "--episode 99",
            "--index -1",
            "--index 99",
            "--index 99999999999999999999",
            "--camera no_such",
            "--rate 99",
            "--out store",
            "--out nowhere/f.png/",
            "--recipe nowhere",
        ],
    ),
    (
        CONVERT,
        [
            "--fps 2",
            "--fps 0",
            "--rate 99",
            "--camera no_such",
            "--workers 0",
            "--workers -2",
            "--workers 3",
            "--to zarr",
            "--out store",
            "--out .",
        ],
    ),
    (
        LEROBOT,
        [
            "--fps nan",
            "--fps 1e12",
            "--fps 0",
            "--fps -1",
            "--fps inf",
            "--fps 1e-12",
            "--workers 0",
            "--workers -2",
            "--rate 99",
            "--camera no_such",
        ],
    ),
    (
        TRIPLES,
        [
            "--n 0",
            "--n -1",
            "--n 1000000000",
            "--epoch -1",
            "--seed -1",
            "--rule never",
            "--max-rotation-deg nan",
            "--max-rotation-deg -1",
            "--rate 99",
            "--png store",
        ],
    ),
    (PLAN, ["--root mixture/mixture.yaml", "--no-such"]),
    (
        DEMO,
        [
            "--episodes 0",
            "--episodes -1",
            "--size 0",
            "--steps -1",
            "--seed -1",
            "--n 0",
            "--workers 0",
        ],
    ),
]
EITHER_WORDS = {  # they may have a meaning
    *("--seed -1", "--no-such", "--first 99", "--train.prefetch 0", "--last 0"),
    *("--lam nowhere", "--split id id", "--data store", "--batch-size 0 ", "--envs 99999"),
    *("--workers 100000", "--train.prefetch -1", "--epoch -1 ", "--models ac_lam_cpu ac_lam_cpu"),
    *("--root mixture/mixture.yaml", "--ood many", "--n 1", "--offsets 1 1"),
    *("--model.bottleneck.decay 2", "--model.action-dim 3", "--model.control nothing"),
    *("--model.objective.lambda-ac -1", "--augment.crop 5", "--model.vlm.depth -1"),
    *("--demonstrations 999999", "--train.batch-size 99999999999999", "--episodes 999999999999"),
    *("--save x.npz", "--first 1", "--device bogus ", "--d-a 999", "--d-b 999", "--data nowhere "),
    *("--n 99999999999999", "--steps -1 ", "--camera no_such ", "--probe-n -1 "),
}
WITHOUT_DEVICE = ("--device cuda", "--device cuda:99")


def needs_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """The valid data that a command line names."""
    found = [name for word in words for name in NEEDS.get(word, ())]
    return tuple(dict.fromkeys(found))


def _by_hand() -> list[Case]:
    import torch

    cases = []
    for command, rows in BY_HAND:
        kind = f"options of {' '.join(w for w in command[:2] if not w.startswith('-'))}"
        for row in rows:
            if row in WITHOUT_DEVICE and torch.cuda.is_available():
                continue
            right = EITHER if row in EITHER_WORDS else REFUSED
            words = (*command, *row.split())
            cases.append(Case(kind, row, needs_of(words), nothing, words, right))
    return cases


HELP = {  # the kept text of --help -> a command that would do little
    "aclam-train-lam": TRAIN_LAM,
    "aclam-train-policy": TRAIN_POLICY,
    "aclam-label": LABEL,
    "aclam-structure": STRUCTURE,
    "aclam-structure.leakage": LEAKAGE,
    "aclam-structure.compare": COMPARE,
    "aclam-structure.worth": WORTH,
    "aclam-structure.lary": LARY,
    "aclam-rollout": ROLLOUT,
    "aclam-look": LOOK,
    "aclam-check": ("aclam-check", "adding", "--begin"),
    "aclam-linear": LINEAR,
    "aclam-data.prepare": PREPARE,
    "aclam-data.inspect": INSPECT,
    "aclam-data.frame": FRAME,
    "aclam-data.convert": LEROBOT,
    "aclam-data.triples": TRIPLES,
    "aclam-demo": DEMO,
}
MAY_BE_NEGATIVE = ("seed", "offsets", "num-workers")


def numbers_of(name: str) -> list[tuple[str, str]]:
    """The options of a command that take one number, from its help: [(option, INT or FLOAT)]."""
    text = (files("aclam") / "configs" / "help" / f"{name}.txt").read_text()
    found = re.findall(
        r"^ +(--[a-z0-9.-]+) (?:\{None\}\|)?(INT|FLOAT)(?= |$)(?! FLOAT)", text, re.M
    )
    return list(dict.fromkeys(found))


def _by_help() -> list[Case]:
    """Every option that takes a number: not a number, and far below zero."""
    cases = []
    done = {(command, row) for command, rows in BY_HAND for row in rows}
    for name, command in HELP.items():
        for option, number in numbers_of(name):
            row = f"{option} {'nan' if number == 'FLOAT' else '-3'}"
            if (command, row) in done:
                continue
            tail = option.split(".")[-1].lstrip("-")
            right = EITHER if tail in MAY_BE_NEGATIVE else REFUSED
            words = (*command, *row.split())
            kind = f"every number of {name}"
            cases.append(Case(kind, row, needs_of(words), nothing, words, right))
    return cases


WORDS = [  # command lines that are wrong as such
    ("aclam-data",),
    ("aclam-data", "inspct", "store"),
    ("aclam-data", "inspect"),
    ("aclam-data", "inspect", "nowhere"),
    ("aclam-data", "inspect", "a\x00b"),
    ("aclam-data", "inspect", "x" * 5000),
    ("aclam-data", "inspect", "store/meta.json"),
    ("aclam-data", "inspect", "/dev/zero"),
    ("aclam-data", "inspect", "/dev/null"),
    ("aclam-data", "inspect", "store", "store"),
    ("aclam-data", "inspect", "store", "--rate", "1", "--rate"),
    ("aclam-data", "prepare", "emoij", "--out", "new"),
    ("aclam-data", "prepare", "emoji"),
    ("aclam-data", "convert", "store"),
    ("aclam-data", "plan", "no_such_mixture"),
    ("aclam-data", "plan", "/dev/zero"),
    ("aclam-data", "inspect", "hub:"),
    ("aclam-label",),
    ("aclam-label", "--model", "lam"),
    ("aclam-structure",),
    ("aclam-structure", "compare"),
    ("aclam-structure", "leakage"),
    ("aclam-structure", "worth"),
    ("aclam-structure", "lary"),
    ("aclam-rollout",),
    ("aclam-look",),
    ("aclam-check", "nowhere"),
    ("aclam-check", "adding"),
    ("aclam-check", "adding", "--answers", "store"),
    ("aclam-check", "adding", "--answers", "store/meta.json"),
    ("aclam-check", "--begin"),
    ("aclam-look", "nowhere"),
    ("aclam-look", "videos", "--model", "nowhere"),
    ("aclam-look", "videos", "--episode", "99", "--out", "new"),
    ("aclam-look", "videos", "--model", "potential_lam_cpu", "--odd", "--out", "new"),
    (*LATENTS, "--odd"),
    (*LABEL, "--odd", "--values", "codes"),
    ("aclam-label", "--model", "potential_lam_cpu", *STORE, "--odd"),
    ("aclam-train-lam", *STORE, "--out", "new", "--preset", "potential_lam_cpu", "--model.odd"),
    ("aclam-train-lam",),
    ("aclam-train-lam", "--data"),
    ("aclam-train-policy",),
    ("aclam-demo", "--no-such"),
    ("aclam-linear", "--no-such"),
    ("aclam-linear", "--json", "--json", "extra"),
    ("aclam-train-lam", "--data", "store/meta.json", "--out", "new"),
    ("aclam-train-lam", "--data", "store", "--out", "store/meta.json"),
    ("aclam-train-lam", "--data", "videos", "--out", "new", "--preset", "\udcff"),
]


HERE = [("aclam-data", "inspect", "."), ("aclam-data", "inspect", "")]  # it holds videos


def _words() -> list[Case]:
    cases = []
    for words in WORDS + HERE:
        right = EITHER if words in HERE else REFUSED
        name = " ".join(words)[:80].encode("unicode_escape").decode()
        needs = ("store", "lam", "videos")
        cases.append(Case("command lines", name, needs, nothing, words, right))
    return cases


def cases() -> list[Case]:
    """All of this module."""
    return [*_by_hand(), *_by_help(), *_words()]
