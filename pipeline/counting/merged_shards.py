"""Makes the partial of a shard that was put together of others: the sum of theirs, without images.

>>> made = merged_shard(work_uri, shard, key, spec.digest, products)           # doctest: +SKIP
>>> made.images, made.reused                                                   # doctest: +SKIP
(0, 96)

Each run of each cell of such a shard was a shard of its own, and is counted as it was. So the sum
is that of a count from the images, to the last bit. It is taken under whatever numerics its runs
were counted, as their partials would have been.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import reduce

from pipeline.counting.cells import cell_key, encode_cells, former_partial
from pipeline.counting.stream import Made
from pipeline.dna import Partial
from pipeline.errors import ConservationError, CorruptFile, SourceError
from pipeline.sources import Shard

logger = logging.getLogger(__name__)


def merged_shard(
    work_uri: str, shard: Shard, key: str, spec_digest: str, products: Sequence[str]
) -> Made | None:
    """Adds up the partials of the shards that a shard was put together of.

    Args:
        work_uri: The folder that partials are written to.
        shard: The shard.
        key: Its key.
        spec_digest: Digest of the spec.
        products: What is kept beside the histograms.

    Returns:
        The files. None if the shard was not put together, or a partial is missing or damaged: then
        it is counted from its images.

    Raises:
        ConservationError: The sum does not have as many candidates as the shard.
    """
    if not shard.head.is_merged:
        return None
    files: dict[str, bytes] = {}

    def cells() -> Iterator[Partial]:
        """Yields one partial after the other: each is large."""
        for cell in shard.cell_runs():
            name = cell_key(spec_digest, products, cell)
            runs = (former_partial(work_uri, run, spec_digest, products) for run in cell.each_run())
            partial = reduce(Partial.__add__, runs).as_shard(name)
            if shard.cells:
                files[name] = partial.encode()
            yield partial

    try:
        total = reduce(Partial.__add__, cells())
    except SourceError:  # gone, or never counted with these products
        return None
    except CorruptFile as error:
        logger.warning("shard %s is counted again: %s", shard.index, error)
        return None
    if total.candidates != len(shard.members):
        raise ConservationError(
            f"shard {shard.index}: the shards that it was put together of have {total.candidates} "
            f"of {len(shard.members)} candidates"
        )
    data = total.as_shard(key).encode()
    return Made(data, 0, 0, total.candidates, encode_cells(files) if files else b"", 0)
