"""What a hostile function tries, in a real worker, confined as the agent confines it: each try is refused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.edge.world import LONG_S

from marram.bus.client import Bus
from marram.edge import sandbox
from marram.edge.relay import Relay
from marram.edge.sandbox import Plan, isolation, plan
from marram.edge.state import Folder
from marram.edge.status import StatusSocket, ask
from marram.edge.supervisor import Patience, Worker, WorkerSpec
from marram.schema import paths
from marram.system import landlock

needs_landlock = pytest.mark.skipif(landlock.abi() < 6, reason="needs a kernel with Landlock 6 or newer")

APP = (
    "app: curious\nsource: {series: rows.csv, every: 20 ms, repeat: true}\n"
    "steps:\n  - function: handler.py:handle\nsend: nothing\nfiles: [rows.csv]\n"
)
PREAMBLE = """
import ctypes, json, os, pathlib, signal, socket, subprocess, sys

answers = {}

def attempt(name, try_it):
    try:
        answers[name] = repr(try_it())[:200]
    except BaseException as error:
        answers[name] = type(error).__name__

def handle(event, context):
    pass

"""
EPILOGUE = """
pathlib.Path("answers.json.new").write_text(json.dumps(answers))
os.rename("answers.json.new", "answers.json")
"""


class Site:
    """A device's folder with what should be safe in it, and an app in its bundle."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path)
        self.folder.make()
        for place, text in {
            "identity/identity.pem": "KEY", "credentials.yaml": "device: pi-1", "secrets/a.sealed": "S",
            "apps/other.json": "{}", "work/other/diary": "mine", "blobs/00": "b", "desired.json": "{}",
            "logs/other.log": "words",
        }.items():  # fmt: skip
            (path / place).parent.mkdir(parents=True, exist_ok=True)
            (path / place).write_text(text)
        self.bundle = path / "bundles" / "digest"
        self.bundle.mkdir(parents=True)
        self.work = self.folder.work("curious")

    def plan(self) -> Plan:
        return plan(self.folder.path, [self.bundle], [self.work], plain=[self.folder.outbox.parent])


