"""comparing.selection: TODO-DOC"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.catalogue import Catalogue, Commit, Version
from pipeline.comparing.tiles import Job
from pipeline.dna import Lens
from pipeline.errors import NotFound, UsageError
from pipeline.spec import LAYER_GAUSSIAN, Spec


@dataclass(frozen=True)
class Selection:
    """The versions to compare, in order, all under one spec."""

    spec_digest: str
    versions: Mapping[str, Version]

    @property
    def members(self) -> dict[str, str]:
        return {name: version.dna for name, version in self.versions.items()}

    @classmethod
    def of(
        cls, catalogue: Catalogue, names: Sequence[str], at: int | str | None, spec: str | None
    ) -> Selection:
        commit = catalogue.at(at)
        for name in names:
            if name not in commit.datasets:
                catalogue.find(name, at)  # which says what there is
        digest = _shared_spec(commit, names) if spec is None and names else None
        digest = digest or catalogue.spec_digest(commit, spec)
        wanted = list(dict.fromkeys(names)) or [
            name for name, specs in sorted(commit.datasets.items()) if digest in specs
        ]
        missing = [name for name in wanted if digest not in commit.datasets.get(name, {})]
        present = next((name for name in wanted if name not in missing), "the catalogue's default")
        for name in missing:
            for other in sorted(commit.datasets.get(name, {})):
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
            hint = f" under spec {digest}; {others} are under others (--spec)" if others else ""
            if names:
                hint = f", {wanted[0]}; without a name all {len(have)} under its spec are compared"
            raise UsageError(f"comparing takes two datasets or more; there is {len(wanted)}{hint}")
        versions = {name: commit.datasets[name][digest] for name in wanted}
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
        spec = catalogue.spec(self.spec_digest)
        if layers is not None and not layers:
            raise UsageError(f"no layer is chosen; {spec.extractor} has {', '.join(spec.layers)}")
        for layer in layers or ():
            spec.tap(layer)
        if lens is not None:
            lens.require_fit(spec)
        if fd and lens is not None:
            raise UsageError(
                f"a layer's Fréchet distance is of all its neurons, and none through lens "
                f"{lens.name}; leave one of them out"
            )
        kept = [version.products for version in self.versions.values()]
        if fd and not any(LAYER_GAUSSIAN in products for products in kept):
            raise UsageError(
                f"no layer Gaussians are kept of {', '.join(self.versions)}; build with "
                "--layer-gaussian"
            )
        chosen = tuple(spec.layers if layers is None else dict.fromkeys(layers))
        error_bars = error_bars and (lens is None or bool((lens.weights >= 0).all()))
        return Job(catalogue.root, spec, chosen, layers is None, fd, lens, error_bars)


def resolve(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    at: int | str | None = None,
    spec: str | None = None,
) -> tuple[str, Mapping[str, Version]]:
    """The spec digest and versions that `compare` takes for these names. Raises as it does."""
    chosen = Selection.of(catalogue, names, at, spec)
    return chosen.spec_digest, chosen.versions


def spec_of(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    at: int | str | None = None,
    spec: str | None = None,
) -> Spec:
    """The spec under which `compare` compares these. Raises as it does."""
    return catalogue.spec(resolve(catalogue, names, at=at, spec=spec)[0])


def _shared_spec(commit: Commit, names: Sequence[str]) -> str | None:
    """The only spec that all of them have a version under; None for none, or for a choice."""
    shared = set.intersection(*(set(commit.datasets[name]) for name in names))
    return shared.pop() if len(shared) == 1 else None
