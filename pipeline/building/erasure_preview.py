"""Tells what an erasure would do, without doing it.

>>> preview_erasure(catalogue, ["s3://bucket/photos/a.jpg"]).recounted         # doctest: +SKIP
{'photos': (3, 7)}
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.building.erasure_commit import NewVersions, tags_without
from pipeline.building.erasure_plan import ErasurePlan, plan_erasure, still_held
from pipeline.building.erasure_reading import cells_of, changed_images, images_to_read, look_at
from pipeline.building.erasure_request import NOTHING_LEFT, ErasureCost, ErasurePreview
from pipeline.catalogue import Catalogue
from pipeline.events import Listener, ignore
from pipeline.sources import Entries
from pipeline.wording import some_of


def preview_erasure(
    catalogue: Catalogue, texts: Sequence[str], progress: Listener = ignore
) -> ErasurePreview:
    """Tells what an erasure would do. The catalogue is not changed, and no image is read.

    Args:
        catalogue: The catalogue.
        texts: The names of the images.
        progress: Told what is read, and of each file that is looked at.

    Returns:
        What it would do, and what it would read.

    Raises:
        NotFound: There is no catalogue.
        CorruptFile: A list or a manifest is damaged.
    """
    plan = plan_erasure(catalogue, texts, Entries(), progress)
    read = images_to_read(catalogue, plan.names, plan.affected)
    files = look_at(read.values(), progress)
    changed = {cells: changed_images(images, files) for cells, images in read.items()}
    commits: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
    emptied, unreadable = NewVersions(), NewVersions()
    for each in sorted(plan.affected, key=lambda each: (each.kept.name, each.kept.made)):
        name = each.kept.name
        wrong = {why for head in each.lost for why in changed[cells_of(catalogue, each, head)]}
        if not each.after.heads:
            emptied.drop(each, NOTHING_LEFT)
        elif wrong:
            unreadable.drop(each, some_of(sorted(wrong)))
        else:
            commits[each.counted_again].setdefault(name, []).append(each.kept.made)
    _, lost = tags_without(catalogue, plan.head, emptied.new)
    both = {name: {**of, **unreadable.new.get(name, {})} for name, of in emptied.new.items()}
    _, lost_in_all = tags_without(catalogue, plan.head, {**unreadable.new, **both})
    return ErasurePreview(
        len(plan.images),
        plan.unknown,
        tuple(still_held(plan.images)),
        plan.stated,
        plan.alike,
        {name: tuple(numbers) for name, numbers in commits[True].items()},
        {name: tuple(numbers) for name, numbers in commits[False].items()},
        _cost(catalogue, plan, read.values()),
        plan.copies,
        {name: tuple(which) for name, which in unreadable.dropped.items()},
        {name: tuple(which) for name, which in emptied.dropped.items()},
        tuple(lost),
        tuple(tag for tag in lost_in_all if tag not in lost),
    )


def _cost(catalogue: Catalogue, plan: ErasurePlan, read: Collection[pa.Table]) -> ErasureCost:
    images = sum(of.num_rows for of in read)
    size = sum(pc.sum(pc.max_element_wise(of["size"], 0)).as_py() or 0 for of in read)
    items = list(storage.walk(catalogue.root))
    total = sum(item.size for item in items)
    return ErasureCost(len(read), images, size, len(plan.lists), len(items), total)