Run = Callable[[Site, str], Awaitable[dict[str, str]]]


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """Run these lines at the top of an app's function, in a confined worker; what each `attempt` met."""
    bus = await Bus.connect("nats://127.0.0.1:9", "nobody", "nothing")
    workers: list[Worker] = []

    async def begin(site: Site, tries: str) -> dict[str, str]:
        (site.bundle / "app.yaml").write_text(APP)
        (site.bundle / "rows.csv").write_text("x\n1\n")
        (site.bundle / "handler.py").write_text(PREAMBLE + tries + EPILOGUE)
        spec = WorkerSpec(
            device="pi-1", app="curious", version=1, folder=site.bundle, models={}, cloud=[],
            outbox=site.folder.outbox, work=site.work, log=site.folder.log_file("curious"), plan=site.plan(),
        )  # fmt: skip
        worker = await Worker.start(spec, lambda channel: Relay(bus, channel, ()), Patience())
        workers.append(worker)
        running = asyncio.ensure_future(worker.running.wait())
        await asyncio.wait([running, worker.exited], timeout=LONG_S, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        answers = site.work / "answers.json"
        assert answers.exists(), (worker.exited.done() and worker.exited.result(), spec.log.read_text())
        found: dict[str, str] = json.loads(answers.read_text())
        return found

    yield begin
    for worker in workers:
        await worker.stop()
    await bus.close()


@needs_landlock
async def test_nothing_of_the_device_but_its_own(run: Run, tmp_path: Path) -> None:
    site = Site(tmp_path / "device")
    answers = await run(
        site,
        f"""
device = pathlib.Path({str(site.folder.path)!r})
for name in ("identity/identity.pem", "credentials.yaml", "secrets/a.sealed", "apps/other.json", "work/other/diary",
             "blobs/00", "desired.json", "logs/other.log"):
    attempt("read " + name, lambda: (device / name).read_bytes())
    attempt("write " + name, lambda: open(device / name, "r+").write("x"))
    attempt("cut " + name, lambda: os.truncate(device / name, 0))
    attempt("delete " + name, lambda: (device / name).unlink())
    attempt("link " + name, lambda: os.link(device / name, "stolen"))
for name in ("", "identity", "secrets", "work", "work/other", "bundles"):
    attempt("list " + name, lambda: os.listdir(device / name))
    attempt("make in " + name, lambda: (device / name / "new").write_text("x"))
attempt("change its own bundle", lambda: open({str(site.bundle / "handler.py")!r}, "a"))
attempt("through another name", lambda: pathlib.Path("/proc/self/root" + str(device / "credentials.yaml")).read_text())
os.symlink(device / "credentials.yaml", "pointer")
attempt("through a link", lambda: pathlib.Path("pointer").read_text())
attempt("a child", lambda: subprocess.run(["cat", str(device / "credentials.yaml")], check=True, capture_output=True))
attempt("mount", lambda: ctypes.CDLL(None).mount(b"none", str(device).encode(), b"tmpfs", 0, None))
""",
    )
    mounted = answers.pop("mount")
    assert mounted == "-1"
    allowed = {
        name: met for name, met in answers.items() if met not in ("PermissionError", "CalledProcessError", "OSError")
    }
    assert not allowed
    assert (site.folder.path / "identity/identity.pem").read_text() == "KEY"


@needs_landlock
async def test_the_agent_is_out_of_reach(run: Run, tmp_path: Path) -> None:
    site = Site(tmp_path / "device")
    answers = await run(
        site,
        """
agent = os.getppid()
for name in ("mem", "environ", "maps", "auxv", "stack"):
    attempt(name, lambda: open(f"/proc/{agent}/{name}", "rb").read(1))
attempt("fd", lambda: open(f"/proc/{agent}/fd/1", "rb"))
attempt("fd name", lambda: os.readlink(f"/proc/{agent}/fd/1"))
attempt("root", lambda: os.listdir(f"/proc/{agent}/root/"))
attempt("cwd", lambda: os.listdir(f"/proc/{agent}/cwd/"))
libc = ctypes.CDLL(None, use_errno=True)
attempt("attach", lambda: libc.ptrace(16, agent, 0, 0))
attempt("seize", lambda: libc.ptrace(0x4206, agent, 0, 0))
buffer = ctypes.create_string_buffer(8)
attempt("pidfd", lambda: libc.syscall(438, os.pidfd_open(agent), 0, 0))
attempt("kill", lambda: os.kill(agent, 0))
attempt("by pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(agent), 0))
""",
    )
    assert {answers.pop(name) for name in ("attach", "seize", "pidfd")} == {"-1"}
    assert set(answers.values()) <= {"PermissionError", "ProcessLookupError"}, answers


@needs_landlock
async def test_abstract_sockets_of_others_are_out_of_reach(run: Run, tmp_path: Path) -> None:
    import socket

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"\0marram-test-{os.getpid()}")
    listening.listen()
    with listening:
        answers = await run(
            Site(tmp_path / "device"),
            f"""
attempt("connect", lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + "marram-test-{os.getpid()}"))
""",
        )
    assert answers == {"connect": "PermissionError"}


@needs_landlock
async def test_the_agents_status_is_not_for_apps(run: Run, tmp_path: Path) -> None:
    site = Site(tmp_path / "device")
    status = StatusSocket(site.folder.path, lambda: {"device": "pi-1"})
    await status.open()
    try:
        answers = await run(
            site,
            f"""
from marram.edge import status
attempt("ask", lambda: status.ask(pathlib.Path({str(site.folder.path)!r})))
attempt("key", lambda: pathlib.Path({str(site.folder.path / "agent.key")!r}).read_text())
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect({str(site.folder.path / "agent.sock")!r})
    asking.sendall(b"0" * 32 + b"\\n")
    attempt("guess", lambda: asking.recv(100))
""",
        )
        assert answers == {"ask": "None", "key": "PermissionError", "guess": "b''"}
        assert await asyncio.to_thread(ask, site.folder.path) == {"device": "pi-1"}
    finally:
        await status.close()


