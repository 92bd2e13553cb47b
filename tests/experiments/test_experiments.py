"""Tests the experiments: what they measure, and not their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm

from experiments import changes, lenses, ranking, realism, retrieval, selection
from experiments.observe import POINTS, Layers, Observer, Seen, emd
from pipeline import emd as product_emd
from pipeline import make_dna
from pipeline.counting.micro_batch import MICRO_BATCH

LAYERS = Layers(("first", "second"), (3, 5))


def picture(seed: int, side: int = 128, blobs: int = 6) -> Image.Image:
    """Draws blobs of random colours, different for every seed."""
    chance = np.random.default_rng(seed)
    small = Image.fromarray(chance.integers(0, 256, (blobs, blobs, 3), np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def seen(images: int, seed: int, shift: float = 0.0) -> Seen:
    """Makes normal activations of eight neurons with different means, in [-5, 5]."""
    chance = np.random.default_rng(seed)
    x = chance.normal(0, 1, (images, 8, 30)) + np.linspace(-1, 1, 8)[:, None] + shift
    edges = np.linspace(-5, 5, POINTS + 1)[1:]
    return Seen((x[..., None] <= edges).mean(axis=2).astype(np.float32), x.mean(axis=2))


@pytest.fixture(scope="module")
def observer() -> Observer:
    return Observer()


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network takes two images at a time: shards have few, and are filled up to a multiple."""
    monkeypatch.setitem(MICRO_BATCH, "cpu", 2)


@pytest.mark.soak
@pytest.mark.usefixtures("few_at_a_time")
def test_a_mean_of_curves_equals_the_dna_of_a_build(observer: Observer, tmp_path: Path) -> None:
    sets = {"a": range(6), "b": range(6, 17)}
    curves = {}
    for name, seeds in sets.items():
        (tmp_path / name).mkdir()
        for seed in seeds:
            picture(seed).save(tmp_path / name / f"{seed}.png")
        found = observer.see([lambda s=s: np.asarray(picture(s)) for s in seeds])  # type: ignore[misc]
        assert len(found.curves) == len(seeds)
        assert np.allclose(found.curves[..., -1], 1)
        curves[name] = found
    a, b = (make_dna(str(tmp_path / name)) for name in sets)
    assert np.allclose(curves["b"].means.mean(axis=0), b.mean, rtol=1e-9, atol=1e-12)
    ours = emd(curves["a"].curves.mean(axis=0) - curves["b"].curves.mean(axis=0))
    for layer, mine in observer.layers.slices.items():
        assert ours[mine].mean() == pytest.approx(product_emd(a, b, layer=layer), rel=0.15)
    assert ours.mean() == pytest.approx(product_emd(a, b), rel=0.05)


def test_the_order_of_pictures_is_kept(observer: Observer) -> None:
    one = observer.see([lambda s=s: np.asarray(picture(s)) for s in range(9)])  # type: ignore[misc]
    other = observer.see([lambda s=s: np.asarray(picture(s)) for s in reversed(range(9))])  # type: ignore[misc]
    assert np.array_equal(one.curves, other.curves[::-1])


# Changes.


def test_images_are_dealt_into_two_halves() -> None:
    halves = changes.dealt(7, 30, seed=0)
    assert halves.shape == (30, 14)
    assert (halves.sum(axis=1) == 7).all()
    assert len(np.unique(halves, axis=0)) > 20


@pytest.mark.parametrize("images", [4, 40])
def test_the_frechet_distance_is_the_textbooks_whatever_the_rank(images: int) -> None:
    chance = np.random.default_rng(images)
    a, b = chance.normal(size=(images, 6)), chance.normal(1, 2, size=(images, 6))
    of_a, of_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(of_a @ of_b + 0j))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(of_a + of_b - 2 * root)
    assert changes.gaussian_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_a_shift_exceeds_every_threshold_and_no_shift_does_so_rarely() -> None:
    plain, same, moved = seen(80, 0), seen(80, 0), seen(80, 0, 0.5)
    null = changes.distances(LAYERS, plain, plain, changes.dealt(40, 200, 1))
    halves = changes.dealt(40, 200, 2)
    for of, values in null.items():
        assert values.shape == (200, 3)
        threshold = np.quantile(values, 0.95, axis=0)
        alarms = changes.distances(LAYERS, plain, same, halves)[of] > threshold
        assert (alarms.mean(axis=0) < 0.12).all(), of
        assert (changes.distances(LAYERS, plain, moved, halves)[of] > threshold).all(), of


