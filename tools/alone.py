"""A wheel of this checkout, and an environment that has the wheel and nothing of the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "aclam"
BESIDE = ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")


def build_wheel(out: Path, limit: float = 250) -> Path:
    """The wheel, in folder `out`; it is built from a copy, so that no earlier build leaks into it."""
    with tempfile.TemporaryDirectory() as tmp:
        source = Path(tmp) / "source"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / PACKAGE, source / PACKAGE, ignore=ignore)
        for name in BESIDE:
            shutil.copy(ROOT / name, source)
        pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
        command = [*pip, "--quiet", "-w", str(out.resolve())]
        subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=limit)
    return next(out.glob("*.whl"))


def make_environment(folder: Path, wheel: Path) -> Path:
    """The interpreter of a new environment: the wheel, and the packages that this interpreter has.

    The packages are not copied: a path file names their folder. Path files in that folder, which
    would bring an editable checkout, are not read then. The wheel goes in first: pip must not find
    an aclam that it would have to remove.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet"]
    command = [*pip, "--disable-pip-version-check", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, env=clean_environment())
    packages = sysconfig.get_path("purelib")
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (inside / "packages_of_the_checkout.pth").write_text(f"{packages}\n")
    return python


def clean_environment(folder: Path | None = None) -> dict[str, str]:
    """The variables of this process without those that lead to a checkout.

    With `folder` its commands come first, as in an environment that was activated.
    """
    kept = {k: v for k, v in os.environ.items() if k not in OURS}
    if folder is not None:
        path = [str(folder.resolve() / "bin"), kept.get("PATH", "")]
        kept["PATH"] = os.pathsep.join(path)
    return kept
