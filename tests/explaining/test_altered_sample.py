"""Tests lenses that start from a word: the sample, its copies, the fit, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from typer.testing import CliRunner

import pipeline
from jobs.app import app
from pipeline import storage
from pipeline.altered_pictures import PICTURE_CHANGES, altered
from pipeline.building import Request, build_datasets, make_dna
from pipeline.catalogue import Catalogue, find_lens
from pipeline.dna import DNA, HeldFolds
from pipeline.engine import InProcess
from pipeline.errors import SourceError, TransientError, UsageError
from pipeline.events import Event, Said, Started, StepDone, ignore
from pipeline.explaining import FittedLens, Score
from pipeline.explaining.altered_sample import AlteredSample, count_altered
from pipeline.explaining.attribute import UNCHANGED
from pipeline.explaining.attribute_distances import _halves
from pipeline.explaining.sample_draw import draw_sample, sampled_versions
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import same_counts, write_photos

DATASETS = {"bay": 44, "cliff": 40}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, tiny.Place, Path]:
    folder = tmp_path_factory.mktemp("altered")
    network = tiny.install(folder)
    for at, (name, images) in enumerate(DATASETS.items()):
        for path in write_photos(folder / name, images, 1000 * at):
            if at:
                with Image.open(path) as image:
                    red, green, blue = image.split()
                    bluer = Image.merge("RGB", (red.point(lambda value: value // 2), green, blue))
                bluer.save(path, quality=95)
    return catalogue_of(folder, network), network, folder


def catalogue_of(folder: Path, network: tiny.Place, **options: object) -> Catalogue:
    catalogue = Catalogue(str(folder / "catalogue"))
    requests = [
        Request(name, str(folder / name), **network.options, **options)  # type: ignore[arg-type]
        for name in DATASETS
        if (folder / name).exists()
    ]
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


def sample_of(
    catalogue: Catalogue, network: tiny.Place, *words: str, count: int | None = None, **how: object
) -> AlteredSample:
    commit = catalogue.head()
    versions = sampled_versions(catalogue, catalogue.spec_digest(commit), commit.number, ())
    options = {"group_by": "build", "least_folds": 12, "progress": ignore, **how}
    return count_altered(
        catalogue,
        versions,
        words,
        count=count,
        weights=network.weights,
        **options,  # type: ignore[arg-type]
    )


def whole(folds: HeldFolds, layer: str) -> DNA:
    first, *rest = folds.read(layer).values()
    return sum(rest, first)


def test_every_image_counts_once_in_its_own_fold(
    built: tuple[Catalogue, tiny.Place, Path],
) -> None:
    """As they are, all images of all datasets make the folds of the datasets, to the bit."""
    catalogue, network, _ = built
    sample = sample_of(catalogue, network, "brightness", count=1000)
    assert sample.images == DATASETS
    assert list(sample.folds) == [
        UNCHANGED,
        *(f"brightness {by:g}" for by in PICTURE_CHANGES["brightness"].strengths),
    ]
    files = [catalogue.open_file("folds", name, catalogue.find(name)) for name in DATASETS]
    for layer in files[0].spec.layers:
        own, other = (file.read_folds(layer) for file in files)
        expected = {fold: own[fold] + other[fold] for fold in own}
        for name, folds in sample.folds.items():
            counted = folds.read(layer)
            assert {fold: dna.images for fold, dna in counted.items()} == {
                fold: dna.images for fold, dna in expected.items()
            }
            same = [same_counts(counted[fold], expected[fold]) for fold in expected]
            assert all(same) if name == UNCHANGED else not any(same)


def test_copies_are_counted_as_pictures_that_were_altered_beforehand(
    built: tuple[Catalogue, tiny.Place, Path],
) -> None:
    catalogue, network, folder = built
    sample = sample_of(catalogue, network, "noise", "crop", count=1000)
    paths = [path for name in DATASETS for path in sorted((folder / name).iterdir())]
    for word in ("noise", "crop"):
        by = PICTURE_CHANGES[word].strengths[1]
        pictures = [
            altered(Image.open(path).convert("RGB"), word, by, storage.spelled(path.as_uri()))
            for path in paths
        ]
        truth = make_dna(pictures, **network.options)  # type: ignore[arg-type]
        for layer in truth.layers:
            found = whole(sample.folds[f"{word} {by:g}"], layer)
            assert np.array_equal(found.counts, truth.select([layer]).counts)


def test_a_sample_is_the_same_every_time_and_of_all_datasets(
    built: tuple[Catalogue, tiny.Place, Path],
) -> None:
    catalogue, network, _ = built
    versions = catalogue.find_all(DATASETS)
    drawn = draw_sample(catalogue, versions, 50, "build")
    assert drawn == draw_sample(catalogue, versions, 50, "build")
    assert len({image.entry.uri for image in drawn}) == 50
    assert [image.fold for image in drawn] == sorted(image.fold for image in drawn)
    for name in DATASETS:
        assert sum(image.dataset == name for image in drawn) == 25
    few = draw_sample(catalogue, {"bay": versions["bay"]}, 1000, "build")
    assert len(few) == DATASETS["bay"]
    one, other = (sample_of(catalogue, network, "noise", count=50) for _ in range(2))
    for name, folds in one.folds.items():
        for layer in ("a", "b"):
            assert same_counts(whole(folds, layer), whole(other.folds[name], layer))


def test_images_of_one_stem_are_in_one_fold(
    built: tuple[Catalogue, tiny.Place, Path], tmp_path: Path
) -> None:
    """Crops of one photograph that a build has spread over the folds are not on both sides."""
    _, network, folder = built
    for name in DATASETS:
        (tmp_path / name).mkdir()
        for at, path in enumerate(sorted((folder / name).iterdir())):
            shutil.copy(path, tmp_path / name / f"place{at % 14}_{name}-{at:03d}.jpg")
    catalogue = catalogue_of(tmp_path, network)
    versions = catalogue.find_all(DATASETS)

    def folds_of(group_by: str) -> Mapping[str, set[int]]:
        folds = defaultdict(set)
        for image in draw_sample(catalogue, versions, 100, group_by):  # type: ignore[arg-type]
            folds[image.stem].add(image.fold)
        return folds

    spread, kept = folds_of("build"), folds_of("stem")
    assert set(spread) == set(kept) == {f"place{at}" for at in range(14)}
    assert max(map(len, spread.values())) > 1
    assert {len(of) for of in kept.values()} == {1}
    assert len(set.union(*kept.values())) == 14
    sample = sample_of(catalogue, network, "blur", count=100, group_by="stem")
    assert len(sample.folds[UNCHANGED].read("a")) == 14
    assert sample.provenance["group_by"] == "stem"


def test_few_stems_are_refused_with_what_they_are(
    built: tuple[Catalogue, tiny.Place, Path],
) -> None:
    catalogue, network, _ = built
    says = r"have 1 stem \(photo\); a lens takes 12 folds, .* Leave `group_by='stem'` out"
    with pytest.raises(UsageError, match=says):
        sample_of(catalogue, network, "blur", group_by="stem")
    with pytest.raises(UsageError, match=r"the sample has 9 images in \d folds; .*`sample=200`"):
        sample_of(catalogue, network, "blur", count=9)


@pytest.fixture
def copied(
    built: tuple[Catalogue, tiny.Place, Path], tmp_path: Path
) -> tuple[Catalogue, tiny.Place, Path]:
    """Builds the same again, so that a test may remove the images."""
    _, network, folder = built
    for name in DATASETS:
        shutil.copytree(folder / name, tmp_path / name)
    return catalogue_of(tmp_path, network), network, tmp_path


def test_images_that_are_gone_are_left_out_of_every_set(
    copied: tuple[Catalogue, tiny.Place, Path],
) -> None:
    catalogue, network, folder = copied
    gone = sorted((folder / "bay").iterdir())[:5]
    for path in gone[:4]:
        path.unlink()
    gone[4].write_bytes(b"something else")
    told: list[Event] = []
    sample = sample_of(catalogue, network, "blur", count=1000, progress=told.append)
    assert sample.images == {"bay": DATASETS["bay"] - 5, "cliff": DATASETS["cliff"]}
    images = {name: whole(folds, "a").images for name, folds in sample.folds.items()}
    assert set(images.values()) == {sum(DATASETS.values()) - 5}
    (said,) = [e.message for e in told if isinstance(e, Said) and "cannot be read" in e.message]
    assert said.startswith(f"5 of 84 images cannot be read any more (file://{folder}/bay/")
    (started,) = [event for event in told if isinstance(event, Started)]
    done = [event for event in told if isinstance(event, StepDone)]
    assert started.total == sum(step.units for step in done) == 4 * sum(DATASETS.values())
    assert sum(step.failures for step in done) == 4 * 5
    shutil.rmtree(folder / "bay")
    shutil.rmtree(folder / "cliff")
    with pytest.raises(SourceError, match=r"4\d of 84 images cannot .* `sample_of=\['photos'\]`"):
        sample_of(catalogue, network, "blur", count=1000)


def test_a_store_that_does_not_answer_ends_the_fit(
    built: tuple[Catalogue, tiny.Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is left out for a reason that may be gone in a minute."""
    catalogue, network, _ = built

    def fail(*_: object) -> bytes:
        raise TransientError("no answer")

    monkeypatch.setattr("pipeline.sources.archives.members.Members.fetch", fail)
    with pytest.raises(TransientError, match="no answer"):
        sample_of(catalogue, network, "blur")


