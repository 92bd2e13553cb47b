"""Tests the look at images again: it chooses those whose own activations carry the difference."""

from __future__ import annotations

import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from pipeline import images, storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.comparing import cumulative
from pipeline.counting import Extractor
from pipeline.dna import Lens
from pipeline.engine import InProcess
from pipeline.errors import TransientError
from pipeline.explaining import (
    Explanation,
    RankRequest,
    explain,
    image_look,
    neuron_groups,
    rank,
)
from pipeline.explaining.image_draw import origin_of
from pipeline.explaining.image_look import CHOSEN, CLEARLY
from pipeline.explaining.neuron_groups import choose_groups, numbered
from pipeline.explaining.parting import leaning
from pipeline.explaining.reactions import kept_exemplars, reader_of
from pipeline.explaining.sensitivity import Side
from pipeline.images import fingerprint, is_one_photograph
from pipeline.images.nvjpeg import require_nvjpeg
from pipeline.reporting.html.thumbnails import rule_of
from pipeline.sources import Entry, Members
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import write_photos

DAY, NIGHT = 30, 26


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, tiny.Place, Path]:
    """Builds photographs as files, and dark ones in an archive."""
    folder = tmp_path_factory.mktemp("looked")
    network = tiny.install(folder)
    write_photos(folder / "day", DAY)
    for path in write_photos(folder / "night", NIGHT, 100):
        with Image.open(path) as image:
            dark = ImageEnhance.Brightness(image).enhance(0.5)
        dark.save(path, quality=90)
    with tarfile.open(folder / "night.tar", "w") as tar:
        tar.add(folder / "night", "night")
    catalogue = Catalogue(str(folder / "catalogue"))
    requests = [
        Request("day", str(folder / "day"), **network.options),  # type: ignore[arg-type]
        Request("night", str(folder / "night.tar"), **network.options),  # type: ignore[arg-type]
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue, network, folder


@pytest.fixture(scope="module")
def found(built: tuple[Catalogue, tiny.Place, Path]) -> Explanation:
    catalogue, network, _ = built
    return explain(catalogue, "day", "night", look=1000, weights=network.weights)


def test_images_are_decoded_in_a_process_apart(
    built: tuple[Catalogue, tiny.Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image whose decoder crashes must not end the server that looks at it."""
    catalogue, network, _ = built

    def crash(*_: object) -> None:
        raise AssertionError("decoded here")

    monkeypatch.setattr("pipeline.images.load", crash)
    found = explain(catalogue, "day", "night", look=4, weights=network.weights)
    assert found.look is not None
    assert found.look.images == (4, 4)


def test_images_that_a_gpu_has_decoded_are_seen_without_one(
    built: tuple[Catalogue, tiny.Place, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = built[1]
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    for name in ("day", "night"):
        (tmp_path / name).mkdir()
        for path in write_photos(tmp_path / name, 5, len(name)):
            Image.open(path).save(path.with_suffix(".png"))  # which no GPU decodes
            path.unlink()
    with monkeypatch.context() as patch:
        for module in ("torchcodec", "torchcodec.decoders"):  # it decodes none of them
            patch.setitem(sys.modules, module, ModuleType(module))
        sys.modules["torchcodec"].decoders = sys.modules["torchcodec.decoders"]  # type: ignore[attr-defined]  # it is made here
        require_nvjpeg.cache_clear()
        patch.setattr("pipeline.images.nvjpeg.version", lambda library: "0.17.0")
        patch.setattr("pipeline.building.counted_way.is_nvjpeg", lambda stated: False)
        requests = [
            Request(name, str(tmp_path / name), decoder="nvjpeg", **network.options)  # type: ignore[arg-type]
            for name in ("day", "night")
        ]
        build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=1))
    require_nvjpeg.cache_clear()
    found = explain(catalogue, "day", "night", look=4, weights=network.weights)
    assert found.look is not None
    assert (found.look.images, found.look.notes) == ((4, 4), ())
    for name, version in found.versions.items():
        assert catalogue.spec(version.spec).preprocess.decoder == "nvjpeg@0.17.0"
        assert reader_of(catalogue, name, version).rule == tiny.RULE
        assert rule_of(catalogue, version) == tiny.RULE


@pytest.fixture
def copied(
    built: tuple[Catalogue, tiny.Place, Path], tmp_path: Path
) -> tuple[Catalogue, tiny.Place, Path]:
    """Builds the same again, so that a test may damage the images."""
    _, network, folder = built
    shutil.copytree(folder / "day", tmp_path / "day")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    requests = [
        Request(name, str(source), **network.options)  # type: ignore[arg-type]
        for name, source in (("day", tmp_path / "day"), ("night", folder / "night.tar"))
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue, network, tmp_path / "day"


def activations(
    built: tuple[Catalogue, tiny.Place, Path], side: int
) -> Mapping[str, Mapping[str, np.ndarray]]:
    """Returns the activations of each layer on each image of a dataset, by the image's name."""
    _, network, folder = built
    extractor = Extractor(network.network)
    values = {}
    for path in sorted((folder / ("day", "night")[side]).iterdir()):
        taps: list[np.ndarray] = []
        pixels = images.load(path.read_bytes(), tiny.RULE).values[None]
        extractor.observe(pixels, lambda _, x, taps=taps: taps.append(x[0].numpy().copy()))
        values[path.name] = dict(zip("ab", taps, strict=True))
    return values


def short(image: Any) -> str:
    return (image.member or storage.local_path(image.uri)).rpartition("/")[2]


def test_the_images_of_a_neuron_lie_where_the_histograms_part(
    built: tuple[Catalogue, tiny.Place, Path], found: Explanation
) -> None:
    catalogue = built[0]
    dnas = [catalogue.load(name) for name in ("day", "night")]
    starts = {"a": 0, "b": tiny.WIDTHS[0]}
    seen = [activations(built, side) for side in (0, 1)]
    assert found.look is not None
    assert found.look.images == (DAY, NIGHT)
    assert found.look.notes == ()
    assert any(all(group.images or ()) for group in found.groups)
    for group in found.groups:
        place = np.array([starts[group.layer] + group.neuron])
        a, b = (cumulative(dna, place)[0] for dna in dnas)
        table = leaning(a, b)
        low, high = (float(side[place[0]]) for side in (dnas[0].low, dnas[0].high))
        assert group.images is not None
        for side, chosen in enumerate(group.images):
            leans, above = {}, {}
            for name, values in seen[side].items():
                own = values[group.layer][:, group.neuron].astype(float)
                at = np.floor((own - low) / (high - low) * tiny.BINS).astype(int)
                leans[name] = table[np.clip(at, 0, tiny.BINS - 1)].mean()
                above[name] = (own > group.parting.value).mean()
            best = max(leans.values()) if side == 0 else -min(leans.values())
            assert len(chosen) <= CHOSEN
            for image in chosen:
                assert image.lean == pytest.approx(leans[short(image)], abs=1e-4)
                assert image.above == pytest.approx(above[short(image)], abs=1e-4)
                assert image.lean * (-1 if side else 1) >= CLEARLY * best - 1e-6
            if chosen:
                assert abs(chosen[0].lean) == pytest.approx(best, abs=1e-4)
                assert chosen[0].image().size[0] > tiny.SIDE
            else:
                assert best <= 0


def test_unlike_images_are_those_whose_rank_differs_most(
    built: tuple[Catalogue, tiny.Place, Path], found: Explanation, tmp_path: Path
) -> None:
    catalogue, network, folder = built
    distances = {}
    for to in ("day", "night"):
        request = RankRequest(str(folder / "day"), to, weights=network.weights, top=DAY)
        ranking = rank(catalogue, request, InProcess(), resources=Resources(workers=0))
        distances[to] = {storage.local_path(of.entry.uri): of.emd for of in ranking.nearest}
    assert found.look is not None
    of_day, of_night = found.look.unlike
    assert of_night
    assert len(of_day) <= CHOSEN
    gaps = {path: distances["night"][path] - own for path, own in distances["day"].items()}
    for image in of_day:
        path = storage.local_path(image.uri)
        assert image.to_other == pytest.approx(distances["night"][path], rel=1e-9)
        assert image.to_own == pytest.approx(distances["day"][path], rel=1e-9)
    first = storage.local_path(of_day[0].uri)
    assert gaps[first] == max(gaps.values())


def test_an_odd_image_that_is_far_from_both_is_not_the_most_unlike_the_other(
    built: tuple[Catalogue, tiny.Place, Path], tmp_path: Path
) -> None:
    _, network, folder = built
    shutil.copytree(folder / "day", tmp_path / "day")
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    stripes[::2, :, 0] = 255
    Image.fromarray(stripes).resize((tiny.SIDE, tiny.SIDE), 0).save(tmp_path / "day" / "odd.png")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    requests = [
        Request(name, str(source), **network.options)  # type: ignore[arg-type]
        for name, source in (("day", tmp_path / "day"), ("night", folder / "night.tar"))
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    request = RankRequest(str(tmp_path / "day"), "night", weights=network.weights, top=1)
    (farthest,) = rank(catalogue, request, InProcess(), resources=Resources(workers=0)).farthest
    assert farthest.entry.uri.endswith("odd.png")
    found = explain(catalogue, "day", "night", look=1000, weights=network.weights)
    assert found.look is not None
    first, *_ = found.look.unlike[0]
    assert short(first) != "odd.png"
    assert first.to_other < farthest.emd


def test_neurons_whose_means_move_together_over_the_folds_are_one(
    built: tuple[Catalogue, tiny.Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few neurons seldom correlate by as much as it takes; here it takes less."""
    monkeypatch.setattr(neuron_groups, "CORRELATED", 0.3)
    catalogue = built[0]
    found = explain(catalogue, "day", "night")
    means = []
    for name, version in found.versions.items():
        side = Side.open(catalogue, name, version, ["a", "b"])
        assert side.folds is not None
        of_layers = []
        for layer in ("a", "b"):
            parts = [side.dna.read([layer]), *side.folds.read_folds(layer).values()]
            whole, *folds = (cumulative(part).sum(axis=1) for part in parts)
            of_layers.append(np.array(folds) - whole)
        means.append(np.concatenate(of_layers, axis=1))
    starts = {"a": 0, "b": tiny.WIDTHS[0]}
    names = [(row["layer"], row["neuron"]) for row in found.neurons.to_pylist()]
    moves = np.concatenate(means).T[[starts[layer] + neuron for layer, neuron in names]]
    kept = [
        numbered(kept_exemplars(catalogue, *of), names, of[1].images)
        for of in found.versions.items()
    ]
    expected = choose_groups(found.neurons, {}, moves.astype(np.float32), kept, 20)
    assert [(of.place, list(of.others)) for of in found.groups] == [
        (first, ["{}[{}]".format(*names[other]) for other in others]) for first, others in expected
    ]
    assert any(of.others for of in found.groups)


def test_no_photograph_is_chosen_twice_and_origins_take_turns(
    built: tuple[Catalogue, tiny.Place, Path], tmp_path: Path
) -> None:
    _, network, folder = built
    shutil.copytree(folder / "night", tmp_path / "night")
    for k, path in enumerate(sorted((tmp_path / "night").iterdir())):
        path.rename(path.with_name(f"{'barn' if k % 3 else 'cat'}-{k}.png"))
    for k in range(6):
        shutil.copy(tmp_path / "night" / "barn-1.png", tmp_path / "night" / f"dune-{k}.png")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    requests = [
        Request(name, str(source), **network.options)  # type: ignore[arg-type]
        for name, source in (("day", folder / "day"), ("night", tmp_path / "night"))
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    found = explain(catalogue, "day", "night", look=1000, weights=network.weights)
    assert found.look is not None
    several = 0
    sides = [group.images[1] for group in found.groups if group.images is not None]
    for chosen in (*sides, found.look.unlike[1]):
        prints = [fingerprint(np.asarray(of.image().resize((8, 8)))) for of in chosen]
        for i, one in enumerate(prints):
            assert not any(is_one_photograph(one, other) for other in prints[:i])
        origins = [origin_of(Entry(of.uri, of.member, 0, "")) for of in chosen]
        kinds = len(set(origins))
        assert len(set(origins[:kinds])) == kinds
        several += kinds > 1
    assert several


def test_images_that_are_gone_are_counted_and_one_is_named(
    copied: tuple[Catalogue, tiny.Place, Path],
) -> None:
    catalogue, network, folder = copied
    gone = sorted(folder.iterdir())[:3]
    for path in gone:
        path.unlink()
    found = explain(catalogue, "day", "night", look=1000, weights=network.weights)
    assert found.look is not None
    assert found.look.images == (DAY - 3, NIGHT)
    (note,) = found.look.notes
    assert note.startswith(f"3 of {DAY} images of day cannot be seen again: ")
    assert any(path.name in note for path in gone)
    named = [short(of) for group in found.groups for side in group.images or () for of in side]
    assert not {path.name for path in gone} & set(named)


def test_a_store_that_does_not_answer_is_a_note(
    built: tuple[Catalogue, tiny.Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> bytes:
        raise TransientError("the store did not answer")

    catalogue, network, _ = built
    monkeypatch.setattr(Members, "fetch", away)
    found = explain(catalogue, "day", "night", look=8, weights=network.weights)
    assert found.look is not None
    assert found.look.notes == ("Images were not looked at again: the store did not answer.",)
    assert all(group.images is None for group in found.groups)


def test_both_datasets_are_seen_when_the_time_is_over(
    built: tuple[Catalogue, tiny.Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, network, _ = built
    clock = iter([0.0, 1.0, 2.0, 3.0, *[1e9] * 20])
    monkeypatch.setattr(image_look, "monotonic", lambda: next(clock))
    monkeypatch.setattr(image_look, "TURN", 4)
    found = explain(catalogue, "day", "night", look=20, weights=network.weights)
    assert found.look is not None
    assert found.look.images == (8, 4)
    assert found.look.notes == (
        "12 of 20 images of day were left out: looking at images again took longer than 60 seconds",
        "16 of 20 images of night were left out: looking at images again took longer than "
        "60 seconds",
    )


def test_a_network_that_is_not_here_is_a_note(built: tuple[Catalogue, tiny.Place, Path]) -> None:
    catalogue, network, folder = built
    other = folder / "other.pt"
    other.write_bytes(Path(network.weights).read_bytes() + b" ")
    found = explain(catalogue, "day", "night", look=8, weights=str(other))
    assert found.look is not None
    (note,) = found.look.notes
    assert note.startswith("Images were not looked at again: ")
    assert found.look.images == (0, 0)


def test_through_weights_below_zero_no_image_is_unlike(
    built: tuple[Catalogue, tiny.Place, Path],
) -> None:
    catalogue, network, _ = built
    spec = catalogue.spec(catalogue.find("day").spec)
    lens = Lens.from_rows("few", spec, [("a", 1, 2.0), ("b", 2, -1.0)])
    found = explain(catalogue, "day", "night", lens=lens, look=12, weights=network.weights)
    assert found.look is not None
    assert found.look.unlike == ((), ())
    assert any("weights below 0" in note for note in found.look.notes)
    assert found.groups
    assert {group.name for group in found.groups} <= {"a[1]", "b[2]"}
    assert all(group.images is not None for group in found.groups)
    only = explain(catalogue, "day", "night", layers=["b"], look=12, weights=network.weights)
    assert only.look is not None
    assert only.look.unlike[1]
    assert {group.layer for group in only.groups} == {"b"}


def test_the_same_look_finds_the_same(
    built: tuple[Catalogue, tiny.Place, Path],
) -> None:
    catalogue, network, _ = built
    one, other = (
        explain(catalogue, "day", "night", look=10, weights=network.weights) for _ in range(2)
    )
    assert one.look == other.look
    assert one.groups == other.groups


def test_a_look_leaves_the_switches_of_torch_as_they_were(
    built: tuple[Catalogue, tiny.Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that explains goes on to train."""
    catalogue, network, _ = built
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    image_look._extractor.cache_clear()
    try:
        found = explain(catalogue, "day", "night", look=4, weights=network.weights)
        assert found.look is not None
        assert found.look.images == (4, 4)
        assert torch.get_num_threads() == 3
        assert torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.deterministic
        assert torch.equal(torch.get_rng_state(), random)
    finally:
        torch.set_num_threads(threads)
