"""What a source names: folders, globs, lists, urls; what is ignored, and what is refused."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import SourceError, UsageError
from pipeline.source import list_source, other_kind


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(listing) -> list[str]:
    return [storage.readable(e.uri).rpartition("/")[2] for e in listing.entries]


def test_a_folder_is_searched_in_depth_whatever_the_extension(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.JPEG", "c/d.PnG", "c/e/f", "odd.xyz", "x.txt", "y.JSON", "README")
    touch(tmp_path, ".DS_Store", "._a.jpg", "z.md")
    listing = list_source(tmp_path)
    assert names(listing) == ["a.jpg", "b.JPEG", "d.PnG", "f", "odd.xyz"]
    assert listing.ignored == {
        ".txt": 1, ".json": 1, "readme": 1, ".ds_store": 1, "._*": 1, ".md": 1,
    }  # fmt: skip


def test_include_and_exclude_match_names_and_paths(tmp_path: Path) -> None:
    touch(tmp_path, "left/a.png", "left/b.jpg", "right/a.png", "with space/c.png")
    assert names(list_source(tmp_path, include="*.png")) == ["a.png", "a.png", "c.png"]
    assert names(list_source(tmp_path, include="left/*")) == ["a.png", "b.jpg"]
    assert names(list_source(tmp_path, exclude="left/*", include="*.png")) == ["a.png", "c.png"]
    assert names(list_source(tmp_path, include="with space/*")) == ["c.png"]


def test_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "a1.png", "a2.png", "b/a3.png", "c.txt")
    assert names(list_source(f"{tmp_path}/a*.png")) == ["a1.png", "a2.png"]
    assert names(list_source(f"{tmp_path}/**/*.png")) == ["a1.png", "a2.png", "a3.png"]


def test_a_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "set [1]/a.png")
    assert names(list_source(tmp_path / "set [1]")) == ["a.png"]


def test_a_text_list_of_relative_absolute_and_remote_names(tmp_path: Path) -> None:
    key = uuid.uuid4().hex
    storage.create(f"memory://{key}/m.png", b"x")
    touch(tmp_path, "lists/a.png", "b.png")
    text = f"# comment\na.png\n\n../b.png\n{tmp_path}/b.png\nmemory://{key}/m.png\n"
    (tmp_path / "lists" / "list.txt").write_text(text)
    listing = list_source(tmp_path / "lists" / "list.txt")
    assert sorted(names(listing)) == ["a.png", "b.png", "m.png"]
    assert listing.duplicates == 1


def test_a_list_names_the_line_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\nnowhere.png\n")
    with pytest.raises(SourceError, match=r"list.txt, line 2: .*nowhere.png does not exist"):
        list_source(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="not a list of paths in UTF-8"):
        list_source(tmp_path / "list.txt")


def test_one_file_and_other_stores(tmp_path: Path, bucket: str) -> None:
    touch(tmp_path, "a.png")
    assert names(list_source(tmp_path / "a.png")) == ["a.png"]
    assert names(list_source((tmp_path / "a.png").as_uri())) == ["a.png"]
    for root in (f"memory://{uuid.uuid4().hex}", f"{bucket}/{uuid.uuid4().hex}"):
        storage.create(f"{root}/x/a.jpg", b"x")
        storage.create(f"{root}/b.png", b"x")
        assert [e.uri for e in list_source(root).entries] == [f"{root}/b.png", f"{root}/x/a.jpg"]
        assert names(list_source(f"{root}/x/*.jpg")) == ["a.jpg"]


def test_missing_and_empty_sources_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere does not exist"):
        list_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "texts/a.txt")
    with pytest.raises(SourceError, match="empty holds no image"):
        list_source(tmp_path / "empty")
    with pytest.raises(SourceError, match=r"no image \(1 files of other kinds ignored"):
        list_source(tmp_path / "texts")
    with pytest.raises(SourceError, match="holds no image"):
        list_source(f"{tmp_path}/*.png")
    with pytest.raises(UsageError, match="the source is empty"):
        list_source("")


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(SourceError, match="no-such-bucket-of-ours"):
        list_source("s3://no-such-bucket-of-ours/x")


def test_limit_and_groups(tmp_path: Path) -> None:
    touch(tmp_path, *(f"video{i % 3}/{i}.png" for i in range(30)))
    few = list_source(tmp_path, limit=7)
    assert len(few.entries) == 7
    assert few.entries == list_source(tmp_path, limit=7).entries
    groups = {entry.group for entry in list_source(tmp_path, group_by="1").entries}
    assert len(groups) == 3


def test_kinds_by_name() -> None:
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
def test_a_list_that_lies_in_a_store_may_not_name_what_only_this_machine_reads(
    bucket: str, name: str
) -> None:
    uri = f"{bucket}/{uuid.uuid4().hex}/list.txt"
    storage.create(uri, f"# whoever wrote this\n{name}\n".encode())
    with pytest.raises(UsageError, match=r"list.txt, line 2: .* is not in a store"):
        list_source(uri)


def test_a_list_that_lies_in_a_store_names_objects_of_stores(bucket: str) -> None:
    folder = f"{bucket}/{uuid.uuid4().hex}"
    storage.create(f"{folder}/lists/a.png", b"x")
    storage.create(f"{folder}/b.png", b"x")
    storage.create(f"{folder}/lists/list.txt", f"a.png\n{folder}/b.png\n".encode())
    assert sorted(names(list_source(f"{folder}/lists/list.txt"))) == ["a.png", "b.png"]
    key = uuid.uuid4().hex
    storage.create(f"memory://{key}/a.png", b"x")
    storage.create(f"memory://{key}/list.txt", f"a.png\nmemory://{key}/a.png\n".encode())
    assert names(list_source(f"memory://{key}/list.txt")) == ["a.png"]


def test_a_file_has_one_name_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text(
        f"a.png\nlocal://{tmp_path}/a.png\nfile://{tmp_path}/a.png\n"
    )
    listing = list_source(tmp_path / "list.txt")
    assert (names(listing), listing.duplicates) == (["a.png"], 2)
