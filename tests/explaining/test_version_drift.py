"""A dataset is followed over its versions, and an alarm is raised where it has moved."""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.app import app
from pipeline import html_page, storage
from pipeline.catalogue import Catalogue, remove, roll_back, tag_version
from pipeline.comparing import Effort, compare, movement_between
from pipeline.dna import DNA, Partial
from pipeline.errors import NotFound, UsageError
from pipeline.events import Event, Started, StepDone
from pipeline.explaining import Drift, difference, drift
from pipeline.reporting import drift_json, drift_lines, drift_sentences
from pipeline.sources import Entry, Shard, plan
from tests.golden.handmade import commit_dataset
from tests.support.builders import NUMERICS, tiny_spec

SPEC, RANGES = tiny_spec(bins=20)
OTHER_SPEC, _ = tiny_spec(bins=10)
MOVED = 1.0
"""How far the images called `moved…` lie above the others, in standard deviations."""


def image(name: str) -> Entry:
    return Entry(f"s3://bucket/{name}.jpg", "", 100, "e0")


def images(name: str, count: int, first: int = 0) -> list[Entry]:
    return [image(f"{name}-{at:03d}") for at in range(first, first + count)]


def counted(shard: Shard) -> Partial:
    """Counts an image's activations, the same wherever it is; all neurons share some of them."""
    spec = SPEC
    empty = DNA.empty(spec, RANGES)
    values = []
    for entry in shard.members:
        chance = np.random.default_rng(zlib.crc32(entry.uri.encode()))
        common, own = chance.normal(), chance.normal(size=(len(RANGES.low), 4))
        values.append(0.6 * common + 0.8 * own + MOVED * ("moved" in entry.uri))
    x = np.array(values)
    counts = np.zeros((len(RANGES.low), spec.bins), np.int64)
    flows = np.zeros((2, len(RANGES.low)), np.int64)
    for neuron, positions in enumerate(empty.positions.tolist()):
        low, high = RANGES.low[neuron], RANGES.high[neuron]
        mine = x[:, neuron, :positions]
        inside = mine[(mine >= low) & (mine <= high)]
        counts[neuron] = np.histogram(inside, spec.bins, (low, high))[0]
        flows[:, neuron] = (mine < low).sum(), (mine > high).sum()
    means = x.mean(axis=(0, 2))
    dna = replace(
        empty,
        images=len(shard.members),
        counts=counts,
        underflow=flows[0],
        overflow=flows[1],
        min=x.min(axis=(0, 2)).astype(np.float32),
        max=x.max(axis=(0, 2)).astype(np.float32),
        mean=means,
        m2=((x.mean(axis=2) - means) ** 2).sum(axis=0),
        numerics=((NUMERICS, len(shard.members)),),
    )
    return Partial(dna, (shard.key(spec.digest),), ())


def put(place: Catalogue, entries: Sequence[Entry], name: str = "x") -> None:
    manifest = plan(entries, shard_images=4096)
    commit_dataset(place, name, manifest, [counted(of) for of in manifest.shards], SPEC, RANGES)


def new_place() -> Catalogue:
    return Catalogue(f"memory://{uuid.uuid4().hex}")


RUNNER = CliRunner()
OLD = images("a", 200)
VERSIONS = [
    OLD,
    [*OLD, *images("b", 40)],
    [*OLD[20:], *images("b", 40)],
    [*OLD[20:], *images("moved", 60)],
    [*OLD[20:], *images("moved", 60), *images("c", 8)],
]


@pytest.fixture(scope="module")
def place() -> Catalogue:
    """Makes a dataset of five versions; from the fourth on, a quarter of it is of another kind."""
    catalogue = new_place()
    for entries in VERSIONS:
        put(catalogue, entries)
    tag_version(catalogue, "x@3", "good")
    return catalogue


@pytest.fixture(scope="module")
def found(place: Catalogue) -> Drift:
    return drift(place, "x")


