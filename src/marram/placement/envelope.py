"""Which ways of one model are ever worth taking: the lower envelope of their delays over links and slow edges.

A way's delay is a straight line in the seconds that a byte takes on the link, for each slow-down of the edge:

    T = slowdown * (front_s + encode_s) + bytes * per_byte_s + back_s        (+ round trip and queue, the same for all)

so of many cuts and codecs only those on the lower envelope of lines are ever soonest; the others need never be looked
at again. A cloud that is slow by c is the same picture: T / c has slowdown / c and per_byte_s / c. Times are in any
unit, since every link from none to endless is looked at; those of a card were measured on one machine.

When a cut wins at all follows from three lines. Let a model of W seconds be cut into f + b = W, with B bytes crossing
and J bytes where the input itself is sent. The cut beats the cloud where per_byte_s > f (s - 1) / (J - B), and the
whole model at the edge where per_byte_s < b (s - 1) / B: both at once only where B / J < b / W. It has to make the
input smaller by more than the share of the work that it leaves to the cloud.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from marram.schema.model import Codec, Cut, ModelCard
from marram.schema.result import Place

# Edges from a quarter as fast to sixty-four times slower than the machine the times were measured on, each cloud's
# slowness included. In steps of an eighth of an octave: what is soonest only between two of them is sooner by 2.3 % at
# most (two lines that rise from 0 and cross between steps r apart are (r - 1) / 4 above what may hide below them).
SLOWDOWNS: tuple[float, ...] = tuple(2 ** (eighth / 8) for eighth in range(-16, 49))
# What a cut has to save beside the better of edge and cloud to be worth its files and its memory.
WORTH_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Option:
    """One way, by its times on the machine where all were measured (seconds, or any other unit for all of them).

    `edge`: `front_s` is the whole model, nothing is sent. `cloud`: `encode_s` here, `back_s` there. `split`: both.
    """

    name: str
    place: Place
    front_s: float = 0.0
    encode_s: float = 0.0
    bytes: float = 0.0
    back_s: float = 0.0

    def at(self, per_byte_s: float, slowdown: float) -> float:
        """Its delay without round trip and queue."""
        return slowdown * (self.front_s + self.encode_s) + self.bytes * per_byte_s + self.back_s


@dataclass(frozen=True, slots=True)
class Gain:
    """Where a way saves most beside the edge and the cloud: `share` of their better delay (0–1), at this link and
    slow-down. `least_per_byte_s`, `most_per_byte_s`: the links on which it saves a worthwhile share there.
    """

    option: Option
    share: float
    per_byte_s: float
    slowdown: float
    least_per_byte_s: float
    most_per_byte_s: float


class Envelope:
    """Made once of all `options`; then `best` takes microseconds."""

    def __init__(self, options: Iterable[Option], slowdowns: Sequence[float] = SLOWDOWNS) -> None:
        self.options = tuple(options)
        if not self.options or not slowdowns:
            raise ValueError("an envelope needs a way and a slow-down")
        self._slowdowns = tuple(sorted(slowdowns))
        self._rows = [_lower(self.options, slowdown) for slowdown in self._slowdowns]

    def best(self, per_byte_s: float, slowdown: float) -> Option:
        """The soonest way on such a link, for such an edge. Exact at each slow-down of the grid.

        Between two of them the winners of both are compared by their own lines.
        """
        above = bisect_right(self._slowdowns, slowdown)
        rows = self._rows[max(0, above - 1) : above + 1]
        chosen = [options[bisect_right(breaks, per_byte_s)] for breaks, options in rows]
        return min(chosen, key=lambda option: option.at(per_byte_s, slowdown))

    def winners(self) -> list[Option]:
        """Those that are soonest on some link for some edge of the grid, in the order given."""
        found = {id(option) for _, options in self._rows for option in options}
        return [option for option in self.options if id(option) in found]

    def gains(self, worth_share: float = WORTH_SHARE) -> list[Gain]:
        """The splits that save at least `worth_share` of the better of edge and cloud somewhere, the most first.

        Empty: it is never worth parting this model. Only what beats every whole way counts, on the best link and for
        the best slow-down; with a round trip and a queue besides, which only the edge is spared, a cut saves less.
        """
        splits = [option for option in self.options if option.place is Place.SPLIT]
        whole = [option for option in self.options if option.place is not Place.SPLIT]
        if not whole:
            return []
        rows = [(slowdown, *_lower(whole, slowdown)) for slowdown in self._slowdowns]
        found = (max((_gain(split, row, worth_share) for row in rows), key=lambda gain: gain.share) for split in splits)
        return sorted((gain for gain in found if gain.share >= worth_share), key=lambda gain: -gain.share)


def options_of(card: ModelCard, codecs: Sequence[Codec], cuts: Sequence[Cut], *, edge: bool) -> list[Option]:
    """The ways of the cloud's model of `card`, in milliseconds of the machine that measured it: by codec, by cut.

    `edge`: the edge may answer with this very model, so that a cut has to be sooner than that too. Without cuts nothing
    tells how long the model takes, and nothing needs to: it is the same for every codec.
    """
    # Cuts may have been timed on other days: of each only the shares of its parts are taken, all of one whole.
    whole_ms = statistics.median(cut.front_ms + cut.back_ms for cut in card.cuts) if card.cuts else 0.0
    return [
        *([Option("edge", Place.EDGE, front_s=whole_ms)] if edge and whole_ms else []),
        *(Option(c.name, Place.CLOUD, encode_s=c.encode_ms, bytes=c.bytes, back_s=whole_ms) for c in codecs),
        *(_parted(cut, whole_ms) for cut in cuts),
    ]


def _parted(cut: Cut, whole_ms: float) -> Option:
    share = cut.front_ms / (cut.front_ms + cut.back_ms) if cut.front_ms + cut.back_ms else 1.0
    front_ms = share * whole_ms
    return Option(f"cut:{cut.name}", Place.SPLIT, front_ms, bytes=cut.bytes, back_s=whole_ms - front_ms)


def _gain(split: Option, row: tuple[float, list[float], list[Option]], worth_share: float) -> Gain:
    """At one slow-down, beside the lower envelope of the whole ways there.

    Between two breaks of that envelope the saved share is a quotient of lines, so it peaks at a break or at an end; and
    the envelope is concave, so the links on which so much is saved are one stretch.
    """
    slowdown, breaks, whole = row
    ends = [beta for option in whole if (beta := _worth_from(split, option, slowdown, worth_share)) is not None]
    shares = {beta: _share(split, whole, beta, slowdown) for beta in (0.0, *breaks, *ends, math.inf)}
    peak = max(shares, key=lambda beta: shares[beta])
    worth = [beta for beta, share in shares.items() if share >= worth_share - 1e-9] or [peak]
    return Gain(split, shares[peak], peak, slowdown, min(worth), max(worth))


def _share(split: Option, whole: Sequence[Option], per_byte_s: float, slowdown: float) -> float:
    """What the split saves of the better whole way's delay; below 0 where it takes longer."""
    if per_byte_s == math.inf:
        least, ours = min(option.bytes for option in whole), split.bytes
    else:
        least = min(option.at(per_byte_s, slowdown) for option in whole)
        ours = split.at(per_byte_s, slowdown)
    return 1 - ours / least if least > 0 else 0.0 if ours == least else -math.inf


