"""`marram login`: which cloud is believed, what is sent to whom, and that the commands then talk to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import marram.cli
from marram.bus.http import CloudApi
from marram.cloud.server import Cloud
from marram.cloud.settings import Settings
from marram.schema import paths
from marram.schema.people import Role
from marram.trust.authority import Authority
from marram.trust.keys import Keys

Run = Callable[..., tuple[int, str]]
PASSWORD = "a long enough password"


class Served(threading.Thread):
    """A whole cloud in a thread."""

    def __init__(self, folder: Path, keys: Path | None = None, tls_port: int = 0) -> None:
        super().__init__(daemon=True)
        self._settings = Settings(folder=folder, port=0, tls_port=tls_port, keys=keys)
        self._up = threading.Event()
        self.start()
        assert self._up.wait(60)

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with Cloud(self._settings).running() as self.cloud:
            self._up.set()
            await self._over.wait()

    def stop(self) -> None:
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self.join(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARRAM_HOME", str(tmp_path_factory.mktemp("there")))
        made = Served(tmp_path_factory.mktemp("cloud"))
        with CloudApi(made.cloud.url, made.cloud.admin_token) as api:
            api.add_user("ann", Role.OPERATOR, PASSWORD)
        yield made
        made.stop()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A command with something on its standard input: its status, and all it said."""
    for name in ("MARRAM_URL", "MARRAM_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str, given: str = "") -> tuple[int, str]:
        file = tmp_path / "stdin"
        file.write_text(given)
        with file.open() as stdin, monkeypatch.context() as patch:
            patch.setattr("sys.stdin", stdin)
            status = marram.cli.execute(list(arguments))
        said = capsys.readouterr()
        return status, " ".join((said.out + said.err).split())

    return command


def test_name_and_password_then_the_commands_work(served: Served, run: Run) -> None:
    url, fingerprint = served.cloud.tls_url, served.cloud.state.authority.fingerprint
    status, words = run("login", url, "--user", "ann", "--fingerprint", fingerprint, given=f"{PASSWORD}\n")
    assert status == 0 and f"signed in to {url} as ann" in words
    file = paths.context()
    assert file.stat().st_mode & 0o777 == 0o600
    kept = yaml.safe_load(file.read_text())
    assert kept["url"] == url and kept["token"] not in words and PASSWORD not in file.read_text()
    assert run("device", "list")[0] == 0
    # Once it is known, nothing is asked again.
    assert run("login", url, "--user", "ann", given=f"{PASSWORD}\n")[0] == 0


def test_a_token_from_standard_input(served: Served, run: Run) -> None:
    token, fingerprint = served.cloud.admin_token or "", served.cloud.state.authority.fingerprint
    host = served.cloud.tls_url.removeprefix("https://")
    status, words = run("login", host, "--token", "-", "--fingerprint", fingerprint, given=f"{token}\n")
    assert status == 0 and token not in words
    assert run("token", "create")[0] == 0


def test_a_wrong_password_changes_nothing(served: Served, run: Run) -> None:
    fingerprint = served.cloud.state.authority.fingerprint
    status, _ = run("login", served.cloud.tls_url, "--user", "ann", "--fingerprint", fingerprint, given="wrong wrong\n")
    assert status == 2 and not paths.context().exists()


def test_nobody_is_believed_that_nobody_compared(served: Served, run: Run, tmp_path: Path) -> None:
    url = served.cloud.tls_url
    status, words = run("login", url, "--user", "ann", given=f"{PASSWORD}\n")
    assert status == 2 and "--fingerprint" in words and served.cloud.state.authority.fingerprint in words
    other = Authority.create(Keys(tmp_path / "other"), 0.0).fingerprint
    status, words = run("login", url, "--user", "ann", "--fingerprint", other, given=f"{PASSWORD}\n")
    assert status == 2 and "other cloud: " in words and "token" not in words
    # Where nothing can be compared, nothing is sent.
    status, words = run("login", served.cloud.url, "--user", "ann", "--fingerprint", other, given=f"{PASSWORD}\n")
    assert status == 2 and "--fingerprint: " in words
    assert not paths.context().exists()


def test_a_cloud_with_another_authority_is_not_the_one_that_is_known(
    served: Served, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = None
    with monkeypatch.context() as patch:
        patch.setenv("MARRAM_HOME", str(tmp_path / "elsewhere"))
        impostor = Served(tmp_path / "impostor")
    try:
        token, fingerprint = impostor.cloud.admin_token or "", impostor.cloud.state.authority.fingerprint
        url = impostor.cloud.tls_url
        assert run("login", url, "--token", "-", "--fingerprint", fingerprint, given=token)[0] == 0
        document = yaml.safe_load(paths.context().read_text())
        document["authority"] = served.cloud.state.authority.certificate_pem.decode()
        paths.context().write_text(yaml.safe_dump(document))
        for command in (("device", "list"), ("login", url, "--token", "-")):
            status, words = run(*command, given=token)
            assert status == 2 and "other cloud: " in words
    finally:
        impostor.stop()


def test_nothing_secret_goes_anywhere_unencrypted(run: Run) -> None:
    status, words = run("login", "http://cloud.example:8080", "--token", "-", given="mra1.x\n")
    assert status == 2 and "unencrypted" in words
