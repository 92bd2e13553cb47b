"""A change list gives what a full listing of the changed source gives, and is safe to repeat."""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import CorruptFile, SourceError, UsageError
from pipeline.sources import (
    ChangeCounts,
    Listing,
    Manifest,
    Rules,
    change_list,
    list_changed,
    list_source,
    plan,
    sharding,
)
from tests.sources.test_inventory import report, rows_of
from tests.support.archives import tar_bytes

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")

FEW, MANY = 4, 30

clock = itertools.count(1)
"""Files of one size that are written in the same moment must not look alike."""

Row = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def no_collection_of_garbage() -> Iterator[None]:
    """Planning collects it, which takes longer here than all that is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.gc, "collect", lambda: 0)
        yield


def write_changes(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
    cells = {name: [row.get(name) for row in rows] for name in names}
    kinds = {"size": pa.int64()}
    table = pa.table({n: pa.array(cells[n], kinds.get(n, pa.string())) for n in names})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        delimiter = "," if path.suffix == ".csv" else "\t"
        pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter=delimiter))
    return str(path)


def rows_in(listing: Listing) -> list[tuple[Any, ...]]:
    """All columns of all candidates, in an order."""
    found = [
        tuple(row.values()) for part in listing.parts for row in pq.read_table(part).to_pylist()
    ]
    return sorted(found, key=repr)


def same_plan(changed: Listing, full: Listing, before: Manifest) -> Manifest:
    """Requires that two listings are equal, and make one plan; returns it."""
    assert rows_in(changed) == rows_in(full)
    assert changed.source == full.source
    assert changed.labels == full.labels
    by = "folder" if changed.labels == ("folder",) else None
    one, other = (plan(found, previous=before, by=by) for found in (changed, full))
    assert one.digest == other.digest
    assert one.data == replace(other, ignored=one.ignored, duplicates=one.duplicates).data
    return one


# The law, for a folder


@dataclass
class Folder:
    """A folder of images, files of another kind, and tars."""

    root: Path
    files: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, content: int) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            data = tar_bytes([(f"m{i}.jpg", b"x" * i) for i in range(1, 1 + content % 4)])
        else:
            data = b"x" * (1 + content % 2)
        path.write_bytes(data)
        at = next(clock) * 10**9
        os.utime(path, ns=(at, at))
        self.files[name] = content

    def remove(self, name: str) -> None:
        (self.root / name).unlink()
        del self.files[name]


NAMES = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/c/ü 1.png", "2.jpg", "b/notes.txt", "a/x.tar", "y.tar")

RULES = (
    Rules(),
    Rules(include="*.jpg"),
    Rules(exclude="a/*"),
    Rules(group_by="1"),
    Rules(by="1"),
    Rules(exclude="x.tar", group_by="1", by="1"),
)

steps = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.none() | st.integers(0, 7), min_size=1), max_size=4
)


def counted(before: Manifest, listing: Listing, named: set[str]) -> tuple[int, int, int]:
    """How many images are new, gone and other than before, by Python's own sets."""
    had = {
        (row["uri"], row["member"]): tuple(row.values())
        for _, table in before.tables()
        for row in table.to_pylist()
    }
    has = {row[:2]: row for row in rows_in(listing)}
    assert {of[0] for of in had.keys() ^ has.keys()} <= named
    both = had.keys() & has.keys()
    changed = sum(had[of] != has[of] for of in both)
    return len(has.keys() - had.keys()), len(had.keys() - has.keys()), changed


histories = given(
    first=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 7)),
    history=steps,
    rules=st.sampled_from(RULES),
    layout=st.sampled_from(FORMATS),
    stated=st.booleans(),
    chance=st.randoms(use_true_random=False),
)


@settings(max_examples=FEW)
@histories
def test_a_change_list_gives_what_a_full_listing_gives(**drawn: Any) -> None:
    follow(**drawn)


@pytest.mark.soak  # minutes: as many histories as reach most pairs of states
@settings(max_examples=MANY)
@histories
def test_long_histories_of_change_lists(**drawn: Any) -> None:
    follow(**drawn)


