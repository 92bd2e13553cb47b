"""Tests that sources are taken as people have them: tables of many kinds, and labelled archives."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import storage
from pipeline.errors import SourceError, UsageError
from pipeline.events import Said
from pipeline.sources import Listing, Rules, list_source, plan, table_file
from pipeline.sources.coco import coco_rows
from pipeline.sources.entries_file import ENTRY_SCHEMA

COLOURS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}


def png(colour: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        (folder / f"{name}.png").write_bytes(png(colour))
    return folder


def labelled(listing: Listing, label: str) -> dict[str, str | None]:
    """Returns the label of each image by its name, through a plan."""
    rows = [row for _, table in plan(listing).tables() for row in table.to_pylist()]
    return {row["member"] or row["uri"].rpartition("/")[2]: row[label] for row in rows}


WEATHER = {"a.png": "rain", "b.png": "sun", "c.png": None}


@pytest.mark.parametrize("name", ["uri", "path", "file_name", "image", "url"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
def test_a_table_of_any_kind_names_images(kind: str, name: str, photos: Path) -> None:
    columns = {name: list(WEATHER), "weather": list(WEATHER.values()), "n": [1, 2, 3]}
    path = photos / f"table.{kind}"
    if name == "url":
        columns[name] = [(photos / image).as_uri() for image in WEATHER]
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind in ("jsonl", "ndjson"):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        del rows[2]["weather"]
        path.write_text("\n".join(["", *map(json.dumps, rows)]))
    else:
        rows = [columns, *zip(*columns.values(), strict=True)]
        mark = "," if kind == "csv" else "\t"
        path.write_text("\n".join(mark.join(str(v or "") for v in row) for row in rows))
    listing = list_source(path, Rules(by="weather"))
    found = labelled(listing, "weather")
    assert {image: value or None for image, value in found.items()} == WEATHER
    assert labelled(listing, "n") == {"a.png": "1", "b.png": "2", "c.png": "3"}
    assert name not in listing.labels


def test_a_column_that_names_images_is_chosen_if_there_are_several(photos: Path) -> None:
    path = photos / "t.csv"
    path.write_text("path,url,mine\na.png,b.png,c.png\n")
    with pytest.raises(UsageError, match=r"2 columns that may name images: path, url; choose one"):
        list_source(path)
    for column, image in (("path", "a.png"), ("url", "b.png"), ("mine", "c.png")):
        listing = list_source(path, Rules(image_column=column))
        assert [entry.uri.rpartition("/")[2] for entry in listing.entries] == [image]
        assert set(listing.labels) == {"path", "url", "mine"} - {column}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_the_user_names_goes_before_uri(kind: str, photos: Path) -> None:
    path = photos / f"t.{kind}"
    columns = {"uri": ["a.png"], "local_path": ["b.png"]}
    if kind == "csv":
        path.write_text("uri,local_path\na.png,b.png\n")
    else:
        pq.write_table(pa.table(columns | {"img": [png(COLOURS["a"])]}), path)
    for column, image in ((None, "a.png"), ("uri", "a.png"), ("local_path", "b.png")):
        (entry,) = list_source(path, Rules(image_column=column)).entries
        assert entry.uri.rpartition("/")[2] == image
    if kind == "parquet":
        (entry,) = list_source(path, Rules(image_column="img")).entries
        assert (entry.uri, entry.member) == (path.as_uri(), "0")
        pq.write_table(pa.table({"names": ["b.png"], "img": [png(COLOURS["a"])]}), path)
        (entry,) = list_source(path, Rules(image_column="names")).entries
        assert entry.uri.endswith("/b.png")


def test_a_size_and_an_identity_beside_uri_are_those_of_the_uri(photos: Path) -> None:
    path = photos / "t.csv"
    path.write_text("uri,size,identity,local\nhttps://example.org/a.png,7,etag,a.png\n")
    (entry,) = list_source(path, Rules(image_column="local")).entries
    assert entry.size == (photos / "a.png").stat().st_size
    assert entry.identity != "etag"
    path.write_text("local,size,identity\na.png,7,etag\n")
    (entry,) = list_source(path, Rules(image_column="local")).entries
    assert (entry.size, entry.identity) == (7, "etag")


def test_a_column_that_neither_a_table_nor_its_archives_have_is_refused(photos: Path) -> None:
    """The column may be one of a Parquet file that a table with `uri` names."""
    path = photos / "t.csv"
    path.write_text("uri,n\na.png,1\n")
    with pytest.raises(UsageError, match=r"t\.csv has no column imgs, .*it has: uri, n"):
        list_source(path, Rules(image_column="imgs"))
    pq.write_table(
        pa.table({"img": [png(COLOURS["a"])], "mask": [png(COLOURS["b"])]}), photos / "x.parquet"
    )
    path.write_text("uri,n\na.png,1\nx.parquet,2\n")
    found = list_source(path, Rules(image_column="img")).entries
    assert [entry.member for entry in found] == ["", "0"]
    with pytest.raises(SourceError, match=r"x\.parquet has no column 'imgs' of bytes"):
        list_source(path, Rules(image_column="imgs"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_missing_column_shows_the_columns_and_the_first_rows(kind: str, photos: Path) -> None:
    row: dict[str, Any] = {
        "file": "a.png",
        "token": "abcdef",
        "link": "https://host/a?sig=hunter2",
        "note": "bell \x1b[31m" + "x" * 300,
    }
    path = photos / f"t.{kind}"
    if kind == "csv":
        path.write_text("\n".join([",".join(row), *[",".join(row.values())] * 5]))
    elif kind == "jsonl":
        path.write_text("\n".join([json.dumps(row)] * 5))
    else:
        pq.write_table(pa.table({name: [value] * 5 for name, value in row.items()}), path)
    wanted = r"has no column uri, path, file_name, image or url, .*it has: file, token, link, note"
    with pytest.raises(UsageError, match=wanted) as raised:
        list_source(path)
    text = str(raised.value)
    assert text.count("'file': 'a.png'") == 3
    assert "abcdef" not in text
    assert "hunter2" not in text
    assert "\x1b" not in text
    assert "x" * 250 not in text
    good = photos / f"good.{kind}"
    good.write_bytes(path.read_bytes())
    for rules, start in (
        (Rules(image_column="file", by="wether"), "by is 'wether'; the labels of"),
        (Rules(image_column="file", group_by="drive"), "group-by is 'drive'; .* no such column"),
        (Rules(image_column="picture"), "has no column picture"),
    ):
        with pytest.raises(UsageError, match=f"{start}.*Its first rows: {{'file': 'a.png'"):
            list_source(good, rules)


def test_lines_that_are_no_json_objects_are_named(photos: Path) -> None:
    path = photos / "t.jsonl"
    for text, message in (
        ('{"path": "a.png"}\n{', "line 2 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"path": "a.png"}\n[1]', "line 2 is no JSON object"),
        (b"\xff\xfe{", "cannot be read as a table"),
    ):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SourceError, match=message):
            list_source(path)


# Hugging Face.

FEATURES = {
    "info": {
        "features": {
            "image": {"_type": "Image"},
            "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
            "drive": {"dtype": "string", "_type": "Value"},
        }
    }
}


def hugging_face(metadata: bytes | None) -> pa.Table:
    """A table as `datasets` writes it."""
    images = [{"bytes": png(colour), "path": f"{name}.png"} for name, colour in COLOURS.items()]
    columns = {
        "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array([1, 0, -1], pa.int64()),
        "drive": pa.array(["x", "x", "y"]),
    }
    table = pa.table(columns)
    return table.replace_schema_metadata(metadata and {b"huggingface": metadata})


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        (json.dumps(FEATURES).encode(), ["dog", "cat", None]),
        (None, ["1", "0", "-1"]),
        (b"{", ["1", "0", "-1"]),
        (b'{"info": {"features": [1]}}', ["1", "0", "-1"]),
    ],
    ids=["names", "no metadata", "not JSON", "other JSON"],
)
def test_rows_of_hugging_face_have_labels_with_the_names_of_classes(
    kind: str, metadata: bytes | None, classes: list[str | None], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for part in range(2):
        path = folder / f"train-{part}.{kind}"
        table = hugging_face(metadata)
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=2)
        else:
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text("{}")
    for source in (folder, folder / f"train-0.{kind}"):
        listing = list_source(source, Rules(by="label", group_by="drive"))
        assert listing.labels == ("label",)
        assert labelled(listing, "label") == dict(zip("012", classes, strict=True))
        assert {(entry.member, entry.group) for entry in listing.entries} == {
            ("0", "x"),
            ("1", "x"),
            ("2", "y"),
        }
    assert {entry.group for entry in list_source(folder, Rules(by="drive")).entries} == {""}
    with pytest.raises(SourceError, match=r"has no column 'lable'; it has: image, label, drive"):
        list_source(folder, Rules(by="lable"))


def test_a_label_that_is_encoded_by_a_dictionary_is_read_of_parquet_only(tmp_path: Path) -> None:
    table = hugging_face(None)
    table = table.set_column(2, "drive", table["drive"].dictionary_encode())
    pq.write_table(table, tmp_path / "a.parquet")
    found = labelled(list_source(tmp_path / "a.parquet", Rules(by="drive")), "drive")
    assert found == {"0": "x", "1": "x", "2": "y"}
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert len(labelled(list_source(tmp_path / "a.arrow", Rules(by="label")), "label")) == 3
    with pytest.raises(SourceError, match="'drive' is encoded by a dictionary"):
        list_source(tmp_path / "a.arrow", Rules(by="drive"))


def test_a_missing_label_of_parquet_shows_rows_without_their_images(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(hugging_face(None), path)
    with pytest.raises(SourceError, match=r"Its first rows: {'label': 1, 'drive': 'x'} ") as raised:
        list_source(path, Rules(by="lable"))
    assert "PNG" not in str(raised.value)


def test_what_datasets_writes_has_its_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    pictures = [Image.new("RGB", (4, 4), colour) for colour in COLOURS.values()]
    made = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 1]}, features=features)
    made.to_parquet(str(tmp_path / "one.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    for source in (tmp_path / "one.parquet", tmp_path / "saved"):
        found = labelled(list_source(source, Rules(by="label")), "label")
        assert found == {"0": "cat", "1": "dog", "2": "dog"}
    datasets.load_from_disk(str(tmp_path / "saved")).map(lambda row: {"label": row["label"]})
    assert list((tmp_path / "saved").glob("cache-*.arrow"))
    listing = list_source(tmp_path / "saved", Rules(by="label"))
    assert labelled(listing, "label") == {"0": "cat", "1": "dog", "2": "dog"}
    assert listing.ignored["cache-*.arrow"] == 1


# WebDataset.


def write_tar(path: Path, members: Mapping[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


SAMPLES = {
    "x/0.png": png(COLOURS["a"]),
    "x/0.json": b'{"label": "cat", "n": 3, "nothing": null}',
    "x/0.cls": b"7\n",
    "y.z/1.json": b'{"label": "dog", "n": 4.5}',
    "y.z/1.cls": b"8",
    "y.z/1.png": png(COLOURS["b"]),
    "y.z/1.seg.png": png(COLOURS["b"]),
    "2.png": png(COLOURS["c"]),
    "2.txt": b"a caption",
}


@pytest.mark.parametrize("packed", ["tar", "tar.gz"])
def test_a_webdataset_has_labels_in_json_and_in_files(packed: str, tmp_path: Path) -> None:
    mode = "w" if packed == "tar" else "w:gz"
    path = write_tar(tmp_path / f"a.{packed}", SAMPLES, mode)
    expected = {
        "label": ["cat", "dog", "dog", None],
        "n": ["3", "4.5", "4.5", None],
        "cls": ["7", "8", "8", None],
        "txt": [None, None, None, "a caption"],
        "nothing": [None, None, None, None],
    }
    images = ["x/0.png", "y.z/1.png", "y.z/1.seg.png", "2.png"]
    for label, values in expected.items():
        listing = list_source(path, Rules(by=label))
        assert labelled(listing, label) == dict(zip(images, values, strict=True))
        assert sum(listing.ignored.values()) == 5
    groups = Counter(entry.group for entry in list_source(path, Rules(group_by="label")).entries)
    assert groups == {"cat": 1, "dog": 2, "": 1}
    with pytest.raises(SourceError, match=r"no label 'lable': .*it has: png, label, n, no"):
        list_source(path, Rules(by="lable"))


@pytest.mark.parametrize("name", ENTRY_SCHEMA.names)
def test_parts_are_not_made_by_a_column_that_manifests_have_for_themselves(
    name: str, tmp_path: Path
) -> None:
    """As of a table, whose columns of these names are no labels. Nothing is listed before."""
    images = pa.array([png(colour) for colour in COLOURS.values()])
    pq.write_table(pa.table({"image": images, name: ["x", "y", "x"]}), tmp_path / "a.parquet")
    write_tar(tmp_path / "a.tar", {"0.png": png(COLOURS["a"]), f"0.{name}": b"x"})
    for source in (tmp_path / "a.tar", tmp_path):
        with pytest.raises(UsageError, match=rf"by is '{name}', which is a column of the manifest"):
            list_source(source, Rules(by=name))
        groups = {entry.group for entry in list_source(source, Rules(group_by=name)).entries}
        assert groups == ({"x"} if source != tmp_path else {"x", "y"})


def test_files_of_labels_that_are_none_are_refused(tmp_path: Path) -> None:
    image = {"0.png": png(COLOURS["a"])}
    for content, message in (
        (b"{", "cannot be read as labels"),
        (b"\xff", "cannot be read as labels"),
        (b"[" * 100_000, "cannot be read as labels"),
        (b"[1]", "has no label 'label'"),
        (b" " * (2**20 + 1), "a file of labels has 1,048,576 at most"),
    ):
        path = write_tar(tmp_path / "a.tar", {**image, "0.json": content})
        with pytest.raises(SourceError, match=message):
            list_source(path, Rules(by="label"))
        assert [entry.member for entry in list_source(path).entries] == ["0.png"]


def test_a_tar_that_was_cut_short_keeps_its_labels(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"2.png") + 700])
    found = labelled(list_source(path, Rules(by="label")), "label")
    assert found["x/0.png"] == "cat"
    assert found["a.tar"] is None
    path.write_bytes(whole[:100])
    assert labelled(list_source(path, Rules(by="label")), "label") == {"a.tar": None}


def test_an_index_that_is_kept_is_of_its_labels(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    cache = (tmp_path / "cache").as_uri()
    for _ in range(2):
        for label, value in (("label", "cat"), ("cls", "7")):
            listing = list_source(path, Rules(by=label), cache=cache)
            assert labelled(listing, label)["x/0.png"] == value
        assert list_source(path, cache=cache).labels == ()


# ImageFolder, zip and COCO.


def test_folders_of_classes_are_labels_by_their_depth(tmp_path: Path) -> None:
    for name in ("cat/0.png", "dog/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        (tmp_path / "images" / name).write_bytes(png(COLOURS["a"]))
    found = labelled(list_source(tmp_path / "images", Rules(by="1")), "folder")
    assert found == {"0.png": "cat", "1.png": "dog"}
    for rules, choice in ((Rules(by="label"), "by"), (Rules(group_by="label"), "group_by")):
        message = rf"cat/0\.png lies in the folder 'cat'\. `{choice}=1` goes by the first folder"
        with pytest.raises(UsageError, match=message):
            list_source(tmp_path / "images", rules)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/0.png", png(COLOURS["a"]))
    with pytest.raises(SourceError, match="is a zip, whose files have no labels but their folders"):
        list_source(tmp_path / "a.zip", Rules(by="label"))


@pytest.mark.parametrize(
    ("names", "offered"),
    [
        (["cat/0.png", "dog/1.png", "cat/2.png"], True),
        (["cat/0.png", "dog/1.png", "2.png"], False),
        (["cat/0.png", "dog/x/1.png"], False),
        (["cat/0.png", "cat/1.png"], False),
        (["cat/0.png", "dog/1.png", "fox/notes.md"], True),
    ],
)
def test_folders_of_classes_are_offered_as_parts(
    names: list[str], offered: bool, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(png(COLOURS["a"]))
    events: list[Any] = []
    list_source(tmp_path / "images", progress=events.append)
    offer = Said("the images lie in 2 folders (cat and dog); `by=1` also builds a dataset of each")
    assert events == ([offer] if offered else [])
    events.clear()
    list_source(tmp_path / "images", Rules(by="1"), progress=events.append)
    assert events == []


COCO: dict[str, Any] = {
    "images": [
        {"id": 5, "file_name": "a.png", "coco_url": "http://host/a.png"},
        {"id": 6, "file_name": "b.png"},
        {"id": 7, "file_name": "c.png"},
    ],
    "annotations": [
        {"image_id": 5, "category_id": 1, "area": 10},
        {"image_id": 5, "category_id": 2, "area": 6.5},
        {"image_id": 5, "category_id": 2, "bbox": [0, 0, 2, 2]},
        {"image_id": 6, "category_id": 3, "area": 5},
        {"image_id": 6, "category_id": 1, "area": 5},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "cat"}],
}


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("_annotations.coco.json", "."),
        ("labels.json", "images"),
        ("annotations/instances.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
    ],
)
def test_coco_has_the_main_category_of_each_image(
    annotations: str, images: str, tmp_path: Path
) -> None:
    path, folder = tmp_path / annotations, tmp_path / images
    for place in (path.parent, folder):
        place.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(COCO))
    for name, colour in COLOURS.items():
        (folder / f"{name}.png").write_bytes(png(colour))
    listing = list_source(path, Rules(by="category"))
    found = labelled(listing, "category")
    assert found == {"a.png": "cat", "b.png": "person", "c.png": None}


@pytest.mark.parametrize("name", ["%41.png", "a%20b.png", "a b#é?.png", "~a.png", "\udcff.png"])
@pytest.mark.parametrize("images", [".", "images"])
def test_coco_finds_images_of_any_names(name: str, images: str, tmp_path: Path) -> None:
    folder = tmp_path / "50%25 off" / images
    folder.mkdir(parents=True)
    (folder / name).write_bytes(png(COLOURS["a"]))
    path = tmp_path / "50%25 off" / "labels.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": name}]}))
    (entry,) = list_source(path).entries
    assert Path(storage.local_path(entry.uri)) == folder / name


def test_annotations_of_coco_are_read_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may take half a gigabyte, and a minute."""
    path, read = photos / "labels.json", []
    path.write_text(json.dumps(COCO))

    def counted(uri: str) -> list[dict[str, Any]]:
        read.append(uri)
        return coco_rows(uri)

    monkeypatch.setattr(table_file, "coco_rows", counted)
    listing = list_source(path, Rules(by="category"))
    assert labelled(listing, "category") == {"a.png": "cat", "b.png": "person", "c.png": None}
    assert len(read) == 1


