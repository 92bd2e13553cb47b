"""Lists a source: finds every candidate image in what the user named.

    >>> list_source("photos/").ignored                        # doctest: +SKIP
    {'.txt': 3}

`source_lister` says what a source may be. A prefix of S3 that turns out to be large is listed by
tasks, if there is an engine with workers, and so is a large report of S3 Inventory read (see
`task_listing`).
"""

from __future__ import annotations

import os
from dataclasses import replace

from pipeline import storage
from pipeline.errors import SourceError, UsageError
from pipeline.events import Listener, ignore
from pipeline.mapper import Mapper
from pipeline.sources.listing import Listing
from pipeline.sources.listing_checkpoint import ListingCheckpoint
from pipeline.sources.rules import Rules
from pipeline.sources.source_lister import SourceLister
from pipeline.sources.stretches import read_stored
from pipeline.sources.task_listing import PlanAhead, TaskListing

ALONE = 2**18
"""How many files of an S3 prefix this process lists before tasks go on: some ten seconds."""


def list_source(
    source: str | os.PathLike[str],
    rules: Rules | None = None,
    *,
    checkpoint: ListingCheckpoint | None = None,
    mapper: Mapper | None = None,
    cache: str | None = None,
    outside: str | None = None,
    progress: Listener | None = None,
    ahead: PlanAhead | None = None,
) -> Listing:
    """Lists the candidates of a source.

    Args:
        source: A folder, a glob, a list, a table, an archive, an image, or a url of one of them.
        rules: Which candidates count, and how they are grouped and labelled.
        checkpoint: Where parts of the listing are kept, so that it can be interrupted and go on.
            Only listings of S3 prefixes use it, and reports of S3 Inventory that tasks read.
        mapper: An engine whose workers look into the archives. None, or an engine that works in
            this process, uses threads of this process.
        cache: The uri of a folder where the contents of archives are kept by their identity.
        outside: The uri of a folder of results, which no link in the source may lead into.
        progress: Is told how far the listing has come.
        ahead: How a large prefix or report of single images is planned by tasks. None leaves that
            to the caller.

    Returns:
        The candidates. One that the source names twice may be there twice. If the source was
        planned while it was listed, the listing has the plan in place of candidates.

    Raises:
        UsageError: The source is empty, an option does not go with it, or a link leads into
            `outside`.
        SourceError: The source does not exist, or holds no candidate.
    """
    text = os.fspath(source)
    if not text:
        raise UsageError("the source is empty; give a folder, a glob, a list or a url")
    rules = rules or Rules()
    has_tasks = mapper is not None and not mapper.in_process
    # If this process plans a report, it reads the report itself as fast as what tasks have stored.
    by_tasks = has_tasks and (ahead is not None or not rules.is_plain)
    lister = SourceLister(text, rules, checkpoint, progress or ignore, by_tasks=by_tasks)
    in_tasks = lister.can_be_cut and has_tasks
    results = outside and storage.resolved(outside)
    lister.list_objects(results, ALONE if in_tasks else None)
    if mapper is not None and checkpoint is not None and in_tasks:
        tasks = TaskListing(lister, checkpoint, mapper, ahead, results)
        planned = tasks.run()
        if planned is not None:
            return replace(lister.listing(planned), difference=tasks.difference)
    # Also those of tasks of an interrupted listing.
    lister.candidates.take_stored(read_stored(lister.candidates.stored))
    try:
        lister.list_archives(mapper, cache)
    except SourceError:  # one that was found before an interruption may be gone, or have changed
        if checkpoint is not None:
            checkpoint.remove()
        raise
    return lister.listing()
