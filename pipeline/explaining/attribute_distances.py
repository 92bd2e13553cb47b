"""Measures what neurons see of attributes, and fits lenses to it.

    >>> seen = AttributeDistances.of(catalogue, ["foggy:clear"], None, None)   # doctest: +SKIP
    >>> seen.fit("no-fog", ["ignored"]).suppression                            # doctest: +SKIP

An attribute is a pair of datasets, with it and without. What neurons see of it is their distance
between the two, corrected for the sizes of the samples, and for the images that are in pairs. A
lens that ignores it is fitted to the plain distance, of which the correction takes too much (see
`lens_problem`). If the two are the very same images with a change and without (WITH=WITHOUT), it is
their plain distance. How differently images take the change adds to that, the less the more images
there are.

The ridge of a fit (see `lens_problem`) is the one that does best if fitted on half of the folds of
every dataset and scored on the other half. These scores are also the ones that are reported, and
that a lens carries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue, Version, software
from pipeline.comparing import (
    FALSE_DISCOVERY_RATE,
    LEAST_FOLDS,
    FoldCurves,
    adjusted,
    neuron_estimates,
    paired_estimates,
    resolve_versions,
)
from pipeline.dna import DNA, DnaFile, Floats, Lens, Pairs
from pipeline.errors import UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining.altered_sample import AlteredSample
from pipeline.explaining.attribute import Attribute, attributes_of
from pipeline.explaining.fitted_lens import FittedLens, Role, Score, mean_of
from pipeline.explaining.lens_problem import FitProblem, NeuronDistances
from pipeline.spec import Spec
from pipeline.wording import count_of, option

RIDGES = tuple(float(value) for value in np.logspace(1, -5, 19))
"""The ridges that are tried. The strongest comes first, so it wins a tie."""

NEEDED_FOLDS = 2 * LEAST_FOLDS
"""The fewest folds of a dataset. A lens is fitted on half of them and scored on the other half."""


@dataclass(frozen=True, eq=False)
class FoldReader:
    """Reads the folds of a dataset, or of a sample.

    Attributes:
        read: Reads a layer of the folds, by their numbers.
        pairs: By which names the images are paired with others'. None where that is not known.
    """

    read: Callable[[str], Mapping[int, DNA]]
    pairs: Pairs | None = None


@dataclass(frozen=True, eq=False)
class AttributeDistances:
    """What neurons see of attributes. Lenses are fitted to it without another look at the datasets.

    Attributes:
        attributes: The A attributes as text.
        spec: Spec of the datasets.
        members: Digest of the DNA of each dataset of a catalogue.
        images: Images of each.
        whole: Distances of all folds.
        halves: Distances of half of the folds, each followed by those of its other half.
        p: (A, N) p of each neuron.
        sample: Of which images the changes are, and which changes; None if there are none.
    """

    attributes: tuple[str, ...]
    spec: Spec
    members: Mapping[str, str]
    images: Mapping[str, int]
    whole: NeuronDistances
    halves: tuple[NeuronDistances, ...]
    p: Floats
    sample: Mapping[str, Any] | None = None

    @property
    def layers(self) -> NDArray[np.intp]:
        """(N,) number of each neuron's layer."""
        return np.repeat(np.arange(len(self.spec.taps)), [tap.neurons for tap in self.spec.taps])

    @cached_property
    def detected(self) -> NDArray[np.bool_]:
        """(A,) whether any neuron differs at a false discovery rate of 5%."""
        return np.array([bool((adjusted(row) < FALSE_DISCOVERY_RATE).any()) for row in self.p])

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        attributes: Sequence[str],
        spec: str | None,
        at: int | str | None,
        progress: Listener | None = None,
        sample: AlteredSample | None = None,
    ) -> AttributeDistances:
        """Measures attributes. Raises as `compare` does, too.

        Args:
            catalogue: Where the datasets are.
            attributes: The attributes, as WITH:WITHOUT or WITH=WITHOUT, or as words of changes.
            spec: Digest of the spec; None to choose it as `compare` does.
            at: The commit or time to look at; None for the newest.
            progress: Is told of each layer.
            sample: Images with these changes, and without; None if there are no such words.

        Returns:
            What neurons see of them.

        Raises:
            UsageError: If an attribute is named twice, a dataset has too few folds, or images that
                should be the same are not.
        """
        parsed = attributes_of(attributes)
        pairs = [of for of in parsed if not of.is_change]
        names = list(dict.fromkeys(name for of in pairs for name in (of.with_it, of.without)))
        digest, versions = (
            resolve_versions(catalogue, names, at=at, spec=sample.spec if sample else spec)
            if names or sample is None
            else (sample.spec, {})
        )
        files = {name: _folds(catalogue, name, version) for name, version in versions.items()}
        readers = {name: FoldReader(file.read_folds, file.pairs) for name, file in files.items()}
        if sample:
            readers |= {name: FoldReader(folds.read) for name, folds in sample.folds.items()}
        _require_pairs(catalogue, pairs, versions)
        return replace(
            cls.measured(parsed, catalogue.spec(digest), readers, progress),
            members={name: version.dna for name, version in versions.items()},
            images={name: version.images for name, version in versions.items()},
            sample=sample.provenance if sample else None,
        )

    @classmethod
    def measured(
        cls,
        attributes: Sequence[Attribute],
        spec: Spec,
        readers: Mapping[str, FoldReader],
        progress: Listener | None = None,
    ) -> AttributeDistances:
        """Measures attributes of sets of images, wherever these are.

        Args:
            attributes: The attributes.
            spec: The spec of the sets.
            readers: What reads the folds of each set that an attribute names.
            progress: Is told of each layer.

        Returns:
            What neurons see of the attributes.
        """
        progress = progress or ignore
        total, layers = len(attributes) * spec.neurons, len(spec.taps)
        parts: list[list[list[Floats]]] = []
        with stage(progress, Started(total, layers, unit="neurons", step="layers")):
            for tap in spec.taps:
                parts.append(list(_layer(readers, attributes, tap.name)))
                progress(StepDone(len(attributes) * tap.neurons, name=tap.name))
        of_attributes = [
            [np.concatenate(columns) for columns in zip(*layers, strict=True)]
            for layers in zip(*parts, strict=True)
        ]
        p, *columns = (np.array(rows) for rows in zip(*of_attributes, strict=True))
        whole, *halves = map(NeuronDistances, columns[::3], columns[1::3], columns[2::3])
        return cls(tuple(map(str, attributes)), spec, {}, {}, whole, tuple(halves), p)

    def fit(
        self,
        name: str,
        roles: Sequence[Role],
        *,
        non_negative: bool = False,
        by_layer: bool = False,
    ) -> FittedLens:
        """Fits a lens that ignores and keeps these attributes.

        Args:
            name: Name of the lens.
            roles: What the lens should do with each attribute.
            non_negative: Whether weights may not be negative.
            by_layer: Whether all neurons of a layer have the same weight.

        Returns:
            The lens with its scores.
        """
        groups = self.layers if by_layer else np.arange(self.spec.neurons)
        whole, *halves = (FitProblem(of, roles) for of in (self.whole, *self.halves))

        def fitted(ridge: float) -> list[tuple[Floats, FitProblem]]:
            """Returns weights of each half, with the other half."""
            weights = (of.fit(ridge, groups, non_negative=non_negative) for of in halves)
            return list(zip(weights, other_halves(halves), strict=True))

        def lost(ridge: float) -> float:
            return mean_of([of.loss(x, self.detected) for x, of in fitted(ridge)])

        ridge = min(RIDGES, key=lost)
        weights = whole.fit(ridge, groups, non_negative=non_negative) / self.spec.neurons
        through = np.mean([of.through(x) for x, of in fitted(ridge)], axis=0)
        scores = self.scores(roles, through)
        how = {
            "kind": "ignore",
            "ignored_as": "plain",
            "non_negative": non_negative,
            "by": "layer" if by_layer else "neuron",
            "ridge": ridge,
        }
        return FittedLens(
            Lens(name, self.spec.shape, weights, self.provenance(how, scores)), scores, ridge
        )

    def scores(self, roles: Sequence[Role], through: Floats) -> tuple[Score, ...]:
        """Scores a lens.

        Args:
            roles: What the lens should do with each attribute.
            through: (A,) distances through the lens, as shares of the plain ones.

        Returns:
            A score for each attribute.
        """
        plain = np.mean([half.distances.mean(axis=1) for half in self.halves], axis=0)
        columns = (self.attributes, roles, plain.tolist(), through.tolist(), self.detected.tolist())
        return tuple(Score(*row) for row in zip(*columns, strict=True))

    def provenance(self, how: Mapping[str, Any], scores: Sequence[Score]) -> dict[str, Any]:
        """States what a lens was fitted on, how, and how it does.

        Args:
            how: The options of the fit.
            scores: Its scores.

        Returns:
            What the lens carries.
        """
        return {
            **how,
            "members": dict(self.members),
            "images": dict(self.images),
            **({"sample": dict(self.sample)} if self.sample else {}),
            "spec": self.spec.digest,
            "weights_sha256": self.spec.weights_sha256,
            "held_out": [asdict(score) for score in scores],
            "software": software(),
        }