def test_json_that_is_no_coco_and_images_that_are_elsewhere_are_named(photos: Path) -> None:
    path = photos / "a.json"
    list_as_number = {"images": [{"id": [1], "file_name": "a.png"}]}
    mixed = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "category_id": kind, "area": 2} for kind in (1, "a")],
    }
    for data in (
        {"images": [{"id": 1}]},
        [1],
        {"annotations": []},
        "text",
        list_as_number,
        mixed,
        COCO | {"annotations": [{"image_id": 1, "category_id": 1, "area": 10**400}]},
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(SourceError, match=r"a\.json is not a table of images: .*COCO"):
            list_source(path)
    path.write_text("[" * 100_000)
    with pytest.raises(SourceError, match="is not a table of images"):
        list_source(path)
    path.write_text(json.dumps(COCO | {"images": [{"id": 1, "file_name": "\ud83d.png"}]}))
    with pytest.raises(SourceError, match=r"a\.json: .*surrogates"):
        list_source(path)
    path.write_text(json.dumps(COCO | {"images": [{"id": 1, "file_name": "gone.png"}]}))
    with pytest.raises(SourceError, match=r"'gone.png', which is in none of these folders: .*pho"):
        list_source(path)


def test_counts_of_labelled_rows_are_those_of_their_files(photos: Path, tmp_path: Path) -> None:
    """Labels change what is listed beside an image, and not how it is read."""
    path = tmp_path / "a.parquet"
    pq.write_table(hugging_face(json.dumps(FEATURES).encode()), path)
    plain, by = (plan(list_source(path, Rules(by=by))) for by in (None, "label"))
    members = [
        sorted(entry.member for shard in each.shards for entry in shard.members)
        for each in (plain, by)
    ]
    assert members[0] == members[1] == ["0", "1", "2"]
    assert np.all([row["access"] for _, t in by.tables() for row in t.to_pylist()])
