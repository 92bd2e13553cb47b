"""A change list of a very large source gives by tasks the plan that one process makes of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConservationError, CorruptFile, SourceError
from pipeline.events import Event, Said
from pipeline.mapper import SerialMapper
from pipeline.sources import (
    ChangeCounts,
    Entries,
    Entry,
    Listing,
    Manifest,
    NewShardSizes,
    PlanAhead,
    Rules,
    change_list,
    entries_file,
    list_changed,
    list_source,
    plan,
    stretches,
)
from pipeline.sources.block_plan import NameBlock, PlannedBlock
from pipeline.sources.named_members import MatchedMembers, NamedMembers
from pipeline.sources.plan_comparison import ComparedNames, NameRange
from pipeline.sources.sharding import ShardPlanner
from tests.sources.test_change_list import Row, write_changes
from tests.sources.test_change_planning import (
    ROOT,
    SIZES,
    Content,
    Contents,
    content_of,
    day,
    first_days,
    never,
    require_difference,
    require_same,
    small_plans,
    stored,
)
from tests.sources.test_task_listing import Tasks
from tests.support.builders import all_shards
from tests.support.repeated_tests import quick_seeds

ODD = [
    "day001/\u00fc 1.jpg",
    "day001/u\u0308 1.jpg",  # the same letter, written as two
    "day002/\uff5e.jpg",
    "day002/\U0001f600.jpg",  # after the one above in UTF-8, and before it in UTF-16
    "day003/a+b%2B#1?.jpg",
    "day004/'quoted' \"twice\".jpg",
    "日/本.jpg",
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_plans(monkeypatch)
    monkeypatch.setattr(change_list, "STORED_TOGETHER", 20)


class Lists:
    """A folder in which change lists are applied, by one process and by tasks."""

    def __init__(
        self, there: Path, sizes: NewShardSizes = SIZES, rules: Rules | None = None
    ) -> None:
        self.there = there
        self.entries = Entries((there / "entries").as_uri())
        self.sizes, self.rules = sizes, rules
        self.tasks = Tasks()
        self.said: list[str] = []
        self.written = 0

    def first(self, content: Content) -> Manifest:
        with stored(Contents(content)):
            found = list_source(ROOT, self.rules)
        return self.planned(found)

    def planned(self, found: Listing, before: Manifest | None = None) -> Manifest:
        return plan(
            found,
            previous=before,
            by=self.rules.label if self.rules else None,
            entries=self.entries,
            **vars(self.sizes),
        )

    def write(self, rows: Sequence[Row]) -> str:
        self.written += 1
        path = self.there / f"changes-{self.written}.csv"
        return write_changes(path, rows, ("uri", "change", "size", "identity"))

    def alone(self, changes: str, before: Manifest) -> tuple[Listing, ChangeCounts]:
        return list_changed(ROOT, changes, before, self.rules)

    def by_tasks(
        self, changes: str, before: Manifest, mapper: Any = None
    ) -> tuple[Listing, ChangeCounts]:
        self.tasks = Tasks(self.written)
        ahead = PlanAhead(lambda: self.sizes, self.entries, never, lambda: before)

        def said_by(event: Event) -> None:
            if isinstance(event, Said):
                self.said.append(event.message)

        found = list_changed(
            ROOT,
            changes,
            before,
            self.rules,
            mapper=mapper or self.tasks,
            progress=said_by,
            ahead=ahead,
            folder=(self.there / "parts" / "1").as_uri(),
        )
        assert not (self.there / "parts").exists()
        return found

    def require_law(self, rows: Sequence[Row], before: Manifest) -> tuple[Manifest, ChangeCounts]:
        """Requires that both are one; returns the plan and what the list has changed."""
        changes = self.write(rows)
        listing, counts = self.alone(changes, before)
        whole = self.planned(listing, before)
        found, told = self.by_tasks(changes, before)
        require_same(found, whole)
        require_difference(found, before, whole)
        assert told == counts
        for name in ("source", "ignored", "labels", "filtered", "duplicates", "pairing"):
            assert getattr(found, name) == getattr(listing, name)
        return whole, counts


def rows_of(names: Iterable[str], content: Content, word: str = "added") -> list[Row]:
    rows = ((name, *content[name]) for name in names)
    return [
        {"uri": f"{ROOT}/{name}", "change": word, "size": size, "identity": identity}
        for name, size, identity in rows
    ]


def gone(names: Iterable[str]) -> list[Row]:
    return [{"uri": f"{ROOT}/{name}", "change": "removed"} for name in names]


def another(content: Content, names: Iterable[str]) -> Content:
    """Gives images another size, another identity, or both."""
    sizes = {name: (at % 3 != 1) for at, name in enumerate(names)}
    return {
        name: (content[name][0] + is_other, content[name][1] + "'" * (at % 3 != 0))
        for at, (name, is_other) in enumerate(sizes.items())
    }


def night(content: Content, before: Manifest, chance: random.Random, number: int) -> list[Row]:
    """Changes a source as one night may, and returns the change list."""
    there = sorted(content)
    picked = chance.sample(there, chance.randrange(40))
    other, lost, same = picked[::3], picked[1::3], picked[2::3]
    if chance.random() < 0.4 and len(there) > 250:  # all that one shard has
        heads = [head for head in before.heads if head.candidates < 40]
        for head in heads[:1]:
            uris = before.entries.read_shard(head)["uri"].to_pylist()
            lost = sorted({*lost, *(uri.removeprefix(f"{ROOT}/") for uri in uris)} & {*there})
            other, same = ([of for of in its if of not in lost] for its in (other, same))
    new = day(number, chance.randrange(20))
    if chance.random() < 0.2:
        new += day(number + 500, 190)  # so many that tasks plan them
    new += chance.sample(ODD, 2)
    new += [f"day{chance.randrange(6):03d}"]  # an image beside the folder of its name
    new = [name for name in new if name not in content]
    content |= content_of(new) | another(content, other)
    for name in lost:
        del content[name]
    rows = rows_of([*new, *other], content, chance.choice(["added", "changed"]))
    rows += rows_of(same, content, "changed")
    rows += gone([*lost, *(f"never-there-{at}.jpg" for at in range(chance.randrange(3)))])
    rows += chance.sample(rows, min(len(rows), 5))  # named twice alike
    rows += [{"uri": "notes.txt", "change": "added", "size": 1, "identity": "e"}]
    rows += [{"uri": "skipped/1.jpg", "change": "added", "size": 1, "identity": "e"}]
    chance.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", quick_seeds(range(12), (3,)))
def test_tasks_apply_lists_as_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Over several nights, each of which goes on with the plan of the night before."""
    chance = random.Random(seed)
    sizes = [SIZES, NewShardSizes(shard_images=16), NewShardSizes(cell_bytes=90_000)][seed % 3]
    if seed % 2:
        monkeypatch.setattr(entries_file, "FILE_ROWS", 60)
        monkeypatch.setattr(stretches, "REPORT_ENTRIES", 60)
    place, content = Lists(tmp_path, sizes, Rules(exclude="skipped/*")), first_days()
    before = place.first(content)
    for number in range(3):
        rows, had = night(content, before, chance, 10 + number), set(all_names(before))
        before, counts = place.require_law(rows, before)
        assert set(all_names(before)) == {f"{ROOT}/{name}" for name in content}
        assert counts.added == len({*all_names(before)} - had)
        assert counts.filtered == 1
        assert before.ignored == {".txt": 1}


