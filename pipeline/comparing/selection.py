"""Chooses the versions to compare, all under one spec, and states the job that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.catalogue import Catalogue, Version
from pipeline.comparing.comparison_job import Job
from pipeline.dna import Lens
from pipeline.errors import NotFound, UsageError
from pipeline.spec import LAYER_GAUSSIAN, Spec
from pipeline.wording import option, some_of


@dataclass(frozen=True)
class Selection:
    """The versions to compare, in order, all under one spec.

    Attributes:
        spec_digest: Digest of the spec.
        versions: The version of each dataset, by the name that was given.
    """

    spec_digest: str
    versions: Mapping[str, Version]

    @property
    def members(self) -> dict[str, str]:
        """The digest of each dataset's DNA."""
        return {name: version.dna for name, version in self.versions.items()}

    @classmethod
    def of(
        cls, catalogue: Catalogue, names: Sequence[str], at: int | str | None, spec: str | None
    ) -> Selection:
        """Chooses versions by the names of datasets.

        Args:
            catalogue: Where they are.
            names: The datasets, or names of versions; none for all datasets of the snapshot that
                have the spec.
            at: The commit or time to look at; None for the newest.
            spec: Digest of the spec. None takes the only one that all names share, or else the
                default.

        Returns:
            The selection.

        Raises:
            NotFound: If a dataset is unknown, or has no version under the spec.
            SpecMismatch: If a dataset is only known under other specs; the message names the
                fields.
            UsageError: If fewer than two datasets are left.
        """
        commit = catalogue.at(at)
        there: dict[str, Mapping[str, Version]] = dict(commit.datasets)
        for name in names:
            found = catalogue.look_up(name, commit, spec)
            there[name] = {each: named.version for each, named in found.items()}
        digest = _shared_spec(there, names) if spec is None and names else None
        of_names = {each for name in names for each in there[name]}
        digest = digest or catalogue.spec_digest(commit, spec, of_names)
        wanted = list(dict.fromkeys(names)) or [
            name for name, specs in sorted(commit.datasets.items()) if digest in specs
        ]
        missing = [name for name in wanted if digest not in there[name]]
        present = next((name for name in wanted if name not in missing), "the catalogue's default")
        for name in missing:
            for other in sorted(there[name]):
                catalogue.spec(digest).require_same(
                    catalogue.spec(other),
                    f"{present} (spec {digest[:12]})",
                    f"{name} (spec {other[:12]})",
                )
        if missing:
            have = sorted(name for name, specs in commit.datasets.items() if digest in specs)
            raise NotFound(
                f"no version of {', '.join(missing)} under spec {digest}; there are: "
                f"{', '.join(have)}"
            )
        if len(wanted) < 2:
            have = [name for name, specs in commit.datasets.items() if digest in specs]
            others = len(commit.datasets) - len(have)
            if names:
                why = f"only {wanted[0]} is named; "
                why += (
                    f"without a name all {len(have)} under its spec are compared"
                    if len(have) > 1
                    else "no other dataset is under its spec"
                )
            elif others:
                why = (
                    f"only {some_of(have)} is under spec {digest}; {others} are under others, "
                    f"which {option('spec')} chooses"
                )
            else:
                why = f"the catalogue has {f'only {some_of(have)}' if have else 'none'}"
            raise UsageError(f"compare needs two different datasets or more, and {why}")
        versions = {name: there[name][digest] for name in wanted}
        return cls(digest, versions)

    def job(
        self,
        catalogue: Catalogue,
        layers: Sequence[str] | None,
        *,
        fd: bool,
        lens: Lens | None,
        error_bars: bool,
    ) -> Job:
        """States what is computed of every pair of this selection.

        Args:
            catalogue: Where the datasets are.
            layers: The layers to compare; None for all of them, and their mean.
            fd: Whether the Fréchet distance of layers is asked for.
            lens: Weighs the neurons.
            error_bars: Whether estimates from folds are asked for. A lens with negative weights in
                the layers has none.

        Returns:
            The job, with resources left at their defaults.

        Raises:
            UsageError: If no layer is chosen or one is unknown, if the lens is on other neurons, or
                if `fd` is asked for with a lens or without layer Gaussians.
        """
        spec = catalogue.spec(self.spec_digest)
        if layers is not None and not layers:
            raise UsageError(f"no layer is chosen; {spec.extractor} has {', '.join(spec.layers)}")
        for layer in layers or ():
            spec.tap(layer)
        if lens is not None:
            lens.require_fit(spec)
        if fd and lens is not None:
            raise UsageError(
                f"fd compares whole layers, and cannot be seen through lens {lens.name}; leave one "
                "of them out"
            )
        kept = [version.products for version in self.versions.values()]
        if fd and not any(LAYER_GAUSSIAN in products for products in kept):
            raise UsageError(
                f"no layer Gaussians are kept of {', '.join(self.versions)}; fd needs them: build "
                f"with {option('layer_gaussian', True)}"
            )
        chosen = tuple(spec.layers if layers is None else dict.fromkeys(layers))
        error_bars = error_bars and (lens is None or not lens.has_negative_weight(chosen))
        return Job(catalogue.root, spec, chosen, layers is None, fd, lens, error_bars)


