"""Gathers from the store all that is known of one device, for `rollout.why` to make an answer of."""

from __future__ import annotations

import time
from collections import defaultdict

from marram.rollout import Evidence, Rollout, about_device, why
from marram.rollout.chronicle import Noted
from marram.schema.errors import Invalid
from marram.schema.event import Event, EventKind
from marram.schema.journal import Entry
from marram.schema.why import Why, WhyApp
from marram.store import EventFilter, Store

# Of a device's journal, the newest so many entries.
_MOST_ENTRIES = 500


def explain(store: Store, rollout: Rollout, id: str) -> Why:
    """Why device `id` runs what it runs, app by app. Raises Missing."""
    now_s = time.time()
    device = store.devices.get(id, now_s)
    sentence, next = about_device(device, now_s)
    journal = _journal(store, id)
    standings = rollout.standings()
    history = store.rollouts.history(id)
    deployments = store.deployments.list()
    apps = {row.app for row in deployments} | {each.name for each in (device.reported.apps if device.reported else [])}
    found: list[WhyApp] = []
    for app in sorted(apps):
        mine = [row for row in deployments if row.app == app]
        rollouts = {row.id: row for row in store.rollouts.all(app)}
        evidence = Evidence(
            device=device,
            app=app,
            now_s=now_s,
            deployments=mine,
            standings=[each for each in standings if each.deployment.app == app],
            rollouts=rollouts,
            history={row.id: its for row, its in history if row.app == app},
            journal=[*journal[app], *journal[""]],
        )
        newest = evidence.newest
        if newest is not None and newest.id in rollouts and rollouts[newest.id].open:
            look = rollout.rollouts.look(newest.id, now_s)
            evidence.waits[newest.id] = look.step.verdict.waits
            evidence.matching[newest.id] = len(look.seen)
        answer = why(evidence)
        if answer.cause != "never_deployed" or answer.runs is not None or len(apps) == 1:
            found.append(answer)
    return Why(device=id, sentence=sentence, next=next, apps=found)


def _journal(store: Store, id: str) -> dict[str, list[Noted]]:
    """The device's journal by app; what is no entry (a newer agent's) is left out."""
    found: dict[str, list[Noted]] = defaultdict(list)
    for event in store.events.newest(EventFilter(device=id, kinds=(EventKind.DEPLOYMENT,)), _MOST_ENTRIES):
        try:
            entry = Entry.of(Event(event.kind, event.app, event.time_s, event.data))
        except Invalid:
            continue
        found[event.app].append(Noted(event.stream, event.sequence, event.received_s, entry))
    return found
