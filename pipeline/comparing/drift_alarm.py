"""Decides which versions of a dataset raise an alarm, at a known rate of false alarms.

    >>> import numpy as np
    >>> found = alarms(np.array([0.4, 0.001, 0.2]), np.array([0.4, 0.01, 0.0001]))
    >>> found.step.tolist(), found.reference.tolist()
    ([False, True, False], [False, False, True])

Each version is compared with the version before it and with the reference. The test of a pair knows
which images both share (see `significance`). If both are samples of one distribution, p is below
any limit at most as often as the limit says. A history of 30 versions has 29 pairs of either kind.
So limits for p that add up to 5% over all pairs keep the rate of false alarms of a history at 5% or
below, however the tests depend on each other (Bonferroni's inequality).

The rate is shared out unevenly. The tests of steps are nearly independent, so that they use up
their part. Those against the reference all share the reference, and raise false alarms together, in
fewer histories than their part allows. A lower limit costs them little power, because a drift adds
up. So steps have nine tenths of the rate, and the distances from the reference one tenth.

The limits do not depend on how many versions there are. So an alarm stays when versions are added,
and longer histories have as many false alarms for each 30 versions.

`experiments.drift` measures the rate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dna import Floats

RATED_VERSIONS = 30
"""The number of versions for which the rate of false alarms is stated."""

FALSE_ALARM_RATE = 0.05
"""At most this share of histories of so many versions has a false alarm."""

STEP_LIMIT = 0.9 * FALSE_ALARM_RATE / (RATED_VERSIONS - 1)
"""A version whose p against the version before is no more than this raises an alarm."""

REFERENCE_LIMIT = 0.1 * FALSE_ALARM_RATE / (RATED_VERSIONS - 1)
"""A version whose p against the reference is no more than this raises an alarm."""

LEAST_STEPPED = 11
"""With fewer folds p cannot be as small as `STEP_LIMIT`: it is never below 1 / 2^(folds - 1)."""

LEAST_ALARMED = 14
"""With fewer folds p cannot be as small as both limits."""


class Alarms(NamedTuple):
    """Which versions raise an alarm.

    Attributes:
        step: (N,) whether a version differs from the version before.
        reference: (N,) whether it differs from the reference.
    """

    step: NDArray[np.bool_]
    reference: NDArray[np.bool_]


def alarms(step: Floats, reference: Floats) -> Alarms:
    """Decides which versions raise an alarm.

    Args:
        step: (N,) p of each version against the version before; NaN where there is no test.
        reference: (N,) p of each version against the reference; NaN where there is no test.

    Returns:
        The alarms. What is not tested raises none.
    """
    return Alarms(step <= STEP_LIMIT, reference <= REFERENCE_LIMIT)
