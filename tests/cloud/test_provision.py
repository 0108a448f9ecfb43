"""A cloud's keys are made once: what the database relies on is never made anew in the place of what was lost."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.cli import execute
from marram.cloud.provision import check_belong, check_kept, provision
from marram.cloud.safe import Safe
from marram.cloud.signing import Signing
from marram.schema.device import DeviceInfo
from marram.schema.errors import Missing, Refused
from marram.store import CertificateRow, Store, open_store
from marram.trust.authority import Authority
from marram.trust.keys import Keys


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path / "cloud.db")
    yield store
    store.close()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path / "keys")
    provision(keys, time.time())
    return keys


def use(store: Store, keys: Keys) -> None:
    """A device, a signature and a secret."""
    store.devices.add("pi", {}, DeviceInfo())
    fingerprint = Authority.open(keys).fingerprint
    store.certificates.add(CertificateRow("01", "pi", "k", 0.0, 1.0, authority=fingerprint))
    Signing(store, keys).open()
    Safe(store, keys).put("KEY", "hush", {})


@pytest.mark.parametrize("lost", ["ca.pem", "ca.key", "signing", "signing/timestamp.pem", "seal.key", "."])
def test_a_key_that_was_lost_is_named_and_not_replaced(store: Store, keys: Keys, lost: str) -> None:
    use(store, keys)
    check_kept(keys, store)
    gone = keys.folder / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(Missing, match=rf"{keys.folder}.*key is gone.*Restore"):
        check_kept(keys, store)


def test_of_those_that_start_at_once_on_a_new_folder_one_makes_the_keys(tmp_path: Path) -> None:
    keys, made, ready = Keys(tmp_path / "new"), list[bool](), threading.Barrier(4)

    def start() -> None:
        ready.wait()
        made.append(provision(keys, time.time()))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, False, True]
    assert Authority.open(keys) and len(list(keys.signing.glob("*.pem"))) == 3


def test_what_is_there_is_never_replaced(keys: Keys) -> None:
    def content() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in keys.folder.rglob("*") if file.is_file()}

    before = content()
    assert not provision(keys, time.time()) and content() == before


def test_a_database_that_relies_on_no_key_yet_gets_them(store: Store, keys: Keys) -> None:
    store.devices.add("pi", {}, DeviceInfo())  # joined before there were keys
    shutil.rmtree(keys.folder)
    check_kept(keys, store)


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        (["ca.pem", "ca.key", "signing"], "ca.pem is another"),
        (["ca.pem", "ca.key"], "ca.pem is another"),
        (["signing"], "none of the keys in signing/"),
    ],
    ids=["all", "authority", "signing"],
)
def test_keys_of_another_cloud_are_refused(
    store: Store, keys: Keys, tmp_path: Path, strange: list[str], said: str
) -> None:
    use(store, keys)
    other = Keys(tmp_path / "other")
    provision(other, time.time())
    shutil.rmtree(keys.signing) if "signing" in strange else None
    for name in strange:
        from_there = other.folder / name
        copy = shutil.copytree if from_there.is_dir() else shutil.copy2
        copy(from_there, keys.folder / name)
    for check in (check_kept, check_belong):
        with pytest.raises(Refused, match=rf"{keys.folder}.*{said}.*do not belong together.*Restore.*To begin anew"):
            check(keys, store)


def test_init_makes_no_keys_beside_a_database_that_relies_on_lost_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "cloud"
    keys = Keys(place / "keys")
    command = ["cloud", "init", "--folder", str(place)]
    assert execute(command) == 0
    store = open_store(place / "marram.db")
    use(store, keys)
    store.close()
    assert execute(command) == 0 and "there already" in capsys.readouterr().out
    shutil.rmtree(keys.folder)
    assert execute(command) == 2
    assert "key is gone" in capsys.readouterr().err and not keys.folder.exists()