@pytest.fixture(scope="module")
def fitted(built: tuple[Catalogue, tiny.Place, Path]) -> FittedLens:
    catalogue, network, _ = built
    return pipeline.fit_lens(
        catalogue, "dim-light", ignore=["brightness"], sample=1000, weights=network.weights
    )


def test_a_word_is_enough_for_a_lens(
    built: tuple[Catalogue, tiny.Place, Path], fitted: FittedLens
) -> None:
    """All strengths are ignored; what is kept are the distances between the datasets."""
    catalogue, *_ = built
    steps = [f"brightness {by:g}" for by in PICTURE_CHANGES["brightness"].strengths]
    roles = {score.attribute: score.role for score in fitted.scores}
    kept = roles.popitem()
    assert roles == dict.fromkeys(steps, "ignored")
    assert sorted(kept[0].split(":")) == sorted(DATASETS)
    assert kept[1] == "kept"
    assert all(score.seen for score in fitted.scores)
    assert fitted.suppression > 0.5
    told = find_lens(catalogue, "dim-light", catalogue.spec(catalogue.find("bay").spec)).provenance
    assert told["sample"] == {
        "images": DATASETS,
        "members": {name: catalogue.find(name).dna for name in DATASETS},
        "lost": 0,
        "changes": {"brightness": list(PICTURE_CHANGES["brightness"].strengths)},
        "group_by": "build",
        "pillow": PIL.__version__,
    }
    assert told["members"] == {name: catalogue.find(name).dna for name in DATASETS}
    assert tuple(Score(**score) for score in told["held_out"]) == fitted.scores


