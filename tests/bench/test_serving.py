"""The serving bench's own parts: the client, the marks by which processes are found, the bare loop, the verdict.

On tiny servers and a tiny model: whether the figures are right is what is tested, not what they are.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from bench.__main__ import summary
from bench.peers import _bare_loop
from bench.peers._bare_loop import QUICK, BareLoop
from bench.peers._classifier import SIDE, Classifier
from bench.peers._client import Broken, Load, Window, request
from bench.peers._contenders import OverHttp
from bench.peers._material import MODEL, Material
from bench.peers._peers import MARRAM, PEERS, Peer
from bench.peers._score import Score, compare, quantile
from bench.peers._server import Server

from bench import serving
from marram.runtime.image import encode_jpeg
from marram.schema.errors import NotReady

# ---------------------------------------------------------------- the client

Answer = Callable[[bytes], bytes]


class Tiny:
    """An HTTP server of as little as that takes: `answer` makes the bytes sent back of each body that comes."""

    def __init__(self, answer: Answer, largest: int = 65536) -> None:
        self._answer = answer
        self._largest = largest
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.bodies: list[bytes] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                came, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(came,), daemon=True).start()

    def _serve(self, came: socket.socket) -> None:
        got = b""
        with came:
            while True:
                while b"\r\n\r\n" not in got:
                    more = came.recv(65536)
                    if not more:
                        return
                    got += more
                head, got = got.split(b"\r\n\r\n", 1)
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while len(got) < length:
                    got += came.recv(65536)
                body, got = got[:length], got[length:]
                with self._lock:
                    self.bodies.append(body)
                told = self._answer(body)
                for at in range(0, len(told), self._largest):
                    came.sendall(told[at : at + self._largest])
                if not told:
                    return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def tiny() -> Iterator[Callable[..., Tiny]]:
    made: list[Tiny] = []

    def make(answer: Answer, largest: int = 65536) -> Tiny:
        made.append(Tiny(answer, largest))
        return made[-1]

    yield make
    for each in made:
        each.close()


def plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nServer: tiny\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


def asked(bodies: list[bytes]) -> list[bytes]:
    return [request("/", body, "text/plain") for body in bodies]


@pytest.mark.parametrize("form", [plain, chunked])
@pytest.mark.parametrize("largest", [65536, 7])
def test_each_answer_is_that_of_its_request(tiny: Callable[..., Tiny], form: Answer, largest: int) -> None:
    server = tiny(form, largest)
    bodies = [b"first one", b"second", b"x" * 300]
    load = Load(server.port, asked(bodies), 2)
    window = load.window(0.0, 0.2)
    load.close()
    assert window.bodies
    assert all(body == bodies[number] for number, body in window.bodies)
    assert {number for number, _ in window.bodies} == {0, 1, 2}
    assert len(window.latencies_s) == len(window.bodies) and min(window.latencies_s) > 0
    assert window.per_s == pytest.approx(len(window.bodies) / window.elapsed_s)


def test_so_many_are_under_way_and_all_come_back(tiny: Callable[..., Tiny]) -> None:
    together, most, lock = [0], [0], threading.Lock()
    full, turn = threading.Barrier(4), itertools.count()

    def answer(body: bytes) -> bytes:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
            first = next(turn) < 4
        if first:
            full.wait(10)  # nobody is answered before four are there
        with lock:
            together[0] -= 1
        return plain(body)

    server = tiny(answer)
    load = Load(server.port, asked([b"a"]), 4)
    window = load.window(0.0, 0.05)
    load.close()
    assert (most[0], server.connections) == (4, 4)
    assert window.total == len(server.bodies) and window.total >= len(window.bodies)


def test_what_settles_is_not_counted(tiny: Callable[..., Tiny]) -> None:
    server = tiny(plain)
    load = Load(server.port, asked([b"a"]), 1)
    window = load.window(0.1, 0.0)
    load.close()
    assert window.total > 0 and window.bodies == []


def test_a_large_request_goes_out_whole_though_the_socket_takes_it_in_parts(tiny: Callable[..., Tiny]) -> None:
    large = bytes(range(256)) * 40_000  # 10 MB
    server = tiny(lambda body: plain(b"%d" % len(body)))
    load = Load(server.port, asked([large]), 1)
    assert load.once() == b"%d" % len(large)
    load.close()
    assert server.bodies == [large]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "503"),
        (b"HTTP/1.1 200 OK\r\nServer: odd\r\n\r\n", "length"),
        (b"", "closed"),
    ],
)
def test_what_is_no_answer_is_broken(tiny: Callable[..., Tiny], told: bytes, says: str) -> None:
    load = Load(tiny(lambda body: told).port, asked([b"a"]), 1)
    with pytest.raises(Broken, match=says):
        load.window(0.0, 5.0)
    load.close()


# ---------------------------------------------------------------- a server's processes

# A server that starts another process, which leaves it for a session of its own, and answers with both their numbers.
_FAMILY = """
import http.server, os, subprocess, sys
other = "import time; kept = b'x' * 30_000_000; print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = f"{os.getpid()} {child.pid}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *anything):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_is_all_its_processes_wherever_they_went(tmp_path: Path) -> None:
    port, ask = free_port(), request("/", b"", "text/plain")
    server = Server("family", [sys.executable, "-c", _FAMILY, str(port)], port, tmp_path / "log", {})
    try:
        assert 0 < server.await_ready(ask) < 60
        load = Load(port, [ask], 1)
        family = [psutil.Process(int(number)) for number in load.once().split()]
        load.close()
        server.halt()
        assert {each.status() for each in family} == {psutil.STATUS_STOPPED}
        server.resume()
        assert psutil.STATUS_STOPPED not in {each.status() for each in family}
        assert server.weight_mb() > 30
        assert server.cpu_s() > 0
        server.halt()  # a halted one can be stopped all the same
    finally:
        server.stop()
    psutil.wait_procs(family, 10)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    server = Server("short", command, free_port(), tmp_path / "log", {})
    with pytest.raises(NotReady, match="no such model"):
        server.await_ready(request("/", b"", "text/plain"))
    server.stop()


