"""What users of this field's data loaders file again and again, and the tests that keep it from
happening here.

2 (decoding is the bottleneck) and 3 (time stamps out of tolerance) belong to the readers of video
and LeRobot files.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

COVERED = {
    "1 memory grows until the job is killed": (
        "test_memory_and_descriptors_reach_a_plateau",
        "test_ten_thousand_triples_leave_memory_and_descriptors_flat",
    ),
    "4 open decoders and descriptors pile up": ("test_memory_and_descriptors_reach_a_plateau",),
    "5 TensorFlow, numpy and protobuf in conflict": ("test_no_tensorflow_and_no_ffmpeg_is_needed",),
    "6 workers break decoding": (
        "test_fork_and_spawn_workers_give_the_same_items",
        "test_no_tensorflow_and_no_ffmpeg_is_needed",
    ),
    "7 are ranks disjoint, is resume exact": (
        "test_ranks_are_disjoint_their_union_is_one_rank_and_a_restart_at_any_index_changes_nothing",
        "test_a_killed_process_goes_on_from_one_integer",
    ),
    "8 wrong statistics and conventions": (
        "test_seven_common_mislabels_are_refused_or_harmless",
        "test_the_recipes_say_what_the_cases_call_right",
        "test_states_are_padded_masked_and_scaled_by_their_own_source",
    ),
}


@pytest.mark.parametrize("complaint", COVERED)
def test_a_complaint_has_its_tests(complaint):
    text = "\n".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    assert all(re.search(rf"^def {name}\(", text, re.M) for name in COVERED[complaint])


def test_no_tensorflow_and_no_ffmpeg_is_needed():
    """Neither in what is installed nor at the top of any module: what is optional is imported where
    it is used.
    """
    unwanted = {
        "tensorflow",
        "tensorflow-datasets",
        "dlimp",
        "tfds-nightly",
        "torchcodec",
        "decord",
    }
    lock = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert not unwanted & lock
    for path in (ROOT / "aclam" / "data").glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {n.replace("-", "_") for n in unwanted}, (
                path.name
            )
