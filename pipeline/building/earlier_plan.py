"""Finds the plan before a build: the shards that it keeps, or the images that it changes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from pipeline.building.request import Request
from pipeline.catalogue import Catalogue, Version
from pipeline.errors import SourceError, UsageError
from pipeline.sources import Manifest, has_names_of
from pipeline.wording import count_of, option

SELECTING = ("include", "exclude", "group_by", "image_column", "by", "pair_by", "limit")
"""The options that decide which images of a source count, and how they are grouped."""


def selection_of(request: Request) -> dict[str, str | int]:
    """Returns the options that chose the images of a request, by their names.

    The source is among them if it may be a glob, of which a version states the folder only.
    """
    names = (*SELECTING, *(["source"] if set("*?[") & set(request.source) else []))
    values = ((name, getattr(request, name)) for name in names)
    return {name: value for name, value in values if value not in (None, "")}


def kept_plan(catalogue: Catalogue, name: str, spec: str, base: Version | None) -> Manifest | None:
    """Finds the manifest whose shards a build keeps: the one planned last, else the one committed.

    Args:
        catalogue: Where the dataset is.
        name: The dataset.
        spec: Digest of the spec.
        base: The dataset's version under the spec, or None.

    Returns:
        The manifest, of which candidates may be lost (see `without_lost`). None if there is none:
        the plan starts from the listing alone then.
    """
    planned = catalogue.planned(name, spec)
    if planned is not None:
        manifest, (selection, _) = planned[0], catalogue.planned_selection(name, spec) or ({}, "")
        by = selection.get("pair_by")
        if by is None or manifest.pairing is None:
            return manifest
        # Plans by several `pair_by` may have one digest, and the manifest is that of the first.
        return replace(manifest, pairing=replace(manifest.pairing, by=str(by)))
    if base is None or base.imported:
        return None
    try:
        return catalogue.manifest(name, base)
    except SourceError:
        return None


def paired_as(
    catalogue: Catalogue,
    request: Request,
    before: Manifest | None,
    base: Version | None,
    former: Version | None,
) -> tuple[str | None, Manifest | None]:
    """Finds what names the images for pairing, which has decided their folds.

    Args:
        catalogue: Where the dataset is.
        request: What is asked for.
        before: The manifest whose shards are to be kept, or None.
        base: The dataset's version under the spec, or None.
        former: The newest version of whatever spec that was built here, or None. The first build
            under a new spec goes by it, unless it is asked for another `pair_by`: all images are
            counted.

    Returns:
        The `pair_by` that applies, and the manifest whose shards are kept: None if the dataset is
        to be planned anew, as some of its images have other names now.

    Raises:
        UsageError: Some images of a dataset that is to stay have other names now.
        SourceError: The manifest of `former` is not there, which says what pairs the images.
    """
    if before is None:
        if request.pair_by is not None or base is not None or former is None:
            return request.pair_by, None
        return _pair_by(catalogue.manifest(request.name, former)), None
    committed = before
    if base is not None and not base.imported and base.manifest != before.digest:
        with suppress(SourceError):
            committed = catalogue.manifest(request.name, base)
    asked = _pair_by(committed) if request.pair_by is None else request.pair_by
    kept = before if named_alike(before, asked) else None
    is_same = kept is not None if committed is before else named_alike(committed, asked)
    if is_same or base is None or request.replace:
        return asked, kept
    had = _pair_by(committed)
    named = "their paths below the source" if had is None else repr(had)
    raise UsageError(
        f"{request.name}: its images are paired by {named}, which has decided their folds, and "
        f"pair_by is {request.pair_by!r} now; leave {option('pair_by')} out to keep that, or give "
        f"{option('replace', True)} to count all images again, in new folds"
    )


def named_alike(manifest: Manifest, by: str | None) -> bool:
    """Tells whether a `pair_by` names the images of a manifest as they are named.

    Images directly below the source have the same path and stem. So another `pair_by` need not mean
    other names.

    Args:
        manifest: The manifest. Its candidates are read if it states another `pair_by`.
        by: The `pair_by`.

    Returns:
        Whether it does. False if that is not known, as candidates are lost.
    """
    if by == _pair_by(manifest):
        return True
    with suppress(SourceError):
        return manifest.pairing is not None and has_names_of(
            manifest, replace(manifest.pairing, by=by)
        )
    return False


def _pair_by(manifest: Manifest) -> str | None:
    return manifest.pairing.by if manifest.pairing is not None else None


def without_lost(found: Manifest) -> Manifest:
    """Returns a manifest without the shards whose candidates are lost."""
    lost = set(found.entries.missing(found.files))
    return found.select(h.index for h in found.heads if h.address.file not in lost)


def plan_to_change(
    catalogue: Catalogue, request: Request, spec: str, base: Version | None
) -> Manifest:
    """Finds the manifest that a change list is applied to: the one that was planned last.

    A build that was planned and has failed is part of the dataset's history, too: the next change
    list does not repeat what the one before it said.

    Args:
        catalogue: Where the dataset is.
        request: What is asked for, with a change list; its `by` is what applies.
        spec: Digest of the spec.
        base: The dataset's version under the spec, or None.

    Returns:
        The manifest, with all its candidates.

    Raises:
        UsageError: There is none, other options chose its images, or it does not know of the
            version: two builds at once may each have changed what the other has not seen.
        SourceError: Some of its candidates are lost.
    """
    name, again = request.name, f"build it once without {option('changes')}"
    if base is None or base.imported:
        raise UsageError(
            f"{name} has no earlier version under spec {spec[:12]} that "
            f"{option('changes')} could apply to; {again}"
        )
    planned, had = catalogue.planned(name, spec), catalogue.planned_selection(name, spec)
    if planned is None or had is None:
        raise UsageError(f"{name}: it is not known how its images were listed last; {again}")
    selection, began_with = had
    if base.manifest not in (planned[0].digest, began_with):
        raise UsageError(
            f"{name}: another build or a rollback has changed it since its images were listed "
            f"last; {again}"
        )
    now = selection_of(request)
    for each in SELECTING:
        if selection.get(each) != now.get(each):
            raise UsageError(
                f"{name}: its images were listed with {each} {selection.get(each)!r}, and "
                f"{each} is {now.get(each)!r} now; give the same, or {again}"
            )
    found = planned[0]
    if lost := found.entries.missing(found.files):
        raise SourceError(
            f"{name}: {found.entries.uri(lost[0])} is missing, one of "
            f"{count_of(len(found.files), 'file')} that list its images; {again}"
        )
    return found