@needs_landlock
async def test_the_outbox_leads_the_agent_nowhere(run: Run, tmp_path: Path) -> None:
    """What the agent opens there again at its next start is a file, whatever an app would like it to be."""
    site = Site(tmp_path / "device")
    answers = await run(
        site,
        f"""
outbox = pathlib.Path({str(site.folder.outbox.parent)!r})
key = {str(site.folder.path / "identity/identity.pem")!r}
(outbox / "plain").write_text("x")
attempt("link", lambda: os.symlink(key, outbox / "outbox.db.lock.new"))
os.symlink(key, "link")
attempt("moved link", lambda: os.rename("link", outbox / "outbox.db.lock"))
attempt("hard link", lambda: os.link(key, outbox / "outbox.db.lock.new"))
attempt("pipe", lambda: os.mkfifo(outbox / "pipe"))
attempt("folder", lambda: os.mkdir(outbox / "folder"))
attempt("program", lambda: subprocess.run([str(outbox / "plain")]))
attempt("delete", lambda: (outbox / "plain").unlink())
""",
    )
    assert answers.pop("delete") == "None"
    assert set(answers.values()) <= {"PermissionError", "OSError"}, answers


async def test_what_an_app_needs_works_as_before(run: Run, tmp_path: Path) -> None:
    site = Site(tmp_path / "device")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.txt").write_text("picture")
    answers = await run(
        site,
        f"""
import tempfile
attempt("work", lambda: pathlib.Path("note").write_text("x"))
attempt("move", lambda: (os.mkdir("sub"), os.rename("note", "sub/note")) and None)
attempt("temporary", lambda: tempfile.TemporaryFile().write(b"x"))
attempt("neighbour", lambda: os.listdir({str(tmp_path / "pictures")!r}))
attempt("device", lambda: open("/dev/null", "wb").write(b"x"))
from multiprocessing.shared_memory import SharedMemory
attempt("shared memory", lambda: SharedMemory(create=True, size=64).unlink())
attempt("program", lambda: subprocess.run(["true"], check=True) and None)
attempt("network", lambda: socket.create_server(("127.0.0.1", 0)).close())
attempt("own child", lambda: subprocess.Popen(["sleep", "60"]).kill())
attempt("import", lambda: __import__("numpy") and None)
attempt("own memory", lambda: open("/proc/self/maps").readline() and None)
""",
    )
    good = {"work": "1", "temporary": "1", "device": "1", "neighbour": "['1.txt']"}
    assert answers == dict.fromkeys(answers, "None") | good


async def test_no_core_few_files_no_new_powers(run: Run, tmp_path: Path) -> None:
    answers = await run(
        Site(tmp_path / "device"),
        """
import resource
attempt("core", lambda: resource.getrlimit(resource.RLIMIT_CORE))
attempt("files", lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 4096)
status = [line.split(":", 1) for line in open("/proc/self/status")]
attempt("status", lambda: dict(pair for pair in status if pair[0] in ("NoNewPrivs", "CapEff")))
attempt("block device", lambda: os.mknod("disk", 0o60600, os.makedev(7, 0)))
""",
    )
    assert answers["core"] == "(0, 0)"
    assert answers["files"] == "True"
    if landlock.abi():
        assert "'NoNewPrivs': '\\t1\\n'" in answers["status"]
    # CHOWN DAC_OVERRIDE FOWNER FSETID NET_BIND_SERVICE IPC_LOCK IPC_OWNER SYS_NICE at most, where we are root
    effective = int(answers["status"].split("'CapEff': '\\t")[1][:16], 16)
    assert effective & ~0x80C41B == 0
    assert answers["block device"] == "PermissionError"


