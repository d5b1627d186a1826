"""The calls that reach wandb and trackio are calls that they accept: their own signatures where they
are installed, else those of wandb 0.31.0 and trackio 0.43.0, written down here.
"""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
from accelerate import PartialState

from aclam.train.tracker import Tracker

RECORDED = {  # name of the call -> its parameters, those that must be given first
    "wandb": {
        "init": (
            (),
            "entity project dir id name notes tags config config_exclude_keys config_include_keys "
            "allow_val_change group job_type mode force reinit resume resume_from fork_from save_code "
            "tensorboard sync_tensorboard monitor_gym settings anonymous",
        ),
        "log": (("data",), "step commit"),
        "finish": ((), "exit_code"),
        "Image": (("data_or_path",), "mode caption grouping classes boxes masks file_type"),
    },
    "trackio": {
        "init": (
            ("project",),
            "name group space_id server_url dataset_id bucket_id config resume settings private embed "
            "auto_log_gpu gpu_log_interval auto_log_cpu cpu_log_interval webhook_url "
            "webhook_min_level",
        ),
        "log": (("metrics",), "step"),
        "finish": ((), ""),
        "Image": (("value",), "caption"),
    },
}
RESUME = {"wandb": ("allow", "never", "must", "auto", None), "trackio": ("allow", "never", "must")}


def written_down(library: str, call: str) -> inspect.Signature:
    """The signature of a call as it is recorded."""
    first, others = RECORDED[library][call]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    must = [inspect.Parameter(name, kind) for name in first]
    return inspect.Signature(
        [*must, *(inspect.Parameter(n, kind, default=0) for n in others.split())]
    )


def installed(library: str, call: str) -> inspect.Signature | None:
    """The signature that the library itself has; None where it is not there."""
    if find_spec(library) is None:
        return None
    module = import_module(library)
    if call in ("log", "finish"):
        run = import_module(f"{library}.sdk.wandb_run" if library == "wandb" else f"{library}.run")
        found = inspect.signature(getattr(run.Run, call))
        return found.replace(parameters=list(found.parameters.values())[1:])
    return inspect.signature(getattr(module, call))


class Strict(ModuleType):
    """A tracker's library that accepts the calls of a signature, and no others."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.calls = []
        self.accepted = {c: installed(name, c) or written_down(name, c) for c in RECORDED[name]}

    def __getattr__(self, name: str) -> Callable:
        if name not in self.__dict__.get("accepted", {}):
            raise AttributeError(name)

        def call(*positional, **named):
            bound = self.accepted[name].bind(*positional, **named)
            self.calls.append((name, bound.arguments))
            return self if name == "init" else None

        return call


@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize("name", sorted(RECORDED))
def test_every_call_is_one_that_the_library_accepts(name, first, tmp_path, monkeypatch):
    library = Strict(name)
    monkeypatch.setitem(sys.modules, name, library)
    PartialState()  # accelerate's trackers ask it who they are
    tracker = Tracker(name, tmp_path, first, {"train": {"steps": 4}})
    tracker.numbers(first + 1, {"loss": 0.5})
    tracker.pictures(first + 1, {"reconstruction": np.zeros((4, 6, 3), np.uint8)})
    tracker.close()
    made = [call for call, _ in library.calls]
    assert made == ["init", "log", "Image", "log", "finish"]
    about = library.calls[0][1]
    assert about["project"] == "aclam" and about["config"] == {"train": {"steps": 4}}
    assert about["resume"] in RESUME[name]
    assert [given["step"] for call, given in library.calls if call == "log"] == [first + 1] * 2


def test_a_call_of_another_signature_is_caught():
    for name in RECORDED:
        library = Strict(name)
        with pytest.raises(TypeError):
            library.init(project="aclam", folder="runs")
        with pytest.raises(AttributeError):
            library.log_image("a")


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_what_is_recorded_is_what_an_installed_library_has(name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    for call, (first, others) in RECORDED[name].items():
        there = set(installed(name, call).parameters)
        assert {*first, *others.split()} <= there, (call, there)