def all_names(manifest: Manifest) -> list[str]:
    return [entry.uri for shard in all_shards(manifest) for entry in shard.members]


@pytest.mark.parametrize("what", ["nothing", "already so", "added", "removed", "changed"])
def test_the_process_that_builds_reads_no_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    place, content = Lists(tmp_path), first_days(8)
    before, names = place.first(content), [*day(3, 4), *day(5, 2)]
    new = content_of(day(9, 7))
    rows = {
        "nothing": [],
        "already so": [*rows_of(names, content), *gone(["no.jpg", "no.jpg"])],
        "added": rows_of(new, new),
        "removed": gone(names),
        "changed": rows_of(names, another(content, names), "changed"),
    }[what]
    changes = place.write(rows)
    listing, counts = place.alone(changes, before)
    whole = place.planned(listing, before)
    monkeypatch.setattr(ShardPlanner, "load_previous", never)
    monkeypatch.setattr(change_list._ChangeLister, "merge", never)
    found, told = place.by_tasks(changes, before)
    require_same(found, whole)
    numbers = {"added": 7, "removed": 6, "changed": 6}
    expected = {name: numbers[name] * (name == what) for name in numbers}
    expected |= {"unchanged": 7 * (what == "already so"), "filtered": 0}
    assert told == counts == ChangeCounts(**expected)
    message = f"of the list among {before.candidates} of the plan before"
    assert any(said.endswith(message) for said in place.said)
    assert any(isinstance(task, NamedMembers) for task in place.tasks.items)
    assert any(isinstance(task, NameRange) for task in place.tasks.items) == bool(rows)


