"""Attacks on what a version consists of: bytes changed on the way, paths that lead out of the bundle.

The victim is the device's own code from the bus to the disk: the message is decoded, the documents are verified, the
files are taken in by their digests.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

from marram.bus.codec import pack, pack_desired, unpack_desired
from marram.edge.bundles import Bundles
from marram.lab.attacks.outcome import Outcome, attempt
from marram.lab.attacks.publisher import Publisher
from marram.schema.device import Desired, DesiredApp, ModelRef
from marram.schema.errors import Invalid, Threat, Untrusted
from marram.schema.model import File, Manifest
from marram.trust.clock import Clock
from marram.trust.verifier import Verifier

# Paths that no bundle may list: each would be written to, or over, something else than its own file.
BAD_PATHS: dict[str, list[str]] = {
    "climbs out": ["../app.yaml"],
    "climbs out from within": ["functions/../../app.yaml"],
    "climbs and comes back": ["functions/../app.yaml"],
    "absolute": ["/etc/cron.d/app"],
    "absolute, twice": ["//etc/passwd"],
    "a dot": ["."],
    "a dot within": ["functions/./count.py"],
    "nothing": [""],
    "nothing within": ["functions//count.py"],
    "a folder": ["functions/"],
    "a backslash": ["functions\\count.py"],
    "a backslash that climbs": ["..\\app.yaml"],
    "a drive": ["C:/app.yaml"],
    "a zero byte": ["app.yaml\0.txt"],
    "a line break": ["app.yaml\n"],
    "an escape": ["\x1b[2Japp.yaml"],
    "text turned round": ["app\u202elmay.exe"],
    "too deep": ["/".join(["a"] * 40)],
    "a name too long": ["a" * 300],
    "a path too long": ["/".join(["a" * 200] * 8)],
    "the same twice": ["app.yaml", "app.yaml"],
    "the same but for case": ["app.yaml", "App.yaml"],
    "the same but for how it is written": ["caf\u00e9.txt", "cafe\u0301.txt"],
    "a file and a folder": ["functions", "functions/count.py"],
    "a folder and a file, but for case": ["functions/count.py", "Functions"],
}


def _file(path: str, body: bytes) -> File:
    return File(path=path, sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))


def traversals() -> Iterator[Outcome]:
    """A desired state whose app, or model, lists one of `BAD_PATHS`, as it comes over the bus."""
    digest = hashlib.sha256(b"x").hexdigest()
    for name, paths in BAD_PATHS.items():
        bad = {"files": [{"path": path, "sha256": digest, "size_bytes": 1} for path in paths]}
        good = {"files": [{"path": "app.yaml", "sha256": digest, "size_bytes": 1}]}
        app = {"name": "gate", "version": 1, "files": good}
        model = {"name": "faces", "version": 1, "manifest": bad}
        for where, document in (
            ("app", app | {"files": bad}),
            ("model", app | {"models": [model]}),
            ("packages", app | {"wheels": {"any": bad}}),
        ):

            def meet(document: dict[str, object] = document) -> None:
                unpack_desired(pack({"desired": {"version": 1, "apps": [document]}}))

            yield attempt(f"{where}: {name}", Threat.TRAVERSAL, meet)


class _Victim:
    """A device that is told to run one version with a model, of a cloud in memory."""

    def __init__(self, folder: Path) -> None:
        self.files = {"app.yaml": b"app: gate\n" * 20, "functions/count.py": b"def count(frame):\n    return 1\n" * 9}
        self.model = {"model.yaml": b"model: faces\n" * 9, "faces.tflite": random.Random(0).randbytes(3000)}
        manifest = Manifest(files=[_file(path, body) for path, body in self.files.items()])
        weights = Manifest(files=[_file(path, body) for path, body in self.model.items()])
        model = ModelRef(name="faces", version=1, manifest=weights)
        self.app = DesiredApp(name="gate", version=1, files=manifest, models=[model])
        self.cloud = Publisher()
        self.cloud.sign([self.app])
        self.folder = folder
        self.bundles = Bundles(folder / "device", reserve_bytes=0)
        self.bundles.make()

    def desired(self) -> bytes:
        """The message that tells it what to run."""
        return pack_desired(Desired(version=1, apps=[self.app]))

    def told(self, message: bytes) -> None:
        """It is told what to run: decoded, then verified, before a file is asked for."""
        desired = unpack_desired(message)
        if desired is None or [app.name for app in desired.apps] != ["gate"]:
            raise Untrusted("it is told to run another app", threat=Threat.UNSIGNED)
        (app,) = desired.apps
        if app == self.app and message != self.desired():
            raise Untrusted("another number of the desired state, the same app", threat=Threat.TAMPERED)
        documents = {app.target: app.signed(), **{model.target: model.signed() for model in app.models}}
        clock = Clock(self.folder / "trust" / "clock.json")
        Verifier(self.folder / "trust", self.cloud.root, clock).verify(documents, self.cloud.serve)

    def given(self, file: File, body: bytes) -> None:
        """All bytes of a file it asked for came."""
        self.bundles.partial(file).write_bytes(body)
        self.bundles.accept(file)


def flipped(folder: Path, count: int, seed: int = 1) -> Iterator[Outcome]:
    """`count` bytes (by `seed`) of a version on its way, each changed: the desired state, an app's files, a model's.

    Where the message cannot even be read any more, it is refused before anything in it is looked at: that counts as
    tampered, which it is.
    """
    chance = random.Random(seed)
    victim = _Victim(folder)
    listed = {file.path: file for m in (victim.app.files, victim.app.models[0].manifest) for file in m.files}
    pristine = {"desired state": victim.desired(), **victim.files, **victim.model}
    victim.told(pristine["desired state"])
    every = [(name, place) for name, content in pristine.items() for place in range(len(content))]
    reasons = frozenset({Threat.TAMPERED, Threat.UNSIGNED, Threat.TRAVERSAL})
    for name, place in chance.choices(every, k=count):
        content = bytearray(pristine[name])
        content[place] ^= chance.choice((1, 2, 8, 32, 128, 255))

        def meet(name: str = name, content: bytes = bytes(content)) -> None:
            try:
                victim.given(listed[name], content) if name in listed else victim.told(content)
            except Invalid as error:
                raise Untrusted(str(error), threat=Threat.TAMPERED) from error

        yield attempt(f"{name}: byte {place}", reasons, meet)
