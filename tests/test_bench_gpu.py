"""bench/gpu.sh: every section runs on a CPU, none can spoil another, and the JSON says what it is."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import bench_gpu  # noqa: E402
import gpu_sections as sections  # noqa: E402


@pytest.fixture
def plan(tmp_path):
    return sections.Plan(tiny=True, device="cpu", out=tmp_path)


def page_of(plan: sections.Plan, name: str, seconds: float = 60) -> dict:
    """What a section writes, run in this process."""
    (plan.out / "pages").mkdir(exist_ok=True)
    page = sections.Page(plan.out / "pages" / f"{name}.json")
    sections.SECTIONS[name](plan, page, sections.Clock(time.monotonic() + seconds))
    return json.loads(page.file.read_text())


def test_names_limits_and_sections_agree():
    assert tuple(sections.SECTIONS) == bench_gpu.NAMES == tuple(bench_gpu.limits(tiny=False))
    assert all(most >= least for most, least in bench_gpu.limits(tiny=False).values())


@pytest.mark.parametrize("left", [480, 300, 120, 40])
def test_a_section_leaves_time_for_those_that_follow(left):
    todo = list(bench_gpu.NAMES)
    end = left
    while todo:
        name = todo.pop(0)
        seconds = bench_gpu.allowed(name, todo, end, tiny=False)
        assert 1 <= seconds <= bench_gpu.limits(False)[name][0]
        end -= seconds
    assert (
        end >= 0 or left < 300
    )  # a short call cannot give each its least, but each is told to be quick


def test_the_sweep_the_next_section_and_the_profile_build_on_each_other(plan):
    swept = page_of(plan, "sweep")
    assert swept["preset"] == "ac_lam_cpu" and swept["flops_per_triple"] > 1e6
    assert [(r["micro_batch"], r["fits"]) for r in swept["micro_batches"]] == [(2, True), (4, True)]
    assert (
        sections.best_micro_batch(plan) in (2, 4)
        and sections.page_number(plan, "sweep", "parameters") > 1e4
    )


def test_a_family_that_cannot_run_is_a_row_and_not_the_end(plan, monkeypatch):
    monkeypatch.setattr(sections.Plan, "families", ("potential_lam_cpu", "lapa_cpu"))
    build = sections.build

    def broken(plan, name):
        if name == "lapa_cpu":
            raise RuntimeError("the card is on fire\nand more")
        return build(plan, name)

    monkeypatch.setattr(sections, "build", broken)
    good, bad = page_of(plan, "families")["models"]
    assert good["fits"] and good["rows_per_second"] > 0
    assert bad == {"preset": "lapa_cpu", "error": "RuntimeError: the card is on fire"}


def test_the_policy_takes_checkpointed_steps(plan):
    page = page_of(plan, "policy")
    assert (
        page["flops_with_recomputing"] > page["flops_per_sample"] > 0
        and page["weights"] == "random"
    )
    assert [r["micro_batch"] for r in page["micro_batches"]] == [1, 2]


def test_kinds_of_kernels_and_distances_of_curves():
    kernels = {
        "nvjet_tst_128x256": "matrix products",
        "sm90_xmma_gemm_bf16": "matrix products",
        "flash_fwd_kernel": "attention",
        "multi_tensor_apply_kernel": "optimizer",
        "Memcpy HtoD": "copies",
        "vectorized_elementwise_kernel": "element by element",
    }
    assert {name: sections.kind_of(name) for name in kernels} == kernels
    found = sections.apart([1.0] * 30, [1.0] * 29 + [1.1])
    assert found["largest_step"] == pytest.approx(0.1) and found[
        "last_mean_of_20"
    ] == pytest.approx(0.005)


STUB = """#!/bin/sh
read seconds
mkdir -p "$OUT/pages"
case "$*" in
  *"--section machine"*) echo '{"card": "stub"}' > "$OUT/pages/machine.json";;
  *"--section sweep"*) echo 'CUDA error: an illegal memory access' ; kill -9 $$;;
  *"--section curves"*) echo '{"losses": {"float32": [2, 1]}}' > "$OUT/pages/curves.json"; sleep 60;;
esac
"""


def test_a_section_that_dies_or_hangs_costs_only_itself(tmp_path, monkeypatch, capsys):
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(bench_gpu.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(bench_gpu, "allowed", lambda name, *_: 0.3 if name == "curves" else 200)
    monkeypatch.setattr(bench_gpu, "PATIENCE_S", 0.5)
    monkeypatch.setattr(bench_gpu, "forks", lambda args: False)  # the stub is a program
    start = time.monotonic()
    status = bench_gpu.main(
        ["--tiny", "--out", str(tmp_path / "out"), "--only", "sweep", "curves", "machine"]
    )
    assert time.monotonic() - start < 60 and status == 1
    report = json.loads((tmp_path / "out" / "gpu.json").read_text())
    states = {name: (row["status"], row["result"]) for name, row in report["sections"].items()}
    assert states["machine"] == ("done", {"card": "stub"})
    assert states["sweep"] == ("failed", {"error": "CUDA error: an illegal memory access"})
    assert states["curves"] == ("out of time", {"losses": {"float32": [2, 1]}})
    assert (
        report["tiny"] is True
        and report["headline"]["card"] == "stub"
        and report["headline"]["sections_done"] == 1
    )
    assert (
        report["plots"] == ["gpu_curves.png"]
        and json.loads(capsys.readouterr().out) == report["headline"]
    )


def test_without_a_gpu_it_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sections.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("30\n"))
    assert bench_gpu.main(["--section", "machine", "--out", str(tmp_path)]) == bench_gpu.NO_GPU
    assert "no GPU" in json.loads((tmp_path / "pages" / "machine.json").read_text())["error"]
    (tmp_path / "python").write_text(f"#!/bin/sh\nread seconds\nexit {bench_gpu.NO_GPU}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(bench_gpu.sys, "executable", str(tmp_path / "python"))
    assert bench_gpu.main(["--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == f"bench/gpu.sh: {bench_gpu.WITHOUT}"


def test_rows_for_the_table_of_benchmarks(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "KEPT", tmp_path / "gpu.json")
    assert "not measured yet" in next(bench_gpu.rows())[0]
    head = {
        "card": "X",
        "step_alone": {"mfu": 0.4, "micro_batch": 64},
        "loop": {"run": "jpeg", "data_wait": 0.01},
    }
    (tmp_path / "gpu.json").write_text(json.dumps({"tiny": False, "headline": head}))
    assert [r[:2] for r in bench_gpu.rows()] == [
        ("X: step alone, mfu", 0.4),
        ("X: step alone, micro_batch", 64),
        ("X: loop, data_wait", 0.01),
    ]


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_script_is_one_that_bash_can_read():
    assert subprocess.run(["bash", "-n", ROOT / "bench" / "gpu.sh"], check=False).returncode == 0


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path):
    words = ["bash", ROOT / "bench" / "gpu.sh", "--tiny", "--out", tmp_path]
    done = subprocess.run(
        words, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, timeout=900
    )
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: row["status"] for name, row in report["sections"].items()} == dict.fromkeys(
        bench_gpu.NAMES, "done"
    )
    assert done.returncode == 0 and report["tiny"] and not (tmp_path / "runs").exists()