def test_a_row_that_the_rules_leave_out_now_is_removed(tmp_path: Path) -> None:
    """As in one process, whatever its word. The planner refuses other rules than before."""
    place, content = Lists(tmp_path), first_days()
    before = place.first(content)
    place.rules = Rules(exclude="day003/*")
    rows = [*rows_of([*day(3, 5), *day(4, 5)], content), *gone(["day003/frame-00007.jpg"])]
    _, counts = place.require_law(rows, before)
    assert counts == ChangeCounts(0, removed=6, changed=0, unchanged=5, filtered=5)


def in_few_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has each task read a shard or two."""
    monkeypatch.setattr(entries_file, "FILE_ROWS", 10)
    monkeypatch.setattr(stretches, "REPORT_ENTRIES", 10)


@pytest.mark.parametrize("word", ["removed", "added"])
def test_a_folder_is_refused_by_its_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """An added one may be left out by the rules, which does not make it an image."""
    in_few_shards(monkeypatch)
    place, content = Lists(tmp_path), first_days()
    before = place.first(content)
    place.rules = Rules(exclude="day0*")
    stated = content_of(["day005", "day002", "a"])
    named = gone(stated) if word == "removed" else rows_of(stated, stated)
    rows = [*gone(["no.jpg"]), *named, *gone(day(2, 3)), *named]
    changes = place.write(rows)
    messages = []
    for apply in (place.alone, place.by_tasks):
        with pytest.raises(SourceError) as caught:
            apply(changes, before)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].endswith(
        f"row 2: {ROOT}/day005 is a folder of images; name each image in it"
    )
    assert not (tmp_path / "parts").exists()


def test_an_image_beside_the_folder_of_its_name_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever task reads the images in the folder."""
    in_few_shards(monkeypatch)
    place = Lists(tmp_path)
    images = [f"day{number:03d}" for number in range(4)]
    content = first_days() | content_of(images[1:])
    before = place.first(content)
    rows = rows_of(images[:2], content | content_of(images)) + gone(images[2:])
    _, counts = place.require_law(rows, before)
    assert counts == ChangeCounts(added=1, removed=2, changed=0, unchanged=1, filtered=0)
    apart = [each.folders for each in place.tasks.results if isinstance(each, MatchedMembers)]
    assert any(apart)


WHOLE = [
    "label",
    "stem",
    "elsewhere",
    "in process",
    "few",
    "archive named",
    "archive removed",
]
"""What shows before tasks begin."""

LATE = ["archive before", "late group", "few left"]


