"""Random bad inputs over every reader, every command's options and the Python interface: refused in
one line, or carried out; never a traceback, a hang, an abort.

Here a short run, always the same; `make fuzz` goes on for an hour, with other seeds each time.
"""

import json
from pathlib import Path

import pytest
from bad.fuzzed import DOCUMENTS, PROPERTIES, options_of
from bad.options import HELP, numbers_of
from bad.server import Server
from hypothesis import HealthCheck, Phase, given, settings

KEPT = Path(__file__).parent / "fixtures" / "fuzz.jsonl"
EXAMPLES = 6  # of each strategy
QUICK = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process of its own, which has imported everything and made valid data."""
    server = Server(tmp_path_factory.mktemp("fuzz"))
    yield server
    server.close()


def check(server: Server, description: dict) -> None:
    answer = server.ask(description)
    assert answer["verdict"] == "well", (answer["said"], json.dumps(description))


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_random_bad_input_is_refused_in_one_line_or_carried_out(server, name):
    tried = []

    @QUICK
    @given(PROPERTIES[name])
    def holds(description):
        tried.append(description)
        check(server, description)

    holds()
    assert len(tried) == EXAMPLES


@pytest.mark.parametrize("line", KEPT.read_text().splitlines())
def test_what_was_found_stays_mended(server, line):
    """Inputs that `make fuzz --keep` has found to be answered wrongly, once."""
    check(server, json.loads(line))


def test_a_fault_would_be_seen(server):
    """The property can fail: valid data are read, and a child that raises is no good answer."""
    assert (
        server.ask({"kind": "options", "words": ["aclam-data", "inspect", "store"]})["status"] == 0
    )
    nowhere = server.ask({"kind": "options", "words": ["aclam-data", "inspect", "nowhere"]})
    assert (nowhere["status"], nowhere["verdict"]) == (2, "well")
    given = [{"shape": "right", "dtype": "no_such_type", "scale": 1.0}] * 2  # an AttributeError
    call = {"kind": "calls", "family": "ac_lam_cpu", "call": "encode", "given": given}
    assert server.ask(call)["verdict"] == "traceback"


def test_the_strategies_reach_every_command():
    """Each option that a help names is drawn from; each kept file is one that exists."""
    for name in HELP:
        options = options_of(name)
        assert len(options) >= 3, name
        assert {option for option, _ in numbers_of(name)} <= {option for option, _ in options}
    assert len(DOCUMENTS) >= 13
