"""Tests fitted lenses with planted attributes, on images that were not used for fitting."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from typer.testing import CliRunner

from jobs.app import app
from pipeline.catalogue import Catalogue, find_lens, keep_lens
from pipeline.comparing import compare
from pipeline.dna import Lens
from pipeline.errors import NotFound, UsageError
from pipeline.events import ignore
from pipeline.explaining import AttributeDistances, FittedLens, Role, Score, explain, fit_lens
from pipeline.explaining.attribute import Attribute
from pipeline.explaining.attribute_distances import RIDGES
from pipeline.explaining.lens_problem import FitProblem, NeuronDistances
from pipeline.reporting import fit_lines, gather_matrix_page
from pipeline.reporting.conclusions import format_number
from pipeline.sources import Entry, Listing, Manifest, Pairing, Shard, plan
from tests.explaining.test_sensitivity import RANGES, SPEC, put
from tests.golden.handmade import commit_dataset, entries, hand_made

ATTRIBUTES: dict[str, dict[int, int]] = {
    "none": {},
    "fog": dict.fromkeys((0, 1, 2, 3, 4, 10), 5),
    "dark": dict.fromkeys((4, 8, 9, 10, 11, 12), -5),
    "turned": dict.fromkeys((13, 14, 15, 16, 4), 6),
    "same": {},
}
"""Neurons that each moves, and how far; fog shares two with dark, and one with turned."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    catalogue = Catalogue(str(tmp_path_factory.mktemp("fit")))
    for set_ in ("fit", "fresh"):
        for name, moved in ATTRIBUTES.items():
            put(catalogue, f"{set_}/{name}", 480, moved)
    put(catalogue, "few", 7, {})
    put(catalogue, "one", 1, {})
    return catalogue


def attribute(name: str, of: str = "fit") -> str:
    return f"{of}/{name}:{of}/none"


def through(place: Catalogue, lens: Lens, name: str) -> float:
    """Returns what the lens leaves of an attribute on images that nothing was fitted on."""
    (row,) = AttributeDistances.of(
        place, [attribute(name, "fresh")], None, None, ignore
    ).whole.distances
    return float(row @ lens.weights / lens.weights.sum() / row.mean())


@pytest.fixture(scope="module")
def signed(place: Catalogue) -> FittedLens:
    others = [attribute("dark"), attribute("turned")]
    return fit_lens(place, "no-fog", ignore=[attribute("fog")], keep=others)


def test_a_fitted_lens_hides_the_ignored_attribute_and_keeps_the_others(
    place: Catalogue, signed: FittedLens
) -> None:
    assert signed.lens.weights.sum() == pytest.approx(1)
    assert abs(through(place, signed.lens, "fog")) < 0.1
    for name in ("dark", "turned"):
        assert through(place, signed.lens, name) == pytest.approx(1, abs=0.1)
    assert signed.suppression > 0.9
    assert signed.change < 0.1
    assert [score.seen for score in signed.scores] == [True] * 3


def test_a_lens_without_negative_weights_is_a_metric(place: Catalogue) -> None:
    others = [attribute("dark"), attribute("turned")]
    found = fit_lens(place, "no-fog", ignore=[attribute("fog")], keep=others, non_negative=True)
    assert (found.lens.weights >= 0).all()
    assert found.lens.weights.sum() == pytest.approx(1)
    assert through(place, found.lens, "fog") < 0.3
    matrix = compare(place, ["fit/none", "fit/fog", "fit/dark"], lens=found.lens)
    assert np.isfinite(matrix.of("all", "p")[0, 1])  # with error bars, as metrics have
    by_layer = fit_lens(
        place, "x", ignore=[attribute("fog")], keep=[attribute("turned")], by_layer=True
    )
    weights = by_layer.lens.weights
    assert len(np.unique(weights[:12])) == len(np.unique(weights[12:])) == 1
    assert weights[0] < weights[19]


def test_held_out_scores_are_those_of_other_images(place: Catalogue, signed: FittedLens) -> None:
    for score, name in zip(signed.scores, ("fog", "dark", "turned"), strict=True):
        assert score.through == pytest.approx(through(place, signed.lens, name), abs=0.15)
        truth = compare(place, ["fresh/none", f"fresh/{name}"]).of("all", "emd_corrected")[0, 1]
        assert score.plain == pytest.approx(truth, rel=0.25)


