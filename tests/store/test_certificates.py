"""Enrolment and certificates as rows: one use of a token, one line of certificates a device, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from marram.schema.device import DeviceInfo
from marram.schema.errors import Conflict, MarramError, Threat, Untrusted
from marram.store import CertificateRow, Store, TokenRow, check_standing

DAY_S = 86400.0


def certificate(serial: str, device: str = "pi", issued_s: float = 50.0) -> CertificateRow:
    return CertificateRow(serial, device, serial * 8, issued_s, issued_s + 30 * DAY_S)


def token(store: Store, uses: int = 1) -> str:
    store.tokens.add(TokenRow("t", "h" * 64, {"site": "a"}, uses, uses, 0.0, 100.0))
    return "t"


def enrol(store: Store, device: str, serial: str, issued_s: float = 50.0) -> bool:
    return store.devices.enrol("t", certificate(serial, device, issued_s), {"site": "a"}, DeviceInfo())


def race(work: Callable[[int], object], number: int = 8) -> list[object]:
    """What each of `number` threads got: its result, or its error."""
    found: list[object] = []
    ready = threading.Barrier(number)

    def run(each: int) -> None:
        ready.wait()
        try:
            found.append(work(each))
        except MarramError as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def threat_of(row: CertificateRow | None, now_s: float, **more: float | str) -> Threat | None:
    with pytest.raises(Untrusted) as caught:
        check_standing(row, now_s, **more)  # type: ignore[arg-type]
    return caught.value.threat


def test_the_last_uses_of_a_token_go_to_as_many(store: Store) -> None:
    token(store, 3)
    found = race(lambda each: enrol(store, f"pi-{each}", f"{each}"))
    assert sorted(map(bool, found)) == [False] * 5 + [True] * 3
    assert store.devices.count() == 3 == sum(len(store.certificates.of(f"pi-{each}")) for each in range(8))


def test_one_name_goes_to_one_and_costs_the_others_no_use(store: Store) -> None:
    token(store, 8)
    found = race(lambda each: enrol(store, "pi", f"{each}"))
    assert found.count(True) == 1 and sum(isinstance(each, Conflict) for each in found) == 7
    row = store.tokens.get("t")
    assert row is not None and row.uses_left == 7
    assert len(store.certificates.of("pi")) == 1


def test_a_token_that_is_over_enrols_nobody(store: Store) -> None:
    token(store)
    assert enrol(store, "pi", "a", issued_s=100.0) is False
    assert store.devices.count() == 0


def test_the_name_of_a_revoked_device_is_kept_from_others(store: Store) -> None:
    token(store, 3)
    assert enrol(store, "pi", "a")
    store.devices.revoke("pi", 60.0)
    assert store.devices.get("pi").revoked_s == 60.0 and store.devices.admissible() == set()
    with pytest.raises(Untrusted) as caught:
        enrol(store, "pi", "b")
    assert caught.value.threat is Threat.REVOKED
    with pytest.raises(Untrusted, match=r"it was revoked on 1970-01-01 00:01 UTC"):  # a device repeats it for days
        check_standing(store.certificates.use("a", 61.0), 61.0)
    store.devices.remove("pi")
    assert enrol(store, "pi", "b")
    # The old one is no good for whoever has the name now.
    assert threat_of(store.certificates.use("a", 61.0), 61.0) is Threat.REVOKED
    assert check_standing(store.certificates.use("b", 61.0), 61.0).device == "pi"


def test_the_first_use_supersedes_all_others(store: Store) -> None:
    token(store)
    enrol(store, "pi", "a")
    for serial in ("b", "c"):
        store.certificates.add(certificate(serial))
    assert check_standing(store.certificates.use("a", 51.0), 51.0).used_s == 51.0
    assert store.certificates.use("a", 52.0) == store.certificates.get("a")
    # What was issued before the first use of "a", and never used, went with it: nobody knows who has it.
    assert threat_of(store.certificates.use("b", 53.0), 53.0) is Threat.CLONED
    store.certificates.add(certificate("d"))
    assert check_standing(store.certificates.use("a", 54.0), 54.0)
    check_standing(store.certificates.use("d", 55.0), 55.0)
    assert threat_of(store.certificates.use("a", 56.0), 56.0) is Threat.CLONED


def test_of_two_that_are_used_at_once_one_stays(store: Store) -> None:
    token(store)
    enrol(store, "pi", "a")
    store.certificates.use("a", 51.0)
    for each in range(4):
        store.certificates.add(certificate(f"{each}"))
    race(lambda each: store.certificates.use(f"{each % 4}", 52.0))
    standing = [row for row in store.certificates.of("pi") if row.superseded_s is None]
    assert len(standing) == 1 and standing[0].used_s == 52.0


def test_why_a_certificate_does_not_stand_has_a_name(store: Store) -> None:
    token(store)
    enrol(store, "pi", "a")
    row, end_s = store.certificates.use("a", 51.0), 50.0 + 30 * DAY_S
    assert threat_of(None, 51.0) is Threat.OTHER_CLOUD
    assert store.certificates.use("zz") is None
    assert threat_of(row, 51.0, device="pi-2") is Threat.NOT_YOURS
    assert check_standing(row, end_s, device="pi")
    assert threat_of(row, end_s + 1) is Threat.EXPIRED
    assert check_standing(row, end_s + 1, grace_s=DAY_S)
    assert threat_of(row, end_s + DAY_S + 1, grace_s=DAY_S) is Threat.EXPIRED
    store.devices.revoke("pi", 52.0)
    assert threat_of(store.certificates.get("a"), 53.0) is Threat.REVOKED


def test_a_key_is_known_by_whoever_has_it(store: Store) -> None:
    token(store)
    enrol(store, "pi", "a")
    assert store.certificates.holders("a" * 8) == {"pi"}
    assert store.certificates.holders("b" * 8) == set()


def test_certificates_that_nobody_uses_do_not_pile_up(store: Store) -> None:
    token(store)
    enrol(store, "pi", "a")
    store.certificates.use("a", 51.0)
    for each in range(20):
        store.certificates.add(certificate(f"x{each}", issued_s=60.0 + each))
    assert {row.serial for row in store.certificates.of("pi")} == {"a", *(f"x{each}" for each in range(12, 20))}


def test_what_tells_a_copy_or_a_thief_is_never_forgotten(store: Store) -> None:
    """Certificates that were superseded or revoked unused stay, however many come after them."""
    token(store, 2)
    enrol(store, "pi", "a")
    store.certificates.add(certificate("copied", issued_s=51.0))
    store.certificates.use("a", 52.0)
    for each in range(20):
        store.certificates.add(certificate(f"x{each}", issued_s=60.0 + each))
    assert threat_of(store.certificates.use("copied", 90.0), 90.0) is Threat.CLONED
    store.certificates.add(certificate("stolen", issued_s=91.0))
    store.devices.remove("pi")
    enrol(store, "pi", "b")
    for each in range(20):
        store.certificates.add(certificate(f"y{each}", issued_s=100.0 + each))
    assert threat_of(store.certificates.use("stolen", 200.0), 200.0) is Threat.REVOKED


def test_the_latest_authority_is_whose_cloud_it_is(store: Store) -> None:
    assert store.certificates.authority() is None and not store.certificates.any()
    store.certificates.add(certificate("a", issued_s=50.0))
    assert store.certificates.authority() is None and store.certificates.any()
    for serial, issued_s, authority in (("b", 70.0, "new"), ("c", 60.0, "old")):
        store.certificates.add(replace(certificate(serial, issued_s=issued_s), authority=authority))
    assert store.certificates.authority() == "new"


def test_one_device_s_certificates_are_nobody_elses(store: Store) -> None:
    token(store, 2)
    enrol(store, "pi", "a")
    enrol(store, "pj", "b")
    store.certificates.use("a", 51.0)
    store.devices.revoke("pi", 52.0)
    store.devices.revoke("pi", 60.0)
    assert store.certificates.of("pi")[0].revoked_s == 52.0, "since when it is no good stays known"
    assert check_standing(store.certificates.use("b", 53.0), 53.0).device == "pj"
    assert store.devices.admissible() == {"pj"}
