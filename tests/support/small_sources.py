"""Makes sources large that have some hundred images: tasks list them, and plan them by blocks."""

from __future__ import annotations

import pytest

from pipeline.sources import (
    blocks,
    fold_assignment,
    inventory,
    listing,
    named_members,
    parallel_listing,
    sharding,
    source,
    source_lister,
    stretches,
    task_listing,
)


def shrink(patch: pytest.MonkeyPatch, *, block: int, many: int, keys: int, alone: int) -> None:
    """Changes sizes, in this process alone.

    Args:
        patch: Undoes it.
        block: How many images a block has on average.
        many: From how many images on a source is planned by blocks.
        keys: After how many images a task ends, and a part of a listing is written.
        alone: How many images one process lists before tasks go on. They read any report.
    """
    shrink_plans(patch, block=block, many=many)
    patch.setattr(task_listing, "BLOCK_IMAGES", block)
    patch.setattr(task_listing, "STRETCH_KEYS", keys)
    patch.setattr(listing, "PART_ENTRIES", max(1, keys // 2))
    patch.setattr(parallel_listing, "LISTERS", 2)
    patch.setattr(source_lister, "PAGES_TOGETHER", 1)
    patch.setattr(source, "ALONE", alone)
    patch.setattr(inventory, "ALONE_BYTES", 0)
    patch.setattr(inventory, "INVENTORY_ROWS", max(1, keys // 4))
    patch.setattr(stretches, "REPORT_ENTRIES", keys)
    patch.setattr(stretches, "REPORT_PART_ENTRIES", max(1, keys // 4))
    patch.setattr(task_listing, "WAVES", 1)


def shrink_plans(patch: pytest.MonkeyPatch, *, block: int, many: int) -> None:
    """Changes the sizes that decide a plan; see `shrink`."""
    patch.setattr(blocks, "MANY", many)
    patch.setattr(blocks, "BLOCK_IMAGES", block)


def shrink_groups(patch: pytest.MonkeyPatch, number: int) -> None:
    """Has the names of groups alone tell their folds, if there are at least so many."""
    for module in (fold_assignment, sharding, listing, named_members, source_lister):
        patch.setattr(module, "HASHED_GROUPS", number)