def test_the_ridge_is_chosen_on_images_that_were_not_fitted_on(
    place: Catalogue,
) -> None:
    """Scores are from the other half of the folds. Attributes that are not seen do not count."""
    names = [attribute(name) for name in ("fog", "dark", "turned", "same")]
    seen = AttributeDistances.of(place, names, None, None, ignore)
    assert seen.detected.tolist() == [True, True, True, False]
    rng, truth = np.random.default_rng(2), np.ones((4, seen.spec.neurons))
    truth[0, :6] = truth[1, 6:12] = truth[2, 12:16] = 6
    truth[3] = 0.3
    noisy = (truth + rng.normal(0, 1, truth.shape) for _ in seen.halves)
    seen = replace(seen, halves=tuple(NeuronDistances(of, np.ones_like(of)) for of in noisy))
    roles: list[Role] = ["ignored", "kept", "kept", "kept"]
    halves = [FitProblem(of, roles) for of in seen.halves]
    alone = np.arange(seen.spec.neurons)

    def fits(ridge: float) -> list[np.ndarray]:
        return [of.fit(ridge, alone, non_negative=False) for of in halves]

    def left(ridge: float, told: np.ndarray) -> float:
        return float(np.mean([halves[at ^ 1].loss(x, told) for at, x in enumerate(fits(ridge))]))

    found = seen.fit("x", roles)
    best = {bool(all_): min(RIDGES, key=lambda r: left(r, seen.detected | all_)) for all_ in (0, 1)}
    assert found.ridge == best[False] != best[True]
    weights = fits(found.ridge)
    held_out, fitted = (
        np.mean([halves[at ^ other].rows @ x for at, x in enumerate(weights)], axis=0)
        for other in (1, 0)
    )
    assert [score.through for score in found.scores] == pytest.approx(held_out.tolist())
    assert abs(held_out[0]) > 2 * abs(fitted[0])


def test_an_attribute_below_the_floor_is_reported_as_not_seen(place: Catalogue) -> None:
    found = fit_lens(place, "x", ignore=[attribute("same")], keep=[attribute("fog")])
    assert [score.seen for score in found.scores] == [False, True]
    assert np.isnan(found.suppression)
    with pytest.raises(UsageError, match=r"fit/same:fit/none: no neuron differs at .* 5%"):
        fit_lens(place, "x", focus=attribute("same"))