def test_each_version_is_as_far_from_the_reference_and_the_one_before_as_compare_says(
    place: Catalogue, found: Drift
) -> None:
    assert [row.name for row in found.rows] == [f"x@{number}" for number in range(1, 6)]
    assert found.reference == "x@1"
    assert (found.rows[0].reference, found.rows[0].step) == (None, None)
    for before, row in zip(found.rows, found.rows[1:], strict=False):
        for other, move in (("x@1", row.reference), (before.name, row.step)):
            matrix = compare(place, [other, row.name])
            assert move == movement_between(matrix, other, row.name)
            assert move.paired == pytest.approx(float(matrix.of(column="paired")[0, 1]))
            assert move.low <= move.emd_corrected <= move.high
    assert found.rows[2].step.paired == 1.0  # images were only taken away


def test_it_is_said_how_many_images_changed(found: Drift) -> None:
    assert [str(row.changes) for row in found.rows] == [
        "None",
        "+40 -0 ~0 =200",
        "+0 -20 ~0 =220",
        "+60 -40 ~0 =180",
        "+8 -0 ~0 =240",
    ]
    assert [row.tags for row in found.rows] == [(), (), ("good",), (), ()]
    assert [row.folds for row in found.rows] == [16] * 5


def test_the_version_that_moved_raises_an_alarm_and_those_after_it_stay_away(found: Drift) -> None:
    assert [row.alarms for row in found.rows] == [
        *((), (), ()),
        ("step", "reference"),
        ("reference",),
    ]
    assert [row.name for row in found.alarmed] == ["x@4", "x@5"]
    said = drift_sentences(found)
    assert said[0] == (
        "2 of 5 versions of x raise an alarm: x@4 (differs from the one before and from x@1), "
        "x@5 (differs from x@1)."
    )
    assert said[1] == "At most 5% of histories of 30 versions have a false alarm."
    assert len(said) == 2


def test_alarms_stay_when_versions_are_added(place: Catalogue, found: Drift) -> None:
    shorter = drift(place, "x@4")
    assert shorter.rows == found.rows[:4]
    assert shorter.moved == ("x@3", "x@4")


def test_what_moved_is_that_of_the_last_alarm(place: Catalogue, found: Drift) -> None:
    assert found.moved == ("x@1", "x@5")
    assert found.explanation is not None
    assert found.difference is not None
    again = difference(place, "x@1", "x@5", top=10)
    assert again.explanation is not None
    assert found.explanation.neurons.equals(again.explanation.neurons)
    assert found.explanation.layers["q"][0].as_py() < 0.01
    assert (found.difference.changes, found.difference.images) == (again.changes, again.images)
    quiet = drift(place, "x@3", top=2)
    assert quiet.moved == ("x@1", "x@3")
    assert not quiet.alarmed
    assert drift_sentences(quiet)[0] == (
        "No alarm: none of 3 versions of x is far enough from the one before, or from x@1, to "
        "raise one."
    )
    assert drift_sentences(quiet)[2] == (
        "A small q below is no alarm: it is of x@1 and x@3 alone, and the alarm rule keeps that "
        "rate over the whole path."
    )


def test_another_version_may_be_the_reference(place: Catalogue) -> None:
    found = drift(place, "x", reference="@5")
    assert found.reference == "x@5"
    assert found.rows[4].reference is None
    assert [row.alarms for row in found.rows] == [
        *[("reference",)] * 3,
        ("step",),
        (),
    ]
    newest = drift(place, "x@2", reference="2")
    assert newest.moved == ("x@1", "x@2")
    with pytest.raises(NotFound, match="there is no x@77"):
        drift(place, "x", reference="77")
    with pytest.raises(UsageError, match="after the @ stands 'x@3'"):
        drift(place, "x", reference="x@3")
    with pytest.raises(UsageError, match="the reference x@5 is not among the versions of x"):
        drift(place, "x@4", reference="5")


def test_fewer_versions_keep_their_reference_and_know_the_one_before(
    place: Catalogue, found: Drift
) -> None:
    few = drift(place, "x", limit=2)
    assert few.rows == found.rows[3:]
    assert few.reference == "x@1"
    assert set(few.versions) == {"x@1", "x@4", "x@5"}


