"""Chooses from measured times how much of the decoding a worker gives away.

    >>> choice = DecodeChoice(most=16)
    >>> choice.runs, choice.here
    (0, True)
    >>> choice.review(Measured(images=500, seconds=6.0, waited=4.0), free_cpus=40)
    >>> choice.runs, choice.here
    (8, True)

The rule, and why its thresholds are what they are:

- A worker begins by decoding alone. Its own cores cost nothing: no pixels pass through Ray's store.
- It gives runs away if its network waited for images for more than `HUNGRY` of the time, and the
  cluster has `LEAST_RUNS` CPUs free. Fewer would not pay: images are taken in order, and while a
  few runs are awaited, the worker's own threads can only do so much beyond them.
- While it stays hungry, it gives twice as many away, as far as CPUs are free. So it needs few steps
  from 8 runs to the 32 that fit.
- Once the network waits for less than `FED` of the time, one run fewer is given away, and so on
  down to `LEAST_RUNS`. If that goes on for `REST_REVIEWS` reviews, the worker decodes alone again,
  to see whether its own cores have become enough: no more often, as they rarely have.
- It gives half as many away if the runs were away for `QUEUED` times as long as tasks worked on
  them: then others have the CPUs, and the runs wait for one.
- It decodes alone again if the rate of images is less than it was alone, or not `GAIN` times that
  though no more can be given away; if `LOST_RUNS` runs in a row were lost; or if one did not come
  back in time. It tries again after `REST_REVIEWS` reviews, as clusters change.

After a change, `SETTLING_REVIEWS` reviews pass before anything else is concluded. In that time, Ray
starts the processes that decode, and the runs under way are those of before.
"""

from __future__ import annotations

from dataclasses import dataclass

REVIEW_SECONDS = 5.0
"""How much measured time a review needs at least; two shards at a time make twice as much."""

REVIEW_BATCHES = 8
"""How many micro-batches a review needs at least."""

HUNGRY = 0.2

FED = 0.02

QUEUED = 3.0

GAIN = 1.1

LEAST_RUNS = 4

LOST_RUNS = 3

REST_REVIEWS = 16

SETTLING_REVIEWS = 2


@dataclass(frozen=True)
class Measured:
    """What was measured since the last review.

    Attributes:
        images: How many images the network took.
        seconds: How long that took, added up over the shards under way.
        waited: For how much of it the next image was waited for.
        away: How long runs were given away, added up over those that came back.
        worked: For how much of it tasks worked on them.
    """

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    away: float = 0.0
    worked: float = 0.0

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.images + other.images,
            self.seconds + other.seconds,
            self.waited + other.waited,
            self.away + other.away,
            self.worked + other.worked,
        )


class DecodeChoice:
    """How many runs a worker gives away at a time, and whether it decodes beside them.

    It knows no clock and no cluster: it is told what was measured.

    Attributes:
        runs: How many runs may be away at a time.
        here: Whether the worker decodes what it does not give away. If not, it waits until it may
            give away more.
    """

    def __init__(self, most: int, *, always: bool = False) -> None:
        """Begins with nothing given away.

        Args:
            most: How many runs may be away at most.
            always: Whether as much as possible is given away, whatever is measured. The worker then
                decodes only what was lost or late, and for a while after that.
        """
        self._most = most
        self._always = always
        self._rate_alone = 0.0
        self._settling = 0
        self._rest = 0
        self._fed = 0
        self._lost = 0
        self.runs = most if always else 0
        self.here = not always

    def review(self, measured: Measured, free_cpus: int) -> None:
        """Takes in what was measured since the last review, and chooses again.

        Args:
            measured: The times, of at least `REVIEW_SECONDS` and `REVIEW_BATCHES`.
            free_cpus: How many CPUs of the cluster nobody has.
        """
        if self._rest:
            self._rest -= 1
            if not self._rest and self._always:
                self.runs, self.here = self._most, False
            return
        if self._always:
            return
        if self._settling:
            self._settling -= 1
            return
        rate = measured.images / measured.seconds
        hungry = measured.waited > HUNGRY * measured.seconds
        if not self.runs:
            self._rate_alone = rate
            if hungry and min(free_cpus, self._most) >= LEAST_RUNS:
                self._set(min(2 * LEAST_RUNS, free_cpus, self._most))
        elif measured.away > QUEUED * measured.worked:
            self._set(self.runs // 2)
        elif rate < self._rate_alone:
            self._set(0)
        elif hungry and free_cpus and self.runs < self._most:
            self._set(min(2 * self.runs, self.runs + free_cpus, self._most))
        elif rate < GAIN * self._rate_alone:
            self._set(0)
        elif measured.waited < FED * measured.seconds:
            self._fed += 1
            if self.runs > LEAST_RUNS:
                self.runs -= 1
            elif self._fed >= REST_REVIEWS:
                self.runs = 0

    def came(self) -> None:
        """Takes in that a run came back."""
        self._lost = 0

    def lost(self) -> None:
        """Takes in that a run came back undone."""
        self._lost += 1
        if self._lost >= LOST_RUNS:
            self.late()

    def late(self) -> None:
        """Takes in that a run was not back in time."""
        self._lost = 0
        self._set(0)
        self.here = True

    def _set(self, runs: int) -> None:
        self._fed = 0
        self._settling = SETTLING_REVIEWS
        self.runs = runs if runs >= LEAST_RUNS else 0
        if not self.runs:
            self._settling, self._rest = 0, REST_REVIEWS
