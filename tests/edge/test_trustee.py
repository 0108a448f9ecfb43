"""The trustee: both ways to ask it, one set of answers. What renewing needs is here; signed updates have their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marram.edge.identity import IdentityFiles
from marram.edge.state import Folder
from marram.edge.trustee import Trustee
from marram.edge.trustee_child import MODULES, ChildTrustee
from marram.edge.trustee_inside import InsideTrustee
from marram.schema.api import RenewAsk, Renewed
from marram.schema.errors import Invalid, Missing, Retryable, Threat, Untrusted
from marram.system import files
from marram.trust import identity
from marram.trust.authority import Authority, Issued
from marram.trust.keys import Keys


class World:
    """A cloud's authority and one device of it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(Keys(folder / "keys"), time.time())
        device = Folder(folder / "device")
        device.make()
        self.path, self.files = device.path, device.identity
        key = identity.new_key()
        issued = self.authority.device_certificate(identity.request(key), "pi", time.time())
        files.write(self.files.authority, self.authority.certificate_pem)
        files.write(self.files.own, identity.accept(issued.pem, key, self.authority.certificate_pem))

    def issue(self, request: bytes, device: str = "pi", authority: Authority | None = None) -> bytes:
        """The cloud's answer to a request."""
        issued = self.issued(request, device, authority)
        return Renewed(certificate=issued.pem.decode()).model_dump_json().encode()

    def issued(self, request: bytes, device: str = "pi", authority: Authority | None = None) -> Issued:
        ask = RenewAsk.model_validate_json(request)
        assert identity.proves(ask.proof, ask.certificate.encode(), ask.csr.encode())
        return (authority or self.authority).device_certificate(ask.csr.encode(), device, time.time())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(params=["child", "inside"])
def trustee(request: pytest.FixtureRequest, world: World) -> Trustee:
    return ChildTrustee(world.path) if request.param == "child" else InsideTrustee(world.path)


def key_of(request: bytes, world: World) -> str:
    return world.issued(request).key_hash


async def test_a_renewal_is_a_new_key_in_one_rename(trustee: Trustee, world: World) -> None:
    before = world.files.own.read_bytes()
    request = await trustee.renewal()
    assert world.files.own.read_bytes() == before and b"PRIVATE" not in request
    await trustee.renewed(world.issue(request))
    after = world.files.own.read_bytes()
    assert identity.device_of(after) == "pi" and not identity.same_key(after, before)
    assert not world.files.next.exists()
    assert {file.stat().st_mode & 0o777 for file in world.files.folder.iterdir()} == {0o600}


async def test_asked_again_it_speaks_of_the_same_new_key(trustee: Trustee, world: World) -> None:
    first, second = await trustee.renewal(), await trustee.renewal()
    assert key_of(first, world) == key_of(second, world)
    # The answer to the first may come after the second was asked.
    await trustee.renewed(world.issue(first))
    assert key_of(await trustee.renewal(), world) != key_of(first, world)


async def test_only_this_devices_own_authority_and_key_are_accepted(
    trustee: Trustee, world: World, tmp_path: Path
) -> None:
    before = world.files.own.read_bytes()
    request = await trustee.renewal()
    other = Authority.create(Keys(tmp_path / "other"), time.time())
    foreign_key = RenewAsk.model_validate_json(request).model_copy(
        update={"csr": identity.request(identity.new_key()).decode()}
    )
    for_another_key = world.authority.device_certificate(foreign_key.csr.encode(), "pi", time.time())
    for answer, threat in (
        (world.issue(request, authority=other), Threat.OTHER_CLOUD),
        (world.issue(request, "pi-2"), Threat.NOT_YOURS),
        (Renewed(certificate=for_another_key.pem.decode()).model_dump_json().encode(), Threat.WRONG_KEY),
    ):
        with pytest.raises(Untrusted) as caught:
            await trustee.renewed(answer)
        assert caught.value.threat is threat
    for nonsense in (b"", b"{}", b"\xff" * 40, b'{"certificate": "x"}'):
        with pytest.raises(Invalid):
            await trustee.renewed(nonsense)
    assert world.files.own.read_bytes() == before
    await trustee.renewed(world.issue(request))


async def test_a_cut_after_the_rename_leaves_the_new_identity(trustee: Trustee, world: World) -> None:
    request = await trustee.renewal()
    left = world.files.next.read_bytes()
    await trustee.renewed(world.issue(request))
    files.write(world.files.next, left)  # the power failed before it was deleted
    again = await trustee.renewal()
    assert key_of(again, world) != key_of(request, world)
    await trustee.renewed(world.issue(again))


async def test_a_damaged_next_key_is_made_anew(trustee: Trustee, world: World) -> None:
    files.write(world.files.next, b"-----BEGIN")
    await trustee.renewed(world.issue(await trustee.renewal()))


async def test_what_is_missing_or_damaged_has_a_place(trustee: Trustee, world: World) -> None:
    own = world.files.own.read_bytes()
    world.files.own.unlink()
    with pytest.raises(Missing, match=r"identity\.pem.*join again"):
        await trustee.renewal()
    files.write(world.files.own, own[:200])
    with pytest.raises(Invalid) as caught:
        await trustee.renewal()
    assert own.splitlines()[3].decode() not in str(caught.value)


async def test_a_cloud_that_is_not_there_is_asked_again_later(trustee: Trustee) -> None:
    with pytest.raises(Retryable, match="does not answer"):
        await trustee.renew_at("https://127.0.0.1:9")


async def test_several_at_once_come_one_after_the_other(trustee: Trustee, world: World) -> None:
    requests = await asyncio.gather(*(trustee.renewal() for _ in range(3)))
    assert len({key_of(request, world) for request in requests}) == 1


# ---------------------------------------------------------------- the process


@pytest.fixture
def hanging(world: World) -> Iterator[Callable[[], int]]:
    """A question that takes for ever (its key is a pipe that nobody writes to); the process that is at it."""
    world.files.own.unlink()
    os.mkfifo(world.files.own)

    def process() -> int:
        while True:
            for entry in Path("/proc").iterdir():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"marram.edge.trustee_inside" in words and os.fsencode(world.path) in words:
                    return int(entry.name)

    yield process


async def test_a_process_that_is_killed_is_said_and_the_next_one_answers(
    world: World, hanging: Callable[[], int]
) -> None:
    own, trustee = IdentityFiles(world.files.folder).own, ChildTrustee(world.path)
    asking = asyncio.create_task(trustee.renewal())
    os.kill(await asyncio.to_thread(hanging), signal.SIGKILL)
    with pytest.raises(Retryable, match="ended without an answer"):
        await asking
    own.unlink()
    with pytest.raises(Missing):
        await trustee.renewal()


async def test_no_process_outlives_its_question(world: World, hanging: Callable[[], int]) -> None:
    asking = asyncio.create_task(ChildTrustee(world.path).renewal())
    number = await asyncio.to_thread(hanging)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not Path(f"/proc/{number}").exists()


@pytest.mark.parametrize(
    ("question", "heavy"), [("verify", {"cryptography.x509"}), ("secrets", {"tuf", "securesystemslib"})]
)
def test_a_question_that_somebody_waits_for_loads_little(question: str, heavy: set[str]) -> None:
    """Its process starts for each deployment: whatever it loads stands between that and its first result."""
    code = f"import sys, {MODULES[question]}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"asyncio", "httpx", "pydantic", "ssl", "urllib3", "yaml", *heavy} & set(loaded)
