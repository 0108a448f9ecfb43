"""Documents damaged at random: bytes changed, garbage instead."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from copy import copy
from pathlib import Path

from marram.lab.attacks.outcome import Outcome, attempt
from marram.lab.attacks.updates.scene import Scene
from marram.schema.errors import Threat

_SIGNATURE = re.compile(rb'"sig":("[0-9a-f]+")')


def flipped(folder: Path, count: int, seed: int = 1) -> Iterator[Outcome]:
    """`count` bytes (by `seed`) of the documents a device is served, each changed: one attack each."""
    chance = random.Random(seed)
    scene = Scene(folder)
    scene.publish()
    pristine = {name: scene.fetch(name, 0) or b"" for name in scene.names()}
    signatures = {name: [m.span(1) for m in _SIGNATURE.finditer(content)] for name, content in pristine.items()}
    every = [(name, place) for name, content in pristine.items() for place in range(len(content))]
    signed = frozenset({Threat.TAMPERED, Threat.WRONG_KEY, Threat.MIX_AND_MATCH, Threat.UNSIGNED})
    for number, (name, place) in enumerate(chance.choices(every, k=count)):
        content = bytearray(pristine[name])
        mask = chance.choice((1, 4, 32, 64, 128, 255))
        if mask == 32 and any(start < place < end for start, end in signatures[name]):
            mask = 16  # a hexadecimal digit in capitals is the same digit: nothing would have changed
        content[place] ^= mask
        victim = copy(scene)
        victim.folder = folder / f"victim-{number}"
        victim.serve({name: bytes(content)})
        yield attempt(f"{name}: byte {place}", signed, victim.device)


def garbage(folder: Path, count: int, seed: int = 1) -> Iterator[Outcome]:
    """`count` files (by `seed`) that are nothing, cut short, nested without end, or JSON of the wrong shape."""
    chance = random.Random(seed)
    scene = Scene(folder)
    scene.publish()
    names = scene.names()
    for number in range(count):
        name = chance.choice([*names, "2.root.json"])
        pristine = scene.fetch(name, 0) or scene.root
        kinds: list[bytes] = [
            chance.randbytes(chance.randrange(0, 2000)),
            pristine[: chance.randrange(len(pristine))],
            b"[" * 100_000,
            b'{"signed":' * 5000,
            b"{}",
            b"null",
            b'{"signatures":[],"signed":{"_type":"timestamp"}}',
            b'{"signatures":[{"keyid":1,"sig":null}],"signed":7}',
            pristine.replace(b'"version":', b'"version":-', 1),
            pristine.replace(b'"version":', b'"version":1e999,"v":', 1),
            pristine.replace(b'"spec_version":"1.', b'"spec_version":"9.', 1),
            pristine.replace(b'"_type":"', b'"_type":"x', 1),
            pristine + pristine,
            b"\xff\xfe" + pristine,
        ]
        kind = chance.randrange(len(kinds))
        victim = copy(scene)
        victim.folder = folder / f"victim-{number}"
        victim.serve({name: kinds[kind]})
        reasons = frozenset({Threat.TAMPERED, Threat.MIX_AND_MATCH, Threat.UNSIGNED, Threat.ENDLESS, Threat.WRONG_KEY})
        yield attempt(f"{name}: garbage of kind {kind}, {number}", reasons, victim.device)
