"""Names of erased images are found, and those that only begin like them are not."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import ObjectSearch
from pipeline.sources import ImageNames

ERASED = "s3://b/a.jpg"
SEARCH = ObjectSearch(ImageNames.of([ERASED, "s3://b/c.tar::m.jpg"]))
LONGER = [
    f"{ERASED}{rest}"
    for rest in (" (1).jpg", "@2x.jpg", ",v", ":Zone.Identifier", "+1.png", "é.png", "=1.png")
]


def file_of(table: pa.Table) -> bytes:
    data = io.BytesIO()
    pq.write_table(table, data)
    return data.getvalue()


def images(*uris: str, **more: list[str]) -> pa.Table:
    return pa.table({"uri": list(uris), "member": [""] * len(uris), **more})


@pytest.mark.parametrize("longer", LONGER)
def test_a_name_that_goes_on_is_another_image(longer: str) -> None:
    nested = pa.table({"kept": [[{"uri": longer, "member": ""}]]})
    inner = file_of(images(longer))
    for table in (images(longer), nested, pa.table({"uri": [longer]}), pa.table({"file": [inner]})):
        assert not SEARCH.is_in(file_of(table), "x")
    assert SEARCH.is_in(file_of(images(longer, ERASED)), "x")


def test_a_name_is_found_wherever_it_stands() -> None:
    named = [
        images(ERASED),
        pa.table({"uri": [ERASED]}),
        pa.table({"kept": [[{"uri": ERASED, "member": ""}]]}),
        pa.table({"file": [file_of(images(ERASED))]}),
        images("s3://b/d.jpg", detail=[f"cannot read {ERASED}: torn"]),
        images("s3://b/d.jpg").replace_schema_metadata({"note": json.dumps({"of": ERASED})}),
        pa.table({ERASED: [1]}),
        pa.table({"uri": ["s3://b/c.tar"], "member": ["m.jpg"]}),
    ]
    assert [SEARCH.is_in(file_of(table), "x") for table in named] == [True] * len(named)
    others = pa.table({"uri": ["s3://b/c.tar"] * 2, "member": ["m.jpg (1).jpg", "n.jpg"]})
    assert not SEARCH.is_in(file_of(others), "x")
