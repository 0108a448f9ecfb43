"""Budgets held by prices: what is spent beyond a budget makes every further joule or coin dearer, in seconds of delay.

λ ← [λ + η·(spent − budget)]₊, the dual ascent of a constrained optimum (Boyd & Vandenberghe, "Convex Optimization",
5.5; online: Neely, "Stochastic network optimization", 2010, section 4). Once a second; a decision then adds
λ_energy·joules + λ_money·money to the delay it expects. Without a budget both prices are 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from marram.placement.contract import Costs

_EVERY_S = 1.0
_LONGEST_STEP_S = 10.0
# A budget overspent by all of itself raises the price, in one second, by this share of what a typical inference is
# worth: its seconds over its joules. Prices then settle within some ten seconds and hold the budget on average.
_GAIN = 0.1
# What is typical must change more slowly than prices do, or each price would steer its own yardstick: 16 % too much was
# spent where it was an average over some twenty inferences.
_SHARE = 0.002
# A price at which an inference's cost equals so many times its delay says no louder.
_MOST = 100.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in the long run: `watts`, and `money_s` a second (the currency of `Costs`); None: any."""

    watts: float | None = None
    money_s: float | None = None


@dataclass(slots=True)
class _Price:
    """Of one thing that is spent. `value` is in seconds of delay for each unit."""

    budget: float | None
    value: float = 0.0
    spent: float = 0.0
    unit: float = 0.0  # what a typical inference that spends anything spends
    count: int = 0

    def spend(self, amount: float) -> None:
        if self.budget is not None and 0 < amount < math.inf:
            self.spent += amount
            self.count += 1
            self.unit += max(_SHARE, 1 / self.count) * (amount - self.unit)

    def settle(self, elapsed_s: float, delay_s: float) -> None:
        if self.budget is None or not self.unit or not delay_s:
            return
        worth = delay_s / self.unit
        allowed = self.budget * elapsed_s
        # Nothing allowed: whatever is spent is as dear as it gets.
        over = (self.spent - allowed) / allowed if allowed > 0 else (1 / _GAIN if self.spent else 0.0)
        self.value = min(max(0.0, self.value + _GAIN * worth * over * elapsed_s), _MOST * worth)
        self.spent = 0.0


class Prices:
    """The prices of energy and of money; see the module's words."""

    def __init__(self, budget: Budget) -> None:
        self._energy, self._money = _Price(_sane(budget.watts)), _Price(_sane(budget.money_s))
        self.any = self._energy.budget is not None or self._money.budget is not None
        self._settled_s: float | None = None
        self._delay_s, self._count = 0.0, 0
        self.costs = Costs()  # of the last ask: what is spent until the next one is counted by these

    @property
    def joule_s(self) -> float:
        """Seconds of delay that a joule is worth."""
        return self._energy.value

    @property
    def coin_s(self) -> float:
        """Seconds of delay that one unit of money is worth."""
        return self._money.value

    def asked(self, now_s: float, costs: Costs, delay_s: float) -> None:
        """An inference was placed that is expected to take `delay_s`: time to settle what was spent before."""
        self.costs = costs
        if not self.any:
            return
        self._count += 1
        self._delay_s += max(_SHARE, 1 / self._count) * (delay_s - self._delay_s)
        if self._settled_s is None:
            self._settled_s = now_s
        elapsed_s = now_s - self._settled_s
        if elapsed_s >= _EVERY_S:
            self._settled_s = now_s
            for price in (self._energy, self._money):
                price.settle(min(elapsed_s, _LONGEST_STEP_S), self._delay_s)

    def computed(self, service_s: float) -> None:
        """The edge computed for so long."""
        self._energy.spend(self.costs.edge_w * service_s)

    def sent(self, sending_s: float, answers: int) -> None:
        """The radio will have sent for so long, and so many answers of the cloud are to be paid."""
        self._energy.spend(self.costs.send_w * sending_s)
        self._money.spend(self.costs.cloud_money * answers)


def _sane(budget: float | None) -> float | None:
    return budget if budget is not None and 0 <= budget < math.inf else None
