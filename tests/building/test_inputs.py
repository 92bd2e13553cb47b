"""Tests that images count the same, each once, as files, in archives, from tables, or mixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from pipeline.building import Request, Result, build_datasets, datasets, planner, runner
from pipeline.catalogue import Catalogue, verify
from pipeline.dna import DNA
from pipeline.engine import InProcess
from pipeline.errors import SourceError, TransientError
from pipeline.sources import Entry, Listing, Members, list_source
from pipeline.sources.archives import contents
from pipeline.sources.archives.index import ArchiveIndex
from pipeline.spec import Resources
from pipeline.storage import Stored
from tests.support import tiny_network as tiny
from tests.support.archives import tar_bytes, write_files, write_mixed_folder
from tests.support.builders import jpeg, same_counts

IMAGES = 12
BAD = b"\xff\xd8\xff no more than a beginning"


SIZE = (24, 16)
PICTURES = {f"day{i % 3}/photo-{i:03d}.jpg": jpeg(i, *SIZE) for i in range(IMAGES)}


def pictures(first: int, last: int) -> list[tuple[str, bytes]]:
    return list(PICTURES.items())[first:last]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def expected(network: tiny.Place, tmp_path_factory: pytest.TempPathFactory) -> DNA:
    folder = tmp_path_factory.mktemp("expected")
    write_files(folder / "images", PICTURES)
    return build_and_load(network, Catalogue(str(folder / "c")), folder / "images")[0]


@pytest.fixture
def place(tmp_path: Path) -> Catalogue:
    return Catalogue(str(tmp_path / "catalogue"))


def build_and_load(
    network: tiny.Place, place: Catalogue, images: Path, *, relist: bool = False, **options: object
) -> tuple[DNA, Result]:
    request = Request("x", str(images), **network.options, **options)
    resources = Resources(workers=0, threads=1)
    (result,) = build_datasets(place, [request], InProcess(), resources, relist=relist)
    assert [finding for finding in verify(place) if not finding.ok] == []
    return place.load("x"), result


def test_a_folder_of_files_and_archives_counts_each_image_once(
    network: tiny.Place, place: Catalogue, expected: DNA, tmp_path: Path
) -> None:
    dna, result = build_and_load(network, place, write_mixed_folder(tmp_path / "images", PICTURES))
    assert same_counts(dna, expected)
    assert result.ignored == {".json": 1, ".cls": 1, ".md": 1, ".parquet": 1, ".csv": 1}
    manifest = place.manifest("x", result.version)
    named = {(e.uri.rpartition("/")[2], e.member) for s in manifest.shards for e in s.members}
    assert {("a.tar", "day0/photo-003.jpg"), ("c.parquet", "0")} <= named


def test_an_archive_is_indexed_once(
    network: tiny.Place, place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_mixed_folder(tmp_path / "images", PICTURES)
    build_and_load(network, place, folder)
    looked: list[str] = []
    real = contents.index_archive

    def index(item: Stored, column: str | None, labels: Sequence[str]) -> ArchiveIndex | None:
        looked.append(item.uri.rpartition("/")[2])
        return real(item, column, labels)

    monkeypatch.setattr(contents, "index_archive", index)
    _, again = build_and_load(network, place, folder)
    assert (again.changed, looked) == (False, ["notes.parquet"]), (
        "tables without images are not kept"
    )
    looked.clear()
    (folder / "a.tar").write_bytes(tar_bytes([*pictures(3, 6), ("more.jpg", jpeg(99, *SIZE))]))
    dna, later = build_and_load(network, place, folder)
    assert sorted(looked) == ["a.tar", "notes.parquet"]
    assert dna.images == IMAGES + 1
    assert later.counted_shards < len(place.manifest("x", later.version).heads)


def test_a_damaged_index_of_an_archive_is_made_again(
    network: tiny.Place, place: Catalogue, expected: DNA, tmp_path: Path
) -> None:
    folder = write_mixed_folder(tmp_path / "images", PICTURES)
    build_and_load(network, place, folder)
    for path in (tmp_path / "catalogue" / "_work" / "_archives").iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    dna, again = build_and_load(network, place, folder)
    assert same_counts(dna, expected)
    assert not again.changed


def test_a_member_that_cannot_be_read_is_listed_by_its_name(
    network: tiny.Place, place: Catalogue, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    whole = tar_bytes([*pictures(0, 4), ("broken.jpg", BAD)])
    (folder / "a.tar").write_bytes(whole)
    (folder / "cut.tar").write_bytes(whole[: 512 + 600])
    (folder / "none.zip").write_bytes(b"PK\x03\x04 and no more")
    dna, result = build_and_load(network, place, folder, max_failures=9)
    assert dna.images == 4
    failed = {f"{f.uri.rpartition('/')[2]}::{f.member}": f.reason for f in result.failures}
    assert failed.keys() == {"a.tar::broken.jpg", "cut.tar::", "none.zip::"}
    assert (failed["cut.tar::"], failed["a.tar::broken.jpg"]) == ("truncated", "corrupt")


def test_a_table_names_members_with_labels(
    network: tiny.Place, place: Catalogue, expected: DNA, tmp_path: Path
) -> None:
    folder = write_mixed_folder(tmp_path / "images", PICTURES)
    rows = [("images/" + name, "", "file") for name, _ in pictures(0, 3)]
    rows += [("images/a.tar", name, "tar") for name, _ in pictures(3, 6)]
    rows += [("images/b.zip", "", "zip"), ("images/c.parquet", "", "rows")]
    columns = dict(zip(("uri", "member", "kind"), zip(*rows, strict=True), strict=True))
    pyarrow.csv.write_csv(pa.table({k: list(v) for k, v in columns.items()}), tmp_path / "t.csv")
    dna, result = build_and_load(network, place, tmp_path / "t.csv", group_by="kind")
    assert same_counts(dna, expected)
    manifest = place.manifest("x", result.version)
    kinds = [row["kind"] for _, table in manifest.tables() for row in table.to_pylist()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(
        ("file", "tar", "zip", "rows"), 3
    )
    folds = {row["kind"]: set() for _, table in manifest.tables() for row in table.to_pylist()}
    for shard in manifest.shards:
        for entry in shard.members:
            folds[entry.group].add(shard.fold)
    assert all(len(of_group) == 1 for of_group in folds.values())
    for member, what in (("gone.jpg", "has no member 'gone.jpg'"), ("", "is not an archive")):
        bad = pa.table(
            {
                "uri": [f"{folder}/{'a.tar' if member else 'day0/photo-000.jpg'}"],
                "member": [member or "x"],
            }
        )
        pyarrow.csv.write_csv(bad, tmp_path / "bad.csv")
        with pytest.raises(SourceError, match=what):
            list_source(tmp_path / "bad.csv")


# A source that changes while it is read.


class ChangingFile:
    """Overwrites a picture with others, a given number of times, just before it is read."""

    def __init__(self, path: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.times, self.done = path, times, 0
        real = Members.fetch

        def fetch(members: Members, entry: Entry) -> bytes:
            if entry.uri == path.as_uri() and self.done < self.times:
                self.done += 1
                path.write_bytes(jpeg(1000 + self.done, *SIZE))
            return real(members, entry)

        monkeypatch.setattr(Members, "fetch", fetch)


def test_a_source_that_changes_is_listed_again_on_request(
    network: tiny.Place, place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    write_files(folder, PICTURES)
    path = folder / "day0" / "photo-000.jpg"
    monkeypatch.setattr(runner, "TRIES", 1)
    changing = ChangingFile(path, 1, monkeypatch)
    with pytest.raises(TransientError, match=r"photo-000\.jpg changed between listing and reading"):
        build_and_load(network, place, folder)
    assert place.head().number == 0
    changing.done, changing.times = 0, 2
    dna, _ = build_and_load(network, place, folder, relist=True)
    assert changing.done == 2
    other = Catalogue(str(tmp_path / "clean"))
    assert same_counts(dna, build_and_load(network, other, folder)[0])


def test_a_source_that_cannot_be_listed_again_ends_with_that_error_alone(
    network: tiny.Place, place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    write_files(folder, PICTURES)
    monkeypatch.setattr(runner, "TRIES", 1)
    ChangingFile(folder / "day0" / "photo-000.jpg", 9, monkeypatch)
    real, listed = planner.list_source, []

    def list_once(*args: object, **options: object) -> Listing:
        listed.append(1)
        if len(listed) > 1:
            raise TransientError("the store is away")
        return real(*args, **options)

    monkeypatch.setattr(planner, "list_source", list_once)
    with pytest.raises(TransientError, match=r"^x: the store is away$"):
        build_and_load(network, place, folder, relist=True)
    assert len(listed) == 2
    assert place.head().number == 0


def test_a_source_that_does_not_stop_changing_ends_the_build(
    network: tiny.Place, place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    write_files(folder, PICTURES)
    monkeypatch.setattr(runner, "TRIES", 1)
    changing = ChangingFile(folder / "day0" / "photo-000.jpg", 99, monkeypatch)
    with pytest.raises(TransientError, match=r"photo-000\.jpg changed"):
        build_and_load(network, place, folder, relist=True)
    assert changing.done == 1 + datasets.RELISTS
    assert place.head().number == 0


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own warning
def test_ray_workers_index_archives_and_count_the_same(tmp_path: Path) -> None:
    from pipeline.engine import RayEngine

    folder = write_mixed_folder(tmp_path / "images", PICTURES)
    alone, spread = Catalogue(str(tmp_path / "alone")), Catalogue(str(tmp_path / "spread"))
    resources = Resources(workers=1, threads=1)
    request = Request("x", str(folder))
    (here,) = build_datasets(alone, [request], InProcess(), resources)
    with RayEngine(resources) as engine:
        (there,) = build_datasets(spread, [request], engine, resources)
    assert (there.version.dna, there.version.sha256) == (here.version.dna, here.version.sha256)
