"""Erases images from every kept version of every dataset, and proves that nothing names them.

    >>> erase_images(catalogue, ["s3://bucket/photos/a.jpg"], EraseOptions(reason="…"), engine)
    ...                                                                        # doctest: +SKIP

The sums of the cells that held an image are counted again from the other images, as a refresh of a
source that has lost it would. New versions are stored beside the old ones, and one commit puts them
in the place of all. Until then nothing is removed, and the same command after a crash goes on. Then
what held the images is removed at once, and all objects are searched for their names.

Whatever is removed, a commit with a receipt comes first. So no build that runs loses a file of what
it commits. If the receipt is first, `Catalogue.put_version` refuses the build, which began before.
If the version is first, the erasure finds it when it commits the receipt, and looks again. A build
that began after the receipt looks for its lists before its commit and after it, and the erasure
looks for new versions before it removes lists and in the end: whichever of the two is later ends
with an error that says what to run again.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from pipeline import storage
from pipeline.building.erasure_commit import (
    NewVersions,
    commit_remains,
    note_plans,
    state_without,
)
from pipeline.building.erasure_plan import ErasurePlan, begun_state, plan_erasure, still_held
from pipeline.building.erasure_recount import ErasureRecount, restated
from pipeline.building.erasure_request import NOTHING_LEFT, Erased, EraseOptions
from pipeline.catalogue import (
    Catalogue,
    Commit,
    KeptVersion,
    ObjectSearch,
    missing_files,
    purge,
)
from pipeline.engine import Engine
from pipeline.errors import NotFound, SourceError, TransientError, UsageError
from pipeline.events import Listener, Said, Started, StepDone, ignore, stage
from pipeline.mapper import map_in_order
from pipeline.sources import ImageNames, archive_kind, without_origins
from pipeline.spec import Resources
from pipeline.wording import count_of, option, some_of

NAMED_VERSIONS = 20
"""How many versions an error lists."""


class _OutdatedError(Exception):
    """Another job has committed a version that has the images, or has erased others."""


def erase_images(
    catalogue: Catalogue,
    names: Sequence[str],
    options: EraseOptions,
    engine: Engine,
    resources: Resources | None = None,
    progress: Listener = ignore,
) -> Erased:
    """Erases images from all kept versions.

    Args:
        catalogue: The catalogue.
        names: The images, as `ImageNames.of` takes them.
        options: Why and how.
        engine: Where cells are counted again.
        resources: How fast.
        progress: Told what is done.

    Returns:
        What was done.

    Raises:
        NotFound: Nothing in the catalogue has any of the images.
        UsageError: The reason names an image, a source still holds one, or one is the source of a
            version. Nothing is changed.
        SourceError: Versions cannot be counted again. Nothing is changed.
        SpecMismatch: The weights of some are not at hand. Nothing is changed.
        TransientError: Some images could not be read for now, or a collection of garbage has
            removed new files. The same call goes on.
        VdnaError: Something still names an image in the end, or cannot be searched.
    """
    _require_nameless(names, options)
    by = options.by if options.by is not None else _user()
    while True:
        erasure = begun_state(catalogue).erasure
        try:
            plan = plan_erasure(catalogue, names, progress=progress)
            _require_unstated(plan)
            if not options.source_keeps:
                _require_gone(plan)
            done = _replace_versions(
                catalogue, plan, options, by, engine, resources or Resources(), progress
            )
            break
        except _OutdatedError:
            pass
        except SourceError:
            if catalogue.head().erasure == erasure:
                raise
            # Another erasure has removed what this one was about to read.
        progress(Said("another job has changed the catalogue meanwhile; looking again"))
    doomed = [uri for each in plan.affected for uri in each.holding(catalogue)]
    lists = [f"{catalogue.entries_uri}/{name}.parquet" for name in plan.lists]
    members = [member for _, member in plan.images if member]
    if members or any(map(archive_kind, plan.names.objects)):
        with suppress(SourceError):  # these are named by hashes, and kept only to save time
            doomed += [item.uri for item in storage.walk(catalogue.archives_uri)]
    search = ObjectSearch(plan.names, plan.identities, members)
    receipts: list[Commit] = []

    def commit_receipt() -> None:
        receipts.append(commit_remains(catalogue, options.reason, by))

    first = None if done.commit else commit_receipt
    purged = purge(catalogue, search, [*doomed, *lists], plan.lists, progress, first)
    if not done.commit and not receipts:
        raise NotFound(
            f"{catalogue.root} has no image {some_of(list(names))}; give each as `vdna show` or "
            "the list of its dataset has it. All objects were searched, and none names it: if it "
            "was erased before, nothing of it is left"
        )
    return replace(
        done,
        commit=done.commit or receipts[0].number,
        removed=purged.removed,
        searched=purged.searched,
        running=purged.running,
        lenses=purged.lenses,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "unknown"


def _require_nameless(names: Sequence[str], options: EraseOptions) -> None:
    if not names:
        raise UsageError(f"no image is named; give its path or url, or {option('from')}")
    if not options.reason.strip():
        raise UsageError(
            f"the {option('reason')} is missing or empty; say why the images are erased"
        )
    search = ObjectSearch(ImageNames.of(names), names)
    for field_name in ("reason", "by"):
        text = getattr(options, field_name) or ""
        if search.is_in(text.encode(), field_name):
            raise UsageError(
                f"the {option(field_name)} names an image, and stays in the log for ever; leave "
                "the name out"
            )


def _require_unstated(plan: ErasurePlan) -> None:
    """Refuses to erase what the log names for ever: no search could prove it."""
    if plan.stated:
        raise UsageError(
            f"the log names what is to be erased as the source of {some_of(plan.stated)}, and the "
            "log is never written anew. Nothing was erased. The images in an archive can be erased "
            "one by one, each as ARCHIVE::MEMBER"
        )


def _require_gone(plan: ErasurePlan) -> None:
    """Refuses to erase what the next build would bring back."""
    if held := still_held(plan.images):
        raise UsageError(
            f"the source still has {len(held):,} of {count_of(len(plan.images), 'image')}, so that "
            f"the next build brings back: {some_of(held)}. Delete what is named there first; or "
            f"give {option('source_keeps', True)}, and see that no build reads it again. An "
            "image in an archive has to be erased before its archive is replaced, as the others in "
            "it are read once more"
        )


def _replace_versions(
    catalogue: Catalogue,
    plan: ErasurePlan,
    options: EraseOptions,
    by: str,
    engine: Engine,
    resources: Resources,
    progress: Listener,
) -> Erased:
    """Counts and stores what stands in the place of all affected versions, and commits it.

    Returns:
        What was done; with 0 as its commit if no list has an image, so that there is none yet.

    Raises:
        _OutdatedError: Another job has committed a version that has the images.
        SourceError: Versions cannot be counted again.
    """
    done = Erased(len(plan.images), plan.unknown, plan.alike, 0, copies=plan.copies)
    if not plan.images:
        if not plan.still_whole(catalogue, catalogue.head()):
            raise _OutdatedError
        return done
    outcome = NewVersions()
    if plan.affected:
        outcome = _new_versions(catalogue, plan, options, engine, resources, progress)
    lost_tags: list[str] = []

    def change(head: Commit) -> Commit:
        if not plan.still_whole(catalogue, head):
            raise _OutdatedError
        _require_stored(catalogue, outcome)
        lost_tags.clear()
        return state_without(catalogue, head, plan, outcome, options.reason, by, lost_tags)

    commit = catalogue.append(f"erase {count_of(len(plan.images), 'image')}", change)
    note_plans(catalogue, plan.affected, commit)
    receipt = commit.receipt
    assert receipt is not None
    return replace(
        done,
        commit=commit.number,
        recounted={name: len(of) for name, of in receipt.recounted.items()},
        restated={name: len(of) for name, of in receipt.restated.items()},
        dropped={name: tuple(of) for name, of in outcome.dropped.items()},
        lost_tags=tuple(lost_tags),
    )


def _require_stored(catalogue: Catalogue, outcome: NewVersions) -> None:
    """Checks that what is to be committed is still there. No plan names it.

    Raises:
        TransientError: A collection of garbage has removed some of it.
    """
    kept = [
        KeptVersion(name, version, 0)
        for name, of in outcome.new.items()
        for version in of.values()
        if version
    ]
    missing_of = map_in_order(partial(missing_files, catalogue), kept)
    for each, missing in zip(kept, missing_of, strict=True):
        if missing:
            raise TransientError(
                f"{each.name}: `vdna gc` has removed {', '.join(missing)} that were stored for its "
                "versions without the images, because the erasure took longer than the grace "
                "period. Nothing was erased. Run the same command again, and give `vdna gc` more "
                "--grace-days meanwhile"
            )


def _new_versions(
    catalogue: Catalogue,
    plan: ErasurePlan,
    options: EraseOptions,
    engine: Engine,
    resources: Resources,
    progress: Listener,
) -> NewVersions:
    """Counts and stores what is to stand in the place of the affected versions."""
    again = [each for each in plan.affected if each.counted_again]
    recount = ErasureRecount(catalogue, plan.names, again, options.weights, resources, progress)
    unreadable = recount.run(engine)
    if unreadable and not options.drop_unreadable:
        raise _cannot_count(plan, unreadable)
    outcome = NewVersions()
    contents = {content for each in plan.affected for content in each.contents}
    steps = Started(len(plan.affected), len(plan.affected), unit="versions", step="versions")
    with stage(progress, steps):
        for each in plan.affected:
            after = without_origins(each.after, contents)
            if each.kept.identity in unreadable:
                outcome.drop(each, unreadable[each.kept.identity])
            elif not each.counted_again:
                outcome.put(each, restated(catalogue, each, after))
            elif (version := recount.version(each, after, engine)) is not None:
                outcome.put(each, version)
            else:
                outcome.drop(each, NOTHING_LEFT)
            progress(StepDone(1))
    return outcome


def _cannot_count(plan: ErasurePlan, unreadable: Mapping[tuple[str, ...], str]) -> SourceError:
    """Returns the error that says which versions need images that have changed, and what to do."""
    lines, current = [], []
    for each in plan.affected:
        name, version = each.kept.name, each.kept.version
        if each.kept.identity in unreadable:
            lines.append(f"  {each.kept.numbered_name}: {unreadable[each.kept.identity]}")
            if plan.head.datasets.get(name, {}).get(version.spec) == version:
                current.append(name)
    more = [f"  and {len(lines) - NAMED_VERSIONS:,} more"] if len(lines) > NAMED_VERSIONS else []
    renewed = (
        f" It removes the newest version of {some_of(current)}, too, so build that anew first."
        if current
        else ""
    )
    return SourceError(
        f"{count_of(len(lines), 'version')} cannot be counted without what is to be erased, as "
        "other images are needed for it that are not as they were listed:\n"
        + "\n".join([*lines[:NAMED_VERSIONS], *more])
        + "\nNothing was erased. There are two ways on. Put these images back as they were (on a "
        "disk with the time that they had), and run the same command again. Or give "
        f"{option('drop_unreadable', True)}, which removes these versions from the history, with "
        f"their tags and parts, and erases the images from all others.{renewed}"
    )
