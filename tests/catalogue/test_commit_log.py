"""The log against a plain dict: random histories of many writers, some of whom die."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.catalogue import Catalogue, Commit, commit, commit_log
from pipeline.catalogue.commit import base_number
from pipeline.errors import CorruptFile, TransientError
from tests.golden.handmade import catalogue_of, contents
from tests.support.builders import sealed
from tests.support.builders import version_without_files as version
from tests.support.killer import Killed

State = dict[str, dict[str, str]]
"""The digest of each dataset's DNA under each spec."""

Edit = Callable[[State], State]


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    commit_log._kept_base.cache_clear()


def new_place() -> Catalogue:
    return Catalogue(f"memory://{uuid.uuid4().hex}")


def state_of(found: Commit) -> State:
    return {name: {s: v.dna for s, v in specs.items()} for name, specs in found.datasets.items()}


def append(place: Catalogue, edit: Edit) -> Commit:
    def change(head: Commit) -> Commit:
        before = state_of(head)
        after = edit(before)
        datasets: dict[str, Mapping[str, Any]] = {
            name: head.datasets[name]
            if specs == before.get(name)
            else {spec: version(dna, spec) for spec, dna in specs.items()}
            for name, specs in after.items()
        }
        return replace(head, datasets=datasets)

    return place.append("edit", change)


def setting(name: str, spec: str, dna: str) -> Edit:
    return lambda state: {**state, name: {**state.get(name, {}), spec: dna}}


def removing(name: str) -> Edit:
    return lambda state: {other: specs for other, specs in state.items() if other != name}


def random_edit(chance: random.Random, number: int) -> Edit:
    name, spec = f"d{chance.randrange(12)}", f"s{chance.randrange(2)}"
    kind = chance.choice(["set"] * 5 + ["remove", "many", "none left"])
    if kind == "remove":
        return removing(name)
    if kind == "many":
        return lambda state: {**state, **{f"d{i}": {spec: f"n{number}"} for i in range(6)}}
    if kind == "none left":
        return lambda state: {} if number % 17 == 0 else setting(name, spec, f"n{number}")(state)
    return setting(name, spec, f"n{number}")


def require_history(place: Catalogue, states: list[State]) -> None:
    """Checks every way to read the log against the states after each commit."""
    numbered = dict(enumerate(states, 1))
    read = {found.number: state_of(found) for found in place.log()}
    assert read == numbered
    assert list(read) == sorted(numbered, reverse=True)
    for number, state in numbered.items():
        commit_log._kept_base.cache_clear()
        assert state_of(place.at(number)) == state
    assert state_of(place.head()) == (states[-1] if states else {})
    place.require_end()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_every_state_of_a_long_history_is_that_of_a_dict(seed: int) -> None:
    chance, root = random.Random(seed), new_place().root
    states: list[State] = []
    for number in range(1, 116):
        edit = random_edit(chance, number)
        append(Catalogue(root), edit)
        states.append(edit(states[-1] if states else {}))
        assert state_of(Catalogue(root).head()) == states[-1]
    require_history(Catalogue(root), states)


@pytest.mark.parametrize("spans", [(2, 4), (3, 6), (2, 6)])
@given(seed=st.integers(0, 2**32), length=st.integers(0, 15), deaths=st.floats(0, 0.6))
@settings(max_examples=15, deadline=None)
def test_writers_that_die_before_or_after_a_write_leave_a_sound_log(
    spans: tuple[int, int], seed: int, length: int, deaths: float
) -> None:
    chance, place = random.Random(seed), new_place()
    states: list[State] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "SPANS", spans)
        real = {"create": storage.create, "replace": storage.replace}

        def deadly(name: str) -> Callable[[str, bytes], bool | None]:
            def call(uri: str, data: bytes) -> bool | None:
                if chance.random() < deaths / 2:
                    raise Killed
                done = real[name](uri, data)
                if name == "create":
                    states.append(edit(states[-1] if states else {}))
                if chance.random() < deaths / 2:
                    raise Killed
                return done

            return call

        for name in real:
            patch.setattr(storage, name, deadly(name))
        for number in range(length):
            edit = random_edit(chance, number)
            try:
                append(place, edit)
            except Killed:
                commit_log._kept_base.cache_clear()
            assert state_of(place.head()) == (states[-1] if states else {})
        require_history(place, states)


