"""Tests sources: folders, globs, lists and urls, what is ignored, and what is refused."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import SourceError, TransientError, UsageError, VdnaError
from pipeline.events import Said
from pipeline.sources import Listing, Rules, list_source, plan
from pipeline.sources.archives.contents import archive_kind
from pipeline.sources.plain_images import PLAIN_IMAGE, part_plain_images
from pipeline.sources.rules import other_kind, parent_folder
from pipeline.storage.local import LocalFile
from tests.support.archives import arrow_bytes, tar_bytes, write_mixed_folder, zip_bytes


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(listing) -> list[str]:
    uris = sorted(entry.uri for entry in listing.entries)
    return [storage.readable(uri).rpartition("/")[2] for uri in uris]


def test_a_folder_is_searched_recursively_whatever_the_extensions(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.JPEG", "c/d.PnG", "c/e/f", "odd.xyz", "x.txt", "y.JSON", "README")
    touch(tmp_path, ".DS_Store", "._a.jpg", "z.md")
    listing = list_source(tmp_path)
    assert names(listing) == ["a.jpg", "b.JPEG", "d.PnG", "f", "odd.xyz"]
    assert listing.ignored == {
        ".txt": 1, ".json": 1, "readme": 1, ".ds_store": 1, "._*": 1, ".md": 1,
    }  # fmt: skip


def test_include_and_exclude_match_names_and_paths(tmp_path: Path) -> None:
    touch(tmp_path, "left/a.png", "left/b.jpg", "right/a.png", "with space/c.png")
    assert names(list_source(tmp_path, Rules(include="*.png"))) == ["a.png", "a.png", "c.png"]
    assert names(list_source(tmp_path, Rules(include="left/*"))) == ["a.png", "b.jpg"]
    assert names(list_source(tmp_path, Rules(exclude="left/*", include="*.png"))) == [
        "a.png",
        "c.png",
    ]
    assert names(list_source(tmp_path, Rules(include="with space/*"))) == ["c.png"]


def test_a_glob_selects_files(tmp_path: Path) -> None:
    touch(tmp_path, "a1.png", "a2.png", "b/a3.png", "c.txt")
    assert names(list_source(f"{tmp_path}/a*.png")) == ["a1.png", "a2.png"]
    assert names(list_source(f"{tmp_path}/**/*.png")) == ["a1.png", "a2.png", "a3.png"]


@pytest.mark.parametrize("scheme", ["file:", "file://localhost", "FILE://"])
def test_every_url_of_a_local_file_leads_to_it(tmp_path: Path, scheme: str) -> None:
    touch(tmp_path, "set/a1.png", "set/a2.png")
    for source in (f"{tmp_path}/set", f"{tmp_path}/set/a*.png"):
        assert names(list_source(f"{scheme}{source}")) == ["a1.png", "a2.png"]
    (tmp_path / "list.txt").write_text(f"{scheme}{tmp_path}/set/a1.png\n")
    (entry,) = list_source(tmp_path / "list.txt").entries
    assert entry.uri == (tmp_path / "set" / "a1.png").as_uri()


def test_the_listing_states_its_source(tmp_path: Path) -> None:
    """A glob is stated as the folder that it is in."""
    touch(tmp_path, "set/a.png", "set/b.png")
    (tmp_path / "set/list.txt").write_text("a.png\n")
    (tmp_path / "set/table.csv").write_text("uri\na.png\n")
    for name in ("set", "set/a.png", "set/list.txt", "set/table.csv"):
        assert storage.readable(list_source(tmp_path / name).source) == str(tmp_path / name)
    assert storage.readable(list_source(f"{tmp_path}/set/*.png").source) == str(tmp_path / "set")


def test_a_folder_whose_name_looks_like_a_glob_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "set [1]/a.png")
    assert names(list_source(tmp_path / "set [1]")) == ["a.png"]


def test_a_text_list_of_relative_absolute_and_remote_names(tmp_path: Path) -> None:
    key = uuid.uuid4().hex
    storage.create(f"memory://{key}/m.png", b"x")
    touch(tmp_path, "lists/a.png", "b.png")
    text = f"# comment\na.png\n\n../b.png\n{tmp_path}/b.png\nmemory://{key}/m.png\n"
    (tmp_path / "lists" / "list.txt").write_text(text)
    listing = list_source(tmp_path / "lists" / "list.txt")
    manifest = plan(listing)
    assert (manifest.candidates, manifest.duplicates) == (3, 1)
    assert set(names(listing)) == {"a.png", "b.png", "m.png"}


def test_a_name_that_begins_with_a_tilde_is_relative_unless_it_is_a_home_folder(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = ["~a.png", "~no-such-user/b.png", "~~"]
    touch(tmp_path, *(f"lists/{name}" for name in relative), "home/c.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "lists/list.txt").write_text("\n".join([*relative, "~/c.png"]))
    write_table(tmp_path / "lists/t.csv", {"uri": [*relative, "~/c.png"]})
    wanted = {tmp_path / "lists" / name for name in relative} | {tmp_path / "home/c.png"}
    for name in ("list.txt", "t.csv"):
        found = list_source(tmp_path / "lists" / name).entries
        assert {Path(storage.local_path(entry.uri)) for entry in found} == wanted
    folder = f"{bucket}/{uuid.uuid4().hex}"
    storage.create(f"{folder}/~a.png", b"x")
    storage.create(f"{folder}/list.txt", b"~a.png\n")
    assert [entry.uri for entry in list_source(f"{folder}/list.txt").entries] == [
        f"{folder}/~a.png"
    ]


def test_a_list_names_the_line_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\nnowhere.png\n")
    said = (
        r"list.txt, line 2: .*nowhere.png does not exist.* A .txt file is read as a list of images"
    )
    with pytest.raises(SourceError, match=said):
        list_source(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="not a list of paths in UTF-8"):
        list_source(tmp_path / "list.txt")
    with (tmp_path / "list.txt").open("wb") as file:
        file.write(b"# one\n")
        file.truncate(3 * 10**9)
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"list.txt, line 2 has over 65536 characters"):
        list_source(tmp_path / "list.txt")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.timeout(20)  # reading a pipe would wait for ever
@pytest.mark.parametrize("name", ["x", "x.jpg", "x.tar", "list.txt", "table.csv", "table.parquet"])
def test_a_named_pipe_is_no_source_and_is_refused_at_once(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match=rf"{name} is a named pipe; only regular files"):
        list_source(tmp_path / name)
    for kind in ("list.txt", "table.csv"):
        listed = tmp_path / "sub" / kind
        listed.parent.mkdir(exist_ok=True)
        listed.write_text(f"uri\n../{name}\n" if kind == "table.csv" else f"\n../{name}\n")
        with pytest.raises(SourceError, match=rf"{kind}, (line 2|row 1): .*is a named pipe"):
            list_source(listed)


def test_only_the_spaces_of_ascii_around_a_line_of_a_list_are_no_part_of_a_name(
    tmp_path: Path,
) -> None:
    names = ["\u3000a.jpg", "b.jpg\x85", "c.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "list.txt").write_bytes("\r\n".join(["", *names[:2], " \tc.jpg \t"]).encode())
    listed = [storage.readable(entry.uri) for entry in list_source(tmp_path / "list.txt").entries]
    assert sorted(listed) == sorted(str(tmp_path / name) for name in names)


def test_a_number_that_is_too_long_is_no_number_of_folders(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri\n")
    for rules in (Rules(group_by="9" * 5000), Rules(by="9" * 5000)):
        with pytest.raises(VdnaError, match=r"has no such column|; the labels of .* are"):
            list_source(tmp_path / "list.csv", rules)


def test_a_single_object_is_selected_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"no image")
    (tmp_path / "a.zip").write_bytes(zip_bytes([("c.jpg", b"no image")]))
    for name, rules in (
        ("a b.jpg", Rules(include="*.jpg")),
        ("a b.jpg", Rules(include="a b.*", exclude="*.png")),
        ("a.zip", Rules(include="c.*")),
    ):
        assert len(list(list_source(tmp_path / name, rules).entries)) == 1
    for name, rules in (
        ("a b.jpg", Rules(include="*.png")),
        ("a b.jpg", Rules(exclude="*.jpg")),
        ("a.zip", Rules(exclude="c.*")),
        ("a.zip", Rules(exclude="*.zip")),
    ):
        with pytest.raises(SourceError, match="1 left out by include and exclude"):
            list_source(tmp_path / name, rules)


def test_a_list_refuses_secrets_by_line_without_showing_them(tmp_path: Path) -> None:
    for secret in ("https://h/x.jpg?X-Amz-Signature=abc123", "https://me:abc123@h/x.jpg"):
        (tmp_path / "list.txt").write_text(f"# one\n{secret}\n")
        with pytest.raises(UsageError, match=r"list\.txt, line 2") as refused:
            list_source(tmp_path / "list.txt")
        assert "abc123" not in str(refused.value)


# Tables.


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_names_images_with_labels(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "a.png", "sub/b.png", "notes.md")
    path = write_table(
        tmp_path / f"table.{kind}",
        {
            "weather": ["rain", "snow", "sun", "rain"],
            "uri": ["a.png", str(tmp_path / "sub" / "b.png"), "notes.md", "a.png"],
            "speed": [30, 50, 70, 30],
        },
    )
    listing = list_source(path)
    assert (names(listing), listing.labels) == (["a.png", "a.png", "b.png"], ("weather", "speed"))
    assert listing.ignored == {".md": 1}
    manifest = plan(listing)
    assert (manifest.candidates, manifest.duplicates) == (2, 1)
    (a, b) = [row for _, table in manifest.tables() for row in table.to_pylist()]
    assert {(row["weather"], row["speed"]) for row in (a, b)} == {("rain", "30"), ("snow", "50")}
    relabelled = write_table(
        tmp_path / f"other.{kind}", {"uri": ["a.png", "sub/b.png"], "weather": ["sun", "snow"]}
    )
    other = plan(list_source(relabelled), previous=manifest)
    assert other.digest != manifest.digest
    assert other.keys("spec") == manifest.keys("spec"), "a label is no reason to count again"


def test_labels_may_have_any_names_but_not_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    odd = (
        "name",
        "Size",
        "Group",
        "row",
        "place",
        "label",
        "Label",
        'a "b"',
        "URI",
        "tür",
        "fold 1",
    )
    columns = {"uri": ["a.png"]} | {label: [f"of {label}"] for label in odd}
    listing = list_source(write_table(tmp_path / "t.parquet", columns))
    ((_, table),) = plan(listing).tables()
    assert all(table[label].to_pylist() == [f"of {label}"] for label in odd)
    again = plan(listing, previous=plan(listing))
    assert again.digest == plan(listing).digest
    for header in ("uri,x,x", "uri,"):
        (tmp_path / "t.csv").write_text(
            f"{header}\n{','.join(['a.png'] * (header.count(',') + 1))}\n"
        )
        with pytest.raises(UsageError, match="must have columns of different names"):
            list_source(tmp_path / "t.csv")


def test_joined_listings_have_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    labelled = list_source(write_table(tmp_path / "t.csv", {"uri": ["a.png"], "x": ["1"]}))
    for listings in ([labelled, list_source(tmp_path)], [list_source(tmp_path), labelled]):
        manifest = plan(Listing.joined(listings))
        assert (manifest.candidates, manifest.duplicates, manifest.labels) == (2, 1, ())


def test_a_column_of_a_table_groups(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.png" for i in range(12)))
    path = write_table(
        tmp_path / "t.csv",
        {"uri": [f"{i}.png" for i in range(12)], "drive": [f"d{i % 3}" for i in range(12)]},
    )
    entries = list_source(path, Rules(group_by="drive")).entries
    assert {entry.group for entry in entries} == {"d0", "d1", "d2"}
    with pytest.raises(UsageError, match=r"group-by is 'video'; .*; it has: uri, drive"):
        list_source(path, Rules(group_by="video"))


def test_objects_whose_size_and_identity_are_in_a_table_are_not_asked_for(tmp_path: Path) -> None:
    """The store is not asked for them until the image is read."""
    touch(tmp_path, "a.png")
    real = storage.info((tmp_path / "a.png").as_uri())
    columns = {"uri": ["a.png", "not-there.png"], "size": [5, 6], "identity": ["x", "y"]}
    found = {e.uri: e for e in list_source(write_table(tmp_path / "t.csv", columns)).entries}
    assert len(found) == 2
    assert (found[real.uri].size, found[real.uri].identity) == (5, "x")
    with pytest.raises(SourceError, match="changed between listing and reading"):
        storage.read(real.uri, "x")


def test_a_table_names_the_row_that_is_wrong(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    for uri, what in (
        ("gone.png", "gone.png does not exist"),
        ("", "uri must hold text"),
    ):
        path = write_table(tmp_path / "t.csv", {"uri": ["a.png", uri], "x": ["1", "2"]})
        with pytest.raises(SourceError, match=rf"t\.csv, row 2: .*{what}"):
            list_source(path)
    path = write_table(tmp_path / "t.csv", {"picture": ["a.png"], "x": ["1"]})
    with pytest.raises(UsageError, match=r"has no column uri, .*it has: picture, x"):
        list_source(path)
    (tmp_path / "t.csv").write_bytes(b"uri,x\na.png,1,2,3\n")
    with pytest.raises(SourceError, match="cannot be read as a table"):
        list_source(tmp_path / "t.csv")


def test_a_damaged_parquet_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow has an OSError for it. An error of storage is no damage of the table."""
    path = tmp_path / "t.parquet"
    table = pa.table({"uri": [f"{i}.png" for i in range(1000)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    for damaged in (
        data[: -8 - footer] + b"\xff" * footer + data[-8:],
        data[:200] + b"\xff" * 60 + data[260:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"t\.parquet cannot be read as a table"):
            list_source(path)
    path.write_bytes(data)

    def no_answer(*_: object) -> None:
        raise TransientError("no answer")

    monkeypatch.setattr(LocalFile, "readinto", no_answer)
    with pytest.raises(TransientError, match=r"^no answer$"):
        list_source(path)


def test_single_files_and_other_stores_are_sources(tmp_path: Path, bucket: str) -> None:
    touch(tmp_path, "a.png")
    assert names(list_source(tmp_path / "a.png")) == ["a.png"]
    assert names(list_source((tmp_path / "a.png").as_uri())) == ["a.png"]
    for root in (f"memory://{uuid.uuid4().hex}", f"{bucket}/{uuid.uuid4().hex}"):
        storage.create(f"{root}/x/a.jpg", b"x")
        storage.create(f"{root}/b.png", b"x")
        assert {e.uri for e in list_source(root).entries} == {f"{root}/b.png", f"{root}/x/a.jpg"}
        assert names(list_source(f"{root}/x/*.jpg")) == ["a.jpg"]


def test_missing_and_empty_sources_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"nowhere does not exist; check the path\. A source is a"
    ):
        list_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "texts/a.txt")
    with pytest.raises(SourceError, match="empty holds no image"):
        list_source(tmp_path / "empty")
    with pytest.raises(SourceError, match=r"no image \(1 file of other kinds ignored"):
        list_source(tmp_path / "texts")
    with pytest.raises(SourceError, match="holds no image"):
        list_source(f"{tmp_path}/*.png")
    with pytest.raises(UsageError, match="the source is empty"):
        list_source("")


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(SourceError, match="no-such-bucket-of-ours"):
        list_source("s3://no-such-bucket-of-ours/x")


def test_groups_are_leading_folders(tmp_path: Path) -> None:
    touch(tmp_path, *(f"video{i % 3}/part{i % 2}/{i}.png" for i in range(30)))
    for depth, groups in (("1", 3), ("2", 6)):
        listing = list_source(tmp_path, Rules(group_by=depth))
        assert len({entry.group for entry in listing.entries}) == groups
    with pytest.raises(UsageError, match="group-by is '0'"):
        list_source(tmp_path, Rules(group_by="0"))
    with pytest.raises(UsageError, match=r"group-by is 'video', and .* is not a table"):
        list_source(tmp_path, Rules(group_by="video"))


def test_a_file_lies_in_the_folder_of_its_uri() -> None:
    assert parent_folder("file:///list.txt") == "file:///"
    assert parent_folder("file:///data/list.txt") == "file:///data"
    assert parent_folder("s3://bucket/list.txt") == "s3://bucket"


@pytest.mark.parametrize("kind", ["list", "table", "archive"])
@pytest.mark.parametrize("place", ["images", "lists2"])
def test_folders_of_images_outside_the_folder_of_their_list_are_refused(
    kind: str, place: str, tmp_path: Path
) -> None:
    """All of them would be one group, or one part of a name without a sense."""
    touch(tmp_path, f"{place}/drive1/a.png", f"{place}/drive2/b.png", "lists/own/c.png")
    (tmp_path / place / "d.zip").write_bytes(zip_bytes([("x/m.png", b"x")]))
    outside = ["d.zip"] if kind == "archive" else ["drive1/a.png", "drive2/b.png"]
    uris = ["own/c.png", *(f"../{place}/{name}" for name in outside)]
    path = tmp_path / "lists" / ("t.csv" if kind == "table" else "t.txt")
    path.write_text("\n".join([*(["uri"] if kind == "table" else []), *uris]))
    said = rf"is '1', a number of leading folders below .*/lists, and .* names .*/{place}/d.*, "
    said += "which does not lie there. Put the list or table into a folder that all"
    with pytest.raises(UsageError, match=f"group-by {said}"):
        list_source(path, Rules(group_by="1"))
    if kind != "table":
        with pytest.raises(UsageError, match=f"^by {said}"):
            list_source(path, Rules(by="1"))
    whole = tmp_path / path.name
    whole.write_text(path.read_text().replace("own/", "lists/own/").replace("../", ""))
    groups = {entry.group for entry in list_source(whole, Rules(group_by="1")).entries}
    assert groups == {(tmp_path / folder).as_uri() for folder in ("lists", place)}


def test_a_pattern_matches_the_path_below_the_folder_or_else_the_whole_path(tmp_path: Path) -> None:
    touch(tmp_path, "list/a.png", "lists2/b.png")
    (tmp_path / "list/t.txt").write_text("a.png\n../lists2/b.png\n")
    elsewhere = f"{tmp_path}/lists2/b.png".lstrip("/")
    for include, name in (("a.png", "a.png"), (elsewhere, "b.png")):
        assert names(list_source(tmp_path / "list/t.txt", Rules(include=include))) == [name]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_groups_are_leading_folders_below_the_root_of_the_disk(scheme: str, tmp_path: Path) -> None:
    touch(tmp_path, "video1/a.png", "video2/b.png")
    first, *others = tmp_path.relative_to("/").parts
    depth = str(len(others) + 2)
    glob = f"{scheme}/{first[:-1]}?/{'/'.join(others)}/video*/*.png"
    listing = list_source(glob, Rules(group_by=depth))
    assert listing.source == "file:///"
    groups = {(tmp_path / folder).as_uri() for folder in ("video1", "video2")}
    assert {entry.group for entry in listing.entries} == groups


def test_a_single_image_has_no_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (entry,) = list_source(tmp_path / "a.png", Rules(group_by="1")).entries
    assert entry.group == f"{(tmp_path / 'a.png').as_uri()}/"


def test_what_pairs_images_is_the_path_the_name_or_a_column(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.png", "b.png")
    columns = {"uri": ["images/a.png", "images/b.png"], "scene": ["x", "y"]}
    table = write_table(tmp_path / "t.csv", columns)
    for by in (None, "stem", "scene"):
        found = list_source(table, Rules(pair_by=by)).pairing
        assert (found.root, found.by) == (tmp_path.as_uri(), by)
    with pytest.raises(UsageError, match=r"pair-by is 'video'; the labels of .* are: scene"):
        list_source(table, Rules(pair_by="video"))
    with pytest.raises(UsageError, match=r"pair-by is 'scene'; .*images is no table; give 'stem'"):
        list_source(tmp_path / "images", Rules(pair_by="scene"))


def test_files_of_other_kinds_are_recognised_by_name() -> None:
    assert other_kind("s3://b/x/labels.CSV") == ".csv"
    assert other_kind("s3://b/LICENSE") == "license"
    assert other_kind("s3://b/x.jpg") is None
    assert other_kind("s3://b/noextension") is None


@pytest.mark.parametrize(
    "name",
    [
        "/etc/hostname",
        "~/x.png",
        "file:///etc/hostname",
        "FILE:///etc/hostname",
        "local:///etc/hostname",
        "memory://x/a.png",
        "zip://a.png",
        "reference://a.png",
        "sftp://host/a.png",
    ],
)
def test_a_list_in_a_store_may_not_name_local_files(bucket: str, name: str) -> None:
    uri = f"{bucket}/{uuid.uuid4().hex}/list.txt"
    storage.create(uri, f"# whoever wrote this\n{name}\n".encode())
    with pytest.raises(UsageError, match=r"list.txt, line 2: .* is not in a store"):
        list_source(uri)


def test_a_list_in_a_store_names_objects_of_stores(bucket: str) -> None:
    folder = f"{bucket}/{uuid.uuid4().hex}"
    storage.create(f"{folder}/lists/a.png", b"x")
    storage.create(f"{folder}/b.png", b"x")
    storage.create(f"{folder}/lists/list.txt", f"a.png\n{folder}/b.png\n".encode())
    assert set(names(list_source(f"{folder}/lists/list.txt"))) == {"b.png", "a.png"}
    key = uuid.uuid4().hex
    storage.create(f"memory://{key}/a.png", b"x")
    storage.create(f"memory://{key}/list.txt", f"a.png\nmemory://{key}/a.png\n".encode())
    assert plan(list_source(f"memory://{key}/list.txt")).candidates == 1


def test_one_file_under_several_urls_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text(
        f"a.png\nlocal://{tmp_path}/a.png\nfile://{tmp_path}/a.png\n"
    )
    manifest = plan(list_source(tmp_path / "list.txt"))
    assert (manifest.candidates, manifest.duplicates) == (1, 2)


# Members of archives.

MIXED = {f"day{i % 3}/photo-{i:03d}.jpg": b"x" for i in range(12)}


def test_rules_select_and_group_members_of_archives(tmp_path: Path) -> None:
    folder = write_mixed_folder(tmp_path / "images", MIXED)

    def selected(**rules: str) -> set[str]:
        entries = list_source(folder, Rules(**rules)).entries
        return {e.member or e.uri.rpartition("/")[2] for e in entries}

    everything = selected()
    in_tar = {"day0/photo-003.jpg", "day1/photo-004.jpg", "day2/photo-005.jpg"}
    assert selected(include="day1/*") == {"photo-001.jpg"}
    assert selected(include="*.jpg") == {n for n in everything if n.endswith(".jpg")}
    assert selected(include="a.tar/*") == in_tar
    assert selected(exclude="*.tar") == everything - in_tar
    groups = {
        depth: {
            e.group.rpartition("/images/")[2]
            for e in list_source(folder, Rules(group_by=depth)).entries
        }
        for depth in ("1", "2")
    }
    assert groups["1"] == {"day0", "day1", "day2", "a.tar", "b.zip", "c.parquet"}
    assert {"a.tar/day0", "b.zip/day2"} <= groups["2"]


def write_members(path: Path, uri: str, members: Sequence[str]) -> Path:
    return write_table(path, {"uri": [uri] * len(members), "member": list(members)})


@pytest.mark.parametrize("kind", ["tar", "zip", "arrow"])
def test_members_that_a_table_names_behind_a_cut_fail_as_the_archive_does(
    tmp_path: Path, kind: str
) -> None:
    """Those before the cut count. A zip that was cut has lost its directory."""
    pairs = [(f"{i}", bytes([i]) * 5000) for i in range(3)]
    make = {"tar": tar_bytes, "zip": zip_bytes, "arrow": partial(arrow_bytes, stream=True)}[kind]
    archive, whole = tmp_path / f"a.{kind}", make(pairs)
    archive.write_bytes(whole[:14_000])
    table = write_members(tmp_path / "t.csv", archive.name, ["0", "2", "7"])
    found = {entry.member: entry.access for entry in list_source(table).entries}
    assert set(found) == {"0", "2", "7"}
    lost = {name for name, access in found.items() if access.startswith("broken ")}
    assert lost == ({"0", "2", "7"} if kind == "zip" else {"2", "7"})
    assert len({found[name] for name in lost}) == 1
    archive.write_bytes(whole)
    with pytest.raises(SourceError, match=rf"a\.{kind} has no member '7', which is listed"):
        list_source(table)


def test_rows_of_a_table_without_images_are_not_lost(tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet", {"n": ["1", "2"]})
    touch(tmp_path, "a.png")
    columns = {"uri": ["a.png", "x.parquet", "x.parquet"], "member": ["", "0", "1"]}
    with pytest.raises(SourceError, match=r"x\.parquet has no column of images, .* member '0'"):
        list_source(write_table(tmp_path / "t.csv", columns))
    columns["member"] = [""] * 3
    assert list_source(write_table(tmp_path / "t.csv", columns)).ignored == {".parquet": 1}


def test_what_else_an_archive_holds_is_told_only_if_it_is_named_as_a_whole(tmp_path: Path) -> None:
    link = tarfile.TarInfo("days")
    link.type = tarfile.SYMTYPE
    twice = tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y"), ("a.jpg", b"z")])
    (tmp_path / "a.tar").write_bytes(link.tobuf() + twice)
    for members, told in ((["b.jpg"], ({}, 0)), (["b.jpg", ""], ({"link": 1}, 1))):
        found = list_source(write_members(tmp_path / "t.csv", "a.tar", members))
        assert (found.ignored, found.duplicates) == told


def test_caches_of_datasets_are_read_only_if_they_are_named(root: str) -> None:
    """They have the images of the files beside them again."""
    data = arrow_bytes([("0", b"x"), ("1", b"y")], stream=True)
    names = ("cache-0f3a.arrow", "cache-0f3a_00000_of_00002.arrow", "x/data-cache-1.arrow")
    for name in names:
        storage.create(f"{root}/set/{name}", data)
    storage.create(f"{root}/list.txt", f"set/{names[0]}\n".encode())
    storage.create(f"{root}/table.csv", f"uri,n\nset/{names[0]},1\n".encode())
    found = list_source(f"{root}/set")
    assert {e.uri for e in found.entries} == {f"{root}/set/{names[2]}"}
    assert found.ignored == {"cache-*.arrow": 2}
    with pytest.raises(SourceError, match=r"no image \(2 files of other kinds ignored"):
        list_source(f"{root}/set/*.arrow")
    for source in (f"{root}/set/{names[0]}", f"{root}/list.txt", f"{root}/table.csv"):
        found = list_source(source)
        assert [e.uri for e in found.entries] == [f"{root}/set/{names[0]}"] * 2
        assert not found.ignored


def test_a_listing_tells_how_many_archives_it_looks_into(tmp_path: Path) -> None:
    write_mixed_folder(tmp_path / "photos", MIXED)
    told: list[object] = []
    list_source(tmp_path / "photos" / "a.tar", progress=told.append)
    assert Said("looking into 1 archive") in told
    list_source(tmp_path / "photos", progress=told.append)
    assert Said("looking into 4 archives") in told


def test_a_member_named_twice_counts_once_and_with_one_label(tmp_path: Path) -> None:
    folder = write_mixed_folder(tmp_path / "images", MIXED)

    def list_table(labels: list[object]) -> Listing:
        columns = {
            "uri": [f"{folder}/a.tar"] * 2,
            "member": ["day0/photo-003.jpg"] * 2,
            "kind": labels,
        }
        return list_source(write_table(tmp_path / "t.csv", columns))

    manifest = plan(list_table(["a", "a"]))
    assert (manifest.candidates, manifest.duplicates) == (1, 1)
    with pytest.raises(SourceError, match=r"a\.tar::day0/photo-003\.jpg is listed twice"):
        list_table(["a", "b"])


@pytest.mark.parametrize(
    "size",
    [[1, 2], 2**64 - 1, -1, 1.5, float("inf"), True],
    ids=["list", "huge", "-1", "1.5", "inf", "bool"],
)
def test_a_size_that_is_no_number_of_bytes_is_refused_by_its_row(
    tmp_path: Path, size: object
) -> None:
    kind = pa.uint64() if size == 2**64 - 1 else None
    table = pa.table({"uri": ["a.png"], "identity": ["x"], "size": pa.array([size], kind)})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet, row 1: size is .*whole number of bytes"):
        list_source(tmp_path / "t.parquet")


def test_a_size_may_be_a_whole_float_and_a_missing_one_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"12345")
    columns = {"uri": ["a.png", "b.png"], "identity": ["x", "y"], "size": [3.0, float("nan")]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    entries = list_source(tmp_path / "t.parquet").entries
    assert sorted(entry.size for entry in entries) == [3, 5]


@pytest.mark.parametrize("uri", [["a.png"], b"a.png", {"a": 1}])
def test_a_uri_that_is_no_text_is_refused_by_its_row(tmp_path: Path, uri: object) -> None:
    table = pa.table({"uri": pa.array([uri]), "identity": ["x"], "size": [1]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"t\.parquet, row 1: the column uri must hold text"):
        list_source(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "url", ["data://image/png;base64,iVBOR", "reference://x/y", "github://x/y", "jupyter://x/y"]
)
def test_a_scheme_that_is_no_store_is_refused_by_its_line(tmp_path: Path, url: str) -> None:
    (tmp_path / "list.txt").write_text(url)
    with pytest.raises(UsageError, match=r"list\.txt, line 1: "):
        list_source(tmp_path / "list.txt")


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n")
    assert [Path(e.uri).name for e in list_source(tmp_path / "list.txt").entries] == ["a.png"]


PIECES = """
a . ._ / readme Thumbs.db .JPG .jpeg .png .tar .zip .txt .gif.txt .parquet .tiff é %2F LICENSE
"""

NAMED = st.lists(
    st.one_of(
        st.sampled_from([*PIECES.split(), " ", "\n"]), st.characters(exclude_categories=["Cs"])
    ),
    min_size=1,
    max_size=6,
).map("".join)


@given(NAMED)
def test_what_is_taken_for_an_image_by_its_name_alone_the_rules_take_too(name: str) -> None:
    """Most objects of a prefix are added a page at a time, without looking at each."""
    uri = f"s3://b/{name}"
    (plain,) = pc.match_substring_regex(pa.array([uri]), PLAIN_IMAGE).to_pylist()
    if plain:
        assert archive_kind(uri) is None
        assert other_kind(uri) is None
        assert Rules().selects(name)


@given(st.lists(NAMED, max_size=4), st.sampled_from(["", ".jpg", ".JPG", "/.jpg", ".jpg\n"]))
def test_objects_are_parted_by_the_pattern_whether_they_end_alike_or_not(
    names: list[str], end: str
) -> None:
    uris = pa.array([f"s3://b/{name}{end}" for name in names], pa.string())
    images, others = part_plain_images(pa.table({"uri": uris}))
    plain = pc.match_substring_regex(uris, PLAIN_IMAGE)
    assert images["uri"].to_pylist() == uris.filter(plain).to_pylist()
    assert others["uri"].to_pylist() == uris.filter(pc.invert(plain)).to_pylist()