def test_versions_without_files_or_of_another_spec_are_told_and_left_out() -> None:
    place = new_place()
    for entries in VERSIONS[:3]:
        put(place, entries)
    gone = place.find("x@2")
    for kind in gone.sha256:
        storage.delete(place.uri(kind, gone.spec, "x", gone.digest_in(kind)))
    other = replace(place.find("x"), spec=OTHER_SPEC.digest)
    place.put_version("x", other, None)
    found = drift(place, "x", spec=SPEC.digest[:8])
    assert [row.name for row in found.rows] == ["x@1", "x@3"]
    assert str(found.rows[1].changes) == "+40 -20 ~0 =180"
    assert [(of.name, of.why) for of in found.left_out] == [
        ("x@2", "its files were removed by vdna gc"),
        ("x@4", f"its spec is another one (`spec={other.spec[:12]!r}`)"),
    ]
    assert "x@2 is left out: its files were removed by vdna gc." in drift_sentences(found)


def test_a_path_takes_two_versions() -> None:
    place = new_place()
    put(place, OLD)
    one = f"drift compares versions of x, and only x@1 is kept of spec {SPEC.digest[:12]}; build it"
    with pytest.raises(UsageError, match=f"^{one} again when its images have changed$"):
        drift(place, "x")
    with pytest.raises(NotFound, match="there is no x@tga; it has no tag"):
        drift(place, "x", reference="tga")
    with pytest.raises(NotFound, match="no dataset 'y'"):
        drift(place, "y")
    remove(place, ["x"])
    roll_back(place, "x", 1)
    with pytest.raises(UsageError, match="only x@1 is kept"):  # it came back, and is the same
        drift(place, "x")


def test_a_version_that_came_back_after_another_is_on_the_path_twice() -> None:
    place = new_place()
    for entries in (OLD, [*OLD, *images("b", 4)]):
        put(place, entries)
    roll_back(place, "x", 1)
    found = drift(place, "x")
    assert [row.name for row in found.rows] == ["x@1", "x@2", "x@3"]
    back = found.rows[2].reference
    assert back is not None
    assert (back.emd, back.p, found.alarmed) == (0, 1, ())
    assert (found.moved, found.explanation) == (("x@1", "x@3"), None)
    assert b"Both have the same DNA" in html_page(place, found).html
    with pytest.raises(UsageError, match="the page of a drift takes no `lens`; leave it out"):
        html_page(place, found, lens="some")
    assert drift_json(found, 3)["moved"]["neurons"] == []


def test_few_images_cannot_raise_an_alarm_and_that_is_said() -> None:
    place = new_place()
    for entries in (images("a", 9), images("moved", 9)):
        put(place, entries)
    found = drift(place, "x")
    assert not found.alarmed
    assert [row.can_alarm for row in found.rows] == [False, False]
    assert drift_sentences(found)[-1] == (
        "Fewer than 14 folds cannot raise every alarm: those of x@1 (9) and x@2 (9)."
    )


def test_progress_is_told_by_versions_and_then_by_layers(place: Catalogue) -> None:
    heard: list[Event] = []
    drift(place, "x", limit=2, effort=Effort(progress=heard.append))
    begun = [(of.step, of.steps) for of in heard if isinstance(of, Started)]
    assert begun == [("versions", 2), ("layers", 2)]
    done = [of.name for of in heard if isinstance(of, StepDone)]
    assert done == ["x@4", "x@5", "stem", "head"]


def test_notes_are_of_pairs_that_are_compared(found: Drift) -> None:
    (note,) = found.notes()
    assert note.startswith(
        "images of the same path and in the same fold count as pairs, as those of two versions do"
    )
    last = found.rows[-1]
    assert last.step is not None
    unknown = replace(last, step=replace(last.step, paired=None))
    noted = replace(found, rows=(*found.rows[:-1], unknown)).notes()
    assert noted[1:] == [
        "it is not known which images are in pairs, and error bars do not hold if some are: x@4 "
        "and x@5",
    ]


