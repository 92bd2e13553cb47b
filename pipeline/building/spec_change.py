"""Refuses to count a dataset in another way than before, unless that is asked for.

>>> require_same_way(catalogue, head, request, spec)                          # doctest: +SKIP
"""

from __future__ import annotations

from pipeline.building.request import Request
from pipeline.catalogue import Catalogue, Commit
from pipeline.errors import UsageError
from pipeline.spec import Spec
from pipeline.wording import option

FIELDS_NAMED = 5
"""How many fields of the specs an error names; another network differs in many."""


def require_same_way(catalogue: Catalogue, head: Commit, request: Request, spec: Spec) -> None:
    """Checks that a dataset has a version under a spec already, or may begin a history under it.

    DNAs of different specs cannot be compared. So a changed number of bins, or another network,
    would silently leave the dataset's versions behind, and those of all other datasets.

    Args:
        catalogue: Where the dataset is.
        head: The newest commit.
        request: What is asked for.
        spec: The spec that it leads to.

    Raises:
        UsageError: The dataset has versions, but none under this spec. The message names what
            differs from the latest of them.
    """
    versions = head.datasets.get(request.name, {})
    if request.spec == "new" or not versions or spec.digest in versions:
        return
    latest = max(versions.values(), key=lambda version: version.built)
    differing = catalogue.spec(latest.spec).differences(spec)
    fields = sorted(differing, key=lambda name: (name.startswith("taps"), name))
    told = [f"{name} was {differing[name][0]!r} and is {differing[name][1]!r}" for name in fields]
    told[FIELDS_NAMED:] = [f"{len(told) - FIELDS_NAMED} more differ"][: len(told) > FIELDS_NAMED]
    raise UsageError(
        f"{request.name}: its latest version was counted in another way, so the two could not be "
        f"compared: {'; '.join(told)}. Give the options of that version to go on with it, or give "
        f"{option('spec', 'new')} to begin versions of spec {spec.digest[:12]} beside those of "
        f"spec {latest.spec[:12]}"
    )
