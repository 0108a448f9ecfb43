"""The API by its own client: what goes in comes out, and every refusal is one of our errors."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.cloud.api.serving import CARD, STREAM, Served, colours, result, sample

from marram.runtime.bundle import Bundle
from marram.schema.device import AppState, DeviceInfo, DeviceState
from marram.schema.errors import Conflict, Invalid, Missing, Refused, Retryable, Threat, Untrusted
from marram.schema.event import EventKind

APP = "app: colours\nsource: {images: photos, repeat: true}\nsteps: [{classify: colours}]\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return colours(tmp_path / "bundle")


# ---------------------------------------------------------------- joining


def test_a_token_joins_so_many_devices_with_its_labels(served: Served) -> None:
    with served.api() as api:
        made = api.create_token({"site": "x"}, uses=2, ttl_s=60)
        assert [(t.id, t.uses_left) for t in api.tokens()] == [(made.id, 2)]
        one = served.join(made.token, "pi-1", labels={"line": "3"}, info=DeviceInfo(cores=4))
        two = served.join(made.token)
        with pytest.raises(Untrusted, match="used already") as caught:
            served.join(made.token)
        assert caught.value.threat is Threat.SPENT
        assert api.tokens() == []  # what is spent can no longer be used
        assert one.device == "pi-1" and one.labels == {"site": "x", "line": "3"} and one.certificate != two.certificate
        assert {d.id for d in api.devices("site=x")} == {"pi-1", two.device}
        assert [d.id for d in api.devices("line=3")] == ["pi-1"]
        assert api.device("pi-1").state is DeviceState.NEW and api.device("pi-1").info.cores == 4


def test_a_taken_name_is_a_conflict_and_a_revoked_token_is_refused(served: Served) -> None:
    served.add_device("pi-1")
    with served.api() as api:
        made = api.create_token(uses=9)
        with pytest.raises(Conflict, match="pi-1"):
            served.join(made.token, "pi-1")
        api.revoke_token(made.id)
        with pytest.raises(Refused, match="does not know"):
            served.join(made.token)
        with pytest.raises(Missing):
            api.revoke_token(made.id)


def test_a_removed_device_is_gone_but_its_events_stay(served: Served) -> None:
    served.add_device("pi-1")
    served.deliver("pi-1", [result("red")])
    with served.api() as api:
        api.remove_device("pi-1")
        with pytest.raises(Missing, match="pi-1"):
            api.device("pi-1")
        assert len(api.events(device="pi-1")) == 1


# ---------------------------------------------------------------- content


def test_a_blob_is_kept_once_under_what_it_is(served: Served, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    seen: list[int] = []
    with served.api() as api:
        sha256 = api.put_blob(tmp_path / "file", lambda done, total: seen.append(done))
        assert sha256 == hashlib.sha256(content).hexdigest() and api.has_blob(sha256)
        assert seen[-1] == len(content) and sorted(seen) == seen and len(seen) > 3
        assert api.put_blob(content) == sha256
    assert served.state.objects.get(sha256) == content
    assert list(served.state.scratch.iterdir()) == []


def test_content_that_is_not_what_its_name_says_is_refused_and_leaves_nothing(
    served: Served, http: httpx.Client
) -> None:
    sha256 = hashlib.sha256(b"one").hexdigest()
    answer = http.put(f"/api/v1/blobs/{sha256}", content=b"another")
    assert answer.status_code == 400 and "is not what its name says" in answer.json()["error"]["what"]
    with served.api() as api:
        assert not api.has_blob(sha256)
    assert list(served.state.scratch.iterdir()) == []


def test_a_model_goes_up_and_comes_down_the_same(served: Served, bundle: Bundle, tmp_path: Path) -> None:
    with served.api() as api:
        one = api.push_model(bundle.card, bundle.folder, bundle.files())
        assert (one.name, one.version) == ("colours", 1)
        assert api.push_model(bundle.card, bundle.folder, bundle.files()).version == 1
        assert [m.version for m in api.models()] == [1] and api.model("colours").digest == one.digest
        api.pull_model(one, tmp_path / "back")
        for name in bundle.files():
            assert (tmp_path / "back" / name).read_bytes() == (bundle.folder / name).read_bytes()
        with pytest.raises(Missing, match='did you mean "colours"'):
            api.model("colurs")
        (bundle.folder / "model.yaml").write_text(CARD + "description: another\n")
        changed = Bundle.open(bundle.folder)
        with pytest.raises(Conflict, match="other content"):
            api.push_model(changed.card, changed.folder, changed.files(), version=1)
        assert api.push_model(changed.card, changed.folder, changed.files()).version == 2


# ---------------------------------------------------------------- deployments


def test_an_app_reaches_the_devices_that_match_now_or_later(served: Served, bundle: Bundle) -> None:
    served.add_device("pi-1", site="x")
    served.add_device("pi-2", site="y")
    with served.api() as api:
        with pytest.raises(Missing, match="colours"):
            api.deploy(APP)
        api.push_model(bundle.card, bundle.folder, bundle.files())
        made = api.deploy(APP, selector={"site": "x"})
        assert [(d.device, d.wanted, d.state) for d in made.devices] == [("pi-1", 1, AppState.PENDING)]
        assert [a.name for a in api.device("pi-1").desired.apps] == ["colours"]
        assert api.device("pi-2").desired.apps == []
        token = api.create_token({"site": "x"}).token
        served.join(token, "pi-3")
        assert [d.device for d in api.deployment("colours").devices] == ["pi-1", "pi-3"]
        served.report("pi-1", state=AppState.ROLLED_BACK, reason="no photos")
        back = next(d for d in api.deployments()[0].devices if d.device == "pi-1")
        assert (back.state, back.version, back.reason) == (AppState.ROLLED_BACK, 1, "no photos")
        api.undeploy("colours", "site=x")
        assert api.deployments() == [] and api.device("pi-1").desired.apps == []
        with pytest.raises(Missing):
            api.deployment("colours")


def test_a_deployment_tells_its_own_devices_only(served: Served, bundle: Bundle) -> None:
    """What another deployment of the same app put there is that one's: site=z has no device yet."""
    for number, site in enumerate("xxy", start=1):
        served.add_device(f"pi-{number}", site=site)
    with served.api() as api:
        api.push_model(bundle.card, bundle.folder, bundle.files())
        api.deploy(APP, selector={"site": "x"})
        assert api.deploy(APP + "send: alerts\n", selector={"site": "z"}).devices == []
        api.deploy(APP + "send: alerts\n", selector={"site": "y"})
        told = {d.selector["site"]: (d.version, [each.device for each in d.devices]) for d in api.deployments()}
        assert told == {"y": (2, ["pi-3"]), "z": (2, []), "x": (1, ["pi-1", "pi-2"])}
        assert api.deployment("colours").selector == {"site": "y"}