def follow(
    first: Mapping[str, int],
    history: Sequence[Mapping[str, int | None]],
    rules: Rules,
    layout: str,
    stated: bool,
    chance: Any,
) -> None:
    with tempfile.TemporaryDirectory() as there:
        folder = Folder(Path(there) / "images")
        for name, content in ({"0.jpg": 1, "b/0.jpg": 1} | dict(first)).items():
            folder.write(name, content)
        before = plan(list_source(folder.root, rules), by=rules.label)
        for number, step in enumerate(history):
            rows = []
            for name, content in step.items():
                if content is None:
                    if name in folder.files:
                        folder.remove(name)
                    rows.append({"uri": name, "change": "removed"})
                    continue
                if folder.files.get(name) != content:  # or else it stays as it is
                    folder.write(name, content)
                path = folder.root / name
                uri = chance.choice([name, str(path), path.as_uri()])
                rows.append({"uri": uri, "change": chance.choice(["added", "changed"])})
                if stated:
                    item = storage.info(path.as_uri())
                    rows[-1] |= {"size": item.size, "identity": item.identity}
            chance.shuffle(rows)
            table = Path(there) / f"changes-{number}{layout}"
            changes = write_changes(table, rows, ("size", "identity") if stated else ())
            full = list_source(folder.root, rules)
            listing, counts = list_changed(folder.root, changes, before, rules)
            named = {(folder.root / name).as_uri() for name in step}
            assert (counts.added, counts.removed, counts.changed) == counted(before, full, named)
            before = same_plan(listing, full, before)
            again, none = list_changed(folder.root, changes, before, rules)
            assert rows_in(again) == rows_in(full)
            assert (none.added, none.removed, none.changed) == (0, 0, 0)
            gone = sum(row["change"] == "removed" for row in rows)
            here = sum(row[0] in named for row in rows_in(full))
            assert none.unchanged == gone + here


# The law, for a table with labels, groups and members of an archive


tables = given(data=st.data(), layout=st.sampled_from(FORMATS), grouped=st.booleans())


@settings(max_examples=FEW)
@tables
def test_a_change_list_of_a_table_gives_what_the_whole_table_gives(**drawn: Any) -> None:
    follow_table(**drawn)


@pytest.mark.soak  # as above
@settings(max_examples=MANY)
@tables
def test_long_histories_of_changed_tables(**drawn: Any) -> None:
    follow_table(**drawn)


def follow_table(data: st.DataObject, layout: str, grouped: bool) -> None:
    rules = Rules(group_by="patient" if grouped else None)
    keys = st.sampled_from([("1.jpg", ""), ("2.jpg", ""), ("3.jpg", ""), *MEMBERS])
    values = st.fixed_dictionaries(
        {"weather": st.sampled_from(["rain", "sun"]), "patient": st.sampled_from(["p", "q"])}
    )
    state = data.draw(st.dictionaries(keys, values)) | {("0.jpg", ""): VALUES}
    with tempfile.TemporaryDirectory() as there:
        folder = Folder(Path(there))
        for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg"):
            folder.write(name, 1)
        folder.write("x.tar", 3)

        def full() -> Listing:
            rows = [{"uri": u, "member": m, **labels} for (u, m), labels in state.items()]
            columns = ("uri", "member", "weather", "patient")
            return list_source(write_changes(Path(there, "all.csv"), rows, columns), rules)

        before = plan(full())
        for number in range(data.draw(st.integers(1, 3))):
            step = data.draw(st.dictionaries(keys, st.none() | values))
            rows = []
            for (uri, member), labels in step.items():
                word = "removed" if labels is None else data.draw(st.sampled_from(WORDS))
                rows.append({"uri": uri, "member": member, "change": word, **(labels or {})})
                if labels is None:
                    state.pop((uri, member), None)
                else:
                    state[uri, member] = labels
                    if not member and data.draw(st.booleans()):
                        folder.write(uri, 2)
            table = Path(there) / f"changes-{number}{layout}"
            changes = write_changes(table, rows, ("uri", "member", "change", "weather", "patient"))
            source = str(Path(there, "all.csv"))
            expected = full()
            listing, counts = list_changed(source, changes, before, rules)
            named = {(folder.root / uri).as_uri() for uri, _ in step}
            assert (counts.added, counts.removed, counts.changed) == counted(
                before, expected, named
            )
            before = same_plan(listing, expected, before)