def other_halves(halves: Sequence[Any]) -> list[Any]:
    """Returns the other half of the folds for each half."""
    return [halves[at ^ 1] for at in range(len(halves))]


def _require_pairs(
    catalogue: Catalogue, attributes: Sequence[Attribute], versions: Mapping[str, Version]
) -> None:
    """Checks that each fold of a dataset has images of the same names as that fold of the other.

    Raises:
        UsageError: If not; the message has the first name that is missing.
    """
    held: dict[str, pa.Table] = {}
    for attribute in (of for of in attributes if of.paired):
        both = attribute.with_it, attribute.without
        held = {
            name: held[name] if name in held else _pictures(catalogue, name, versions[name])
            for name in both  # most attributes share the dataset without
        }
        with_it, without = (held[name] for name in both)
        if with_it.equals(without):
            continue
        rows = [Counter(zip(*of.to_pydict().values(), strict=True)) for of in (with_it, without)]
        picture, fold = min((rows[0] - rows[1]) + (rows[1] - rows[0]))
        here, there = both if rows[0][picture, fold] > rows[1][picture, fold] else both[::-1]
        raise UsageError(
            f"{attribute}: the two datasets do not hold the same images: {picture} is in "
            f"fold {fold} "
            f"of {here}, but not of {there}. Images are paired by the name of their file, without "
            "its suffix, and by their fold. Build both again under other names, of the same paths "
            f"below their sources or with {option('pair_by', 'stem')}, without a limit; or write a "
            "colon, for datasets of different images"
        )