def test_a_wrong_app_is_told_by_line(served: Served) -> None:
    with served.api() as api, pytest.raises(Invalid, match=r'app\.yaml:2.*did you mean "camera"'):
        api.deploy("app: x\nsource: {camra: 0}\nsteps: [{classify: m}]\n")


# ---------------------------------------------------------------- events, samples


def test_a_tail_by_id_misses_nothing_and_repeats_nothing(served: Served) -> None:
    served.deliver("pi-1", [result("red"), result("green", "cloud"), result("blue")])
    with served.api() as api:
        assert [e.data["label"] for e in api.events(limit=2)] == ["green", "blue"]
        first = api.events(after=0, limit=2)
        rest = api.events(after=first[-1].id, limit=2)
        assert [e.sequence for e in first + rest] == [1, 2, 3]
        assert api.events(after=rest[-1].id) == []
        assert api.events(device="pi-2") == [] and api.events(app="other") == []
        assert api.events(kinds=[EventKind.ALERT]) == [] and len(api.events(kinds=["result", "alert"])) == 3
        assert api.events(since_s=9e9) == [] and len(api.events(since_s=0)) == 3


def test_counts_prove_exactly_once(served: Served) -> None:
    for _ in range(2):  # the acknowledgement got lost: the device sends the batch again
        served.deliver("pi-1", [result("red"), result("green")])
    with served.api() as api:
        counts = api.counts()
        assert (counts.stored, counts.distinct, counts.duplicates_seen) == (2, 2, 2)
        assert [(s.device, s.stream, s.stored, s.last_sequence) for s in counts.streams] == [("pi-1", STREAM, 2, 2)]
        assert api.counts(device="pi-2").stored == 0


