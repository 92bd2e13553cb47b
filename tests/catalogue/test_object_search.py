"""Names of erased images are found, and those that only begin like them are not."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.catalogue import ObjectSearch
from pipeline.catalogue.object_search import SHOWS_PICTURES
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


ODD = '/data/a_1 & b\'s <x> "ü" 🐈.png'


def as_xml(text: str) -> str:
    return ElementTree.tostring(ElementTree.Element("case", {"name": text}), "unicode")


def as_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~#&!])", r"\\\1", text)  # as summaries do


@pytest.mark.parametrize(
    "written",
    [
        lambda text: f"<p title='{html.escape(text)}'>",
        lambda text: f"<script>show({json.dumps(text)})</script>",
        lambda text: f"<p data-of='{html.escape(json.dumps(text))}'>",
        lambda text: f'{{"event": 1}}\n{{"of": {json.dumps(text)}}}\n',
        lambda text: f"[not JSON] {json.dumps(text, ensure_ascii=False)}",
        as_xml,
        as_markdown,
    ],
)
def test_a_name_is_found_however_it_is_escaped(written: Callable[[str], str]) -> None:
    search = ObjectSearch(ImageNames.of([ODD]))
    assert search.is_in(written(f"see {ODD}, and others").encode(), "x")
    assert not search.is_in(written("see /data/a_1 & c.png").encode(), "x")


def test_an_object_with_pictures_inside_is_found_whatever_it_names(tmp_path: Path) -> None:
    page, text = tmp_path / "report.html", tmp_path / "notes.html"
    page.write_text('<img src="data:image/webp;base64,UklG" alt="a.jpg">')
    text.write_text("<p>no picture")
    found = {item.uri: SEARCH.found_in_object(item) for item in storage.walk(tmp_path.as_uri())}
    assert found == {page.as_uri(): SHOWS_PICTURES, text.as_uri(): ""}