MEMBERS = [("x.tar", f"m{i}.jpg") for i in (1, 2, 3)]
VALUES = {"weather": "rain", "patient": "p"}
WORDS = ("added", "changed")


# One store, and what a report of it lists


def test_objects_of_a_bucket_are_looked_up_as_they_are_listed(root: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "b/c d+é%2B.png", "gone.jpg"):
        storage.create(f"{root}/{name}", b"of " + name.encode())
    before = plan(list_source(root))
    storage.replace(f"{root}/a.jpg", b"another")
    storage.delete(f"{root}/gone.jpg")
    storage.create(f"{root}/b/new#1.jpg", b"new")
    rows = [
        {"path": "a.jpg", "change": "changed"},
        {"path": "gone.jpg", "change": "removed"},
        {"path": f"{root}/b/new#1.jpg", "change": "added"},
    ]
    changes = write_changes(tmp_path / "changes.csv", rows)
    listing, counts = list_changed(root, changes, before)
    assert counts == ChangeCounts(added=1, removed=1, changed=1, unchanged=0, filtered=0)
    assert str(counts) == "1 added, 1 removed, 1 changed, 0 already so"
    same_plan(listing, list_source(root), before)


def test_a_list_changes_what_a_report_of_the_bucket_listed(root: str, tmp_path: Path) -> None:
    """Results in the same bucket do not count, as they do not in the report."""
    storage.create(f"{root}/a.jpg", b"a")
    source, inside = report(root, rows_of(root)), f"{root.split('/')[3]}/*.jpg"
    rules = Rules(include=inside)
    before = plan(list_source(source, rules))
    storage.create(f"{root}/b.jpg", b"b")
    storage.create(f"{root}/dnas/c.jpg", b"c")
    key = root.split("/", 3)[3]
    rows = [{"uri": f"{key}/{name}", "change": "added"} for name in ("b.jpg", "dnas/c.jpg")]
    changes = write_changes(tmp_path / "changes.csv", rows)
    listing, counts = list_changed(source, changes, before, rules, outside=f"{root}/dnas")
    assert counts == ChangeCounts(added=1, removed=0, changed=0, unchanged=0, filtered=1)
    assert {row[0] for row in rows_in(listing)} == {f"{root}/a.jpg", f"{root}/b.jpg"}


# What cannot be


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "images")
    for name in ("a.jpg", "b.jpg", "x.tar"):
        made.write(name, 3)
    return made


def refused(folder: Folder, rows: Sequence[Row], error: type[Exception] = SourceError) -> str:
    """Applies a list, and returns the message of the error that it must end in."""
    before = plan(list_source(folder.root))
    changes = write_changes(folder.root.parent / "changes.csv", rows)
    with pytest.raises(error) as caught:
        list_changed(folder.root, changes, before)
    return str(caught.value)


WRONG = [
    ({"uri": "a.jpg", "change": "added"}, {"uri": "a.jpg", "change": "removed"}),
    ({"uri": "x.tar", "change": "changed"}, {"uri": "x.tar", "change": "removed"}),
]


@pytest.mark.parametrize("rows", WRONG)
def test_a_list_that_says_two_things_of_an_image_is_refused(
    folder: Folder, rows: tuple[Row, Row]
) -> None:
    message = refused(folder, [{"uri": "b.jpg", "change": "changed"}, *rows])
    words = sorted((rows[0]["change"], rows[1]["change"]))
    first, second = (2, 3) if words[0] == rows[0]["change"] else (3, 2)
    said = f"change {words[0]} in row {first} and {words[1]} in row {second}"
    assert f"says two things of {(folder.root / rows[0]['uri']).as_uri()}: {said}" in message


