"""Joining and who may use the API: tokens are good once, in time, and only the right ones."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marram.cloud.access import Access, write_context
from marram.cloud.enrolment import Enrolled, Enrolment
from marram.schema import paths
from marram.schema.api import JoinAsk, RenewAsk, StandingAsk, TokenAsk
from marram.schema.errors import Conflict, Invalid, Refused, Threat, Untrusted
from marram.store import Store, check_standing, open_store
from marram.trust import API, JOIN, identity, new_token
from marram.trust.authority import DAY_S, DEVICE_LIFE_S, GRACE_S, Authority, Issued
from marram.trust.keys import Keys

NOW_S = float(int(time.time()))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "cloud.db")
    yield opened
    opened.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(Keys(tmp_path / "keys"), NOW_S)


@pytest.fixture
def enrolment(store: Store, authority: Authority) -> Enrolment:
    return Enrolment(store, authority)


class Pi:
    """A device as it would be: its keys, and what it asks."""

    def __init__(self, enrolment: Enrolment, authority: Authority, name: str = "pi") -> None:
        self._enrolment, self._authority, self.name = enrolment, authority, name
        self.key = identity.new_key()

    def join(self, token: str, now_s: float = NOW_S, **more: Any) -> Enrolled:
        csr = identity.request(self.key, "somebody-else").decode()
        joined = self._enrolment.join(JoinAsk(token=token, csr=csr, name=self.name, **more), now_s)
        self.own = identity.accept(joined.certificate.pem, self.key, self._authority.certificate_pem, self.name)
        return joined

    def ask(self, key: bytes | None = None) -> RenewAsk:
        """What it sends to renew for a new `key`."""
        csr = identity.request(key or identity.new_key())
        return RenewAsk(
            certificate=identity.certificate_of(self.own).decode(),
            csr=csr.decode(),
            proof=identity.prove(self.own, csr),
        )

    def renew(self, now_s: float) -> Issued:
        key = identity.new_key()
        issued = self._enrolment.renew(self.ask(key), self.name, now_s)
        self.own = identity.accept(issued.pem, key, self._authority.certificate_pem, self.name)
        return issued

    def copy(self) -> Pi:
        """Somebody who took a copy of its disk."""
        other = Pi(self._enrolment, self._authority, self.name)
        other.own = self.own
        return other


@pytest.fixture
def pi(enrolment: Enrolment, authority: Authority) -> Pi:
    """A device that has joined."""
    made = Pi(enrolment, authority)
    made.join(token(enrolment))
    return made


def token(enrolment: Enrolment, **more: Any) -> str:
    return enrolment.create_token(TokenAsk(**more), "").token


def csr() -> str:
    return identity.request(identity.new_key()).decode()


def threat_of(work: Callable[[], object]) -> Threat | None:
    with pytest.raises(Untrusted) as caught:
        work()
    return caught.value.threat


def test_a_token_makes_a_device_with_its_labels(store: Store, enrolment: Enrolment, authority: Authority) -> None:
    made = enrolment.create_token(TokenAsk(labels={"site": "x"}), "https://cloud:8443")
    assert made.join == f"marram edge join https://cloud:8443 {made.token}"
    assert made.token.endswith(f".{authority.fingerprint}")
    pi = Pi(enrolment, authority)
    joined = pi.join(made.token, labels={"site": "forged", "line": "2"})
    assert joined.labels == {"site": "x", "line": "2"}
    # The name is the cloud's decision, whatever the signing request says.
    assert joined.certificate.device == identity.device_of(pi.own) == "pi"
    row = store.certificates.get(joined.certificate.serial)
    assert row is not None and (row.device, row.expires_s) == ("pi", NOW_S + DEVICE_LIFE_S)
    assert row.authority == store.certificates.authority() == authority.fingerprint
    assert threat_of(lambda: Pi(enrolment, authority, "pi-2").join(made.token)) is Threat.SPENT


def test_a_device_without_a_name_gets_one(enrolment: Enrolment) -> None:
    text = token(enrolment, uses=2)
    names = {enrolment.join(JoinAsk(token=text, csr=csr()), NOW_S).certificate.device for _ in range(2)}
    assert len(names) == 2


def test_what_is_no_good_costs_no_use(store: Store, enrolment: Enrolment, authority: Authority, pi: Pi) -> None:
    text = token(enrolment)
    with pytest.raises(Conflict, match='"pi" exists already'):
        Pi(enrolment, authority).join(text)
    with pytest.raises(Invalid):
        enrolment.join(JoinAsk(token=text, csr="nonsense", name="pi-2"), NOW_S)
    store.devices.revoke("pi")
    assert threat_of(lambda: Pi(enrolment, authority).join(text)) is Threat.REVOKED
    assert Pi(enrolment, authority, "pi-2").join(text)


def test_a_wrong_expired_or_revoked_token_is_refused(store: Store, enrolment: Enrolment, authority: Authority) -> None:
    pi = Pi(enrolment, authority)
    late = enrolment.create_token(TokenAsk(ttl_s=60), "")
    with pytest.raises(Refused, match="expired 10 s ago"):
        pi.join(late.token, late.expires_s + 10)
    assert enrolment.tokens(late.expires_s + 10) == [] and len(enrolment.tokens(late.expires_s - 10)) == 1
    good = enrolment.create_token(TokenAsk(), "")
    head, secret, cloud = good.token.split(".")
    forged = f"{head}.{secret[:-1]}{'a' if secret[-1] != 'a' else 'b'}.{cloud}"
    for text in (
        forged,
        new_token(JOIN, authority.fingerprint).text,
        new_token(API).text,
        "mrm1.",
        "x",
        good.token[:-44],
    ):
        with pytest.raises(Refused):
            pi.join(text)
    foreign = new_token(JOIN, "A" * 43).text
    assert threat_of(lambda: pi.join(foreign)) is Threat.OTHER_CLOUD
    store.tokens.remove(good.id)
    with pytest.raises(Refused, match="does not know"):
        pi.join(good.token)
    assert store.devices.count() == 0


def test_a_spent_token_tells_nobody_which_names_are_taken(store: Store, enrolment: Enrolment, pi: Pi) -> None:
    spent = token(enrolment)
    enrolment.join(JoinAsk(token=spent, csr=csr(), name="pi-2"))
    assert threat_of(lambda: enrolment.join(JoinAsk(token=spent, csr=csr(), name="pi"))) is Threat.SPENT
    stale = token(enrolment, ttl_s=60.0)
    late_s = time.time() + 100
    assert threat_of(lambda: enrolment.join(JoinAsk(token=stale, csr=csr(), name="pi"), late_s)) is Threat.STALE
    assert [row.target for row in store.audit.list() if row.action == "device.join"] == ["pi", "pi-2"]


def test_many_who_race_with_one_token_make_one_device(store: Store, enrolment: Enrolment, authority: Authority) -> None:
    text = token(enrolment)
    devices = [Pi(enrolment, authority, f"pi-{number}") for number in range(8)]
    ready = threading.Barrier(len(devices))
    outcomes: list[str] = []

    def race(pi: Pi) -> None:
        ready.wait()
        try:
            outcomes.append(pi.join(text).certificate.device)
        except Untrusted as error:
            outcomes.append(str(error.threat))

    threads = [threading.Thread(target=race, args=(pi,)) for pi in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(Threat.SPENT) == 7
    assert store.devices.count() == 1
    assert [row.action for row in store.audit.list()].count("device.join") == 1


def test_a_key_joins_once(enrolment: Enrolment, authority: Authority, pi: Pi) -> None:
    other = Pi(enrolment, authority, "pi-2")
    other.key = pi.key
    assert threat_of(lambda: other.join(token(enrolment))) is Threat.CLONED


# ---------------------------------------------------------------- renewing


def test_a_renewed_certificate_takes_the_old_ones_place(store: Store, pi: Pi) -> None:
    old = pi.copy()
    issued = pi.renew(NOW_S + 20 * DAY_S)
    assert (issued.device, issued.expires_s) == ("pi", NOW_S + 20 * DAY_S + DEVICE_LIFE_S)
    # Until it is used, the old one stands: an answer that was lost on the way costs nothing.
    old.renew(NOW_S + 20 * DAY_S)
    store.certificates.use(issued.serial)
    pi.renew(NOW_S + 21 * DAY_S)
    assert [(row.actor, row.action) for row in store.audit.list()][-1] == ("device:pi", "device.renew")


def test_asked_again_for_the_same_key_it_answers_again(enrolment: Enrolment, store: Store, pi: Pi) -> None:
    key = identity.new_key()
    first, second = (enrolment.renew(pi.ask(key), "pi", NOW_S + 1) for _ in range(2))
    assert first.key_hash == second.key_hash and first.serial != second.serial
    assert store.certificates.use(first.serial, NOW_S + 2).used_s == NOW_S + 2  # type: ignore[union-attr]


def test_a_superseded_revoked_or_foreign_certificate_renews_nothing(
    store: Store, enrolment: Enrolment, authority: Authority, pi: Pi, tmp_path: Path
) -> None:
    old = pi.copy()
    store.certificates.use(pi.renew(NOW_S + 1).serial)
    assert threat_of(lambda: old.renew(NOW_S + 2)) is Threat.CLONED
    # One device's certificate on another's subject.
    assert threat_of(lambda: enrolment.renew(pi.ask(), "pi-2", NOW_S + 2)) is Threat.NOT_YOURS
    # Of another cloud; and one of this authority's that no row knows of, as after a stolen database.
    key = identity.new_key()
    for issuer in (Authority.create(Keys(tmp_path / "other"), NOW_S), authority):
        stranger = pi.copy()
        issued = issuer.device_certificate(identity.request(key), "pi", NOW_S)
        stranger.own = identity.accept(issued.pem, key, issuer.certificate_pem)
        assert threat_of(lambda own=stranger: own.renew(NOW_S + 2)) is Threat.OTHER_CLOUD  # type: ignore[misc]
    store.devices.revoke("pi")
    assert threat_of(lambda: pi.renew(NOW_S + 3)) is Threat.REVOKED
    store.devices.remove("pi")
    assert threat_of(lambda: pi.renew(NOW_S + 3)) is Threat.REVOKED


def test_nobody_renews_without_the_old_key(enrolment: Enrolment, authority: Authority, store: Store, pi: Pi) -> None:
    other = Pi(enrolment, authority, "pi-2")
    other.join(token(enrolment))
    mine, theirs = other.ask(), pi.ask()
    # A certificate is no secret: whoever saw it has no key for it. Nor does a proof serve for another request.
    for proof, request in (
        (mine.proof, mine.csr),
        (mine.proof, theirs.csr),
        (theirs.proof, mine.csr),
        ("AAAA", mine.csr),
    ):
        ask = RenewAsk(certificate=theirs.certificate, csr=request, proof=proof)
        assert threat_of(lambda ask=ask: enrolment.renew(ask, now_s=NOW_S + 1)) is Threat.WRONG_KEY  # type: ignore[misc]
    row = store.certificates.of("pi")[0]
    assert row.used_s is None, "an attempt without the key counts as no use"


def test_the_new_key_is_new_and_nobody_elses(enrolment: Enrolment, authority: Authority, pi: Pi) -> None:
    with pytest.raises(Invalid, match="the present one"):
        enrolment.renew(pi.ask(pi.key), "pi", NOW_S + 1)
    other = Pi(enrolment, authority, "pi-2")
    other.join(token(enrolment))
    assert threat_of(lambda: enrolment.renew(pi.ask(other.key), "pi", NOW_S + 1)) is Threat.CLONED


def standing(pi: Pi, signer: Pi | None = None) -> StandingAsk:
    """What it sends to ask why it is refused."""
    proof = identity.prove_standing((signer or pi).own)
    return StandingAsk(certificate=identity.certificate_of(pi.own).decode(), proof=proof)


def test_who_is_refused_may_ask_why_and_changes_nothing(enrolment: Enrolment, store: Store, pi: Pi) -> None:
    (row,) = store.certificates.of("pi")
    audited = len(store.audit.list())
    enrolment.standing(standing(pi), NOW_S + 1)
    enrolment.standing(standing(pi), row.expires_s + GRACE_S - 1)
    ended_s = row.expires_s + GRACE_S + 1
    assert threat_of(lambda: enrolment.standing(standing(pi), ended_s)) is Threat.EXPIRED
    assert store.certificates.of("pi") == [row] and len(store.audit.list()) == audited
    copy = pi.copy()
    store.certificates.use(pi.renew(NOW_S + 2).serial)
    assert threat_of(lambda: enrolment.standing(standing(copy), NOW_S + 3)) is Threat.CLONED
    enrolment.standing(standing(pi), NOW_S + 3)
    store.audit.add("cloud", "device.cloned", "pi")
    assert threat_of(lambda: enrolment.standing(standing(pi))) is Threat.CLONED
    store.devices.remove("pi")
    assert threat_of(lambda: enrolment.standing(standing(pi), NOW_S + 4)) is Threat.REVOKED


def test_why_a_device_is_refused_is_told_to_nobody_else(enrolment: Enrolment, store: Store, pi: Pi) -> None:
    """A certificate is no secret: without its key one learns nothing, and neither proof serves for the other."""
    other = Pi(enrolment, pi._authority, "pi-2")
    other.join(token(enrolment))
    store.devices.remove("pi")
    asks = [standing(pi, other), standing(pi).model_copy(update={"proof": pi.ask().proof})]
    for ask in asks:
        assert threat_of(lambda ask=ask: enrolment.standing(ask)) is Threat.WRONG_KEY  # type: ignore[misc]
    renewal = other.ask().model_copy(update={"proof": standing(other).proof})
    assert threat_of(lambda: enrolment.renew(renewal)) is Threat.WRONG_KEY


def test_a_clone_that_renews_is_found_out(store: Store, pi: Pi, caplog: pytest.LogCaptureFixture) -> None:
    clone = pi.copy()
    theirs = clone.renew(NOW_S + 1)
    mine = pi.renew(NOW_S + 2)
    assert "a copy of it" in caplog.text
    assert check_standing(store.certificates.use(mine.serial, NOW_S + 3), NOW_S + 3)
    # Whoever comes second has the name "cloned", whichever of the two it is.
    assert threat_of(lambda: check_standing(store.certificates.use(theirs.serial), NOW_S + 4)) is Threat.CLONED
    assert threat_of(lambda: clone.renew(NOW_S + 4)) is Threat.CLONED


def test_past_its_end_it_renews_within_the_grace_period_and_not_beyond(pi: Pi) -> None:
    end_s = NOW_S + DEVICE_LIFE_S
    late = pi.copy()
    assert threat_of(lambda: late.renew(end_s + GRACE_S + 1)) is Threat.EXPIRED
    assert pi.renew(end_s + GRACE_S - 1).expires_s == pytest.approx(end_s + GRACE_S - 1 + DEVICE_LIFE_S)


# ---------------------------------------------------------------- who may use the API


def test_the_first_token_is_made_once_and_kept_private(store: Store, tmp_path: Path) -> None:
    access = Access(store)
    token = access.first(tmp_path)
    assert access.caller(token.text) is not None
    assert Access(store).first(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "admin.token").stat().st_mode) == 0o600
    context = write_context("http://127.0.0.1:1", token.text)
    assert context == paths.context() and stat.S_IMODE(context.stat().st_mode) == 0o600


def test_a_token_file_that_is_not_good_is_replaced(store: Store, tmp_path: Path) -> None:
    access = Access(store)
    for content in (b"", b"\xff\xfe", new_token(API).text.encode(), b"mra1.short"):
        (tmp_path / "admin.token").write_bytes(content)
        assert access.caller(access.first(tmp_path).text) is not None


def test_only_the_right_tokens_are_admitted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marram.cloud.access._CACHE_S", 0.0)
    access = Access(store)
    token = access.create("ann")
    assert access.caller(token.text) is not None
    for wrong in (
        "",
        token.text[:-1],
        token.text + "x",
        new_token(API).text,
        f"{token.text[:-1]}\x00",
        "mra1." + "é" * 40,
    ):
        assert access.caller(wrong) is None
    access.revoke(token.id)
    assert access.caller(token.text) is None
