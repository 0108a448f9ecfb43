"""What a disk may hold after a power cut, given what was asked of it: the rules of POSIX, no kinder file system.

Until a file was synced, its writes may be on the disk or not, each for itself, the last in part, or as a hole of zeros
where only the length arrived. Until a folder was synced, its names may be the old or the new, each for itself; only a
rename is one act. What was synced is there. (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, show
each of these on file systems in use.)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from marram.lab.powercut.recording import Operation

_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut before operation `at` (all before it were asked for). `files`: content by path; None is a folder."""

    at: int
    how: str
    files: dict[str, bytes | None]

    @property
    def digest(self) -> str:
        """Of what is on the disk: two cuts that leave the same are one."""
        whole = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            whole.update(f"{path}\0{'-' if content is None else len(content)}\0".encode())
            whole.update(content or b"")
        return whole.hexdigest()

    def write(self, folder: Path) -> None:
        """Make `folder`, which is there and empty, look like that disk."""
        for path, content in sorted(self.files.items()):
            place = folder / path
            if content is None:
                place.mkdir(mode=0o700)
            else:
                place.write_bytes(content)


def cuts(operations: Sequence[Operation], orders: int = 2, seed: int = 0, every: int = 1) -> Iterator[Cut]:
    """Every moment of the recording (or every so many), each in all its ways; those that leave the same disk come once.

    Of a sample, every other moment is one just after a mark, where there is one near: what was promised last is what
    is lost first.

    At each: all that was asked for; only what was synced; the last write torn, at a sector and within one; what was not
    synced as zeros, or not there though its name is; and `orders` random choices of what was not synced (the same for
    the same `seed`).
    """
    seen: set[str] = set()
    chance = random.Random(seed)
    for number, begin in enumerate(range(0, len(operations) + 1, every)):
        marked = (at + 1 for at, each in enumerate(operations[begin : begin + every], begin) if each.mark)
        at = next(marked, begin) if number % 2 and every > 1 else begin
        for cut in _at(operations, at, orders, chance):
            if (digest := cut.digest) not in seen:
                seen.add(digest)
                yield cut


def _at(operations: Sequence[Operation], at: int, orders: int, chance: random.Random) -> Iterator[Cut]:
    everything = set(range(at))
    loose = sorted(everything - _synced(operations, at))
    yield Cut(at, "all of it", _disk(operations, everything))
    if not loose:
        return
    yield Cut(at, "only what was synced", _disk(operations, everything - set(loose)))
    writes = [index for index in loose if operations[index].data]
    if writes:
        last = operations[writes[-1]]
        for part in {len(last.data) // 2 // _SECTOR_BYTES * _SECTOR_BYTES, len(last.data) // 2} - {0, len(last.data)}:
            yield Cut(at, f"torn after {part} bytes", _disk(operations, everything, torn={writes[-1]: part}))
        yield Cut(at, "lengths without content", _disk(operations, everything, zeroed=set(writes)))
        yield Cut(at, "names without content", _disk(operations, everything - set(writes)))
    for _ in range(orders):
        lost = {index for index in loose if chance.random() < 0.5}
        yield Cut(at, "in another order", _disk(operations, everything - lost))


def _synced(operations: Sequence[Operation], at: int) -> set[int]:
    """What is on the disk for certain."""
    until: dict[int, int] = {}  # by inode: everything asked of it before this is there
    for operation in operations[:at]:
        if operation.synced is not None:
            until[operation.synced] = max(until.get(operation.synced, 0), operation.begun)
    there: set[int] = set()
    for index, operation in enumerate(operations[:at]):
        touched = [operation.inode] if operation.inode is not None else [edit.folder for edit in operation.edits]
        # A rename from folder to folder is one act: whichever of the two is synced, it is there.
        if any(index < until.get(inode, 0) for inode in touched):
            there.add(index)
    return there


def _disk(
    operations: Sequence[Operation],
    kept: Collection[int],
    torn: dict[int, int] | None = None,
    zeroed: Collection[int] = (),
) -> dict[str, bytes | None]:
    contents: dict[int, bytearray] = {}
    folders: dict[int, dict[str, int]] = {0: {}}
    for index in sorted(kept):
        operation = operations[index]
        for fresh in operation.folders:
            folders.setdefault(fresh, {})
        for edit in operation.edits:
            names = folders.setdefault(edit.folder, {})
            if edit.inode is None:
                names.pop(edit.name, None)
            else:
                names[edit.name] = edit.inode
        if operation.inode is None:
            continue
        content = contents.setdefault(operation.inode, bytearray())
        if operation.size_bytes is not None:
            del content[operation.size_bytes :]
            content.extend(bytes(operation.size_bytes - len(content)))
        data = operation.data[: (torn or {}).get(index)]
        if index in zeroed:
            data = bytes(len(data))
        if data:
            content.extend(bytes(max(0, operation.offset - len(content))))
            content[operation.offset : operation.offset + len(data)] = data
    # A folder whose making was lost is not reached; one whose names came before its making is a folder all the same.
    made = {inode for operation in operations for inode in operation.folders}
    files: dict[str, bytes | None] = {}
    reach = [("", 0)]
    while reach:
        path, folder = reach.pop()
        for name, inode in folders.get(folder, {}).items():
            whole = f"{path}{name}"
            if inode in made:
                files[whole] = None
                reach.append((f"{whole}/", inode))
            else:
                files[whole] = bytes(contents.get(inode, b""))
    return files