def test_a_focus_is_on_the_neurons_that_were_moved(place: Catalogue) -> None:
    found = fit_lens(place, "fog", focus=attribute("fog"), top=6)
    assert set(np.flatnonzero(found.lens.weights)) == set(ATTRIBUTES["fog"])
    assert set(found.lens.weights) == {0.0, 1.0}
    (score,) = found.scores
    assert score.through == pytest.approx(20 / 6, rel=0.1)  # of 20 neurons 6 see it all
    head = fit_lens(place, "fog", focus=attribute("dark"), top=99, layers=["head"])
    assert set(np.flatnonzero(head.lens.weights)) == {12}
    distances = compare(place, [f"fresh/{name}" for name in ATTRIBUTES], lens=found.lens)
    assert distances.of()[0].argmax() == 1


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    neurons=st.integers(2, 12),
    ridge=st.sampled_from([1e-4, 0.1, 3.0]),
    groups=st.booleans(),
)
def test_weights_minimise_the_loss(seed: int, neurons: int, ridge: float, groups: bool) -> None:
    """They are compared with those of scipy's general solver for the stated loss."""
    rng = np.random.default_rng(seed)
    view = NeuronDistances(rng.random((4, neurons)) ** 3, rng.random((4, neurons)) ** 3)
    of = FitProblem(view, ["ignored", "kept", "kept", "kept"])
    group = rng.integers(0, 3, neurons) if groups else np.arange(neurons)
    names, place = np.unique(group, return_inverse=True)

    def loss(x: np.ndarray) -> float:
        return of.loss(x, np.ones(4, bool)) + ridge * float(of.ridge_shares @ (x - 1) ** 2)

    for non_negative in (False, True):
        found = of.fit(ridge, group, non_negative=non_negative)
        assert found.mean() == pytest.approx(1)
        assert not non_negative or (found >= 0).all()
        assert all(len(set(found[group == name])) == 1 for name in names)
        best = minimize(
            lambda x: loss(x[place]),
            np.ones(len(names)),
            method="SLSQP",
            bounds=[(0, None)] * len(names) if non_negative else None,
            constraints={"type": "eq", "fun": lambda x: x[place].mean() - 1},
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        assert loss(found) <= loss(best.x[place]) + 1e-6


def test_noisy_neurons_get_less_weight() -> None:
    """Lenses fitted to noisy distances are scored on exact ones, against those of an even ridge."""
    rng = np.random.default_rng(0)
    neurons, roles = 200, ["ignored", *["kept"] * 9]
    left: dict[str, list[float]] = {"by noise": [], "even": []}
    for _ in range(20):
        truth = rng.gamma(2, size=(10, neurons))
        noise = rng.choice([0.05, 1.0], size=neurons) * truth.mean()
        seen = truth + rng.normal(0, noise, truth.shape)
        for name, variances in (("by noise", noise**2), ("even", np.ones(neurons))):
            of = FitProblem(NeuronDistances(seen, np.broadcast_to(variances, truth.shape)), roles)
            exact = FitProblem(NeuronDistances(truth, np.zeros_like(truth)), roles)
            fits = (of.fit(r, np.arange(neurons), non_negative=False) for r in RIDGES)
            left[name].append(min(exact.loss(x, np.ones(10, bool)) for x in fits))
    assert np.mean(left["by noise"]) < 0.7 * np.mean(left["even"])


# Of the same images, with a change and without.


def grouped(name: str, images: int, prefix: str = "scene") -> list[Entry]:
    """Makes three images of each scene."""
    of = entries(name, images)
    return [replace(entry, group=f"{prefix}-{at // 3}") for at, entry in enumerate(of)]


def changed(shard: Shard, moved: dict[int, int]) -> Any:
    """Makes a shard whose images have some neurons moved, whatever the dataset is called."""
    made = hand_made(shard, SPEC, RANGES)
    counts = np.zeros_like(made.dna.counts)
    shifts = np.array([moved.get(neuron, 0) for neuron in range(SPEC.neurons)])
    for entry in (entry for entry in shard.members if "bad" not in entry.uri):
        rng = np.random.default_rng(zlib.crc32(entry.uri.rpartition("/")[2].encode()))
        # As if each neuron had drawn its own middle, and then a number at each position.
        chance, ends = rng.standard_normal(int((made.dna.positions + 1).sum())), made.dna.positions
        first = np.concatenate([[0], np.cumsum(ends + 1)[:-1]])
        own = np.repeat(np.arange(len(ends)), ends)
        middles = 20 + 2 * chance[first]
        at = (middles[own] + 3 * np.delete(chance, first)).round().astype(int)
        at = np.clip(at + shifts[own], 0, SPEC.bins - 1)
        np.add.at(counts, (own, at), 1)
    none = np.zeros_like(made.dna.underflow)
    dna = replace(made.dna, counts=counts, underflow=none, overflow=none, nonfinite=none)
    return replace(made, dna=dna)


def put_changed(
    catalogue: Catalogue,
    name: str,
    of: Sequence[Entry] | Manifest,
    moved: dict[int, int],
) -> None:
    manifest = of if isinstance(of, Manifest) else plan(of)
    partials = [changed(shard, moved) for shard in manifest.shards]
    commit_dataset(catalogue, name, manifest, partials, SPEC, RANGES)


def pair(name: str, of: str = "few") -> str:
    return f"{of}/{name}={of}/none"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    catalogue = Catalogue(str(tmp_path_factory.mktemp("pairs")))
    for at, (name, moved) in enumerate(ATTRIBUTES.items()):
        put_changed(catalogue, f"few/{name}", grouped(f"few/{name}", 48), moved)
        if name != "same":
            apart = entries(f"apart/{name}", 48, 500 + 48 * at)
            put_changed(catalogue, f"apart/{name}", apart, moved)
        if name in ("none", "fog"):
            put_changed(catalogue, f"fresh/{name}", entries(f"fresh/{name}", 480), moved)
    return catalogue


def test_pairs_of_the_same_images_show_only_the_change(pairs: Catalogue) -> None:
    seen = AttributeDistances.of(pairs, [pair("fog")], None, None, ignore)
    moved = np.isin(np.arange(20), list(ATTRIBUTES["fog"]))
    for found in (view.distances[0] for view in (seen.whole, *seen.halves)):
        assert (found[~moved] == 0).all()
        np.testing.assert_allclose(found[moved], 5, atol=0.05)  # but for what is clipped
    assert seen.detected == [True]
    apart = AttributeDistances.of(pairs, [attribute("fog", "apart")], None, None, ignore)
    assert (apart.whole.distances[0][~moved] > 0).any()
    assert (seen.whole.variances[0] < 0.1 * apart.whole.variances[0])[moved].all()
    assert (seen.whole.variances[0][~moved] == 0).all()


def test_images_that_both_datasets_have_are_taken_for_pairs_in_halves_too(
    tmp_path: Path,
) -> None:
    """What an altered copy has in common with its images is no noise, and is not removed."""
    catalogue = Catalogue(str(tmp_path))
    for name, moved in (("none", {}), ("dim", dict.fromkeys(range(6), 1))):
        listed = replace(Listing.of(entries(name, 96)), pairing=Pairing(f"s3://bucket/{name}"))
        put_changed(catalogue, name, plan(listed), moved)
    seen = AttributeDistances.of(catalogue, ["dim:none"], None, None, ignore)
    moved_ones = np.arange(20) < 6
    for view in (seen.whole, *seen.halves):
        np.testing.assert_allclose(view.distances[0][moved_ones], 1, atol=0.05)
        assert (view.distances[0][~moved_ones] == 0).all()
    found = explain(catalogue, "dim", "none", layers=list(SPEC.layers)).neurons.to_pydict()
    order = np.lexsort((found["neuron"], [SPEC.layers.index(name) for name in found["layer"]]))
    for column, own in (("emd_corrected", seen.whole.distances), ("p", seen.p)):
        assert np.array(found[column])[order].tolist() == own[0].tolist()


def test_pairs_of_the_same_images_need_fewer_images(pairs: Catalogue) -> None:
    """With as many images, pairs of the same images remove more of what is ignored."""
    left = {}
    for of, named in (("few", pair), ("apart", attribute)):
        fog, *others = (named(name, of) for name in ("fog", "dark", "turned"))
        found = fit_lens(pairs, "x", ignore=[fog], keep=others)
        left[of] = abs(through(pairs, found.lens, "fog"))
        assert found.scores[0].attribute == fog
    assert left["few"] < 0.01
    assert left["apart"] > 0.02
    mixed = fit_lens(pairs, "x", ignore=[pair("fog")], keep=[attribute("dark", "apart")])
    assert abs(through(pairs, mixed.lens, "fog")) < 0.01
    focus = fit_lens(pairs, "x", focus=pair("dark"), top=20)
    assert set(np.flatnonzero(focus.lens.weights)) == set(ATTRIBUTES["dark"])
    with pytest.raises(UsageError, match="few/same=few/none: no neuron differs"):
        fit_lens(pairs, "x", focus=pair("same"))


def test_what_is_ignored_is_fitted_to_plain_distances_and_what_is_kept_to_corrected_ones(
    pairs: Catalogue,
) -> None:
    """The scores of a lens are of corrected distances, on folds that it was not fitted on."""
    names = [attribute(name, "apart") for name in ("fog", "dark", "turned")]
    seen = AttributeDistances.of(pairs, names, None, None, ignore)
    roles: list[Role] = ["ignored", "kept", "kept"]
    view, problem = seen.whole, FitProblem(seen.whole, roles)
    assert view.plain is not None
    assert (view.plain > view.distances).any()
    wanted = np.concatenate([view.plain[:1], view.distances[1:]])
    np.testing.assert_allclose(problem.rows, wanted / wanted.sum(axis=1, keepdims=True))
    x = np.random.default_rng(0).gamma(1, size=seen.spec.neurons)
    shares = view.distances @ x / view.distances.sum(axis=1)
    np.testing.assert_allclose(problem.through(x), shares)
    found = seen.fit("x", roles)
    assert found.lens.provenance["ignored_as"] == "plain"
    halves = [FitProblem(half, roles) for half in seen.halves]
    alone = np.arange(seen.spec.neurons)
    weights = [half.fit(found.ridge, alone, non_negative=False) for half in halves]
    held_out = [halves[at ^ 1].through(x) for at, x in enumerate(weights)]
    assert [score.through for score in found.scores] == pytest.approx(np.mean(held_out, axis=0))
    same = AttributeDistances.of(pairs, [pair("fog")], None, None, ignore).whole
    assert same.plain is not None
    assert np.array_equal(same.plain, same.distances)


def test_pairs_that_are_not_of_the_same_images_are_refused(pairs: Catalogue) -> None:
    some = grouped("odd", 48)
    bad = replace(some[5], uri="s3://bucket/odd/bad.jpg")
    with_bad = [*some[:5], bad, *some[6:]]
    others = [replace(entry, uri=entry.uri.replace("/odd/", "/odd/of-another-")) for entry in some]
    of_folds = [(entry, hash_ % 16) for hash_, entry in enumerate(some)]
    elsewhere = [
        Shard(fold, fold, tuple(entry for entry, its in of_folds if its == fold))
        for fold in range(16)
    ]
    for name, of in {
        "groups": grouped("odd", 48, "street"),
        "fewer": some[1:],
        "others": others,
        "ungrouped": entries("odd", 48),
        "failed": with_bad,
        "failed-too": with_bad,
        "folds": Manifest.of(elsewhere, 3),
    }.items():
        put_changed(pairs, f"odd/{name}", of, {})
    for name, says in {
        "groups": r"\d+ is in fold \d+ of .*, but not of ",
        "fewer": r"000 is in fold \d+ of few/none, but not of odd/fewer\. .*`pair_by",
        "others": r"000 is in fold \d+ of few/none, but not of odd/others\.",
        "ungrouped": r"\d+ is in fold \d+ of .*, but not of ",
        "failed": r"005 is in fold \d+ of few/none, but not of odd/failed",
        "folds": r"\d+ is in fold \d+ of .*, but not of ",
    }.items():
        with pytest.raises(
            UsageError,
            match=f"odd/{name}=few/none: the two datasets do not hold the same images: {says}",
        ):
            AttributeDistances.of(pairs, [f"odd/{name}=few/none"], None, None, ignore)
    AttributeDistances.of(
        pairs, ["odd/failed=odd/failed-too"], None, None, ignore
    )  # without the failed one
    root = ["-c", pairs.root]
    done = CliRunner().invoke(app, ["lens", "fit", "x", "--focus", "odd/fewer=few/none", *root])
    assert done.exit_code == 2
    assert "do not hold the same images" in done.output
    run("fit", "no-fog", "--ignore", pair("fog"), "--keep", pair("dark"), *root)
    assert "few/fog=few/none, which the lens should ignore: " in run("show", "no-fog", *root)


def test_an_attribute_that_no_neuron_shows_is_reported(pairs: Catalogue) -> None:
    root = ["-c", pairs.root]
    for ignored, other in (("same", "dark"), ("fog", "same")):
        said = run("fit", "x", "--ignore", pair(ignored), "--keep", pair(other), *root)
        assert "nan" not in said
        unseen = "no attribute that is to be ignored is seen: the lens is of no use"
        assert (unseen in said) == (ignored == "same")
        assert ("is gone, no attribute that is to be kept is seen" in said) == (ignored == "fog")


NAMES = ("a", "2d", "b/c@7", "a@-1", "a@last", "a@last:2d", "a@last:2", "a@2026-11")
NAMES += ("a@2026-11-01..2026-11-07:5", "a@2026-11-01T12:30", "a@2026-11-01T12:30:15")


@pytest.mark.parametrize("sign", [":", "="])
def test_an_attribute_is_of_any_two_names(sign: str) -> None:
    for one, other in permutations(NAMES, 2):
        found = Attribute.parse(f"{one}{sign}{other}")
        assert (found.with_it, found.without, found.paired) == (one, other, sign == "=")
        assert Attribute.parse(str(found)) == found
    for text, wrong in (("a@last:2d:no name", "no name"), ("a:b:c", "b:c"), ("no name:a", "no na")):
        with pytest.raises(UsageError, match=f"dataset name '{wrong}"):
            Attribute.parse(text)


def test_what_cannot_be_fitted_is_refused_by_name(place: Catalogue) -> None:
    with pytest.raises(UsageError, match="'fog:fog'; name two different datasets"):
        Attribute.parse("fog:fog")
    for text in ("fog", ":none", "fog:", "fog="):
        with pytest.raises(UsageError, match=f"attribute is '{text}'; name the dataset"):
            Attribute.parse(text)
    with pytest.raises(NotFound, match="nothing"):
        fit_lens(place, "x", focus="nothing:fit/none")
    with pytest.raises(UsageError, match=r"few has 7 folds; .* takes 12"):
        fit_lens(place, "x", focus="few:fit/none")
    with pytest.raises(UsageError, match=r"one has 1 fold; .* takes 12"):
        fit_lens(place, "x", focus="one:fit/none")
    with pytest.raises(UsageError, match="to ignore an attribute, name others to keep"):
        fit_lens(place, "x", ignore=[attribute("fog")], keep=[])
    for again in (attribute("fog"), "fit/none:fit/fog", "fit/none=fit/fog"):  # distances are alike
        with pytest.raises(UsageError, match="an attribute is named twice"):
            fit_lens(place, "x", ignore=[attribute("fog")], keep=[again])
    with pytest.raises(UsageError, match="no layer 'tail'"):
        fit_lens(place, "x", focus=attribute("fog"), layers=["tail"])
    with pytest.raises(UsageError, match="top is 0"):
        fit_lens(place, "x", focus=attribute("fog"), top=0)


# In the catalogue.


def test_a_lens_records_what_it_was_fitted_on(place: Catalogue, signed: FittedLens) -> None:
    keep_lens(place, signed.lens)
    found = find_lens(place, "no-fog", SPEC)
    assert found.digest == signed.lens.digest
    told = found.provenance
    assert told["members"]["fit/fog"] == place.find("fit/fog").dna
    assert tuple(Score(**score) for score in told["held_out"]) == signed.scores
    assert told["ridge"] == signed.ridge
    assert replace(found, provenance={}).digest == found.digest


def test_the_lens_kept_last_is_the_one_of_its_name(place: Catalogue, signed: FittedLens) -> None:
    other = replace(signed.lens, name="again", weights=signed.lens.weights[::-1].copy())
    first = replace(signed.lens, name="again")
    for lens in (first, other, first):
        keep_lens(place, lens)
        time.sleep(0.01)  # by the times of their files
        assert find_lens(place, "again", SPEC).digest == lens.digest


def test_a_focus_on_one_layer_is_tested_on_its_neurons_alone(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of eight neurons may be significant where one of twenty is not."""
    seen = AttributeDistances.of(place, [attribute("fog")], None, None, ignore)
    p = np.full((1, seen.spec.neurons), 0.9)
    p[0, 12] = 0.005
    weak = replace(seen, p=p)
    assert not weak.detected.any()
    monkeypatch.setattr(AttributeDistances, "of", lambda *_: weak)
    (score,) = fit_lens(place, "x", focus="a:b", layers=["head"]).scores
    assert score.seen
    distances = seen.whole.distances.copy()
    distances[0, 12] = 0  # no neuron that differs is left
    monkeypatch.setattr(
        AttributeDistances,
        "of",
        lambda *_: replace(weak, whole=NeuronDistances(distances, distances)),
    )
    with pytest.raises(UsageError, match="distance of 1 neuron that differs; give"):
        fit_lens(place, "x", focus="a:b", layers=["head"])


def test_a_lens_of_whole_layers_and_of_neurons_by_number(place: Catalogue) -> None:
    root = ["-c", place.root]
    said = run("choose", "head", "--layer", "head", *root)
    assert "8 neurons of equal weight" in said
    assert "1 neuron of equal weight" in run("choose", "one", "--neurons", "head:3", *root)
    among = [f"fresh/{name}" for name in ("none", "fog", "dark")]
    through_it = compare(place, among, lens=find_lens(place, "head", SPEC))
    assert through_it.of() == pytest.approx(compare(place, among).of("head"))
    words = ["choose", "b", "--layer", "head", "--neurons", "stem:3", "--json", *root]
    both = json.loads(run(*words))
    assert (both["neurons"], both["replaced"]) == (9, None)
    again = json.loads(run(*words))
    assert (again["uri"], again["replaced"]) == (both["uri"], None)
    other = run("choose", "b", "--layer", "stem", *root)
    assert f"note: b was {both['uri']} before; that file stays" in other
    stays = compare(place, among, lens=find_lens(place, both["uri"], SPEC))
    assert stays.of() != pytest.approx(compare(place, among, lens=find_lens(place, "b", SPEC)).of())
    done = CliRunner().invoke(app, ["lens", "choose", "x.parquet", "--layer", "head", *root])
    assert done.exit_code == 2
    assert "lens name 'x.parquet' looks like a file's" in done.output
    done = CliRunner().invoke(app, ["lens", "choose", "x", *root])
    assert done.output.startswith("error: give --layer or --neurons")


def test_comparing_datasets_that_a_lens_was_fitted_on_is_noted(
    place: Catalogue, signed: FittedLens
) -> None:
    keep_lens(place, signed.lens)
    note = (
        "note: lens no-fog was fitted on fit/none and fit/fog: between them it does better than on"
    )
    for command in ("compare", "explain"):
        words = [command, "{}/none", "{}/fog", "--lens", "no-fog", "-c", place.root]
        for of in ("fit", "fresh"):
            done = CliRunner().invoke(app, [word.format(of) for word in words])
            assert done.exit_code == 0, done.output
            assert (note in done.output.replace("\n", " ")) == (of == "fit"), command
            done = CliRunner().invoke(app, [*(word.format(of) for word in words), "--json"])
            assert json.loads(done.stdout)
            assert (note in done.stderr.replace("\n", " ")) == (of == "fit"), command


def test_the_page_notes_datasets_that_a_lens_was_fitted_on(
    place: Catalogue, signed: FittedLens
) -> None:
    for of in ("fit", "fresh"):
        matrix = compare(place, [f"{of}/none", f"{of}/fog"], lens=signed.lens)
        page = gather_matrix_page(place, [matrix], lenses=[signed.lens], samples=0)
        said = [note for note in page.notes if note.startswith("lens no-fog was fitted on")]
        assert len(said) == (of == "fit")


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["lens", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_fit_says_which_numbers_these_are_and_what_to_do_about_bad_ones() -> None:
    ways = {"non_negative": True, "by": "layer"}
    taps = (("stem", 2),)
    lens = Lens("of", taps, np.array([1.0, 0.0]), {"kind": "ignore", **ways})

    def told(lens: Lens, *scores: Score) -> str:
        return "\n".join(fit_lines(FittedLens(lens, scores)))

    good, kept = Score("a:b", "ignored", 3.0, 0.1, True), Score("c:d", "kept", 3.0, 1.0, True)
    bad = replace(good, through=0.5)
    said = told(lens, good, kept)
    assert "not as wished" not in said
    assert (
        "\nthese distances are corrected for the sizes of the samples, each of half of the images; "
        "vdna compare --lens of goes by all images, so that its numbers differ from these\n" in said
    )
    signed = replace(lens, weights=np.array([2.0, -1.0]))
    assert "all images, and corrects nothing where weights are below 0, so" in told(signed, good)
    assert "\nthese distances are plain, as both sides" in told(
        lens, replace(good, attribute="a=b")
    )
    assert (
        "\nnot as wished: a:b. Fit again with more images of both sides, or fewer attributes to "
        "ignore and to keep at once, or no `non_negative=True`, or no `by_layer=True`."
    ) in told(lens, bad, kept)
    focus = Lens("of", taps, np.ones(2), {"kind": "focus", "top": 2})
    assert ", or more neurons (`top=4`)." in told(focus, Score("a:b", "focus", 3.0, 0.9, True))


def test_the_lens_commands_fit_list_and_show(place: Catalogue, tmp_path: Path) -> None:
    root = ["-c", place.root]
    said = run(
        "fit", "clear-of-fog", "--ignore", attribute("fog"), "--keep", attribute("dark"), *root
    )
    assert "of what is ignored is gone, what is kept changes by" in said
    assert "see through it with --lens clear-of-fog" in said
    header, *lines = run("ls", *root).splitlines()
    (line,) = [line for line in lines if line.startswith("clear-of-fog ")]
    assert header.split()[:4] == ["name", "kind", "neurons", "written"]
    assert line.split()[1] == "ignore"
    for told in (f"ignored {attribute('fog')} ", f"kept {attribute('dark')} ", "fit/none (480)"):
        assert told in line
    shown = json.loads(run("show", "clear-of-fog", "--json", *root))
    assert shown["kind"] == "ignore"
    assert shown["negative"] > 0
    assert [score["attribute"] for score in shown["held_out"]] == [
        attribute("fog"),
        attribute("dark"),
    ]
    text = run("show", "clear-of-fog", *root)
    plain, through = shown["held_out"][0]["plain"], shown["held_out"][0]["through"]
    assert (
        f"{attribute('fog')}, which the lens should ignore: {format_number(plain)} bins without "
        f"the lens, and about {format_number(plain * through)} with it, on images that it was not "
        "fitted to" in text
    )
    assert "stem[" in text
    focused = json.loads(
        run("fit", "fog/few", "--focus", attribute("fog"), "--top", "3", "--json", *root)
    )
    assert focused["neurons"] == 3
    listed = {row["name"]: row for row in json.loads(run("ls", "--json", *root))}
    assert {"clear-of-fog", "fog/few"} <= set(listed)
    assert (listed["fog/few"]["kind"], listed["fog/few"]["neurons"]) == ("focus", 3)
    assert listed["clear-of-fog"]["held_out"] == shown["held_out"]
    assert listed["clear-of-fog"]["fitted_on"] == shown["images"]
    assert all(row["written"] for row in listed.values())
    words = [
        "compare",
        "fresh/none",
        "fresh/fog",
        "fresh/dark",
        "--lens",
        "fog/few",
        *root,
        "--json",
    ]
    rows = json.loads(CliRunner().invoke(app, words).stdout)
    assert {row["lens"] for row in rows} == {"fog/few"}
    for wrong in (
        ["fit", "x", *root],
        ["fit", "x", "--focus", attribute("fog"), "--ignore", attribute("dark"), *root],
        ["fit", "x", "--focus", attribute("fog"), "--non-negative", *root],
        *(
            [*("fit", "x", "--ignore", attribute("fog"), "--keep", attribute("dark")), *of, *root]
            for of in (("--layer", "stem"), ("--top", "3"))
        ),
        ["fit", "..", "--focus", attribute("fog"), *root],
        ["show", "nothing", *root],
    ):
        done = CliRunner().invoke(app, ["lens", *wrong])
        assert done.exit_code == (1 if wrong[0] == "show" else 2), wrong
        assert done.output.startswith("error: ")


def test_lenses_that_cannot_be_read_are_listed_with_the_reason(tmp_path: Path) -> None:
    catalogue = Catalogue(str(tmp_path))
    put(catalogue, "few", 7, {})
    chosen = Lens.from_rows("chosen", SPEC, [("stem", 1, 1.0), ("stem", 2, -0.5)])
    keep_lens(catalogue, chosen)
    for name, provenance in (
        ("odd", {"kind": 5, "held_out": [{"attribute": "a:b"}]}),
        ("odder", {"images": ["a"]}),
        ("oddest", {"images": {"a": "many"}}),
    ):
        keep_lens(catalogue, replace(chosen, name=name, provenance=provenance))
    (tmp_path / "lenses/torn").mkdir()
    (tmp_path / "lenses/torn/00.parquet").write_bytes(b"torn")
    lines = run("ls", "-c", str(tmp_path)).splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        ["chosen", "weights"],
        ["odd", "unreadable"],
        ["odder", "unreadable"],
        ["oddest", "unreadable"],
        ["torn", "unreadable"],
    ]
    assert "torn, or not a Parquet file" in lines[-1]
    rows = json.loads(run("ls", "--json", "-c", str(tmp_path)))
    assert [row.get("neurons") for row in rows] == [2, None, None, None, None]


# `fit_lens` fits both kinds.


def test_fit_lens_fits_both_kinds(place: Catalogue, signed: FittedLens) -> None:
    others = [attribute("dark"), attribute("turned")]
    found = fit_lens(place, "no-fog", ignore=[attribute("fog")], keep=others)
    assert found.lens.digest == signed.lens.digest
    assert found.scores == signed.scores
    focus = fit_lens(place, "fog", focus=attribute("fog"), top=3)
    assert focus.lens.digest == fit_lens(place, "fog", focus=attribute("fog"), top=3).lens.digest
    assert np.count_nonzero(focus.lens.weights) == 3


def test_fit_lens_refuses_options_of_the_other_kind(place: Catalogue) -> None:
    fog, dark = attribute("fog"), attribute("dark")
    for wrong in ({}, {"focus": fog, "ignore": [dark]}):
        with pytest.raises(UsageError, match="give either `focus`, or `ignore` and `keep`"):
            fit_lens(place, "x", **wrong)
    for option in ({"keep": [dark]}, {"non_negative": True}, {"by_layer": True}):
        with pytest.raises(UsageError, match="are for a lens that ignores"):
            fit_lens(place, "x", focus=fog, **option)
    for option in ({"top": 3}, {"layers": ["stem"]}):
        with pytest.raises(UsageError, match="are for a lens that focuses"):
            fit_lens(place, "x", ignore=[fog], keep=[dark], **option)


def test_a_fitted_lens_has_a_readable_repr_table_and_plot(signed: FittedLens) -> None:
    assert repr(signed).startswith("<FittedLens no-fog of ")
    assert f"ignored {attribute('fog')}" in repr(signed)
    table = signed.to_pandas()
    assert table["role"].tolist() == ["ignored", "kept", "kept"]
    assert table["through"].tolist() == [score.through for score in signed.scores]
    assert signed._repr_html_().count("<tr>") == 4
    widths = [bar.get_width() for bar in signed.plot().patches]
    assert widths == table["through"].tolist()
