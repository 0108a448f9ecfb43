"""Why one device runs what it runs of one app: from the evidence one cause, in a sentence, and what to type next. Pure.

The evidence is what the cloud decided (deployments, rollouts, when each reached the device), what the device says of
itself, and its journal. The first cause in the order of `_CAUSES` that fits is the answer: what keeps a device from
being told comes before what the device made of it. It must never guess: where nothing says why, it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from marram.rollout import window
from marram.rollout.chronicle import Noted, chronicle
from marram.rollout.controller import goals
from marram.rollout.desire import holding
from marram.schema.device import AppState, Device, DeviceState, ReportedApp
from marram.schema.errors import Threat
from marram.schema.ids import matches
from marram.schema.journal import What
from marram.schema.rollout import DeviceOutcome, RolloutDevice, RolloutState
from marram.schema.signed import OFFLINE
from marram.schema.units import format_duration
from marram.schema.why import WhyApp
from marram.store import DeploymentRow, RolloutRow, Standing


@dataclass(frozen=True)
class Evidence:
    """All that is known of one app on one device. `deployments` are all of the app; `standings` those that may hold.

    `history`: the rollouts that dealt with the device. `waits`: by rollout, what it waits for; `matching`: how many
    devices each decides over.
    """

    device: Device
    app: str
    now_s: float
    deployments: list[DeploymentRow] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    rollouts: dict[int, RolloutRow] = field(default_factory=dict)
    history: dict[int, RolloutDevice] = field(default_factory=dict)
    journal: list[Noted] = field(default_factory=list)
    waits: dict[int, str] = field(default_factory=dict)
    matching: dict[int, int] = field(default_factory=dict)

    @cached_property
    def said(self) -> ReportedApp | None:
        """What the device says of the app."""
        apps = self.device.reported.apps if self.device.reported else []
        return next((each for each in apps if each.name == self.app), None)

    @cached_property
    def runs(self) -> int | None:
        """The version that runs there, as far as it said."""
        said = self.said
        if said is None or said.state is AppState.REMOVED:
            return None
        return said.running

    @cached_property
    def held_by(self) -> DeploymentRow | None:
        """The deployment that holds for the device."""
        return holding(self.device.id, self.device.labels, self.standings).get(self.app)

    @property
    def wanted(self) -> int | None:
        return self.held_by.version if self.held_by else None

    @cached_property
    def newest(self) -> DeploymentRow | None:
        """The last one that was decided for a device with its labels, whatever became of it."""
        fits = [row for row in self.deployments if matches(row.selector, self.device.labels)]
        return max(fits, key=lambda row: row.id, default=None)

    @property
    def rollout(self) -> RolloutRow | None:
        """The rollout of the newest deployment, where it has one."""
        return self.rollouts.get(self.newest.id) if self.newest else None

    @property
    def meant(self) -> int | None:
        """The version a person would expect: that of the newest deployment, else the one that holds."""
        return self.newest.version if self.newest else self.wanted

    @property
    def told(self) -> bool:
        """Whether the device has heard of what it should run."""
        return self.said is not None and self.said.version == self.wanted


@dataclass(frozen=True, slots=True)
class _Answer:
    cause: str
    sentence: str
    after: str = ""
    next: str = ""


def why(evidence: Evidence) -> WhyApp:
    """The answer, with the lines that bear it out, oldest first."""
    answer = next(found for found in (cause(evidence) for cause in _CAUSES) if found is not None)
    return WhyApp(
        app=evidence.app,
        runs=evidence.runs,
        wanted=evidence.wanted,
        cause=answer.cause,
        sentence=answer.sentence.rstrip(".") + ".",  # what a reason ends with is not ours
        lines=chronicle(evidence.app, evidence.journal, evidence.rollouts, evidence.history, evidence.device),
        after=answer.after,
        next=answer.next,
    )


def about_device(device: Device, now_s: float) -> tuple[str, str]:
    """What is to be said of the device itself, and what to do; both "" where it is well."""
    if device.revoked_s is not None:
        return (
            f"{device.id} is revoked: the cloud does not speak with it any more.",
            "marram token create   (it joins again, with a new identity)",
        )
    if device.state is DeviceState.NEW:
        return f"{device.id} joined and was never heard.", "marram edge run   (on the device)"
    if device.state is DeviceState.OFFLINE and device.seen_s is not None:
        ago = format_duration(max(1, round(now_s - device.seen_s)))
        return (
            f"{device.id} is offline: it was last heard {ago} ago, and what follows is as of then.",
            "marram edge status   (on the device)",
        )
    return "", ""


# ---------------------------------------------------------------- the causes, first that fits


def _revoked(evidence: Evidence) -> _Answer | None:
    if evidence.device.revoked_s is None:
        return None
    return _Answer("revoked", f"{_short(evidence)}: the device is revoked and hears nothing any more.")


def _never_deployed(evidence: Evidence) -> _Answer | None:
    if evidence.newest is not None or evidence.held_by is not None:
        return None
    labels = ", ".join(f"{key}={value}" for key, value in sorted(evidence.device.labels.items())) or "none"
    going = " and is told to take it away" if evidence.runs is not None else ""
    return _Answer(
        "never_deployed",
        f"{_runs(evidence)}{going}: no deployment of {evidence.app} is for its labels ({labels}).",
        next="marram deploy --list",
    )


def _removed(evidence: Evidence) -> _Answer | None:
    held = evidence.held_by
    if held is None or held.version is not None or held != evidence.newest:
        return None
    who = _selector(held.selector)
    gone = "" if evidence.runs is None else f"; {evidence.runs} still runs there until it hears of it"
    return _Answer("removed", f"{_runs(evidence)}: it was taken off {who}{gone}.", next="")


def _not_reached(evidence: Evidence) -> _Answer | None:
    """The newest deployment has not come to this device yet."""
    rollout, newest = evidence.rollout, evidence.newest
    if rollout is None or newest is None or not rollout.open or newest == evidence.held_by:
        return None
    number, names = rollout.id, _stages(evidence, rollout)
    begin = f"{_short(evidence)}: rollout {number} has not reached it"
    if rollout.state is RolloutState.PAUSED:
        return _Answer("paused", f"{begin}, and is paused in {names}.", next=f"marram rollout resume {number}")
    if rollout.state is RolloutState.HALTED:
        return _Answer(
            "halted", f"{begin}, and was halted in {names}: {rollout.reason}.", next=f"marram rollout show {number}"
        )
    held = evidence.device.reported.held if evidence.device.reported else None
    if held is not None:
        return _Answer("held", f"{_short(evidence)}: {_held(held)}.", next="marram edge release   (on the device)")
    if evidence.device.state is not DeviceState.ONLINE:
        return _Answer("offline", f"{begin}: it is offline, and is reached when it is back.", next="")
    plan = rollout.plan
    if plan.window is not None and not window.is_open(plan.window, evidence.now_s):
        words = window.words(plan.window)
        return _Answer(
            "window", f"{begin}: it reaches devices in its window only, {words}.", next=f"marram rollout show {number}"
        )
    waits = evidence.waits.get(number, "")
    reason = f" and waits for {waits}" if waits else ""
    return _Answer("stage", f"{begin}: it is in {names}{reason}.", next=f"marram rollout show {number}")


def _taken_back(evidence: Evidence) -> _Answer | None:
    """The newest deployment is over: everybody goes on with what they had."""
    rollout = evidence.rollout
    if rollout is None or rollout.state not in (RolloutState.ROLLED_BACK, RolloutState.ABORTED):
        return None
    if evidence.wanted is not None and evidence.runs != evidence.wanted and not evidence.told:
        return None
    number = rollout.id
    if rollout.state is RolloutState.ABORTED:
        return _Answer(
            "aborted",
            f"{_short(evidence)}: rollout {number} was aborted by a person.",
            next=f"marram rollout show {number}",
        )
    mine = evidence.history.get(number)
    if mine is not None and mine.outcome is DeviceOutcome.FAILED:
        return _Answer(
            "tried_and_rolled_back",
            f"{_short(evidence)}: {rollout.version} was tried here and failed ({mine.reason}), "
            f"and rollout {number} was rolled back everywhere.",
            next=f"marram rollout show {number}",
        )
    here = "" if mine is not None and mine.reached_s is not None else " before it came here"
    return _Answer(
        "rollout_rolled_back",
        f"{_short(evidence)}: rollout {number} was rolled back{here}, in stage {rollout.stage}: {rollout.reason}.",
        next=f"marram rollout show {number}",
    )


def _held_there(evidence: Evidence) -> _Answer | None:
    held = evidence.device.reported.held if evidence.device.reported else None
    if held is None or evidence.runs == evidence.wanted:
        return None
    return _Answer("held", f"{_short(evidence)}: {_held(held)}.", next="marram edge release   (on the device)")


def _not_heard(evidence: Evidence) -> _Answer | None:
    """The device was told and has not answered."""
    if evidence.told or evidence.runs == evidence.wanted:
        return None
    device = evidence.device
    if device.state is DeviceState.ONLINE:
        return _Answer("told", f"{_short(evidence)}: it was told just now, and has not begun.")
    silent = evidence.history.get(evidence.held_by.id) if evidence.held_by else None
    seen = "was never heard" if device.seen_s is None else "is offline"
    reason = f" ({silent.reason})" if silent is not None and silent.outcome is DeviceOutcome.SILENT else ""
    return _Answer(
        "offline",
        f"{_short(evidence)}: it {seen}{reason}, and hears of it when it is back.",
        next="marram edge status   (on the device)",
    )


def _given_up(evidence: Evidence) -> _Answer | None:
    """The device itself rolled the version back, now or earlier."""
    said, wanted = evidence.said, evidence.wanted
    if said is None or not evidence.told or said.state is not AppState.ROLLED_BACK or wanted is None:
        return None
    held = evidence.held_by
    assert held is not None
    mine = evidence.history.get(held.id)
    since_s = max(held.created_s, (mine.reached_s or 0.0) if mine else 0.0)
    trials = [
        noted
        for noted in evidence.journal
        if noted.entry.version == wanted and noted.entry.what is What.MOVED and noted.entry.to is AppState.ROLLED_BACK
    ]
    earlier = bool(trials) and all(noted.received_s < since_s for noted in trials)
    reason = f": {said.reason}" if said.reason else ""
    # Without a rollout of its own (decided by an older Marram) there is nobody to ask for another try.
    again = f"marram rollout retry {held.id} {evidence.device.id}" if held.id in evidence.rollouts else "marram deploy"
    after = f"It will not retry {wanted} by itself."
    if earlier:
        return _Answer(
            "blocked",
            f"{_short(evidence)}: {wanted} was given up here before this deployment{reason}.",
            after,
            again,
        )
    return _Answer(
        "device_rolled_back", f"{_short(evidence)}: {wanted} was tried here and rolled back{reason}.", after, again
    )


def _on_its_way(evidence: Evidence) -> _Answer | None:
    """The version is on its way on the device."""
    said, wanted = evidence.said, evidence.wanted
    if said is None or not evidence.told or said.state in (AppState.COMMITTED, AppState.REMOVED):
        return None
    begin, reason = _short(evidence), said.reason
    if evidence.device.state is not DeviceState.ONLINE:
        return _Answer("offline", f"{begin}: it went offline on its way ({said.state.value}).", next="")
    if any(reason.startswith(f"{threat.value}: ") for threat in Threat):
        # Of what is signed, these two only a person renews.
        old = reason.startswith(f"{Threat.FREEZE.value}: ") and any(f"signed as {role} " in reason for role in OFFLINE)
        return _Answer(
            "untrusted",
            f"{begin}: it does not believe what it was sent ({reason}), and keeps what it has until it can.",
            next="marram cloud root renew   (on the cloud's machine)" if old
            else f"marram device show {evidence.device.id}",
        )  # fmt: skip
    if said.state is AppState.PROVISIONAL:
        return _Answer("on_trial", f"{evidence.device.id} has {evidence.app} {wanted} on trial{_because(reason)}.")
    if reason:
        cause = "disk" if _about_room(reason) else "waiting"
        what = "it waits for room" if cause == "disk" else "it waits"
        ended = reason.rstrip(".")
        words = f"it {ended}" if ended.startswith("waits ") else f"{what}: {ended}"
        return _Answer(cause, f"{begin}: {words}.", next=f"marram device show {evidence.device.id}")
    doing = {AppState.PENDING: "is fetching it", AppState.FETCHED: "is checking it"}.get(said.state, "is starting it")
    return _Answer("under_way", f"{begin}: it {doing}.")


def _not_running(evidence: Evidence) -> _Answer | None:
    """Committed, and yet no worker is there."""
    said = evidence.said
    if said is None or evidence.runs is not None or evidence.wanted is None or said.state is not AppState.COMMITTED:
        return None
    reason = f": {said.reason}" if said.reason else "; it says nothing of why"
    return _Answer(
        "not_running",
        f"{evidence.device.id} should run {evidence.app} {evidence.wanted}, which is committed there "
        f"but does not run{reason}.",
        next=f"marram device show {evidence.device.id}",
    )


def _another_wins(evidence: Evidence) -> _Answer | None:
    """It runs what it should, but another deployment that matches it means another version."""
    held = evidence.held_by
    if held is None or held.version is None or evidence.runs != held.version:
        return None
    others = [
        standing.deployment
        for standing in evidence.standings
        if standing.deployment.id < held.id
        and standing.deployment.app == evidence.app
        and standing.deployment.version not in (None, held.version)
        and matches(standing.deployment.selector, evidence.device.labels)
        and standing.deployment.selector != held.selector
    ]
    if not others:
        return None
    other = others[0]
    return _Answer(
        "another_wins",
        f"{evidence.device.id} runs {evidence.app} {held.version}, not {other.version}: deployment {held.id} for "
        f"{_selector(held.selector)} is newer than {other.id} for {_selector(other.selector)}, and holds here.",
        next="marram deploy --list",
    )


def _as_it_should(evidence: Evidence) -> _Answer:
    if evidence.wanted is None:
        return _Answer("nothing", f"{_runs(evidence)}, as it should be.")
    number = evidence.held_by.id if evidence.held_by else 0
    rollout = evidence.rollouts.get(number)
    if rollout is not None and rollout.state is RolloutState.HALTED:
        return _Answer(
            "halted",
            f"{evidence.device.id} runs {evidence.app} {evidence.runs}, and rollout {number}, which brought it, was "
            f"halted in {_stages(evidence, rollout)}: {rollout.reason}.",
            next=f"marram rollout promote {number}   (or abort, which brings everybody back)",
        )
    return _Answer(
        "as_it_should", f"{evidence.device.id} runs {evidence.app} {evidence.runs}, as rollout {number} says."
        if number in evidence.rollouts
        else f"{evidence.device.id} runs {evidence.app} {evidence.runs}, as it should."
    )  # fmt: skip


_CAUSES: list[Callable[[Evidence], _Answer | None]] = [
    _revoked,
    _never_deployed,
    _removed,
    _not_reached,
    _taken_back,
    _held_there,
    _not_heard,
    _given_up,
    _on_its_way,
    _not_running,
    _another_wins,
    _as_it_should,
]


# ---------------------------------------------------------------- words


def _runs(evidence: Evidence) -> str:
    if evidence.runs is None:
        return f"{evidence.device.id} runs no {evidence.app}"
    return f"{evidence.device.id} runs {evidence.app} {evidence.runs}"


def _short(evidence: Evidence) -> str:
    """`pi runs gate 2, not 3`, or `pi does not run gate 3` where it runs none."""
    meant = evidence.meant
    if meant is None:
        meant = evidence.wanted
    if evidence.runs is None and meant is not None:
        return f"{evidence.device.id} does not run {evidence.app} {meant}"
    return _runs(evidence) + (f", not {meant}" if meant is not None and meant != evidence.runs else "")


def _held(held: str) -> str:
    return f"a person at the device told it to change nothing ({held})"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _selector(selector: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items())) or "all devices"


def _stages(evidence: Evidence, rollout: RolloutRow) -> str:
    """`stage 2 of 3 (10%: 5 of 48 devices)`."""
    of = evidence.matching.get(rollout.id, 0)
    stage = rollout.plan.stages[rollout.stage - 1]
    goal = goals(rollout.plan, of)[rollout.stage - 1]
    return f"stage {rollout.stage} of {len(rollout.plan.stages)} ({stage}: {goal} of {of} devices)"


def _about_room(reason: str) -> bool:
    return any(word in reason.lower() for word in ("disk", "room", "space"))
