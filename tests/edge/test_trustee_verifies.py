"""The trustee, both kinds: what it says of apps, over a real bus; what a cloud that goes on for ever gets from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.edge.world import DEVICE, Cloud

from marram.bus import subjects
from marram.bus.client import Bus
from marram.bus.codec import MetadataAsk, pack_metadata
from marram.edge.metadata import SignedMetadata
from marram.edge.trickle import Floor
from marram.edge.trustee import Metadata, Trustee
from marram.edge.trustee_child import ChildTrustee
from marram.edge.trustee_inside import InsideTrustee
from marram.edge.vetting import Vetting
from marram.lab.attacks.publisher import Publisher
from marram.schema.device import DesiredApp, ModelRef
from marram.schema.errors import Missing, NotReady, Retryable, Threat, Untrusted
from marram.schema.model import File, Manifest

FILES = Manifest(files=[File(path="app.yaml", sha256="a" * 64, size_bytes=5)])
ONE, TWO, STRANGE = (DesiredApp(name=name, version=1, files=FILES) for name in ("one", "two", "strange"))


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher()
    made.sign([ONE, TWO])
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "root.json").write_bytes(made.root)
    return made


@pytest.fixture(params=[ChildTrustee, InsideTrustee])
def trustee(request: pytest.FixtureRequest, tmp_path: Path) -> Trustee:
    made: Trustee = request.param(tmp_path)
    return made


def metadata_of(publisher: Publisher) -> Metadata:
    async def fetch(name: str, most_bytes: int) -> bytes | None:
        return publisher.serve(name, most_bytes)

    return fetch


async def test_what_is_signed_is_taken_and_what_is_not_is_not(trustee: Trustee, publisher: Publisher) -> None:
    await trustee.verify([ONE, TWO], metadata_of(publisher))
    with pytest.raises(Untrusted, match=r"unsigned: apps/main/strange/1\.json is signed by nobody") as caught:
        await trustee.verify([ONE, STRANGE], metadata_of(publisher))
    assert caught.value.threat is Threat.UNSIGNED and caught.value.hint


async def test_a_signed_app_brings_no_model_that_is_not(trustee: Trustee, publisher: Publisher) -> None:
    model = ModelRef(name="mobilenet", version=2, manifest=FILES)
    app = DesiredApp(name="seeing", version=1, files=FILES, models=[model])
    publisher.repository.publish({app.target: app.signed()})
    with pytest.raises(Untrusted, match=r"models/main/mobilenet/2\.json is signed by nobody"):
        await trustee.verify([app], metadata_of(publisher))
    publisher.sign([app])
    await trustee.verify([app], metadata_of(publisher))


async def test_what_the_agent_meets_on_the_way_comes_through(trustee: Trustee, publisher: Publisher) -> None:
    for error in (NotReady("the link is down"), Untrusted("forever", threat=Threat.ENDLESS)):

        async def fails(name: str, most_bytes: int, error: Exception = error) -> bytes | None:
            raise error

        with pytest.raises(type(error)) as caught:
            await trustee.verify([ONE], fails)
        assert str(caught.value) == str(error)


async def test_a_device_that_never_joined_is_told_to(trustee: Trustee, publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "identity" / "root.json").unlink()
    with pytest.raises(Missing, match="marram edge join"):
        await trustee.verify([ONE], metadata_of(publisher))


async def test_it_can_be_given_up_at_any_time(trustee: Trustee, publisher: Publisher) -> None:
    asked = asyncio.Event()

    async def hangs(name: str, most_bytes: int) -> bytes | None:
        asked.set()
        await asyncio.sleep(3600)
        return None

    verifying = asyncio.create_task(trustee.verify([ONE], hangs))
    await asked.wait()
    verifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verifying
    await trustee.verify([ONE], metadata_of(publisher))


# ---------------------------------------------------------------- many at once


class Counting:
    """A trustee that is asked; `strange` apps are refused."""

    def __init__(self, inner: Trustee) -> None:
        self._inner, self.asked = inner, list[list[str]]()

    async def verify(self, apps: list[DesiredApp], metadata: Metadata) -> None:
        self.asked.append([app.name for app in apps])
        await self._inner.verify(apps, metadata)


async def test_many_apps_at_once_are_one_refresh(publisher: Publisher, tmp_path: Path) -> None:
    counting = Counting(InsideTrustee(tmp_path))
    vetting = Vetting(counting, metadata_of(publisher))  # type: ignore[arg-type]
    apps = [DesiredApp(name=f"app{n}", version=1, files=FILES) for n in range(10)]
    publisher.sign(apps)
    await asyncio.gather(*map(vetting.verify, apps))
    assert [len(each) for each in counting.asked] == [10]


async def test_one_that_is_refused_holds_no_other_up(publisher: Publisher, tmp_path: Path) -> None:
    vetting = Vetting(InsideTrustee(tmp_path), metadata_of(publisher))
    told = await asyncio.gather(*map(vetting.verify, (ONE, STRANGE, TWO)), return_exceptions=True)
    assert told[0] is None and told[2] is None
    assert isinstance(told[1], Untrusted) and told[1].threat is Threat.UNSIGNED


# ---------------------------------------------------------------- over the bus


@pytest.fixture
async def bus(cloud: Cloud) -> AsyncIterator[Bus]:
    made = await cloud.server.connect(DEVICE)
    await made.wait_connected(10)
    yield made
    await made.close()


async def test_metadata_comes_in_ranges(cloud: Cloud, bus: Bus) -> None:
    body = bytes(range(256)) * 500
    cloud.serve = lambda name, most_bytes: body if name == "1.main.json" else None
    way = SignedMetadata(bus, DEVICE)
    assert await way.fetch("1.main.json", len(body)) == body
    assert await way.fetch("2.main.json", 1000) is None
    with pytest.raises(Untrusted, match="127999 is the most") as caught:
        await way.fetch("1.main.json", len(body) - 1)
    assert caught.value.threat is Threat.ENDLESS


Answer = Callable[[MetadataAsk], bytes]


class Scripted:
    """A bus whose cloud answers as it likes."""

    connected = True

    def __init__(self, answer: Answer) -> None:
        self._answer, self.asked = answer, 0

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        assert subject == subjects.metadata(DEVICE)
        self.asked += 1
        assert self.asked < 10_000
        return self._answer(MetadataAsk.unpack(payload))


@pytest.mark.parametrize(
    ("answer", "threat"),
    [
        (lambda ask: pack_metadata(b"x" * (ask.length + 1), 100_000), Threat.ENDLESS),
        (lambda ask: pack_metadata(b"x" * ask.length, ask.offset + 2 * ask.length), Threat.TAMPERED),
        (lambda ask: pack_metadata(b"x" * ask.length, 10**15), Threat.ENDLESS),
        (lambda ask: pack_metadata(b"", 100_000), Threat.SLOW),
        (lambda ask: pack_metadata(b"x", None if ask.offset else 100_000), Threat.TAMPERED),
    ],
    ids=["more than asked", "growing", "announced without end", "nothing", "gone on the way"],
)
async def test_a_cloud_that_goes_on_for_ever_is_left(answer: Answer, threat: Threat) -> None:
    with pytest.raises(Untrusted) as caught:
        await SignedMetadata(Scripted(answer), DEVICE).fetch("1.main.json", 200_000)
    assert caught.value.threat is threat


def test_a_link_of_20_kbit_s_is_served_and_a_trickle_is_not() -> None:
    now_s = 0.0
    floor = Floor("weights", lambda: now_s)
    for _ in range(2000):  # 8 KB each 6 s: half of 20 kbit/s, the rest of the link is for others
        now_s += 6
        floor.came(8000)
    floor = Floor("weights", lambda: now_s)
    with pytest.raises(Untrusted, match=r"slow data: weights: .* in 76 s") as caught:
        for _ in range(100):
            now_s += 19
            floor.came(1)
    assert caught.value.threat is Threat.SLOW


async def test_retryable_is_not_untrusted(publisher: Publisher, tmp_path: Path) -> None:
    """A keeper waits for both, but only one of them is an attack."""

    async def away(name: str, most_bytes: int) -> bytes | None:
        raise Retryable("away")

    with pytest.raises(Retryable):
        await Vetting(InsideTrustee(tmp_path), away).verify(ONE)
