"""Adds the DNAs of all ranks of `torch.distributed`, without gathering them on one.

>>> sum_over_ranks(dna).images                    # the same on each rank    # doctest: +SKIP
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.dna import DNA, INT_COLUMNS, merge_moments, sum_noted
from pipeline.errors import SpecMismatch
from pipeline.spec import Numerics, Spec
from pipeline.wording import count_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def ranks_together() -> bool:
    """Tells whether this process is one of several that compute together."""
    from torch import distributed

    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def require_same_on_ranks(spec: Spec, folds: int, group: ProcessGroup | None = None) -> None:
    """Checks that all ranks count the same way. Every rank must call it.

    Args:
        spec: This rank's spec.
        folds: How many folds this rank keeps.
        group: The ranks; None for all.

    Raises:
        SpecMismatch: They do not. Each rank raises it, so that none waits for another.
    """
    from torch import distributed

    stated: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(stated, (spec, folds), group=group)
    for rank, (its_spec, its_folds) in enumerate(stated):
        stated[0][0].require_same(its_spec, "rank 0", f"rank {rank}")
        if its_folds != stated[0][1]:
            raise SpecMismatch(
                f"rank 0 keeps {count_of(stated[0][1], 'fold')} and rank {rank} {its_folds}; give "
                "all of them the same error_bars"
            )


def sum_over_ranks(dna: DNA, group: ProcessGroup | None = None) -> DNA:
    """Adds up the DNAs of all ranks. Every rank must call it, after `require_same_on_ranks`.

    Counts are summed where they are: a rank sends and holds one table, however many ranks there
    are. Means and sums of squares are merged in the order of the ranks.

    Args:
        dna: This rank's DNA, of images that no other rank has, without scatter matrices.
        group: The ranks; None for all.

    Returns:
        The sum, the same on each rank.
    """
    import torch
    from torch import distributed

    heads: list[Any] = [None] * distributed.get_world_size(group)
    mine = dna.images, dna.failed, dna.numerics, dna.transparent, dna.single_colour
    distributed.all_gather_object(heads, mine, group=group)
    device = "cuda" if distributed.get_backend(group) == "nccl" else "cpu"

    def reduced(values: Any, how: Any) -> Any:
        tensor = torch.tensor(values, device=device)
        distributed.all_reduce(tensor, how, group=group)
        return tensor.cpu().numpy()

    total, least, most = (getattr(distributed.ReduceOp, name) for name in ("SUM", "MIN", "MAX"))
    outside = {name: reduced(getattr(dna, name), total) for name in INT_COLUMNS}
    moments = torch.tensor(np.stack([dna.mean, dna.m2]), device=device)
    gathered = [torch.empty_like(moments) for _ in heads]
    distributed.all_gather(gathered, moments, group=group)
    images, mean, m2 = 0, np.zeros_like(dna.mean), np.zeros_like(dna.m2)
    used: defaultdict[Numerics, int] = defaultdict(int)
    for (counted, _, numerics, *_), part in zip(heads, gathered, strict=True):
        mean, m2 = merge_moments(images, mean, m2, counted, *part.cpu().numpy())
        images += counted
        for one, count in numerics:
            used[one] += count
    return replace(
        dna,
        images=images,
        failed=sum(head[1] for head in heads),
        counts=reduced(dna.counts, total),
        **outside,
        min=reduced(dna.min, least),
        max=reduced(dna.max, most),
        mean=mean,
        m2=m2,
        numerics=tuple(sorted(used.items(), key=lambda item: repr(item[0]))),
        folds=None,
        transparent=reduce(sum_noted, (head[3] for head in heads)),
        single_colour=reduce(sum_noted, (head[4] for head in heads)),
    )