def test_words_can_be_kept_and_mixed_with_datasets(
    built: tuple[Catalogue, tiny.Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, network, _ = built
    how = {"sample": 60, "weights": network.weights, "save": False}
    found = pipeline.fit_lens(
        catalogue,
        "x",
        ignore=["blur"],
        keep=["hue"],
        sample_of=["cliff"],
        **how,  # type: ignore[arg-type]
    )
    assert found.lens.provenance["sample"]["images"] == {"cliff": DATASETS["cliff"]}
    assert found.lens.provenance["members"] == {}
    assert found.lens.fitted_on == {"cliff": catalogue.find("cliff").dna}
    assert [s.role for s in found.scores] == ["ignored"] * 3 + ["kept"] * 4
    found = pipeline.fit_lens(
        catalogue,
        "x",
        ignore=["blur", "bay:cliff"],
        keep=["hue"],
        **how,  # type: ignore[arg-type]
    )
    assert [s.attribute for s in found.scores if s.role == "ignored"][-1] == "bay:cliff"
    monkeypatch.setattr("pipeline.explaining.lens_fit.count_altered", None)  # refused before
    with pytest.raises(UsageError, match="an attribute is named twice among blur, blur"):
        pipeline.fit_lens(catalogue, "x", ignore=["blur"], keep=["blur"], **how)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"every distance between .* is to be ignored"):
        pipeline.fit_lens(catalogue, "x", ignore=["blur", "cliff:bay"], **how)  # type: ignore[arg-type]
    for keep in ([], ["bay:cliff"]):
        with pytest.raises(UsageError, match="deals the sample's images anew"):
            pipeline.fit_lens(
                catalogue,
                "x",
                ignore=["blur"],
                keep=keep,
                group_by="stem",
                **how,  # type: ignore[arg-type]
            )


def test_halves_of_a_sample_and_of_a_dataset_have_the_same_folds() -> None:
    """Else a lens would be scored on images whose copies it was fitted to."""
    whole = dict.fromkeys(range(16), None)
    for gone in range(16):
        some = {number: None for number in whole if number != gone}
        for half, of_whole in zip(_halves(some), _halves(whole), strict=True):  # type: ignore[arg-type]
            assert set(half) == set(of_whole) - {gone}
    first, second, *others = map(set, _halves(whole))  # type: ignore[arg-type]
    assert first | second == set.union(*others) == set(whole)
    assert first.isdisjoint(second)
    assert others[0].isdisjoint(others[1])


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["lens", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_fits_shows_and_lists(built: tuple[Catalogue, tiny.Place, Path]) -> None:
    catalogue, network, _ = built
    root = ["-c", catalogue.root]
    said = run(
        *("fit", "any-light/few", "--ignore", "contrast", "--weights", network.weights),
        *("--sample", "70", *root),
    )
    for by in PICTURE_CHANGES["contrast"].strengths:
        assert f"contrast {by:g}, which the lens should ignore: " in said
    assert "of what is ignored is gone, what is kept changes by" in said
    assert "see through it with --lens any-light/few" in said
    assert (
        "70 images of bay and cliff, as they are and with these changes: contrast 0.5, 0.7, 1.4, 2"
    ) in run("show", "any-light/few", *root)
    assert "ignored contrast 0.5" in run("ls", *root)
    shown = json.loads(run("show", "any-light/few", "--json", *root))
    assert shown["sample"]["changes"] == {"contrast": [0.5, 0.7, 1.4, 2.0]}


def test_wrong_words_are_refused_with_an_example(
    built: tuple[Catalogue, tiny.Place, Path], tmp_path: Path
) -> None:
    catalogue = built[0]
    root = ["-c", catalogue.root]
    for words, says in {
        ("--ignore", "fog"): "brightness, contrast, saturation, hue, blur, noise, jpeg",
        ("--ignore", "rotate"): "scale, crop; such as --ignore rotation",
        ("--focus", "blur"): "a lens can ignore or keep it, as by --ignore blur",
        ("--ignore", "bay:cliff"): "name others to keep, such as --keep night:day",
        ("--ignore", "bay:cliff", "--sample", "9"): (
            "--sample is for a change that is made here; give one, such as --ignore brightness"
        ),
        ("--ignore", "bay:cliff", "--group-by", "stem"): "--group-by is for",
        (
            "--ignore",
            "blur",
            "--sample-of",
            "bay",
        ): "of bay it is 1 dataset. Name what to keep, such as --keep contrast",
        ("--ignore", "blur", "--group-by", "folder"): "'folder' is not one of 'build', 'stem'",
    }.items():
        done = CliRunner().invoke(app, ["lens", "fit", "x", *words, *root])
        assert done.exit_code == 2, words
        told = " ".join(done.output.replace("│", " ").split())
        assert says.lower() in told.lower(), words
    empty = Catalogue(str(tmp_path))
    done = CliRunner().invoke(app, ["lens", "fit", "x", "--ignore", "blur", "-c", empty.root])
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