def test_writers_at_once_each_build_upon_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "SPANS", (3, 12))
    root, barrier = new_place().root, threading.Barrier(4)

    def write(writer: int) -> None:
        barrier.wait()
        for i in range(8):
            append(Catalogue(root), setting(f"d{writer}-{i % 3}", "s", f"n{writer}x{i}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    older: State = {}
    for found in reversed(list(Catalogue(root).log())):
        state = state_of(found)
        differing = [name for name in state if state[name] != older.get(name)]
        assert len(differing) == 1
        older = state
    assert older == {f"d{w}-{i % 3}": {"s": f"n{w}x{i}"} for w in range(4) for i in range(8)}
    assert Catalogue(root).head().number == 32


@cache
def grown_objects(commits: int, datasets: int) -> dict[str, bytes]:
    place = new_place()
    append(place, lambda state: {f"d{i}": {"s": "first"} for i in range(datasets)})
    for number in range(2, commits + 1):
        append(place, setting(f"d{number % datasets}", "s", f"n{number}"))
    return contents(place)


def grown(commits: int, datasets: int = 3) -> Catalogue:
    """Makes a log whose first commit has many datasets, and whose others change one."""
    return catalogue_of(grown_objects(commits, datasets))


def stored(place: Catalogue, number: int) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(storage.read(place.log_uri(number)))
    return body


@pytest.mark.parametrize(
    ("number", "base"), [(1, 0), (9, 0), (10, 0), (99, 90), (100, 0), (101, 100), (109, 100),
                         (110, 100), (111, 110), (199, 190), (190, 100), (200, 0), (1234, 1230)],
)  # fmt: skip
def test_the_commit_that_is_built_upon_follows_from_the_number(number: int, base: int) -> None:
    assert base_number(number) == base


def test_a_commit_holds_what_differs_from_its_base_alone() -> None:
    place = grown(125, datasets=40)
    held = {number: sorted(stored(place, number)["datasets"]) for number in range(100, 126)}
    assert len(held[100]) == 40
    assert held[101] == ["d21"]
    assert held[103] == ["d21", "d22", "d23"]
    assert held[110] == sorted(f"d{number % 40}" for number in range(101, 111))
    assert held[111] == ["d31"]
    assert held[120] == sorted(f"d{number % 40}" for number in range(101, 121))
    assert [stored(place, number)["base"] is None for number in (9, 100, 101)] == [1, 1, 0]


def last_part(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".json").lstrip("0")


@contextmanager
def reads_in_waits(*waits: str) -> Iterator[None]:
    """Expects these reads and no others: those of each text at once, and one text after another.

    No read is answered before all of its wait have come. Reads one after another would end in
    errors of the barrier.
    """
    expected = [sorted(wait.split()) for wait in waits]
    barriers = [threading.Barrier(len(wait)) for wait in expected]
    asked: list[list[str]] = [[] for _ in waits]
    lock, real = threading.Lock(), storage.read

    def read(uri: str) -> bytes:
        with lock:
            now = next(i for i, wait in enumerate(expected) if len(asked[i]) < len(wait))
            asked[now].append(last_part(uri))
        barriers[now].wait(60)
        return real(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read", read)
        for name in ("exists", "info"):
            patch.delattr(storage, name)
        yield
    assert [sorted(names) for names in asked] == expected


def test_a_state_is_read_in_two_waits_from_the_hint_and_four_files() -> None:
    place = grown(125)
    with reads_in_waits("_latest", "125 126 120 100"):
        assert place.head().number == 125
    with reads_in_waits("_latest", "125 126"):  # the others are kept
        assert Catalogue(place.root).head().number == 125
    with reads_in_waits("_latest", "125 126"):
        append(place, setting("d0", "s", "last"))
    with reads_in_waits("_latest", "126 127"):
        assert state_of(place.head())["d0"] == {"s": "last"}


@pytest.mark.parametrize(
    ("commits", "waits"),
    [
        (9, "9 10"),
        (100, "100 101"),
        (101, "101 102 100"),
        (110, "110 111 100"),
        (111, "111 112 110 100"),
    ],
)
def test_what_the_newest_commit_builds_upon_is_read_with_it(commits: int, waits: str) -> None:
    place = grown(commits)
    with reads_in_waits("_latest", waits):
        assert place.head().number == commits


def test_bases_that_are_kept_are_not_read_with_others() -> None:
    place = grown(125)
    with reads_in_waits("115 110 100", "_latest", "125 126 120"):
        assert place.commit(115).number == 115
    with reads_in_waits("116", "_latest", "125 126"):
        assert place.commit(116).number == 116


def test_a_lost_hint_costs_a_listing_and_no_more() -> None:
    place = grown(125)
    storage.delete(place.hint_uri)
    with reads_in_waits("_latest", "125 126 120 100"):
        assert place.head().number == 125


@pytest.mark.parametrize("hint", [126, 130, 500])
def test_a_hint_of_a_commit_that_is_not_there_is_not_believed(hint: int) -> None:
    place = grown(125)
    storage.replace(place.hint_uri, str(hint).encode())
    assert place.head().number == 125
    append(place, setting("d0", "s", "last"))
    assert state_of(Catalogue(place.root).head())["d0"] == {"s": "last"}


def test_files_of_this_machine_are_read_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, data in grown_objects(125, 3).items():
        storage.create(storage.canonical(tmp_path) + path, data)
    asked, real = list[str](), storage.read

    def read(uri: str) -> bytes:
        assert threading.current_thread() is threading.main_thread()
        asked.append(last_part(uri))
        return real(uri)

    monkeypatch.setattr(storage, "read", read)
    assert Catalogue(str(tmp_path)).head().number == 125
    assert asked == ["_latest", "125", "126", "120", "100"]


@pytest.mark.parametrize("broken", [110, 120])
def test_a_base_that_cannot_be_read_matters_only_if_it_is_needed(
    broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real = grown(125), storage.read
    storage.replace(place.hint_uri, b"119")

    def read(uri: str) -> bytes:
        if uri == place.log_uri(broken):
            raise TransientError(f"{uri}: no answer after 8 tries")
        return real(uri)

    monkeypatch.setattr(storage, "read", read)
    if broken == 110:  # commit 119 builds upon it, and it is not the newest one
        assert place.head().number == 125
    else:
        with pytest.raises(TransientError, match=place.log_uri(broken)):
            place.head()


def test_another_catalogue_in_the_same_place_is_not_read_from_what_is_kept() -> None:
    place = grown(125)
    assert len(place.head().datasets) == 3
    for path, data in grown_objects(125, 40).items():
        storage.replace(place.root + path, data)
    for found in (place.head(), place.commit(115), place.head()):
        assert len(found.datasets) == 40


def test_commits_that_others_build_upon_are_read_once_for_the_versions_of_many_datasets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = new_place()
    names = [f"d{number}" for number in range(5)]
    for name in names:
        append(place, setting(name, "s", "first"))
    while place.head().number < 500:
        append(place, setting("busy", "s", uuid.uuid4().hex))
    commit_log._kept_base.cache_clear()
    real, read = storage.read, list[str]()

    def noted(uri: str) -> bytes:
        read.append(uri)
        return real(uri)

    monkeypatch.setattr(storage, "read", noted)
    head = place.head()
    for made, name in enumerate(names, 1):
        assert place.commit_that_made(name, head.datasets[name]["s"], 499) == made
    built_upon = Counter(uri for uri in read if uri.endswith("00.json"))
    del built_upon[place.log_uri(500)]  # the newest commit, which each search looks for
    assert len(built_upon) > 3
    assert set(built_upon.values()) == {1}


@pytest.mark.parametrize("number", [100, 120])
def test_a_commit_that_others_build_upon_is_named_if_it_is_missing(number: int) -> None:
    place = grown(125)
    storage.delete(place.log_uri(number))
    commit_log._kept_base.cache_clear()
    # What the newest commit has erased is not read in older ones either.
    older = (lambda: place.at(123), lambda: place.at(99), lambda: list(place.log()))
    for read in (place.head, *older):
        with pytest.raises(CorruptFile, match=f"{place.log_uri(number)} is missing"):
            read()


@pytest.mark.parametrize("number", [100, 120])
def test_a_commit_that_others_build_upon_is_named_if_it_was_edited(number: int) -> None:
    place = grown(125)
    uri = place.log_uri(number)
    storage.replace(uri, sealed(stored(place, number) | {"datasets": {}}))
    commit_log._kept_base.cache_clear()
    says = f"{uri} has sha256 .*; later commits build upon one of sha256"
    for read in (place.head, lambda: place.at(121), lambda: list(place.log())):
        with pytest.raises(CorruptFile, match=says):
            read()


def test_an_edit_is_found_by_the_log_though_the_process_knows_the_old_content() -> None:
    place = grown(125)
    assert place.head().number == 125
    uri = place.log_uri(120)
    storage.replace(uri, sealed(stored(place, 120) | {"datasets": {}}))
    assert place.head().number == 125
    with pytest.raises(CorruptFile, match=f"{uri} has sha256 .* commit 121 was made upon one of"):
        list(place.log())


@pytest.mark.parametrize(("number", "base"), [(101, None), (100, "0" * 64), (3, "0" * 64)])
def test_a_commit_that_names_a_base_where_it_has_none_is_refused(
    number: int, base: str | None
) -> None:
    place = grown(101)
    uri = place.log_uri(number)
    storage.replace(uri, sealed(stored(place, number) | {"base": base}))
    with pytest.raises(CorruptFile, match=f"{uri}: commit {number} builds upon .*; it must build"):
        place.at(number)


def test_a_catalogue_of_the_former_format_is_refused_with_what_to_do() -> None:
    place = grown(2)
    former = {name: value for name, value in stored(place, 2).items() if name != "base"}
    storage.replace(place.log_uri(2), sealed(former | {"format": 1}))
    with pytest.raises(CorruptFile, match=r"format 1; this version of vdna reads 2 to 4\. Read"):
        place.head()


def test_a_hint_that_is_far_behind_costs_a_read_for_each_commit_since() -> None:
    place = grown(25)
    storage.replace(place.hint_uri, b"9")
    assert place.head().number == 25
    append(place, setting("d0", "s", "last"))
    assert storage.read(place.hint_uri) == b"26"


def test_tags_are_held_as_the_datasets_are() -> None:
    place, after = grown(1), dict[int, dict[str, dict[str, int]]]()
    tags: dict[str, dict[str, int]] = {}
    for number in range(2, 27):
        if number % 3:
            tags = {**tags, f"d{number % 4}": {"v": 1, f"t{number}": number - 1}}
        elif number % 2:
            tags = {name: of for name, of in tags.items() if name != f"d{number % 4}"}
        datasets = {"a": {"s": version(f"n{number}", "s")}}  # of which some are not changed
        place.append("tag", partial(replace, tags=tags, datasets=datasets))
        after[number] = tags
    for number, stated in after.items():
        commit_log._kept_base.cache_clear()
        assert Catalogue(place.root).commit(number).tags == stated
    assert after[26] != after[21] != after[20]


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"..": {"v": 1}}, "dataset name '..'"),
        ({"a": {"7": 1}}, "the tag is '7'"),
        ({"a": {"v": 0}}, "a@v names commit 0, which is not before commit 3"),
        ({"a": {"v": 3}}, "a@v names commit 3, which is not before commit 3"),
        ({"a": {"v": -1}}, "tags"),
    ],
)
def test_a_tag_that_names_no_earlier_commit_is_refused(
    tags: dict[str, dict[str, int]], why: str
) -> None:
    place = grown(3)
    storage.replace(place.log_uri(3), sealed(stored(place, 3) | {"tags": tags}))
    with pytest.raises(CorruptFile, match=why):
        place.head()


def test_the_log_may_begin_with_an_older_commit() -> None:
    place = grown(5)
    assert [found.number for found in place.log(place.commit(3))] == [3, 2, 1]
    assert [found.number for found in place.log(place.commit(1))] == [1]
