"""What all tests share: one thread for numerics, and commands that are run in this process."""

import os
import signal
from collections.abc import Callable

import pytest

# before PyTorch is imported: with more threads, sums differ in their last digits from run to run
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# a shell that starts a job in the background has it ignore control-C, and children inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Answer = tuple[int, str, str]  # exit status, standard output, standard error


@pytest.fixture
def outcome(capsys) -> Callable[..., Answer]:
    """Run a command's `main` in this process, with words of any type."""

    def run(main: Callable[[list[str]], None], *words: object) -> Answer:
        status = 0
        capsys.readouterr()  # what was printed before is not the answer
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def refused(outcome) -> Callable[..., str]:
    """Run a command that must refuse its input: status 2, nothing on standard output, and one line
    on standard error that has all of `says`. The line is returned.
    """

    def run(main: Callable, words: list, *says: object) -> str:
        status, out, err = outcome(main, *words)
        assert (status, out) == (2, ""), (status, out, err)
        assert err.count("\n") == 1 and "Traceback" not in err, err
        assert all(str(word) in err for word in says), err
        return err

    return run


@pytest.fixture(autouse=True, scope="session")
def caches(tmp_path_factory):
    """No test leaves anything in the caches of the one who runs it."""
    before = os.environ.get("ACLAM_CACHE")
    os.environ["ACLAM_CACHE"] = str(tmp_path_factory.mktemp("caches"))
    yield
    os.environ.pop("ACLAM_CACHE")
    if before is not None:
        os.environ["ACLAM_CACHE"] = before