@pytest.mark.parametrize(
    ("second", "said"),
    [({"identity": "e2"}, "identity e1 in row 1 and e2 in row 2"), ({"size": 7}, "size 5 in")],
)
def test_a_list_that_states_two_contents_of_an_image_is_refused(
    folder: Folder, second: Row, said: str
) -> None:
    row = {"uri": "a.jpg", "change": "added", "size": 5, "identity": "e1"}
    assert said in refused(folder, [row, row | second])


def test_an_image_that_is_named_twice_alike_counts_once(folder: Folder) -> None:
    before = plan(list_source(folder.root))
    folder.write("c.jpg", 1)
    rows = [{"uri": name, "change": "added"} for name in ("c.jpg", "c.jpg", "a.jpg", "a.jpg")]
    changes = write_changes(folder.root.parent / "changes.csv", rows)
    listing, counts = list_changed(folder.root, changes, before)
    assert counts == ChangeCounts(added=1, removed=0, changed=0, unchanged=1, filtered=0)
    made = plan(listing, previous=before)
    assert made.digest == plan(list_source(folder.root), previous=before).digest
    assert made.duplicates == 2


@pytest.mark.parametrize("word", ["Added", "", "deleted"])
def test_a_word_that_says_nothing_is_an_error(folder: Folder, word: str) -> None:
    message = refused(
        folder, [{"uri": "a.jpg", "change": "added"}, {"uri": "a.jpg", "change": word}]
    )
    assert f"row 2: change is {word!r}; it must be added, removed or changed" in message


def test_an_object_that_is_missing_is_named(folder: Folder) -> None:
    message = refused(folder, [{"uri": "no.jpg", "change": "added"}])
    assert re.search(r"changes.csv, row 1: .*no\.jpg does not exist", message)


@pytest.mark.parametrize("uri", ["../images2/a.jpg", "/etc/passwd", "s3://other/a.jpg"])
@pytest.mark.parametrize("word", ["added", "removed"])
def test_a_row_outside_of_the_source_is_an_error(folder: Folder, uri: str, word: str) -> None:
    assert "row 1: " in (found := refused(folder, [{"uri": uri, "change": word}]))
    assert f"is not in the source, {folder.root}" in found


def test_a_folder_has_its_archives_as_a_whole(folder: Folder) -> None:
    row = {"uri": "x.tar", "member": "m1.jpg", "change": "removed"}
    assert "row 1: it names the member 'm1.jpg'" in refused(folder, [row])


def test_a_link_to_the_results_is_not_followed(folder: Folder) -> None:
    results = folder.root.parent / "dnas"
    results.mkdir()
    (results / "c.jpg").write_bytes(b"c")
    (folder.root / "link").symlink_to(results)
    before = plan(list_source(folder.root, Rules(exclude="link/*")))
    rows = [{"uri": "link/c.jpg", "change": "added"}]
    changes = write_changes(folder.root.parent / "changes.csv", rows)
    with pytest.raises(UsageError, match=r"a link in .* leads to"):
        list_changed(folder.root, changes, before, outside=results.as_uri())


def test_a_source_without_images_left_is_an_error(folder: Folder) -> None:
    rows = [{"uri": name, "change": "removed"} for name in ("a.jpg", "b.jpg", "x.tar")]
    assert "holds no image" in refused(folder, rows)


@pytest.mark.parametrize(
    ("name", "said"), [("no.csv", "does not exist"), ("changes.txt", "no table of changes")]
)
def test_what_is_no_table_is_no_change_list(folder: Folder, name: str, said: str) -> None:
    (folder.root.parent / "changes.txt").write_text("a.jpg\n")
    with pytest.raises(UsageError, match=said):
        list_changed(folder.root, str(folder.root.parent / name), plan(list_source(folder.root)))


def test_a_table_without_the_column_is_no_change_list(folder: Folder) -> None:
    message = refused(folder, [{"uri": "a.jpg", "action": "added"}], UsageError)
    assert "has no column change, which says added, removed or changed of each image" in message
    assert "'action': 'added'" in message


def test_a_glob_has_no_changes(folder: Folder) -> None:
    before = plan(list_source(f"{folder.root}/*.jpg"))
    changes = write_changes(folder.root.parent / "c.csv", [{"uri": "a.jpg", "change": "added"}])
    with pytest.raises(UsageError, match="does not go with a glob"):
        list_changed(f"{folder.root}/*.jpg", changes, before)