def test_samples_are_listed_fetched_and_labelled(served: Served) -> None:
    served.deliver("pi-1", [sample(b"\xff\xd8picture"), sample(b"<script>", "text/html")])
    with served.api() as api:
        one, two = api.samples()
        assert one.reason == "result.confidence < 0.4" and api.sample_body(one.id) == b"\xff\xd8picture"
        assert api.label_sample(one.id, "red").label == "red"
        assert [s.id for s in api.samples(labelled=True)] == [one.id]
        assert [s.id for s in api.samples(labelled=False)] == [two.id] == [s.id for s in api.samples(after=one.id)]
        assert api.label_sample(one.id, None).label is None
        with pytest.raises(Missing):
            api.label_sample(99, "red")
        with pytest.raises(Missing):
            api.sample_body(99)


def test_a_sample_is_never_served_as_a_page(served: Served, http: httpx.Client) -> None:
    served.deliver("pi-1", [sample(b"<script>alert(1)</script>", "text/html")])
    answer = http.get("/api/v1/samples/1/body")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (
        answer.headers["x-content-type-options"] == "nosniff" and "sandbox" in answer.headers["content-security-policy"]
    )


# ---------------------------------------------------------------- the whole


def test_status_says_what_a_person_has_to_do_soon(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with served.api() as api:
        assert api.status().warnings == []
        monkeypatch.setattr(served.state.signing, "_now_s", lambda: time.time() + 350 * 86400)
        root, targets = api.status().warnings
    assert root.startswith("what is signed as root expires in 15 days") and "marram cloud root renew" in root
    assert "signed as targets" in targets


def test_status_health_and_metrics_say_how_it_is(served: Served, http: httpx.Client) -> None:
    served.add_device("pi-1")
    served.report("pi-1", outbox_depth=7)
    served.deliver("pi-1", [result("red")])
    with served.api() as api:
        status = api.status()
        assert (status.devices, status.online, status.events) == (1, 1, 1)
        assert api.health().ok and {c.name for c in api.health().checks} >= {"database", "objects"}
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    value = {
        name: families[name].samples[0].value for name in ("marram_outbox_events", "marram_app_latency_p50_seconds")
    }
    assert value == {"marram_outbox_events": 7, "marram_app_latency_p50_seconds": pytest.approx(0.021)}
    assert families["marram_app_edge_frames"].samples[0].value == 30


def test_a_broken_database_is_an_unhealthy_cloud(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> str:
        raise Retryable("the database does not answer")

    monkeypatch.setattr(type(served.state.store), "check", lambda self: away())
    with served.api() as api:
        health = api.health()
    assert not health.ok and [c.name for c in health.checks if not c.ok] == ["database"]


def test_the_openapi_document_covers_every_call_and_docs_load_nothing(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/api/v1/join", "/api/v1/blobs/{sha256}", "/api/v1/events/counts", "/healthz", "/metrics"} <= paths.keys()
    page = http.get("/docs").text
    assert all(f"<code>{path}</code>" in page for path in paths)
    assert "http://" not in page and "https://" not in page and "<script" not in page