def resolve_versions(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    at: int | str | None = None,
    spec: str | None = None,
) -> tuple[str, Mapping[str, Version]]:
    """Chooses the versions that `compare` takes for these names. Raises as `compare` does.

    Args:
        catalogue: Where they are.
        names: The datasets; none for all.
        at: The commit or time to look at; None for the newest.
        spec: Digest of the spec; None to choose it as `compare` does.

    Returns:
        The digest of the spec, and the version of each dataset.
    """
    chosen = Selection.of(catalogue, names, at, spec)
    return chosen.spec_digest, chosen.versions


def spec_of(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    at: int | str | None = None,
    spec: str | None = None,
) -> Spec:
    """Finds the spec under which `compare` compares these names. Raises as `compare` does.

    Args:
        catalogue: Where they are.
        names: The datasets; none for all.
        at: The commit or time to look at; None for the newest.
        spec: Digest of the spec; None to choose it as `compare` does.

    Returns:
        The spec.
    """
    return catalogue.spec(resolve_versions(catalogue, names, at=at, spec=spec)[0])


def with_near(
    catalogue: Catalogue,
    names: Sequence[str],
    near: str | None,
    *,
    at: int | str | None = None,
    spec: str | None = None,
) -> Sequence[str]:
    """Returns the names to compare, with the one whose neighbours are looked for.

    The neighbours of an earlier version, or of a window of days, are looked for among all datasets
    as they are now, its own among them.

    Args:
        catalogue: Where they are.
        names: The datasets to look among; none for all.
        near: The one whose neighbours are looked for; None if there is no such one.
        at: The commit or time to look at; None for the newest.
        spec: Digest of the spec; None to choose it as `compare` does.

    Returns:
        The names. As they were given if `near` is compared anyway.

    Raises:
        NotFound: If names are given, and the catalogue does not have `near`.
        UsageError: If names are given, and `near` is not one of them.
    """
    if near is None or near in (among := names or catalogue.names(at, spec)):
        return names
    if not names:
        return [*among, near]
    catalogue.look_up(near, catalogue.at(at), spec)  # says of an unknown name what there is
    raise UsageError(
        f"{option('near')} is {near!r}, which is not among those compared: {some_of(among)}; name "
        "it, too, or leave the names out"
    )


def _shared_spec(there: Mapping[str, Mapping[str, Version]], names: Sequence[str]) -> str | None:
    """Returns the only spec under which all names have a version, or None."""
    shared = set.intersection(*(set(there[name]) for name in names))
    return shared.pop() if len(shared) == 1 else None
