"""What the cloud signs: complete, current, no more than is needed, whoever else does it at the same time."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marram.cloud.signing import Signing, make_keys
from marram.schema.device import DesiredApp, DeviceInfo, ModelRef, model_target
from marram.schema.errors import Invalid, Missing
from marram.schema.model import File, Input, Manifest, ModelCard, Output, Task, Variant
from marram.store import ModelRow, Store, open_store
from marram.trust import signers
from marram.trust.clock import Clock
from marram.trust.keys import Keys
from marram.trust.repository import DAY_S, Repository
from marram.trust.verifier import Verifier

FILES = Manifest(files=[File(path="app.yaml", sha256="a" * 64, size_bytes=5)])


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys")
    made.make()
    assert make_keys(made, time.time())
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "marram.db")
    yield opened
    opened.close()


@pytest.fixture
def signing(store: Store, keys: Keys) -> Signing:
    made = Signing(store, keys)
    made.open()
    return made


def version(store: Store, number: int, name: str = "gate") -> DesiredApp:
    """The next version of an app, stored."""
    app = DesiredApp(name=name, version=0, files=FILES, secrets=[f"s{number}"])
    return store.apps.add(app, f"{number:064d}").app


def test_what_it_signs_a_device_takes(signing: Signing, store: Store, tmp_path: Path) -> None:
    app = version(store, 1)
    signing.sign(app)
    signing.sign(app)
    verifier = Verifier(tmp_path / "trust", signing.root(), Clock(tmp_path / "clock"))
    verifier.verify({app.target: app.signed()}, lambda name, most_bytes: signing.read(name))
    assert signing.read("2.root.json") is None and signing.read("root.json") is None
    assert signing.read("99999999999999.main.json".replace("99999", "9", 1)) is None
    for name in ("../../etc/passwd", "secrets.json", "0.root.json", "1.root.json/..", "1.root.json\n", ""):
        with pytest.raises(Invalid):
            signing.read(name)


def test_a_running_cloud_needs_no_offline_key(store: Store, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    keys.make()
    make_keys(keys, time.time(), root_keys=3, threshold=2, offline=tmp_path / "stick")
    assert len(list((tmp_path / "stick").glob("*.pem"))) == 4 and not list(keys.offline.glob("*"))
    signing = Signing(store, keys)
    signing.open()
    signing.sign(version(store, 1))
    assert signing.repository.documents().root.signed.roles["root"].threshold == 2
    assert not make_keys(keys, time.time())


def test_what_a_crash_left_unsigned_is_found(signing: Signing, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    app = version(store, 1)
    with caplog.at_level(logging.WARNING):
        signing.tend()
    assert signing.repository.targets() == {app.target}
    assert "1 versions were not signed when they were made" in caplog.text


def test_what_no_device_needs_is_taken_off(signing: Signing, store: Store) -> None:
    apps = [version(store, number) for number in range(30)]
    for app in apps:
        signing.sign(app)
    store.devices.add("pi-1", {}, DeviceInfo())
    store.states.desire("pi-1", [apps[2]])
    store.deployments.add("gate", 5, {})
    surplus = signing.tidy()
    kept = {apps[2].target, apps[4].target, *(app.target for app in apps[-10:])}
    assert signing.repository.targets() == kept and len(surplus) == 18
    store.states.desire("pi-1", [apps[0]])  # a roll-back to something old
    assert signing.tidy() == {apps[2].target}
    assert apps[0].target in signing.repository.targets()


def test_what_would_expire_is_signed_anew(store: Store, keys: Keys) -> None:
    now_s = time.time()
    signing = Signing(store, keys, lambda: now_s)
    signing.open()
    now_s += 0.6 * DAY_S
    signing.tend()
    assert signing.repository.expires_s()["timestamp"] > now_s + 0.9 * DAY_S


def test_of_two_that_begin_at_once_one_does(signing: Signing, monkeypatch: pytest.MonkeyPatch) -> None:
    root = signing.root()
    monkeypatch.setattr(Repository, "exists", False)  # as it was when both looked
    signing.open()
    assert signing.root() == root


def test_a_key_that_comes_while_the_cloud_runs_is_used(signing: Signing, keys: Keys) -> None:
    before = signing.repository
    assert signing.repository is before
    signers.save(signers.new_signer(), signers.free_name(keys.signing, "snapshot"))
    assert signing.repository is not before and signing.repository is signing.repository


def test_a_model_that_a_device_runs_stays_signed(signing: Signing, store: Store) -> None:
    card = ModelCard(
        model="net", task=Task.CLASSIFICATION, input=Input(size=[8, 8]), output=Output(form="softmax"),
        variants=[Variant(name="a", engine="reference", file="m.npz")], licence="MIT", source="here",
    )  # fmt: skip
    for number in range(1, 15):
        store.models.add(ModelRow("net", number, f"{number:064d}", card, FILES))
        signing.sign_model("net", number)
    app = DesiredApp(name="gate", version=0, files=FILES, models=[ModelRef(name="net", version=1, manifest=FILES)])
    app = store.apps.add(app, "a" * 64).app
    signing.sign(app)
    store.devices.add("pi-1", {}, DeviceInfo())
    store.states.desire("pi-1", [app])
    signing.tidy()
    models = {target for target in signing.repository.targets() if target.startswith("models/")}
    assert models == {model_target("net", number) for number in (1, *range(5, 15))}
    signed = [row.target for row in store.audit.list() if row.action == "update.sign"]
    assert signed == [*(model_target("net", number) for number in range(1, 15)), app.target]


def test_a_person_is_told_in_time(store: Store, keys: Keys) -> None:
    now_s = time.time()
    signing = Signing(store, keys, lambda: now_s)
    signing.open()
    assert signing.warnings() == []
    now_s += 340 * DAY_S
    first, second = signing.warnings()
    assert first.startswith("what is signed as root expires in 25 days") and "marram cloud root renew" in first
    assert "as targets" in second
    now_s += 30 * DAY_S
    assert "has expired" in signing.warnings()[0]


def test_a_new_database_without_its_first_documents_says_what_is_missing(store: Store, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    keys.make()
    with pytest.raises(Missing):
        Signing(store, keys).open()


def test_processes_that_sign_at_once_lose_nothing(signing: Signing, store: Store, keys: Keys, tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from marram.cloud.signing import Signing
        from marram.store import open_store
        from marram.trust.keys import Keys
        store = open_store(Path(sys.argv[1]))
        signing = Signing(store, Keys(Path(sys.argv[2])))
        for number in range(8):
            signing.repository.publish({f"apps/main/{sys.argv[3]}/{number}.json": b"x"})
            signing.repository.refresh()
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    running = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path / "marram.db"), str(keys.folder), name])
        for name in ("one", "two", "three")
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(signing.repository.targets()) == 24
    # What devices in the middle of a refresh may ask for is there, what nobody can ask for is not.
    newest = store.signed.newest("main")
    assert newest is not None and store.signed.get("main", newest.version) == newest
    assert store.signed.get("main", newest.version + 1) is None and store.signed.get("main", 2**40) is None
    with store.database.read() as connection:
        counts = connection.exec_driver_sql("SELECT role, count(*) FROM signed GROUP BY role").all()
    assert dict(map(tuple, counts)) == {"root": 1, "targets": 1, "main": 16, "snapshot": 16, "timestamp": 16}