@pytest.mark.soak
def test_the_corrected_distance_measures_the_shift_and_not_the_noise() -> None:
    half = changes.dealt(80, 1, 3)[0]
    found = changes.estimated(LAYERS, seen(160, 4), seen(160, 5, 0.5), half)
    assert found["emd"].shape == found["corrected"].shape == (3,)
    assert np.allclose(found["corrected"], 0.5 / 10 * 1000, rtol=0.15)
    assert (found["low"] < found["corrected"]).all()
    assert (found["corrected"] < found["high"]).all()
    null = changes.estimated(LAYERS, seen(160, 4), seen(160, 5), half)
    others = [
        changes.estimated(LAYERS, seen(160, k), seen(160, k + 1), half) for k in range(6, 46, 2)
    ]
    zero = [(of["low"] == 0).mean() for of in (null, *others)]
    assert np.mean(zero) >= 0.95  # each with a chance of 2.5% not to be
    assert (null["floor"] < 2 * null["emd"]).all()


@pytest.mark.parametrize(
    ("power", "expected"),
    [([0, 1, 1], 2), ([1, 0, 1], 3), ([1, 1, 0], None), ([0.8, 0.9, 1], 1), ([0, 0, 0.79], None)],
)
def test_the_smallest_noticed_change_is_where_all_stronger_ones_are_noticed(
    power: list[float], expected: float | None
) -> None:
    assert changes.noticed(power, [1, 2, 3]) == expected


def test_a_rise_is_judged_from_where_the_interval_leaves_zero() -> None:
    corrected = np.array([2.0, 0.0, 1.0, 3.0, 3.0])
    assert changes.risen(corrected, np.array([0.0, 0, 0, 1, 2]))
    assert changes.risen(corrected[::-1], np.array([0.0, 0, 1, 1, 2])) is False
    assert changes.risen(corrected, np.zeros(5)) is None


@pytest.mark.parametrize("name", changes.CHANGES)
def test_a_stronger_change_moves_pixels_further(name: str) -> None:
    _, change, strengths = changes.CHANGES[name]
    assert list(strengths) == sorted(strengths)
    plain = picture(1)
    moved = [np.abs(np.asarray(change(plain, by)) - np.asarray(plain, float)) for by in strengths]
    assert moved[0].max() < 30
    assert moved[-1].mean() > 5 * moved[0].mean()


def test_a_hue_turned_by_zero_changes_no_pixel() -> None:
    assert np.array_equal(changes.turned(picture(2), 0), picture(2))


# Selection.


def test_learning_takes_half_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 6, 8])
    learnt = selection.halves(labels, 5, seed=0)
    for half in learnt:
        assert np.bincount(labels[half]).tolist() == [5, 3, 4]
    assert len(np.unique(learnt, axis=0)) == 5


def test_a_distance_that_orders_as_accuracy_does_has_no_regret() -> None:
    accuracy = np.random.default_rng(0).random((3, 6, 6))
    rho, regret = selection.agreement(1 - accuracy, accuracy)
    assert rho == pytest.approx(np.ones(6))
    assert regret == pytest.approx(np.zeros(6))
    rho, regret = selection.agreement(accuracy, accuracy)
    assert rho == pytest.approx(-np.ones(6))
    assert (regret > 0.3).all()


def test_a_domain_is_no_candidate_for_itself() -> None:
    accuracy = np.random.default_rng(0).random((1, 5, 5))
    distance = 1 - accuracy
    for at in range(5):
        distance[0, at, at] = -1
        accuracy[0, at, at] = 0
    assert selection.agreement(distance, accuracy)[1] == pytest.approx(np.zeros(5))


def test_a_domain_always_shows_an_object_in_the_same_way() -> None:
    cutout = picture(3, 90).convert("RGBA")
    cutout.putalpha(200)
    behind = picture(4, 224)
    for domain in selection.DOMAINS.values():
        one, other = (selection.shown(cutout, behind, domain.change, 5) for _ in range(2))
        assert one.shape == (224, 224, 3)
        assert np.array_equal(one, other)