# ---------------------------------------------------------------- the bare loop


@pytest.fixture
def material(tmp_path: Path) -> Material:
    """A model whose three classes are how red, green and blue a picture is, and pictures of each."""
    onnx = pytest.importorskip("onnx")
    made, helper = onnx.TensorProto, onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["real"], to=made.FLOAT),
            helper.make_node("ReduceMean", ["real"], ["means"], axes=[1, 2], keepdims=0),
            helper.make_node("Mul", ["means", "tenth"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", made.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", made.FLOAT, ["n", 3])],
        [helper.make_tensor("tenth", made.FLOAT, [1], [0.1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    found = Material(tmp_path, tmp_path, tmp_path / "model.onnx", tmp_path / "labels.txt", tmp_path / "pictures")
    onnx.save(model, str(found.model))
    found.labels.write_text("red\ngreen\nblue\n")
    card = {
        "model": MODEL,
        "task": "classification",
        "input": {"size": [SIDE, SIDE], "layout": "NHWC"},
        "output": {"form": "logits"},
        "variants": [{"name": "onnx-int8", "engine": "onnx", "file": "model.onnx"}],
        "labels": "labels.txt",
        "licence": "CC0-1.0",
        "source": "made here",
    }
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(card))
    found.pictures.mkdir()
    for number, size in enumerate([(SIDE, SIDE), (SIDE, SIDE), (100, 320)]):
        picture = np.zeros((*size, 3), np.uint8)
        picture[:, :, number] = 250
        (found.pictures / f"{number}.jpg").write_bytes(encode_jpeg(picture, 95))
    return found


FASTAPI = replace(next(peer for peer in PEERS if peer.name == "fastapi"), own=True)


@pytest.mark.parametrize("peer", [MARRAM, FASTAPI], ids=["marram", "fastapi"])
def test_a_server_answers_as_the_bare_loop_does(material: Material, peer: Peer) -> None:
    contender = OverHttp(peer, material)
    try:
        contender.start()
        contender.halt()
        contender.resume()
        window = contender.window(3, 0.0, 0.3)
        assert {number for number, _ in window.bodies} == {0, 1, 2}
        for number, body in window.bodies:
            assert contender.told(body)[0] == ["red", "green", "blue"][number]
            assert len(contender.told(body)) == 3
        assert len(contender.ready_s) == 1
    finally:
        contender.stop()


def test_a_batch_answers_as_one_by_one_and_any_size_is_resized(material: Material) -> None:
    classifier = Classifier(str(material.model), str(material.labels))
    together = classifier.answer(material.jpegs())
    assert [answer["labels"][0] for answer in together] == ["red", "green", "blue"]
    assert together == [classifier.answer([jpeg])[0] for jpeg in material.jpegs()]
    assert all(sum(answer["scores"]) == pytest.approx(1, abs=1e-5) for answer in together)


def test_the_bare_loop_finds_its_best_and_tells_its_figures(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bare_loop, "_BATCHES", (1, 2))
    monkeypatch.setattr(_bare_loop, "_PASSES", 1)
    with BareLoop(material, QUICK) as bare:
        assert [answer["labels"][0] for answer in bare.answers()] == ["red", "green", "blue"]
        assert "batch" in bare.search(2)
        rate, alone_ms = bare.per_s(), bare.alone_ms()
        told = bare.told()
    assert rate > 0 and alone_ms > 0
    assert told["bare_per_s"] == round(rate, 1) and told["bare_spread"] == 0
    assert 0 < told["bare_cpu_ms"] < 1000


# ---------------------------------------------------------------- what is made of it


def window(count: int, seconds: float = 1.0, body: bytes = b'["red"]', latency_s: float = 0.010) -> Window:
    return Window(seconds, 0.02, count, [latency_s] * count, [(0, body)] * count)


def score(shares: tuple[float, ...], over_ms: float = 1.0, mb: float = 100.0, ready_s: float = 1.0) -> Score:
    made = Score(ready_s=[ready_s], weight_mb=[mb], answers=100)
    for share in shares:
        for in_flight in serving.IN_FLIGHT:
            made.loaded(in_flight, window(round(1000 * share)), 1000, 1.0)
        made.alone(window(10), 10 - over_ms)
    return made


def test_a_share_is_of_the_bare_loop_around_the_window() -> None:
    made = Score()
    made.loaded(8, window(90, 0.5), 200, 0.45)
    made.loaded(8, window(80, 0.5), 200, 0.45)
    made.loaded(16, window(95, 0.5), 200, 0.45)
    made.alone(window(10, latency_s=0.012), 9.5)
    assert made.shares == {8: [0.9, 0.8], 16: [0.95]}
    assert made.best() == 16 and made.share(8) == pytest.approx(0.85)
    assert made.over_ms == [pytest.approx(2.5)] and made.cpu_ms[0] == pytest.approx(5.0)
    assert made.client[0] == pytest.approx(0.04)


def test_slower_is_slower_by_more_than_the_windows_differ() -> None:
    # Each window is set against its own round's: a round that was bad for both says nothing.
    assert not compare([0.9, 0.5, 0.9], [0.9, 0.5, 0.9]).slower
    assert compare([0.8, 0.4, 0.8], [0.9, 0.45, 0.9]).slower
    assert not compare([0.8, 1.0, 0.9], [0.9, 0.9, 0.95]).slower
    assert not compare([1.0, 1.0], [0.9, 0.9]).slower
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0 and quantile([1.0], 0.99) == 1.0


def everybody(ours: Score, theirs: Score) -> dict[str, Score]:
    return {serving.OURS: ours, "marram-nats": score((0.1,) * 5)} | {peer.name: theirs for peer in PEERS}


GOOD, PEER = (0.92, 0.93, 0.94, 0.95, 0.96), (0.80, 0.81, 0.82, 0.83, 0.84)


def test_it_is_reached_where_every_goal_is() -> None:
    ratio, figures, reached = serving.judged(everybody(score(GOOD), score(PEER)), {}, 5)
    assert ratio == pytest.approx(0.94) and reached is True
    assert figures["slower_than"] == {} and set(figures["servers"]) == {
        "marram",
        "marram-nats",
        *(p.name for p in PEERS),
    }


@pytest.mark.parametrize(
    "ours", [score(GOOD, over_ms=3.1), score(GOOD, mb=251), score(GOOD, ready_s=1.6)], ids=["alone", "memory", "ready"]
)
def test_one_goal_missed_is_all_missed(ours: Score) -> None:
    assert serving.judged(everybody(ours, score(PEER)), {}, 5)[2] is False


def test_a_peer_that_is_faster_beyond_the_spread_is_named() -> None:
    _, figures, reached = serving.judged(everybody(score(GOOD), score(tuple(s + 0.1 for s in GOOD))), {}, 5)
    assert reached is False
    assert len(figures["slower_than"]) == len(PEERS) * len(serving.IN_FLIGHT)


def test_wrong_answers_are_a_failure() -> None:
    scores = everybody(score(GOOD), score(PEER))
    scores[PEERS[0].name].wrong = 1
    assert serving.judged(scores, {}, 5)[2] is False


def test_what_was_not_compared_is_not_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    scores = everybody(score(GOOD), score(PEER))
    del scores[PEERS[0].name]
    ratio, figures, reached = serving.judged(scores, {PEERS[0].name: "it is not installed"}, 5)
    assert reached is None and PEERS[0].name in figures["skipped"]
    serving.conclude("serving", ratio, serving.GOAL_RATIO, figures, also=reached)
    last: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["ok"] is None and "reached, but" in summary("serving", last)
    assert serving.judged(everybody(score(GOOD[:3]), score(PEER[:3])), {}, 3)[2] is None
    assert serving.judged({PEERS[0].name: score(PEER)}, {}, 5)[2] is False


class Still:
    """A contender that answers what it was told to. See `bench.peers._contenders.Contender`."""

    def __init__(self, name: str, bodies: list[bytes]) -> None:
        self.name, self.ready_s = name, [0.5]
        self._bodies = bodies
        self.halted = True

    def start(self) -> None: ...

    def window(self, in_flight: int, settle_s: float, seconds: float) -> Window:
        assert not self.halted
        if not self._bodies:
            raise Broken("it is gone")
        return window(10, body=self._bodies.pop(0))

    def told(self, body: bytes) -> list[str]:
        told: list[str] = json.loads(body)
        return told

    def halt(self) -> None:
        self.halted = True

    def resume(self) -> None:
        self.halted = False

    def weight_mb(self) -> float:
        return 50.0

    def cpu_s(self) -> float:
        return 1.0

    def stop(self) -> None: ...


class Steady:
    """A bare loop that always tells the same, and checks that nobody else runs meanwhile."""

    def __init__(self, *contenders: Still) -> None:
        self._contenders = contenders

    def per_s(self) -> float:
        assert all(contender.halted for contender in self._contenders)
        return 20.0

    def alone_ms(self) -> float:
        assert all(contender.halted for contender in self._contenders)
        return 9.0


RIGHT = b'["red", "green", "blue", "b", "c"]'


def test_a_round_judges_answers_and_goes_on_without_who_fails() -> None:
    good = Still("good", [RIGHT] * 8)
    liar = Still("liar", [RIGHT, b'["green", "red", "blue", "b", "c"]', b'["red"]', RIGHT] * 2)
    frail = Still("frail", [RIGHT] * 5)
    steady = Steady(good, liar, frail)
    race = serving.Race(steady, [good, liar, frail], [{"labels": ["red"]}], QUICK)  # type: ignore[arg-type]
    race.round(0)
    assert {name: (s.answers, s.wrong) for name, s in race.scores.items()} == {
        "good": (40, 0), "liar": (40, 20), "frail": (40, 0)
    }  # fmt: skip
    race.round(1)
    assert set(race.scores) == {"good", "liar"} and "it is gone" in race.left["frail"]
    assert frail.halted
    assert race.scores["good"].shares == {n: [0.5, 0.5] for n in serving.IN_FLIGHT}
    assert race.scores["good"].over_ms == [pytest.approx(1.0)] * 2