def _lower(options: Sequence[Option], slowdown: float) -> tuple[list[float], list[Option]]:
    """The lower envelope of the options' lines over seconds per byte >= 0: where it changes, and who is lowest.

    `breaks[i]` lies between `options[i]` and `options[i + 1]`. The convex hull trick: lines by falling slope.
    """
    lines = sorted(options, key=lambda each: (-each.bytes, each.at(0.0, slowdown)))
    hull: list[Option] = []
    breaks: list[float] = []
    for line in lines:
        if hull and line.bytes == hull[-1].bytes:
            continue  # never lower than the one with the same bytes that begins lower
        while hull:
            crossing = _crossing(hull[-1], line, slowdown)
            # A line of fewer bytes is lower from the crossing on; before 0 there is no link.
            if crossing is None or crossing <= (breaks[-1] if breaks else 0.0):
                hull.pop()
                if breaks:
                    breaks.pop()
            else:
                breaks.append(crossing)
                break
        hull.append(line)
    return breaks, hull


def _crossing(one: Option, other: Option, slowdown: float) -> float | None:
    """The seconds per byte at which both take as long; None where that never happens on a link."""
    if one.bytes == other.bytes:
        return None
    at = (other.at(0.0, slowdown) - one.at(0.0, slowdown)) / (one.bytes - other.bytes)
    return at if at >= 0 else None


def _worth_from(split: Option, whole: Option, slowdown: float, share: float) -> float | None:
    """Where the split takes exactly (1 - share) of what `whole` does; None where that is on no link."""
    slope = (1 - share) * whole.bytes - split.bytes
    if slope == 0:
        return None
    at = (split.at(0.0, slowdown) - (1 - share) * whole.at(0.0, slowdown)) / slope
    return at if at >= 0 else None