# Realism.


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    chance = np.random.default_rng(0)
    real, synthetic = chance.normal(size=30), chance.normal(0.7, 1, size=50)
    share = (synthetic[:, None] > real).mean()
    assert realism.auc(real, synthetic) == pytest.approx(share)
    assert realism.auc(synthetic, real) == pytest.approx(1 - share)
    assert realism.auc(np.exp(real), np.exp(synthetic)) == pytest.approx(share)
    assert realism.auc(np.ones(3), np.ones(4)) == 0.5


def test_realism_prefers_informative_neurons_and_scores_have_one_sign() -> None:
    def half(seed: int, shift: float) -> realism.Half:
        found = seen(60, seed)
        moved = seen(60, seed + 100, shift)
        curves, means = found.curves.copy(), found.means.copy()
        curves[:, 2], means[:, 2] = moved.curves[:, 2], moved.means[:, 2]
        return realism.Half([Path(f"{seed}-{at // 3}") for at in range(60)], Seen(curves, means))

    score = realism.scorer(half(0, 0), [half(1, 2.0)], slice(0, 8))
    real, synthetic = half(2, 0), half(3, 2.0)
    a, b = score(real), score(synthetic)
    assert set(a) == set(realism.SCORES)
    area = {of: realism.auc(a[of], b[of]) for of in a}
    assert min(area.values()) > 0.6, area
    assert area["5 neurons"] > 0.9
    low, high = realism.interval(real, synthetic, a["cosine"], b["cosine"])
    assert low <= area["cosine"] <= high