def test_the_table_has_a_row_for_each_version(found: Drift) -> None:
    table = found.to_pandas()
    assert table["name"].tolist() == [row.name for row in found.rows]
    assert table["step_emd_corrected"][1] == found.rows[1].step.emd_corrected
    assert np.isnan(table["reference_p"][0])
    assert table["reference_alarm"].tolist() == [False, False, False, True, True]
    assert found.to_polars().columns == list(table.columns)
    assert table["added"].tolist()[1:] == [40, 0, 60, 8]
    axes = found.plot()
    assert [text.get_text() for text in axes.get_xticklabels()] == table["name"].tolist()
    assert "<Drift of x over 5 versions from x@1: alarms x@4, x@5>" in repr(found)
    assert "differs" not in found._repr_html_()
    assert found._repr_html_().count("<tr>") == 6


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_the_command_prints_a_table_of_the_path(place: Catalogue, found: Drift) -> None:
    lines = drift_lines(found)
    assert cells(lines[0]) == [
        "version",
        "time",
        "images",
        "change",
        "from x@1",
        "from the one before",
        "alarm",
        "tags",
    ]
    assert len(lines) == 7
    low, high = found.rows[3].reference.low, found.rows[3].reference.high
    assert f" [{low:.1f}, {high:.1f}]" in lines[4]
    assert "differs from the one before and from x@1" in lines[4]
    assert lines[3].endswith("good")


def test_the_command_says_it_all_for_people_and_as_json(
    place: Catalogue, found: Drift, tmp_path: Path
) -> None:
    words = ("drift", "x", "-c", place.root, "--json", "--log-format", "json")
    with_json = RUNNER.invoke(app, words)
    assert with_json.exit_code == 0, with_json.output
    log = [json.loads(line) for line in with_json.stderr.splitlines()]
    shared = "note: images of the same path and in the same fold count as pairs"
    assert any(line["message"].startswith(shared) for line in log)
    told = json.loads(with_json.stdout)
    assert told == json.loads(json.dumps(drift_json(found, 10), default=str))
    assert [row["alarms"] for row in told["versions"]] == [list(row.alarms) for row in found.rows]
    assert told["versions"][3]["step"] == asdict(found.rows[3].step)
    assert told["false_alarms"] == {"rate": 0.05, "versions": 30}
    assert (told["moved"]["a"], told["moved"]["b"]) == ("x@1", "x@5")
    assert len(told["moved"]["neurons"]) == 5
    assert len(drift_json(found, 3)["moved"]["neurons"]) == 3
    page = ("--html", str(tmp_path / "drift.html"))
    said = RUNNER.invoke(app, ["drift", "x", "-c", place.root, "--reference", "good", *page])
    assert said.exit_code == 0, said.output
    assert "from x@3  " in said.stdout.splitlines()[0]
    assert "From x@3 to x@5: layers" in said.stdout
    assert "note: images of the same path and in the same fold count as pairs" in said.stdout
    assert said.stdout.splitlines()[-1] == f"written to {page[1]}"
    assert Path(page[1]).read_text(encoding="utf-8").count('class="alarm"') == 3
    for words in (["--limit", "1"], ["--html", "page.pdf"]):
        assert RUNNER.invoke(app, ["drift", "x", "-c", place.root, *words]).exit_code == 2


def test_imported_versions_are_followed_without_error_bars_and_alarms(
    place: Catalogue, tmp_path: Path
) -> None:
    root, file = str(tmp_path / "c"), str(tmp_path / "x.npz")
    for which in ("x@1", "x@4"):
        for words in (["export", which, file, "-c", place.root], ["import", file, "y", "-c", root]):
            done = RUNNER.invoke(app, words)
            assert done.exit_code == 0, done.output
    found = drift(Catalogue(root), "y")
    assert [row.folds for row in found.rows] == [0, 0]
    assert found.rows[1].step.emd > 0
    assert (found.rows[1].step.p, found.rows[1].changes, found.difference) == (None, None, None)
    assert "(not corrected)" in drift_lines(found)[2]
    assert found.explanation is not None
    assert drift_json(found, 2)["moved"]["a"] == "y@1"
    assert len(drift_json(found, 2)["moved"]["neurons"]) == 2
    assert "Not tested: y@1 and y@2" in " ".join(drift_sentences(found))
