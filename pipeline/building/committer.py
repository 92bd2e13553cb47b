"""Reduces the counted shards of a dataset, checks the sum, and commits it, with its parts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.building.failure_gate import GATE_FAILURES, require_few_failures
from pipeline.building.planner import DatasetPlan
from pipeline.building.request import Result
from pipeline.building.storing import store_manifest, store_version
from pipeline.catalogue import (
    Catalogue,
    Commit,
    Version,
    as_replaced,
    part_name,
    parts_of,
    version_of,
)
from pipeline.counting import (
    Composed,
    Recipe,
    ShardJob,
    add_up,
    compose,
    load_partial,
    partial_uri,
    plan_folds,
)
from pipeline.dna import Failure, encode_failures
from pipeline.errors import (
    ConservationError,
    CorruptFile,
    OverlapError,
    SourceError,
    SpecMismatch,
    TransientError,
)
from pipeline.events import Listener, Said, phase
from pipeline.mapper import Mapper, SerialMapper, map_in_order
from pipeline.sources import Manifest
from pipeline.wording import count_of

FAILURES_HELD = 100_000
"""If more images fail, their number is judged before their names are read."""

REPORT_SECONDS = 10.0
"""How often the progress of many parts is reported."""


def finish_dataset(
    catalogue: Catalogue, plan: DatasetPlan, counted: int, mapper: Mapper, progress: Listener
) -> Result:
    """Reduces a dataset's partials and commits the sum, and those of its parts.

    Args:
        catalogue: Where the dataset is committed.
        plan: The dataset's plan; partials of all its shards are stored.
        counted: How many of them were counted now, for the result.
        mapper: Where the sums are computed.
        progress: Is told of the parts.

    Returns:
        What was committed.

    Raises:
        SourceError: No image could be read.
        GateError: Too many images could not be read.
        CorruptFile: A partial is damaged.
        Conflict: Another job has changed the dataset.
        TransientError: Files were removed meanwhile.
    """
    name, job = plan.request.name, plan.job
    with phase(progress, name, "merging"):
        composed = sum_shards(plan.manifest, job.work_uri, job.recipe, name, mapper)
    _require_readable(plan, composed.images, len(composed.failures), composed.failures)
    with phase(progress, name, "committing"):
        stored_sha256 = plan.manifest_sha256
        version = store_sum(catalogue, name, plan.manifest, stored_sha256, composed, job.recipe)
        whole = replace(version, by=plan.request.by or "")
        parts = _finish_parts(catalogue, plan, mapper, progress)
        _require_entries(name, plan.manifest)
        commit = catalogue.put_version(
            name, whole, plan.base, parts=parts, planned_after=plan.erasure
        )
        # An erasure commits before it removes a list. One that did so since the plan has refused
        # this commit; one that did so before may still remove lists, and looks for this version in
        # the end. A collection of garbage may have looked at lists before the plan was noted.
        try:
            _require_entries(name, plan.manifest)
            _require_files(catalogue, commit, name, whole.spec)
        except TransientError:
            if catalogue.head().erasure == commit.erasure:
                raise  # else an erasure has put another version in the place of this one
    replaced, former_options, unmeasured = None, dict[str, int | str](), ""
    if plan.base is None:
        unmeasured = "there was no version of this spec to compare it with"
    elif plan.base.dna == whole.dna:
        unmeasured = "the version before has the same DNA"
    else:
        replaced, former_options = _former(catalogue, name, plan.base, commit)
        unmeasured = "" if replaced else "an erasure has just removed the version before"
    return Result(
        name,
        commit.datasets[name][whole.spec],
        changed=True,
        counted_shards=counted,
        failures=composed.failures,
        ignored=dict(plan.manifest.ignored),
        duplicates=plan.manifest.duplicates,
        parts=parts_of(commit, name, whole.spec),
        replaced=replaced,
        former_options=former_options,
        commit=commit.number,
        unmeasured=unmeasured,
    )


def _former(
    catalogue: Catalogue, name: str, base: Version, commit: Commit
) -> tuple[Version | None, dict[str, int | str]]:
    """Finds the version that a commit has replaced, which may be of any commit before it.

    Another job may have committed the same new version meanwhile, and others after it. An erasure
    may have put another version in the place of the former one since, or none.

    Returns:
        The version, or what stands in its place; None if nothing does. Then the options that read
        it.
    """
    former: Version | None = base
    number = _number_of(catalogue, name, base)
    if number is None:
        state = replace(commit, datasets={name: {base.spec: base}})
        former = as_replaced(state, catalogue.head()).datasets.get(name, {}).get(base.spec)
        number = _number_of(catalogue, name, former) if former else None
    if former is None or number is None:
        return None, {}
    made = catalogue.commit(catalogue.commit_that_made(name, former, number))
    chosen = {} if made.default_spec == former.spec else {"spec": former.spec[:12]}
    return former, {"at": made.number, **chosen}


def _number_of(catalogue: Catalogue, name: str, version: Version) -> int | None:
    """Returns the number of the newest commit that holds a version; None if none does."""
    return next(
        (
            commit.number
            for commit in catalogue.log()
            if commit.datasets.get(name, {}).get(version.spec) == version
        ),
        None,
    )


def sum_shards(
    manifest: Manifest,
    work_uri: str,
    recipe: Recipe,
    name: str,
    mapper: Mapper,
) -> Composed:
    """Sums the partials of a manifest's shards, level by level of a tree.

    Args:
        manifest: The manifest.
        work_uri: The folder of the partials.
        recipe: How they were counted.
        name: The dataset, or the part of one.
        mapper: Where the sums are computed.

    Returns:
        The sum.

    Raises:
        SourceError: A partial is missing.
        CorruptFile: A partial is damaged.
    """
    levels, folds = plan_folds(manifest, work_uri, recipe.spec.digest, recipe.products)

    def add_all() -> Composed:
        for level in levels:
            for _ in mapper.map(add_up, level):
                pass
        return compose(folds, manifest, recipe.products, name, mapper)

    try:
        try:
            return add_all()
        except SourceError:
            # Another job that found shards missing, which are stored by now, removed sums of them.
            return add_all()
    except SourceError:
        _require_entries(name, manifest)
        raise
    except (CorruptFile, ConservationError, OverlapError, SpecMismatch) as error:
        raise type(error)(
            f"{name}: {error}\nNothing was committed. If that file is damaged, delete it and rerun "
            "the same command, which counts its images again"
        ) from error


def _require_entries(name: str, manifest: Manifest) -> None:
    """Refuses a manifest whose candidates are gone."""
    if lost := manifest.entries.missing(manifest.files):
        raise TransientError(
            f"{name}: {manifest.entries.uri(lost[0])} was removed while the build ran; rerun the "
            "same command"
        )


def _require_files(catalogue: Catalogue, commit: Commit, name: str, spec: str) -> None:
    """Refuses a version that has just been committed, and has lost a file.

    A file that was there before may have been old. A collection of garbage that had looked at it
    just before this build wrote it again may have removed it since.

    Raises:
        TransientError: A file of the version, or of one of its parts, is not there.
    """
    version = commit.datasets[name][spec]
    named = {name: version, **parts_of(commit, name, spec)}
    uris = [uri for of, each in named.items() for uri in catalogue.files(of, each).values()]
    for uri, is_there in zip(uris, map_in_order(storage.exists, uris), strict=True):
        if not is_there:
            raise TransientError(
                f"{name}: {uri} was removed while the build committed it, as by `vdna gc`; rerun "
                "the same command, which stores it again"
            )


def require_enough_readable(plan: DatasetPlan, read: int, failed: int) -> None:
    """Refuses a dataset of which very many images failed, before all are held in memory to be told.

    If some images were read by an earlier run, or there are fewer failures, that is left to
    `finish_dataset`.

    Args:
        plan: The dataset's plan; partials of all its shards are stored.
        read: How many images were read now.
        failed: How many of these could not be read.

    Raises:
        SourceError: No image could be read.
        GateError: Too many images could not be read.
    """
    if failed <= FAILURES_HELD or read != plan.manifest.candidates:
        return
    recipe, first = plan.job.recipe, list[Failure]()
    for key in plan.manifest.keys(recipe.spec.digest, recipe.products):
        first += load_partial(partial_uri(plan.job.work_uri, key)).failures
        if len(first) >= GATE_FAILURES:
            break
    _require_readable(plan, read - failed, failed, first)


def _require_readable(
    plan: DatasetPlan, images: int, failed: int, failures: Sequence[Failure]
) -> None:
    name = plan.request.name
    if not images:
        raise SourceError(
            f"{name}: none of {count_of(failed, 'candidate')} is an image that can be read. "
            f"First: {failures[0]}"
        )
    candidates, limit = plan.manifest.candidates, plan.request.max_failures
    require_few_failures(name, failed, candidates, limit, failures)


def store_sum(
    catalogue: Catalogue,
    name: str,
    manifest: Manifest,
    manifest_sha256: str,
    composed: Composed,
    recipe: Recipe,
) -> Version:
    """Stores the files of a sum.

    Args:
        catalogue: Where to store them.
        name: The dataset, or the part of one.
        manifest: Its manifest.
        manifest_sha256: The sha256 of the bytes of the manifest, which are stored already.
        composed: The sum.
        recipe: How it was counted.

    Returns:
        The version to commit.
    """
    spec = recipe.spec.digest
    files = {**composed.files, "failures": encode_failures(composed.failures)}
    stored = store_version(catalogue, name, spec, composed.digest, files)
    version = version_of(composed, manifest, spec, recipe.products, stored)
    return replace(version, sha256={**version.sha256, "manifests": manifest_sha256})


@dataclass(frozen=True)
class _PartJob:
    """A part to be summed, with its shards of the whole dataset's manifest."""

    root: str
    whole: str
    job: ShardJob
    by: str
    value: str
    manifest: Manifest


