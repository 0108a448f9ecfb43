"""Devices, states, samples, models, apps, deployments, tokens: what is put in comes out, on both databases."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import update

from marram.schema.device import REPORT_INTERVAL_S, DesiredApp, DeviceInfo, DeviceState, Reported
from marram.schema.errors import Conflict, Missing
from marram.schema.event import Event, EventKind, Recorded
from marram.schema.model import Input, Manifest, ModelCard, Output, Task, Variant
from marram.store import AdminRow, Body, ModelRow, SampleFilter, Store
from marram.store.tables import reported


def app(name: str, version: int = 1) -> DesiredApp:
    return DesiredApp(name=name, version=version, files=Manifest(files=[]))


def card(name: str = "net") -> ModelCard:
    return ModelCard(
        model=name,
        task=Task.CLASSIFICATION,
        input=Input(size=[8, 8]),
        output=Output(form="softmax"),
        variants=[Variant(name="a", engine="reference", file="m.npz")],
        licence="MIT",
        source="here",
    )


def test_a_device_is_new_then_online_then_offline(store: Store) -> None:
    store.devices.add("pi", {"site": "a"}, DeviceInfo(machine="aarch64"), now_s=100)
    assert store.devices.get("pi", now_s=100).state is DeviceState.NEW
    store.states.report("pi", Reported(outbox_depth=3), now_s=200)
    device = store.devices.get("pi", now_s=200 + 2 * REPORT_INTERVAL_S)
    assert (device.state, device.seen_s, device.labels) == (DeviceState.ONLINE, 200, {"site": "a"})
    assert device.reported is not None and device.reported.outbox_depth == 3
    assert store.devices.get("pi", now_s=200 + 3.1 * REPORT_INTERVAL_S).state is DeviceState.OFFLINE
    assert store.devices.get("pi", now_s=50).state is DeviceState.ONLINE  # our clock jumped back: still heard


def test_a_report_that_nobody_can_read_any_more_hides_no_other_device(store: Store) -> None:
    for name in ("a", "b"):
        store.devices.add(name, {}, DeviceInfo())
        store.states.report(name, Reported(outbox_depth=3))
    with store.database.write() as connection:
        connection.execute(update(reported).where(reported.c.device == "a").values(document='{"time_s":null}'))
    assert [device.reported for device in store.devices.list()] == [None, Reported(outbox_depth=3)]
    assert store.states.reported("a") is None


def test_devices_are_listed_by_label(store: Store) -> None:
    store.devices.add("b", {"site": "x", "line": "1"}, DeviceInfo())
    store.devices.add("a", {"site": "x"}, DeviceInfo())
    assert [d.id for d in store.devices.list()] == ["a", "b"]
    assert [d.id for d in store.devices.list({"line": "1"})] == ["b"]
    store.devices.set_labels("b", {"site": "y"})
    assert store.devices.labels() == {"a": {"site": "x"}, "b": {"site": "y"}}
    store.devices.remove("b")
    assert (store.devices.count(), store.devices.exists("b")) == (1, False)


def test_desired_rises_only_with_a_change(store: Store) -> None:
    store.devices.add("pi", {}, DeviceInfo())
    assert store.states.desired("pi").version == 0
    first = store.states.desire("pi", [app("a")])
    assert first is not None and first.version == 1
    assert store.states.desire("pi", [app("a")]) is None
    second = store.states.desire("pi", [])
    assert second is not None and second.version == 2
    assert store.states.desire("unknown", [app("a")]) is None
    assert store.states.all_desired() == {"pi": second}


def test_two_who_decide_at_once_give_two_versions(store: Store) -> None:
    store.devices.add("pi", {}, DeviceInfo())
    threads = [threading.Thread(target=store.states.desire, args=("pi", [app("a", n)])) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.states.desired("pi").version == 8


def test_a_removed_device_leaves_no_state_but_its_events(store: Store) -> None:
    store.devices.add("pi", {}, DeviceInfo())
    store.states.desire("pi", [app("a")])
    store.states.report("pi", Reported())
    store.events.append("pi", [Recorded("stream-1", 1, Event(EventKind.RESULT, "a", 1))])
    store.devices.remove("pi")
    assert store.states.all_desired() == {}
    assert store.states.reported("pi") is None
    assert store.events.count() == 1


def test_samples_are_labelled_and_found_by_it(store: Store) -> None:
    for n in (1, 2, 3):
        record = Recorded("stream-1", n, Event(EventKind.SAMPLE, "gate", n, {"reason": "unsure"}, b"x", "image/png"))
        store.events.append("pi", [record], {n: Body(str(n) * 64, 1)})
    first, second, _ = store.samples.list()
    labelled = store.samples.label(first.id, "cat", by="ann", now_s=5)
    assert (labelled.label, labelled.labelled_by, labelled.labelled_s) == ("cat", "ann", 5)
    assert [s.id for s in store.samples.list(SampleFilter(labelled=True))] == [first.id]
    assert [s.id for s in store.samples.list(SampleFilter(labelled=False), limit=1)] == [second.id]
    assert store.samples.count(SampleFilter(label="cat", app="gate", device="pi")) == 1
    assert store.samples.label(first.id, None).labelled_by is None
    assert store.samples.count(SampleFilter(labelled=True)) == 0
    assert [s.id for s in store.samples.list(after_id=second.id)] == [second.id + 1]


def test_models_by_version_digest_and_newest(store: Store) -> None:
    for version in (1, 2):
        row = ModelRow("net", version, f"{version}" * 64, card(), Manifest(files=[]), {"parent": version - 1})
        assert store.models.add(row).created_s > 0
    newest = store.models.get("net")
    assert newest is not None and newest.version == 2 and newest.lineage == {"parent": 1} and newest.card == card()
    assert store.models.get("net", 3) is None
    known = store.models.by_digest("net", "1" * 64)
    assert known is not None and known.version == 1
    with pytest.raises(Conflict):
        store.models.add(ModelRow("net", 2, "3" * 64, card(), Manifest(files=[])))
    with pytest.raises(Conflict):
        store.models.add(ModelRow("net", 3, "2" * 64, card(), Manifest(files=[])))
    assert [(r.name, r.version) for r in store.models.list()] == [("net", 2), ("net", 1)]
    assert store.models.count() == 2


def test_an_app_version_is_its_content(store: Store) -> None:
    assert store.apps.add(app("a"), "x" * 64).version == 1
    assert store.apps.add(app("a"), "y" * 64).version == 2
    assert store.apps.add(app("a"), "x" * 64).version == 1
    newest = store.apps.get("a")
    assert newest is not None and newest.app.version == 2
    assert store.apps.get("a", 1) is not None and store.apps.get("b") is None
    assert ([r.version for r in store.apps.list()], store.apps.count()) == ([2, 1], 1)


def test_deployments_are_kept_newest_first(store: Store) -> None:
    one = store.deployments.add("a", 1, {"site": "x"}, now_s=1)
    two = store.deployments.add("a", None, {}, now_s=2)
    assert store.deployments.list("a") == [two, one]
    assert store.deployments.list("b") == []


def test_api_tokens_can_be_revoked(store: Store) -> None:
    store.admins.add(AdminRow("x", "me", "h" * 64, 1.0))
    assert [row.name for row in store.admins.list()] == ["me"]
    store.admins.revoke("x")
    row = store.admins.get("x")
    assert row is not None and row.revoked
    with pytest.raises(Missing):
        store.admins.revoke("y")
