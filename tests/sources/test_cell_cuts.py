"""Tests how shards are cut into cells."""

from __future__ import annotations

import re

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.cell_cuts import folders_of

URIS = st.lists(st.text("ab/é", max_size=8), min_size=1, max_size=20)


@given(URIS, st.integers(0, 3))
def test_the_folder_of_a_uri_is_all_up_to_its_last_slash(uris: list[str], start: int) -> None:
    """Also in a slice of a longer column, and for a uri without a slash."""
    column = pa.array([*["x/y"] * start, *uris], pa.string())[start:]
    assert folders_of(column).to_pylist() == [re.sub("[^/]*$", "", uri) for uri in uris]
