"""How far a version of a dataset is from another one, as a value.

>>> str(Movement(2.3, 1.9, 1.2, 2.6, 0.4, 0.5, 0.001, 0.9))
'1.9 bins [1.2, 2.6]'
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.wording import in_bins


@dataclass(frozen=True)
class Movement:
    """How far a version is from another one, over all neurons; in bins. None is not known.

    Attributes:
        emd: The distance of the two samples.
        emd_corrected: The distance that samples without end would show.
        low: Lower end of its 95% interval.
        high: Upper end of that interval.
        se: Standard error of `emd`.
        floor: The `emd` that two samples of one distribution would show at these sizes.
        p: Result of the test that both are samples of one distribution.
        paired: The share of the smaller version's images that are in pairs with the other's.
    """

    emd: float | None
    emd_corrected: float | None
    low: float | None
    high: float | None
    se: float | None
    floor: float | None
    p: float | None
    paired: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of `emd_corrected`.

        None if it is not known, or if it is not known which images both versions have: then it
        would not hold.
        """
        if self.low is None or self.high is None or self.paired is None:
            return None
        return self.low, self.high

    def __str__(self) -> str:
        if self.emd is None:
            return "a distance that is not defined"
        if self.interval is None or self.emd_corrected is None:
            return f"{in_bins(self.emd, 3)}, not corrected"
        low, high = self.interval
        return f"{in_bins(self.emd_corrected, 3)} [{low:.3g}, {high:.3g}]"
