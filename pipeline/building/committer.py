"""building.committer: TODO-DOC"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.building.failure_gate import require_few_failures
from pipeline.building.planner import SAY_SECONDS, DatasetPlan, store_manifest, store_version
from pipeline.building.request import Result
from pipeline.catalogue import Catalogue, Version, footers_of, part_name, parts_of, software
from pipeline.counting import Composed, Recipe, ShardJob, add_up, compose, plan_folds
from pipeline.dna import encode_failures
from pipeline.engine import Engine
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    OverlapError,
    SourceError,
    SpecMismatch,
)
from pipeline.events import Listener, Said
from pipeline.mapper import Mapper, SerialMapper
from pipeline.sources import Manifest, read_part

# Committing.


def finish_dataset(
    catalogue: Catalogue, p: DatasetPlan, counted: int, engine: Engine, progress: Listener
) -> Result:
    name, job = p.request.name, p.job
    composed = _reduce(p.manifest, job.work_uri, job.recipe, name, engine)
    _gate(p, composed)
    version = _store_all(catalogue, name, p.manifest, p.manifest_sha256, composed, job.recipe)
    whole = replace(version, by=p.request.by or "")
    parts = _finish_parts(catalogue, p, engine, progress)
    commit = catalogue.put_version(name, whole, p.base, parts=parts)
    return Result(
        name,
        commit.datasets[name][whole.spec],
        True,
        counted,
        composed.failures,
        dict(p.manifest.ignored),
        p.manifest.duplicates,
        parts_of(commit, name, whole.spec),
    )


def _reduce(
    manifest: Manifest,
    work_uri: str,
    recipe: Recipe,
    name: str,
    mapper: Mapper,
) -> Composed:
    levels, folds = plan_folds(manifest, work_uri, recipe.spec.digest, recipe.products)
    try:
        for level in levels:
            for _ in mapper.map(add_up, level):
                pass
        return compose(folds, manifest, recipe.products, name)
    except (CorruptFile, ConservationError, OverlapError, SpecMismatch) as error:
        raise type(error)(
            f"{name}: {error}\nNothing was committed. If that file is damaged, delete it and rerun "
            "the same command: what it held is counted again"
        ) from error


def _store_all(
    catalogue: Catalogue,
    name: str,
    manifest: Manifest,
    manifest_sha256: str,
    composed: Composed,
    recipe: Recipe,
) -> Version:
    """What is to be committed of it, all its files being stored."""
    spec = recipe.spec.digest
    files = {**composed.files, "failures": encode_failures(composed.failures)}
    stored = store_version(catalogue, name, spec, composed.digest, files)
    hashes = {kind: sha256(data) for kind, data in stored.items()}
    return Version(
        dna=composed.digest,
        manifest=manifest.digest,
        spec=spec,
        images=composed.images,
        failed=len(composed.failures),
        products=recipe.products,
        sha256=hashes | {"manifests": manifest_sha256},
        footers=footers_of(stored),
        source=storage.readable(manifest.source),
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software(),
        numerics=composed.numerics,
    )


@dataclass(frozen=True)
class _PartJob:
    """A part to be summed up: of which shards of the whole's manifest."""

    root: str
    whole: str
    job: ShardJob
    by: str
    label: str
    value: str
    shards: tuple[int, ...]


def _finish_parts(
    catalogue: Catalogue, p: DatasetPlan, engine: Engine, progress: Listener
) -> dict[str, Version]:
    """The parts' versions by their names, all their files stored; none of what cannot be read."""
    by, label = p.request.by, p.request.rules.label
    if by is None or label is None:
        return {}
    jobs = [
        _PartJob(catalogue.root, p.request.name, p.job, by, label, value, tuple(shards))
        for value, shards in p.parts.items()
    ]
    found: dict[str, Version] = {}
    started = said = monotonic()
    for done, (name, version) in enumerate(engine.map(_finish_part, jobs), 1):
        if version is None:
            progress(Said(f"{name}: no part, as none of its images could be read"))
        else:
            found[name] = version
        if (now := monotonic()) - said >= SAY_SECONDS:
            said, rate = now, done / (now - started)
            left = (len(jobs) - done) / rate
            progress(
                Said(
                    f"{p.request.name}: {done:,} of {len(jobs):,} parts, {rate:.1f} a second, "
                    f"{left:,.0f} s left"
                )
            )
    return dict(sorted(found.items()))


def _finish_part(part: _PartJob) -> tuple[str, Version | None]:
    catalogue, recipe = Catalogue(part.root), part.job.recipe
    name = part_name(part.whole, part.value)
    with storage.open_random(part.job.manifest_uri) as file:
        manifest = read_part(file, part.shards, part.label, part.value, part.job.manifest_uri)
    composed = _reduce(manifest, part.job.work_uri, recipe, name, SerialMapper())
    if not composed.images:
        return name, None
    uri = catalogue.uri("manifests", recipe.spec.digest, name, manifest.digest)
    stored = store_manifest(uri, manifest.data, manifest.digest)
    version = _store_all(catalogue, name, manifest, sha256(stored), composed, recipe)
    return name, replace(version, by=part.by, part_of=part.whole, value=part.value)


def _gate(p: DatasetPlan, composed: Composed) -> None:
    failed = len(composed.failures)
    if not composed.images:
        raise SourceError(
            f"{p.request.name}: none of {failed} candidates is an image that can be read. First: "
            f"{composed.failures[0]}"
        )
    require_few_failures(
        p.request.name,
        failed,
        p.manifest.candidates,
        p.request.max_failures,
        composed.failures,
    )
