"""A cloud's keys are made once: what the database relies on is never made anew in the place of what was lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.cloud.provision import check_kept, provision
from marram.cloud.safe import Safe
from marram.cloud.signing import Signing
from marram.schema.device import DeviceInfo
from marram.schema.errors import Missing
from marram.store import CertificateRow, Store, open_store
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
    store.certificates.add(CertificateRow("01", "pi", "k", 0.0, 1.0))
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


def test_a_database_that_relies_on_no_key_yet_gets_them(store: Store, keys: Keys) -> None:
    store.devices.add("pi", {}, DeviceInfo())  # joined before there were keys
    shutil.rmtree(keys.folder)
    check_kept(keys, store)