def test_a_flat_object_has_less_texture_than_a_noisy_one(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noisy.png")
    Image.new("RGB", (100, 100), (90, 30, 10)).save(tmp_path / "flat.png")
    assert realism.textured(tmp_path / "flat.png") == 0
    assert realism.textured(tmp_path / "noisy.png") > 20


# Retrieval.


def test_average_precision_by_hand() -> None:
    relevant = np.array([True, False, True, False])
    assert retrieval.average_precision(np.array([1, 2, 3, 4]), relevant) == pytest.approx(5 / 6)
    assert retrieval.average_precision(np.array([1, 3, 2, 4]), relevant) == 1
    assert retrieval.average_precision(np.array([3, 1, 4, 2]), relevant) == pytest.approx(5 / 12)


@pytest.mark.parametrize("name", retrieval.SOUGHT)
def test_every_attribute_can_be_seen_in_pixels(name: str) -> None:
    plain = picture(6, 224, blobs=60)
    given = retrieval.SOUGHT[name](plain, np.random.default_rng(0))
    assert given.size == plain.size
    assert np.abs(np.asarray(given, float) - np.asarray(plain, float)).mean() > 0.5


@pytest.mark.soak
@pytest.mark.usefixtures("few_at_a_time")
def test_the_distance_of_an_image_equals_that_of_vdna_rank(
    observer: Observer, tmp_path: Path
) -> None:
    from pipeline import Catalogue, InProcess, Request, build_datasets
    from pipeline.dna import Lens
    from pipeline.explaining import RankRequest, rank

    for folder, seeds in (("set", range(6)), ("pool", range(6, 11))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            picture(seed).save(tmp_path / folder / f"{seed}.png")
    place, engine = Catalogue(str(tmp_path / "dnas")), InProcess()
    build_datasets(place, [Request("set", str(tmp_path / "set"), exemplars=0)], engine)
    seeds = range(6, 11)
    pool = observer.see([lambda s=s: np.asarray(picture(s)) for s in seeds])  # type: ignore[misc]
    each = realism.to_set(pool, retrieval.curve_of(place.load("set")))
    spec = place.spec(place.find("set").spec)
    lens = Lens.chosen(spec, ["blocks.6.0:0-99"])
    for through, weights in ((None, np.ones(each.shape[1])), (lens, lens.weights)):
        ranking = rank(place, RankRequest(str(tmp_path / "pool"), "set"), engine, lens=through)
        ours = dict(
            zip((f"{seed}.png" for seed in seeds), each @ weights / weights.sum(), strict=True)
        )
        for placed in ranking.nearest:
            assert ours[Path(placed.entry.uri).name] == pytest.approx(placed.emd, rel=0.05)
        assert len(ranking.nearest) == len(seeds)
    engine.close()


# Ranking.


def test_the_noise_of_few_draws_is_what_simulation_finds() -> None:
    chance = np.random.default_rng(0)
    edges = np.linspace(-5, 5, POINTS + 1)[1:]
    many = (chance.normal(size=200_000)[:, None] <= edges).mean(axis=0)
    for draws in (10, 50):
        few = (chance.normal(size=(2000, draws, 1)) <= edges).mean(axis=1)
        expected = ranking.noise_of(many[None], np.array([draws]))[0]
        assert emd(few - many).mean() == pytest.approx(expected, rel=0.05)


def test_the_study_of_ranking_finds_kinds_that_differ() -> None:
    kinds = {"low": -1.0, "middle": 0.0, "high": 1.0}
    halves = {
        kind: (seen(12, 2 * at, shift), seen(12, 2 * at + 1, shift))
        for at, (kind, shift) in enumerate(kinds.items())
    }
    layers = Layers(("first", changes.LAST), (3, 5))
    result = ranking.measured(halves, layers, np.full(8, 30), (6, 12), times=2)
    whole = result["sizes"]["12"]
    assert result["pool"] == 36
    assert set(result["sizes"]["6"]) == set(whole)
    assert min(row["ap"] for way, row in whole.items() if way.startswith("EMD")) > 0.9
    assert whole[ranking.HELD]["ap"] >= whole["EMD"]["ap"]
    assert set(result["odd"]) == {"EMD", "held", "less"}
    assert "AP of odd pictures" in ranking.table(result)


# Each study with few made-up pictures.


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    places = [
        *(f"photos/{at}.png" for at in range(30)),
        *(f"textures/{at}.png" for at in range(6)),
        *(f"wallpapers/{at}.png" for at in range(6)),
        *(f"portraits/{at}.png" for at in range(8)),
        *(f"renders/{at}.png" for at in range(16)),
        *(f"stamps/{of[0]}/{at}.png" for of in selection.CLASSES.values() for at in range(4)),
        *(f"stamps/animals/cartoon/{at}.png" for at in range(8)),
    ]
    for seed, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, 256).save(folder / place)
    return folder


@pytest.mark.soak
def test_the_study_of_changes_runs_on_few_images(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, change, _ = changes.CHANGES["brightness"]
    monkeypatch.setattr(changes, "CHANGES", {"brightness": (unit, change, (0.001, 3.0))})
    result = changes.study(16, cache / "photos", nulls=20, deals=10)
    found = result["changes"]["brightness"]
    assert found["power"]["EMD"][1][-1] == 1
    assert found["power"]["EMD"][0][-1] < 0.5
    assert found["noticed"]["EMD"][changes.ALL] == 3.0
    assert set(found["noticed"]["EMD"]) == {*result["layers"]}
    changes.draw(result, tmp_path / "changes.svg")
    assert "brightness, EMD" in changes.table(result)


@pytest.mark.soak
def test_the_study_of_selection_runs_on_few_images(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: selection.DOMAINS[name] for name in ("white", "dark", "photos", "blur")}
    monkeypatch.setattr(selection, "DOMAINS", few)
    result = selection.study(4, 2, cache)
    assert result["images"] == 24
    assert np.array(result["accuracy"]).shape == (4, 4)
    assert set(result["distances"]) == set(selection.DISTANCES)
    selection.draw(result, tmp_path / "selection.svg")
    assert "at random" in selection.table(result)


@pytest.mark.soak
def test_the_study_of_realism_runs_on_few_images(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realism, "BOOTSTRAPS", 10)
    looked: dict[str, Any] = {}
    original = realism.look

    def look(observer: Observer, name: str, *rest: Any) -> list[realism.Half]:
        looked[name] = original(observer, name, *rest)
        return looked[name]

    monkeypatch.setattr(realism, "look", look)
    result = realism.study(8, cache, tmp_path / "sheet.png")
    for name, (fitted, told) in looked.items():
        assert not set(fitted.paths) & set(told.paths), name
    assert set(result["within"]) == {"textures", "wallpapers", "renders", "cartoons", "portraits"}
    realism.draw(result, tmp_path / "realism.svg")
    assert "AUC, across" in realism.table(result)


@pytest.mark.soak
@pytest.mark.usefixtures("few_at_a_time")
def test_the_study_of_lenses_runs_on_few_images(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: lenses.ATTRIBUTES[name] for name in ("dark-2", "grey", "blur-4")}
    monkeypatch.setattr(lenses, "ATTRIBUTES", few)
    monkeypatch.setattr(lenses, "BINS", 50)
    result = lenses.lenses([36, 72], 48, tmp_path, cache)
    halves = [{*(tmp_path / "photographs" / of).iterdir()} for of in ("fit", "fresh")]
    photographs = [{link.resolve() for link in half} for half in halves]
    assert len(photographs[0] | photographs[1]) == sum(map(len, photographs)) == 30
    rows = {(row["draw"], row["kind"], row["images"]): row for row in result["rows"]}
    assert set(rows) == {
        *(("paired", "signed", size) for size in (36, 72)),
        *(("paired", "non_negative", 72), ("apart", "signed", 36), ("apart", "non_negative", 36)),
    }
    best = lenses.best(result)
    assert best["suppression"] > 0.7
    assert best["change"] < 0.3
    through = np.array(best["through"])
    own = np.eye(3, dtype=bool)
    assert best["suppression"] == pytest.approx(1 - np.abs(through[own]).mean(), abs=1e-3)
    assert best["change"] == pytest.approx(np.abs(through[~own] - 1).mean(), abs=1e-3)
    assert [scored["images"] for scored in best["scored"]][-1] == 48
    assert best["scored"][-1]["suppression"] == best["suppression"]
    lenses.draw(result, tmp_path)
    assert {path.suffix for path in tmp_path.glob("*.svg")} == {".svg"}
    assert lenses.told(best).startswith(f"{best['suppression']:.1%} suppression (least ")


def test_the_rest_of_an_attribute_shrinks_with_the_images_it_is_scored_on() -> None:
    """Half of the neurons react to the change differently from image to image."""
    rng = np.random.default_rng(0)
    folds, neurons, bins, images = 16, 40, 30, np.full(16, 50)
    varies = np.repeat([0.3, 0.0], neurons // 2)[:, None]
    moved = 0.02 + varies * rng.normal(0, 1, (folds, neurons, bins)) / np.sqrt(50)
    fresh = lenses.Fresh.apart([moved * 50, np.ones_like(moved)], images)
    assert fresh.scored.tolist() == [100, 200, 400, 800]
    weights = np.repeat([2.1, -1.9], neurons // 2) / (neurons * 0.1)
    assert weights.sum() == pytest.approx(1)
    left, alike = fresh.through(weights).T
    assert left[0] > left[1] > left[2] > left[3] > 1
    assert alike == pytest.approx(1)
    assert fresh.through(np.full(neurons, 1 / neurons)) == pytest.approx(np.ones((4, 2)))


@pytest.mark.soak
@pytest.mark.usefixtures("few_at_a_time")
def test_the_study_of_retrieval_runs_on_few_images(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"black frame": retrieval.SOUGHT["black frame"]}
    monkeypatch.setattr(retrieval, "SOUGHT", few)
    monkeypatch.setattr(retrieval, "DOMAINS", ("textures", "cut-outs"))
    monkeypatch.setattr(retrieval, "QUERIES", (1, 3))
    result = retrieval.study(4, 16, tmp_path, cache, times=1)
    found = result["attributes"]["attributes"]
    assert found["black frame"]["neurons"] == retrieval.TOP
    assert found["black frame"][retrieval.LENS]["precision_20"] >= 0.9
    assert set(result["domains"]["queries"]["3"]) == set(retrieval.DOMAIN_SCORES)
    assert "Mahalanobis" not in result["domains"]["queries"]["1"]
    retrieval.draw(result, tmp_path / "retrieval.svg")
    assert "at random" in retrieval.table(result)