def test_a_list_does_not_change_another_source(folder: Folder) -> None:
    before = plan(list_source(folder.root))
    other = Folder(folder.root.parent / "other")
    other.write("a.jpg", 1)
    changes = write_changes(folder.root.parent / "c.csv", [{"uri": "a.jpg", "change": "added"}])
    with pytest.raises(UsageError, match=r"were listed from .*images, and the source is .*other"):
        list_changed(other.root, changes, before)


def test_a_list_names_images_in_the_chosen_column_if_it_has_it(folder: Folder) -> None:
    """The column may be one of the source's archives, and then the list has `uri` alone."""
    rules = Rules(image_column="local")
    before = plan(list_source(folder.root, rules))
    for named in ({"uri": "b.jpg"}, {"uri": "not-there.jpg", "local": "b.jpg"}):
        folder.write("b.jpg", before.candidates)
        row = named | {"change": "changed"}
        changes = write_changes(folder.root.parent / "c.csv", [row])
        assert list_changed(folder.root, changes, before, rules)[1] == ChangeCounts(0, 0, 1, 0, 0)


def test_a_list_without_the_column_that_images_were_listed_by_is_refused(folder: Folder) -> None:
    """Its `uri` names other files: what is removed would stay, and what is added come twice."""
    folder.write("copy of b.jpg", 9)
    table, rules = folder.root / "all.csv", Rules(image_column="local")
    table.write_text("uri,local\nb.jpg,copy of b.jpg\na.jpg,a.jpg\n")
    before = plan(list_source(table, rules))
    place = folder.root.parent / "c.csv"
    changes = write_changes(place, [{"uri": "b.jpg", "change": "removed"}])
    with pytest.raises(UsageError, match=r"c\.csv has no column local"):
        list_changed(table, changes, before, rules)
    changes = write_changes(place, [{"local": "copy of b.jpg", "change": "removed"}])
    assert list_changed(table, changes, before, rules)[1] == ChangeCounts(0, 1, 0, 0, 0)


# Tables: labels, and archives of which a part is named


@pytest.fixture
def labelled(folder: Folder) -> tuple[Path, Manifest]:
    rows = [{"uri": "a.jpg", "member": "", "weather": "rain"}]
    rows += [{"uri": u, "member": m, "weather": "sun"} for u, m in MEMBERS[:2]]
    table = folder.root / "all.csv"
    write_changes(table, rows)
    return table, plan(list_source(table))


def test_a_part_of_an_archive_that_has_changed_is_not_enough(
    folder: Folder, labelled: tuple[Path, Manifest]
) -> None:
    table, before = labelled
    row = {"uri": "x.tar", "change": "changed", "weather": "rain"}
    first, both = [row | {"member": "m1.jpg"}], [row | {"member": f"m{i}.jpg"} for i in (1, 2)]
    folder.write("x.tar", 7)
    changes = write_changes(folder.root.parent / "c.csv", first)
    with pytest.raises(
        SourceError, match=r"x\.tar has changed since .* its member 'm2\.jpg' is not"
    ):
        list_changed(table, changes, before)
    changes = write_changes(folder.root.parent / "c.csv", both)
    assert list_changed(table, changes, before)[1] == ChangeCounts(0, 0, 2, 0, 0)
    changes = write_changes(folder.root.parent / "c.csv", [row])
    assert list_changed(table, changes, before)[1] == ChangeCounts(1, 0, 2, 0, 0)


@pytest.mark.parametrize("member", ["m1.jpg", "m3.jpg"])
def test_an_archive_and_a_member_of_it_must_agree(
    folder: Folder, labelled: tuple[Path, Manifest], member: str
) -> None:
    rows = [
        {"uri": "x.tar", "change": "changed", "weather": "rain"},
        {"uri": "x.tar", "member": member, "change": "removed", "weather": None},
    ]
    changes = write_changes(folder.root.parent / "c.csv", rows)
    with pytest.raises(SourceError, match=r"says two things of .*x\.tar: change changed in row 1"):
        list_changed(labelled[0], changes, labelled[1])