def _pictures(catalogue: Catalogue, name: str, version: Version) -> pa.Table:
    """Returns name and fold of each image that was counted, in order."""
    columns = ["uri", "member", "fold"]
    rows = pa.concat_tables(
        table.select(columns[:2]).append_column("fold", pa.repeat(head.fold, table.num_rows))
        for head, table in catalogue.manifest(name, version).tables()
    )
    if version.failed:
        failures = catalogue.failures(name, version)
        bad = {key: [getattr(of, key) for of in failures] for key in columns[:2]}
        rows = rows.join(pa.table(bad), columns[:2], join_type="left anti")
    file = pc.if_else(pc.equal(rows["member"], ""), rows["uri"], rows["member"])
    for pattern in ("^.*/", r"\.[^.]*$"):
        file = pc.replace_substring_regex(file, pattern, "")
    pictures = pa.table({"picture": file, "fold": rows["fold"]})
    return pictures.sort_by([("picture", "ascending"), ("fold", "ascending")])


def _folds(catalogue: Catalogue, name: str, version: Version) -> DnaFile:
    """Opens the folds of a dataset.

    Returns:
        The open file.

    Raises:
        UsageError: If there are too few folds.
    """
    if "folds" not in version.sha256:
        raise UsageError(f"{name} was imported without folds, which fitting a lens needs")
    file = catalogue.open_file("folds", name, version, on_disk=True)
    if len(file.folds) < NEEDED_FOLDS:
        raise UsageError(
            f"{name} has {count_of(len(file.folds), 'fold')}; fitting a lens on half of its folds "
            f"and scoring it on the others takes {NEEDED_FOLDS}, and so at least as many images"
        )
    return file


def _layer(
    readers: Mapping[str, FoldReader], attributes: Sequence[Attribute], layer: str
) -> Iterator[list[Floats]]:
    """Measures the attributes in one layer.

    Yields:
        For each attribute, by neuron: p, then distance, variance and plain distance of all folds
        and of each half.
    """
    held: dict[str, list[FoldCurves]] = {}

    def curves(name: str, other: str) -> list[FoldCurves]:
        """Returns the curves of a dataset. Most attributes share the one without."""
        if name not in held:
            while len(held) > 1:
                held.pop(next(of for of in held if of != other))
            reader = readers[name]
            folds = reader.read(layer)
            held[name] = [_curves(some, reader.pairs) for some in (folds, *_halves(folds))]
        return held[name]

    for attribute in attributes:
        names = attribute.without, attribute.with_it
        pairs = list(zip(curves(*names), curves(*names[::-1]), strict=True))
        tested = paired_estimates if attribute.paired else neuron_estimates
        columns = [tested(*pairs[0], test=True)["p"]]
        for a, b in pairs:
            if attribute.paired:
                of, distance = paired_estimates(a, b), "emd"
            else:
                of, distance = neuron_estimates(a, b, test=False), "emd_corrected"
            columns += map(np.nan_to_num, (of[distance], of["se"] ** 2, of["emd"]))
        yield columns


def _halves(folds: Mapping[int, DNA]) -> list[Mapping[int, DNA]]:
    """Returns two ways to halve folds: every other one, and every other two; each half in turn.

    They are cut by number: an image has the same fold in a sample as in its dataset, where one of
    them may lack some folds.
    """
    return [
        {number: fold for number, fold in folds.items() if number // each % 2 == side}
        for each in (1, 2)
        for side in (0, 1)
    ]


def _curves(folds: Mapping[int, DNA], pairs: Pairs | None) -> FoldCurves:
    """Makes the curves of all folds, or of a half.

    Images of a pair are in one fold, so a half has about the share of pairs that all folds have. It
    takes the share of all: then a half is estimated as the whole is, as pairs or not.

    Args:
        folds: A layer of these folds, by their numbers.
        pairs: By which names the images of the dataset are paired with others'.

    Returns:
        The curves of the sum of the folds.
    """
    return FoldCurves.of([reduce(DNA.__add__, folds.values())], [folds], [pairs])