@pytest.mark.parametrize("kind", [*WHOLE, *LATE])
def test_what_tasks_cannot_apply_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rules = {"label": Rules(by="1"), "stem": Rules(pair_by="stem")}
    place, content = Lists(tmp_path, rules=rules.get(kind)), first_days(2 if kind == "few" else 4)
    before = place.first(content)
    rows = [*gone(day(1, 3)), *rows_of(day(0, 2), another(content, day(0, 2)))]
    if kind in ("archive before", "late group"):  # the first shards show nothing of it
        member = Entry(f"{ROOT}/z.tar", "a.jpg", 9, "etag", position=512, access="tar")
        if kind == "late group":
            member = Entry(f"{ROOT}/z.jpg", "", 9, "etag", group="z")
        entries = [entry for shard in all_shards(before) for entry in shard.members]
        with_it = Listing.of([*entries, member], before.source)
        before = place.planned(replace(with_it, pairing=before.pairing), before)
    if kind == "archive removed":
        rows += gone(["x.tar"])
    if kind == "archive named":
        monkeypatch.setattr(change_list._ChangeLister, "list_archives", lambda *_: None)
        rows += [{"uri": "x.tar", "change": "added", "size": 1, "identity": "e"}]
    if kind == "few left":
        rows = gone([*day(0, 40), *day(1, 40)])
    changes = place.write(rows)
    expected, counts = place.alone(changes, before)
    if kind == "elsewhere":
        place.entries = Entries((tmp_path / "other").as_uri())
    mapper = SerialMapper() if kind == "in process" else None
    found, told = place.by_tasks(changes, before, mapper)
    assert found.planned is None
    assert told == counts
    assert sorted(map(repr, found.entries)) == sorted(map(repr, expected.entries))
    looked = any(isinstance(task, NamedMembers) for task in place.tasks.items)
    assert looked == (kind in LATE)


def lost_part(found: MatchedMembers) -> MatchedMembers:
    return replace(found, parts=found.parts[1:])


def lost_rest(found: MatchedMembers) -> MatchedMembers:
    fewer = replace(found.rest.totals, candidates=found.rest.totals.candidates - 1)
    return replace(found, rest=replace(found.rest, totals=fewer))


def lost_member(found: MatchedMembers) -> MatchedMembers:
    return replace(found, rest=replace(found.rest, members=found.rest.members - 1))


def lost_row(found: ComparedNames) -> ComparedNames:
    return replace(found, totals=replace(found.totals, candidates=found.totals.candidates - 1))


@pytest.mark.parametrize("lose", [lost_part, lost_rest, lost_member, lost_row])
def test_tasks_that_lose_something_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Any], Any]
) -> None:
    place, content = Lists(tmp_path), first_days()
    before = place.first(content)
    new = content_of(day(9, 7))
    changes = place.write([*gone(day(1, 3)), *rows_of(new, new)])
    of = NameRange if lose is lost_row else NamedMembers
    real = of.run
    monkeypatch.setattr(of, "run", lambda task: lose(real(task)))
    with pytest.raises(ConservationError, match="were listed and 300 planned before; tasks have"):
        place.by_tasks(changes, before)
    assert not (tmp_path / "parts").exists()


def test_a_block_of_added_images_that_is_lost_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real = Lists(tmp_path), NameBlock.run
    before = place.first(first_days())
    new = content_of(day(700, 200))

    def lose(task: NameBlock) -> PlannedBlock:
        made = real(task)
        return replace(made, heads=made.heads[1:])

    monkeypatch.setattr(NameBlock, "run", lose)
    with pytest.raises(ConservationError, match="500 candidates were listed, and 4"):
        place.by_tasks(place.write(rows_of(new, new)), before)
    assert not (tmp_path / "parts").exists()


def test_damaged_entries_end_it(tmp_path: Path) -> None:
    place = Lists(tmp_path)
    before = place.first(first_days())
    name = before.files[0]
    path = tmp_path / "entries" / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptFile, match=name):
        place.by_tasks(place.write(gone(day(1, 3))), before)
    assert not (tmp_path / "parts").exists()


def test_a_list_is_stored_in_pieces(tmp_path: Path) -> None:
    place, content = Lists(tmp_path), first_days()
    before = place.first(content)
    names = [*day(1, 50), *day(2, 50)]
    place.require_law(rows_of(names, another(content, names)), before)
    named = [task.named for task in place.tasks.items if isinstance(task, NamedMembers)]
    assert [part.rows for part in named[0]] == [20] * 5
    assert [part.first for part in named[0]] == sorted(part.first for part in named[0])