@pytest.mark.parametrize("column", ["weather", "patient"])
def test_a_list_for_a_table_has_its_columns(folder: Folder, column: str) -> None:
    """But a list of images that are gone needs none of them."""
    row = {"uri": "a.jpg", "weather": "rain", "patient": "p"}
    table, rules = folder.root / "all.csv", Rules(group_by="patient")
    write_changes(table, [row, row | {"uri": "b.jpg"}])
    before = plan(list_source(table, rules))
    named = {name: value for name, value in row.items() if name != column}
    changes = write_changes(folder.root.parent / "c.csv", [named | {"change": "changed"}])
    with pytest.raises(SourceError, match=rf"row 1: there is no column {column}, which .*all\.csv"):
        list_changed(table, changes, before, rules)
    changes = write_changes(folder.root.parent / "c.csv", [named | {"change": "removed"}])
    assert list_changed(table, changes, before, rules)[1] == ChangeCounts(0, 1, 0, 0, 0)


def test_a_table_with_other_labels_is_listed_in_full(
    folder: Folder, labelled: tuple[Path, Manifest]
) -> None:
    write_changes(labelled[0], [{"uri": "a.jpg", "weather": "rain", "wind": "low"}])
    rows = [{"uri": "a.jpg", "change": "changed", "weather": "rain", "wind": "low"}]
    changes = write_changes(folder.root.parent / "c.csv", rows)
    with pytest.raises(UsageError, match=r"with the labels weather, and .* has weather, wind now"):
        list_changed(labelled[0], changes, labelled[1])


def test_a_label_cannot_have_the_name_of_the_column(folder: Folder) -> None:
    table = folder.root / "all.csv"
    write_changes(table, [{"uri": "a.jpg", "change": "of light"}])
    before = plan(list_source(table))
    changes = write_changes(folder.root.parent / "c.csv", [{"uri": "a.jpg", "change": "added"}])
    with pytest.raises(UsageError, match="has a label change"):
        list_changed(table, changes, before)


def test_a_list_in_a_store_does_not_name_local_files(folder: Folder, root: str) -> None:
    """As a list of images in a store does not, even if the table of the source is local."""
    table = folder.root / "all.csv"
    write_changes(table, [{"uri": "a.jpg"}])
    before = plan(list_source(table))
    uri = f"{root}/changes.csv"
    storage.create(uri, b"uri,change\nb.jpg,added\n")
    with pytest.raises(UsageError, match=r"row 1: file://.*b\.jpg is not in a store"):
        list_changed(table, uri, before)


# Memory, and damage


def test_the_manifest_is_taken_in_pieces(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(10):
        folder.write(f"{at}.jpg", 1)
    before = plan(list_source(folder.root), shard_images=2)
    held: list[int] = []
    real = change_list._ChangeLister._sort_out
    monkeypatch.setattr(change_list, "CHUNK_ROWS", 4)
    monkeypatch.setattr(
        change_list._ChangeLister,
        "_sort_out",
        lambda self, rows: (held.append(rows.num_rows), real(self, rows))[0],
    )
    rows = [{"uri": f"{at}.jpg", "change": "removed"} for at in range(0, 10, 2)]
    for at in range(0, 10, 2):
        folder.remove(f"{at}.jpg")
    changes = write_changes(folder.root.parent / "c.csv", rows)
    listing, counts = list_changed(folder.root, changes, before)
    assert sum(held) == before.candidates
    assert max(held) < 8
    assert counts.removed == 5
    same_plan(listing, list_source(folder.root), before)


def test_an_earlier_manifest_that_is_damaged_is_named(folder: Folder) -> None:
    before = plan(list_source(folder.root))
    head = replace(before.heads[0], digest="0" * 32)
    broken = replace(before, heads=(head, *before.heads[1:]))
    changes = write_changes(folder.root.parent / "c.csv", [{"uri": "a.jpg", "change": "added"}])
    with pytest.raises(CorruptFile, match="is not what its manifest describes"):
        list_changed(folder.root, changes, broken)
