"""The few numbers of the policy that were chosen and not derived, together so that they can be cross-validated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constants:
    """`python -m bench.oracle --cross-validate` chooses them anew on half of the links and reports on the other half.

    `drift`, `noise`: where the link's two learnt variances begin (of the logarithm of seconds per byte: per second, and
    of a single message). `probe_after_s`: an idle link is probed after so long. `depth`: frames looked ahead.
    `gain`: another way than the greedy one is taken where it saves this share of a missed deadline's loss. `learn`: how
    much of each error's surprise goes into the learnt variances. `sure`: a way counts as on time with at least this
    chance.
    """

    drift: float = 0.3
    noise: float = 0.1
    probe_after_s: float = 0.5
    depth: int = 4
    gain: float = 0.1
    learn: float = 0.05
    sure: float = 0.9


SHIPPED = Constants()
