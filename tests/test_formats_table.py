"""Every format: all frames of its fixture are the right ones, and a store and a LeRobot dataset of
them give back the same. aclam/results/formats.json says so, and has to be what is found here.
"""

from dataclasses import asdict

import formats_table
import pytest

from aclam.core import read_json

KEPT = {row["name"]: row for row in read_json(formats_table.KEPT)["rows"]}


def test_the_table_has_every_format():
    assert list(KEPT) == [source.name for source in formats_table.SOURCES]


@pytest.mark.parametrize("source", formats_table.SOURCES, ids=lambda source: source.name)
def test_a_row_is_what_is_found(source):
    if not formats_table.is_installed(source):
        pytest.skip(f"{', '.join(source.needs)} is not installed")
    row = asdict(formats_table.row_of(source))
    kept = dict(KEPT[source.name])
    if source.script == "make_raw.py":  # written now, by the version that is here
        row.pop("writer")
        kept.pop("writer")
    assert row == kept and set(row["round_trip"].values()) == {"equal"}
    right, total = row["read"].split(" of ")
    assert f"{right} frames" == total and int(right) > 0