def _finish_parts(
    catalogue: Catalogue, plan: DatasetPlan, mapper: Mapper, progress: Listener
) -> dict[str, Version]:
    """Stores the files of all parts that have a readable image; returns their versions by name."""
    by = plan.request.by
    if by is None:
        return {}
    found = _unchanged_parts(catalogue, plan)
    jobs = [
        _PartJob(
            catalogue.root, plan.request.name, plan.job, by, value, plan.manifest.select(shards)
        )
        for value, shards in plan.parts.items()
        if part_name(plan.request.name, value) not in found
    ]
    started = reported = monotonic()
    for done, (name, version) in enumerate(mapper.map(_finish_part, jobs), 1):
        if version is None:
            progress(Said(f"{name} is left out: none of its images could be read"))
        else:
            found[name] = version
        if (now := monotonic()) - reported >= REPORT_SECONDS:
            reported, rate = now, done / (now - started)
            left = (len(jobs) - done) / rate
            progress(
                Said(
                    f"{plan.request.name}: {done:,} of {count_of(len(jobs), 'part')}, "
                    f"{rate:.1f} a second, {left:,.0f} s left"
                )
            )
    return dict(sorted(found.items()))


def _unchanged_parts(catalogue: Catalogue, plan: DatasetPlan) -> dict[str, Version]:
    """Finds the parts of the version before that have the same shards still, and all their files.

    Returns:
        Their versions, by the names of the parts.
    """
    name, base, recipe = plan.request.name, plan.base, plan.job.recipe
    spec, head = recipe.spec.digest, catalogue.head()
    if base is None or head.datasets.get(name, {}).get(spec) != base:
        return {}
    before = parts_of(head, name, spec)
    stored: set[str] = set()
    for kind in {kind for part in before.values() for kind in part.sha256}:
        folder = catalogue.uri(kind, spec, name, "").rpartition("/")[0]
        with suppress(SourceError):
            stored |= {item.uri for item in storage.walk(folder)}

    found = {}
    for value, shards in plan.parts.items():
        of = part_name(name, value)
        wanted = (plan.request.by, value, plan.manifest.select(shards).digest, recipe.products)
        part = before.get(of)
        stated = part and (part.by, part.value, part.manifest, part.products)
        if part and stated == wanted and stored.issuperset(catalogue.files(of, part).values()):
            found[of] = part
    return found


def _finish_part(part: _PartJob) -> tuple[str, Version | None]:
    """Returns a part's name and its version, or None if none of its images could be read."""
    catalogue, recipe = Catalogue(part.root), part.job.recipe
    name = part_name(part.whole, part.value)
    manifest = part.manifest
    composed = sum_shards(manifest, part.job.work_uri, recipe, name, SerialMapper())
    if not composed.images:
        return name, None
    uri = catalogue.uri("manifests", recipe.spec.digest, name, manifest.digest)
    stored = store_manifest(uri, manifest)
    version = store_sum(catalogue, name, manifest, sha256(stored), composed, recipe)
    return name, replace(version, by=part.by, part_of=part.whole, value=part.value)
