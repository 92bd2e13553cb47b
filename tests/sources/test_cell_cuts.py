"""Tests how shards are cut into cells."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources import cell_cuts
from pipeline.sources.cell_cuts import folder_numbers, folders_of

URIS = st.lists(st.text("ab/é", max_size=8), min_size=1, max_size=20)


@given(URIS, st.integers(0, 3))
def test_the_folder_of_a_uri_is_all_up_to_its_last_slash(uris: list[str], start: int) -> None:
    """Also in a slice of a longer column, and for a uri without a slash."""
    column = pa.array([*["x/y"] * start, *uris], pa.string())[start:]
    assert folders_of(column).to_pylist() == [re.sub("[^/]*$", "", uri) for uri in uris]


@given(URIS, URIS, st.integers(0, 3), st.integers(1, 9))
def test_uris_have_one_number_if_they_are_in_one_folder(
    some: list[str], others: list[str], start: int, at_once: int
) -> None:
    """Also if other folders lie between them, and if they are in other pieces of the column."""
    column = pa.chunked_array([some, others], pa.string())[start:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_cuts, "NUMBERED_AT_ONCE", at_once)
        numbers = folder_numbers(column).tolist()
    folders = [re.sub("[^/]*$", "", uri) for uri in column.to_pylist()]
    assert len(numbers) == len(folders)
    assert len(set(zip(numbers, folders, strict=True))) == len(set(folders)) == len(set(numbers))
