"""When a device renews its certificate, and which way it asks; the clock is the test's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marram.edge.identity import IdentityFiles
from marram.edge.renewal import Pace, Renewal
from marram.edge.trustee_inside import InsideTrustee
from marram.schema.api import RenewAsk, Renewed
from marram.schema.errors import MarramError, NotReady, Retryable, Threat, Untrusted
from marram.system import files
from marram.trust import identity
from marram.trust.authority import DAY_S, DEVICE_LIFE_S, Authority
from marram.trust.keys import Keys

NOW_S = 1_800_000_000.0


@dataclass
class Clock:
    now_s: float = NOW_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Link:
    """The bus as the renewal sees it, with a cloud behind it."""

    authority: Authority
    clock: Clock
    connected: bool = True
    refused: str | None = None
    fault: MarramError | None = None
    asked: int = 0
    reconnects: int = 0

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        assert subject == "d.pi.renew"
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        csr = RenewAsk.model_validate_json(payload).csr
        issued = self.authority.device_certificate(csr.encode(), "pi", self.clock.now_s)
        return Renewed(certificate=issued.pem.decode()).model_dump_json().encode()

    def reconnect(self) -> None:
        self.reconnects += 1


class Trustee(InsideTrustee):
    """The real one, but that HTTPS leads to the same cloud, or to none."""

    def __init__(self, folder: Path, link: Link) -> None:
        super().__init__(folder)
        self._link = link
        self.https: list[str] = []
        self.fault: MarramError | None = None

    async def renew_at(self, url: str) -> None:
        self.https.append(url)
        if self.fault is not None:
            raise self.fault
        await self.renewed(await self._link.request("d.pi.renew", await self.renewal(), 1.0))


@dataclass
class World:
    """A device that joined at NOW_S."""

    folder: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.authority = Authority.create(Keys(self.folder / "keys"), NOW_S)
        self.files = IdentityFiles(self.folder / "identity")
        self.files.folder.mkdir()
        key = identity.new_key()
        issued = self.authority.device_certificate(identity.request(key), "pi", NOW_S)
        files.write(self.files.authority, self.authority.certificate_pem)
        files.write(self.files.own, identity.accept(issued.pem, key, self.authority.certificate_pem))
        self.link = Link(self.authority, self.clock)
        self.trustee = Trustee(self.folder, self.link)
        self.renewal = Renewal(
            self.files, self.trustee, self.link, "pi", "https://cloud:8443", Pace(), self.clock, spread=0.5
        )

    def at(self, days: float) -> None:
        self.clock.now_s = NOW_S + days * DAY_S

    @property
    def until_s(self) -> float:
        valid = self.files.validity_s()
        assert valid is not None
        return valid[1]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_it_renews_at_two_thirds_and_shows_the_new_one_at_once(world: World) -> None:
    world.at(19.9)
    assert await world.renewal.step() == Pace().look_s and world.link.asked == 0
    world.at(20.8)  # with its share of the jitter
    assert await world.renewal.step() == Pace().least_s
    assert (world.link.asked, world.link.reconnects, world.trustee.https) == (1, 1, [])
    assert world.until_s == pytest.approx(world.clock.now_s + DEVICE_LIFE_S, abs=1)
    assert await world.renewal.step() == Pace().look_s and world.link.asked == 1


async def test_a_certificate_that_does_not_say_until_when_it_is_valid_is_renewed(world: World) -> None:
    own = world.files.own.read_bytes()
    files.write(world.files.own, own.partition(b"\n")[2])
    assert world.files.validity_s() is None
    assert await world.renewal.step() == Pace().least_s and world.link.asked == 1
    assert world.files.validity_s() is not None


async def test_its_key_is_proven_to_nobody_over_an_open_line(world: World) -> None:
    world.link.connected = False
    world.renewal.cloud = "http://cloud:8080"
    world.at(40)
    assert await world.renewal.step() == Pace().again_most_s
    assert world.trustee.https == []


async def test_a_cloud_that_cannot_answer_is_asked_ever_more_rarely(world: World) -> None:
    world.at(25)
    world.link.fault = Retryable("busy")
    waits = [await world.renewal.step() for _ in range(12)]
    assert waits[:3] == [0.75 * Pace().again_s * 2**n for n in range(3)]
    assert waits[-1] == 0.75 * Pace().again_most_s


def test_a_fleet_that_joined_in_one_hour_does_not_renew_in_one(world: World) -> None:
    dues = []
    for spread in (0.0, 1.0):
        renewal = Renewal(world.files, world.trustee, world.link, "pi", "", Pace(), world.clock, spread=spread)
        day = next(day / 10 for day in range(300) if world.at(day / 10) or renewal._due())
        dues.append(day)
    assert dues == [pytest.approx(20.0, abs=0.1), pytest.approx(21.5, abs=0.1)]


async def test_while_the_link_is_down_it_waits_as_long_as_it_may(world: World) -> None:
    world.link.connected = False
    world.at(25)
    assert await world.renewal.step() == Pace().look_s
    assert world.trustee.https == []


async def test_past_its_end_it_asks_over_https(world: World) -> None:
    world.link.connected = False
    world.at(31)
    assert await world.renewal.step() == Pace().least_s
    assert world.trustee.https == ["https://cloud:8443"] and world.link.reconnects == 1


async def test_a_broker_that_says_expired_is_believed_whatever_the_clock_says(world: World) -> None:
    world.link.connected, world.link.refused = False, str(Untrusted("it ended 3 d ago", threat=Threat.EXPIRED))
    world.at(-10_000)  # no battery: it is 1999
    await world.renewal.step()
    assert world.trustee.https == ["https://cloud:8443"]


async def test_a_clock_that_is_years_ahead_does_not_make_it_renew_again_and_again(world: World) -> None:
    world.at(5_000)
    assert await world.renewal.step() == Pace().least_s
    assert world.trustee.https == [], "the bus lets it in: that is the way"


async def test_failures_back_off_and_are_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.at(22)
    world.link.fault = NotReady("no connection to the broker")
    waits = [await world.renewal.step() for _ in range(12)]
    assert waits == sorted(waits) and waits[0] < 30 and waits[-1] <= Pace().again_most_s
    assert caplog.text.count("cannot be renewed") == 1
    world.link.fault = None
    await world.renewal.step()
    assert world.link.reconnects == 1


@pytest.mark.parametrize("threat", [Threat.REVOKED, Threat.CLONED, Threat.EXPIRED])
async def test_a_refusal_is_no_reason_to_hammer(world: World, threat: Threat, caplog: pytest.LogCaptureFixture) -> None:
    world.link.connected = False
    world.at(200)
    world.trustee.fault = Untrusted("no", threat=threat)
    assert {await world.renewal.step() for _ in range(3)} == {Pace().again_most_s}
    assert caplog.text.count(threat.value) == 1


async def test_the_key_stays_the_same_until_an_answer_arrives(world: World) -> None:
    world.at(22)
    world.link.fault = Retryable("no answer in time")
    await world.renewal.step()
    waiting = world.files.next.read_bytes()
    await world.renewal.step()
    assert world.files.next.read_bytes() == waiting
    world.link.fault = None
    await world.renewal.step()
    assert identity.same_key(world.files.own.read_bytes(), waiting)


async def test_without_an_identity_there_is_nothing_to_renew(world: World) -> None:
    world.files.own.unlink()
    assert await world.renewal.step() == Pace().look_s and world.link.asked == 0