@needs_landlock
def test_a_worker_that_cannot_be_confined_does_not_start(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    made = Plan(folder=str(folder), cgroup=str(tmp_path / "no-such-group"))
    ended = subprocess.run(
        [sys.executable, "-m", "marram.edge.sandbox", made.text(), "this"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (5, "a worker cannot be confined: No such file or directory\n")


def test_it_says_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    if landlock.abi() >= 6:
        assert isolation().startswith(f"landlock {landlock.abi()}: files, memory of others, signals")
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert isolation() == "none: this kernel has no Landlock; workers can read what the agent can"
    monkeypatch.setattr(landlock, "abi", lambda: 4)
    assert "signals" not in isolation()


def _at(version: int, code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """`code`, confined as a kernel of that Landlock version would."""
    program = f"from marram.system import landlock; landlock.abi = lambda: {version}\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.parametrize("version", range(1, 8))
def test_older_kernels_keep_files_too(version: int, tmp_path: Path) -> None:
    if version > landlock.abi():
        pytest.skip("this kernel's Landlock is older")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "file").write_text("x")
    (tmp_path / "open").mkdir()
    code = f"""
landlock.restrict(landlock.everything_but({{{str(tmp_path / "closed")!r}: 0}}))
open("open/new", "w").write("x")
try:
    open("closed/file")
except PermissionError:
    print("refused")
"""
    ended = _at(version, code, tmp_path)
    assert (ended.stdout, ended.stderr) == ("refused\n", "")


def _seen(rules: Any) -> set[str]:
    return {os.path.basename(path) for path, _ in rules}  # noqa: PTH119


def test_neighbours_stay_and_links_are_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "way/closed", "way/open"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "way")
    rules = list(landlock.everything_but({str(tmp_path / "way/closed"): 0}))
    assert {"a", "b", "open"} <= _seen(rules)
    assert not {"way", "closed", "link"} & _seen(rules)


def test_a_rule_for_a_link_opens_nothing_behind_it(tmp_path: Path) -> None:
    """Who may write where a rule points could otherwise lead it to what is closed."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "closed")
    code = f"""
closed = landlock.everything_but({{{str(tmp_path / "closed")!r}: 0}})
landlock.restrict([*closed, ({str(tmp_path / "link")!r}, landlock.READ)])
try:
    open("closed/file")
except PermissionError:
    print("refused")
"""
    ended = _at(landlock.abi(), code, tmp_path)
    assert (ended.stdout, ended.stderr) == ("refused\n", "")


def test_signals_and_abstract_sockets_are_kept_in_since_version_6() -> None:
    assert [landlock.scopes(version) for version in (5, 6, 7)] == [False, True, True]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else: no limit on tasks holds for root")
def test_a_fork_bomb_comes_to_its_end(tmp_path: Path) -> None:
    site = Site(tmp_path / "device")
    code = f"""
import json, os, signal, time
from marram.edge.sandbox import Plan, confine

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
confine(Plan(**json.loads({site.plan().text()!r})))
children = []
try:
    while len(children) < 5000:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
except BlockingIOError:
    pass
for child in children:
    os.kill(child, signal.SIGKILL)
print(len(children))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    # So many more than this machine had tasks when it began.
    assert 100 < int(ended.stdout) < 5000


# ---------------------------------------------------------------- one plan, one process


def _confined(made: Plan, before: str, after: str, tmp_path: Path, version: int | None = None) -> dict[str, str]:
    """What each `attempt` in `after` met, in a process that ran `before` and then gave up what is not in `made`."""
    program = f"{PREAMBLE}\nfrom marram.edge import sandbox\nfrom marram.system import landlock\n{before}\n"
    if version is not None:
        program += f"landlock.abi = lambda: {version}\n"
    program += f"sandbox.confine(sandbox.Plan(**json.loads({made.text()!r})))\n{after}\nprint(json.dumps(answers))\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


@needs_landlock
def test_a_cloud_and_a_persons_token_on_the_same_machine_are_closed_too(tmp_path: Path) -> None:
    """Whoever tries both on one machine: an app must not read the cloud's keys, nor speak as the person."""
    secrets = [paths.context(), paths.cloud() / "secret.key"]
    beside = paths.home() / "models" / "note"
    for place in (*secrets, beside):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("x")
    tries = "".join(f"attempt({place.name!r}, lambda: open({str(place)!r}).read())\n" for place in (*secrets, beside))
    answers = _confined(Site(tmp_path / "device").plan(), "", tries, tmp_path)
    assert answers == {"note": "'x'"} | {place.name: "PermissionError" for place in secrets}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root's powers are root's")


@needs_root
@needs_landlock
@pytest.mark.parametrize(
    ("stands_for", "refused"),
    [
        # Not every machine that tests run on has a disk in /dev, or raw memory: what each has stands for them.
        ("sandbox.stat.S_ISBLK = sandbox.stat.S_ISCHR", {"setting", "full", "zero"}),
        ("sandbox._RAW_MEMORY = ('/dev/zero',)", {"setting", "zero"}),
    ],
    ids=["disks", "memory"],
)
def test_an_app_of_root_opens_no_disk_and_changes_nothing_of_the_kernels(
    stands_for: str, refused: set[str], tmp_path: Path
) -> None:
    tries = """
attempt("setting", lambda: open("/proc/self/comm", "w").close())
attempt("look", lambda: open("/proc/self/comm").close())
attempt("full", lambda: open("/dev/full").close())
attempt("zero", lambda: open("/dev/zero").close())
"""
    answers = _confined(Site(tmp_path / "device").plan(), stands_for, tries, tmp_path)
    assert answers == dict.fromkeys(("setting", "look", "full", "zero"), "None") | dict.fromkeys(
        refused, "PermissionError"
    )


def test_control_groups_can_be_looked_at_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write there leaves its own, and sets the limits of others. (Not tried: here it would do it.)"""
    rules: dict[str, int] = {}
    monkeypatch.setattr(landlock, "abi", lambda: 7)
    monkeypatch.setattr(landlock, "restrict", rules.update)
    monkeypatch.setattr(sandbox, "_bound", lambda: None)
    monkeypatch.setattr(sandbox, "_drop_capabilities", lambda: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sandbox.confine(Site(tmp_path / "device").plan())
    assert rules["/sys/fs/cgroup"] == landlock.READ
    assert not {"/", "/sys", "/sys/fs"} & rules.keys()


@needs_root
@pytest.mark.parametrize("version", [0, None], ids=["without Landlock", "with it"])
def test_what_an_app_of_root_starts_has_no_more_powers_than_it(version: int | None, tmp_path: Path) -> None:
    """A program started by root has all that the bounding set leaves; without Landlock nothing else holds it back."""
    tries = """
text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
answers |= {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.startswith("Cap")}
"""
    answers = _confined(Site(tmp_path / "device").plan(), "", tries, tmp_path, version)
    assert {name: int(value, 16) & ~0x80C41B for name, value in answers.items()} == dict.fromkeys(answers, 0)
    assert {"CapBnd", "CapEff"} <= answers.keys()


def test_temporary_files_and_caches_go_where_the_app_may_write(tmp_path: Path) -> None:
    """Where the device's folder lies in the folder for temporary files, or in a home, that one takes nothing new."""
    if not landlock.abi():
        pytest.skip("nothing is closed without Landlock")
    site = Site(tmp_path / "device")
    site.work.mkdir(parents=True)
    tries = """
import tempfile
attempt("place", lambda: os.environ["TMPDIR"])
attempt("cache", lambda: os.mkdir(os.path.expanduser("~/.cache/models")))
with tempfile.NamedTemporaryFile() as file:
    attempt("file", lambda: os.path.dirname(file.name))
"""
    before = f"os.environ['TMPDIR'] = os.environ['HOME'] = {str(tmp_path)!r}"
    answers = _confined(site.plan(), before, tries, tmp_path)
    assert answers == dict.fromkeys(("place", "file"), repr(os.path.realpath(site.work))) | {"cache": "None"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_a_sealed_agent_leaves_no_core_and_shows_no_memory() -> None:
    code = """
import ctypes, resource
from marram.edge.sandbox import seal_agent
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
print(hard, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
seal_agent()
print(*resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    before, after = ended.stdout.splitlines()
    assert before.endswith(" 1"), ended.stderr
    if before.startswith("0 "):
        pytest.skip("no core is ever kept here")
    assert after == "0 0 0"
