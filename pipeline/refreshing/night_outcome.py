"""Sums up what a refresh did, as plain values: of each dataset, and of all together.

>>> sum_up(rows, failed=(), dropped=(), cost={})["datasets"]["unchanged"]       # doctest: +SKIP
998
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.building import Movement, Result
from pipeline.comparing import alarms

KINDS_OF_CHANGE = ("added", "removed", "changed")
"""What may have become of images since the version before."""


def dataset_row(result: Result) -> dict[str, Any]:
    """Returns what became of a dataset.

    Args:
        result: The result of its build.

    Returns:
        Its numbers. `image_changes` and `moved` are None if they are not known, as they are of a
        dataset that has not changed; `moved` only 20 hours later. `alarm` tells whether the version
        raises a drift alarm against the one before; None if that was not tested, or no distance
        could raise one.
    """
    version, changes, moved = result.version, result.image_changes, result.moved
    return {
        "dataset": result.name,
        "images": version.images,
        "failed": version.failed,
        "changed": result.changed,
        "is_new": result.changed and result.replaced is None and changes is None,
        "dna": version.dna,
        "spec": version.spec,
        "image_changes": asdict(changes) if changes else None,
        "moved": {**asdict(moved), "from": result.former_version} if moved else None,
        "unmeasured": result.unmeasured or None,
        "alarm": None if result.untested else _raises_alarm(moved),
        "read": result.read,
        "read_bytes": result.read_bytes,
        "reused": result.reused,
        "worker_seconds": result.worker_seconds,
    }


def sum_up(
    rows: Sequence[Mapping[str, Any]],
    failed: Collection[object],
    dropped: Collection[object],
    cost: Mapping[str, float],
) -> dict[str, Any]:
    """Adds up what became of all datasets.

    Args:
        rows: The rows of the datasets that could be built (see `dataset_row`).
        failed: The others.
        dropped: The datasets of the catalogue that the configuration does not name.
        cost: What the refresh took in all.

    Returns:
        The numbers. Images of new datasets count as added. `untested` is how many versions that are
        new, or were so hours ago, were not tested for an alarm, and `datasets_of_unknown_changes`
        of how many new ones it is not known what became of their images.
    """
    refreshed = [row for row in rows if row["changed"]]
    new = [row for row in refreshed if row["is_new"]]
    later = [row for row in refreshed if not row["is_new"]]
    changes = [row["image_changes"] for row in later if row["image_changes"]]
    changes += [{"added": row["images"] + row["failed"], "removed": 0, "changed": 0} for row in new]
    read = {name: sum(row[name] for row in rows) for name in ("read", "read_bytes", "reused")}
    return {
        "datasets": {
            "asked": len(rows) + len(failed),
            "unchanged": len(rows) - len(refreshed),
            "refreshed": len(refreshed),
            "failed": len(failed),
            "dropped": len(dropped),
        },
        "images": {
            "counted": sum(row["images"] for row in rows),
            "failed": sum(row["failed"] for row in rows),
            **{name: sum(each[name] for each in changes) for name in KINDS_OF_CHANGE},
            "datasets_of_unknown_changes": sum(not row["image_changes"] for row in later),
        },
        "moved": sum(row["moved"] is not None for row in refreshed),
        "alarms": [row["dataset"] for row in rows if row["alarm"]],
        "untested": sum(row["alarm"] is None for row in later)
        + sum(row["unmeasured"] is not None for row in rows if not row["changed"]),
        "cost": {
            "images_read": read["read"],
            "bytes_read": read["read_bytes"],
            "images_reused": read["reused"],
            **cost,
            "worker_seconds": sum(row["worker_seconds"] for row in rows),
        },
    }


def _raises_alarm(moved: Movement | None) -> bool | None:
    """Tells whether a step of a dataset's path is an alarm, by the rule of `vdna drift`."""
    if moved is None or moved.p is None:
        return None
    return bool(alarms(np.array([moved.p]), np.array([np.nan])).step[0])
