"""What a program did to a folder: its system calls, as strace tells them, taken apart.

Threads and child processes are followed. A program may put marks into its own record (`mark`), such as "this was
acknowledged". What cannot be followed exactly is an error, never a guess; SQLite's `-shm` file, which it maps, is the
exception: after a cut it is no more than a cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marram.schema.errors import Missing, Permanent

# No such folder anywhere: asking for it has no effect but a line in the record.
_MARKS = "/marram-mark/"
_CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat,access,faccessat,faccessat2,"
    "copy_file_range,sendfile,lseek"
)
_LINE = re.compile(r"^(\d+) +(.*)$", re.DOTALL)
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)(.*)$", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_HEX = re.compile(r"(?:\\x[0-9a-f]{2})*")
# One argument: a string in hexadecimal (with what was left of it), or anything without a comma or quote.
_ARGUMENT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?|((?:[^,"{\[<]|<[^>]*>|\{[^}]*\}|\[[^\]]*\])+)')
_FD = re.compile(r"^(-?\d+|AT_FDCWD)(?:<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?)?$")


@dataclass(frozen=True, slots=True)
class Edit:
    """One name in a folder: it means `inode` from now on, or (None) nothing. `folder` is an inode; 0 is the root."""

    folder: int
    name: str
    inode: int | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing asked of the disk, or a mark. Its place in the recording is when it ended, `begun` when it was asked.

    `edits`: names changed, all or none. `inode` with `data` at `offset`, or with `size_bytes` (truncated or grown to).
    `synced`: everything asked of this inode before `begun` is on the disk.
    """

    begun: int
    what: str
    edits: tuple[Edit, ...] = ()
    folders: tuple[int, ...] = ()  # made by this: inodes that are folders
    inode: int | None = None
    offset: int = 0
    data: bytes = b""
    size_bytes: int | None = None
    synced: int | None = None
    mark: str = ""


def mark(text: str) -> None:
    """Leave a mark in the record of this very program; does nothing where nobody records."""
    os.access(_MARKS + text, os.F_OK)


def record(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float = 300
) -> list[Operation]:
    """Run `command` and return what it did under `folder`, which must be empty at its start.

    Raises Missing where strace is not installed, Permanent where the program fails or cannot be followed.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise Missing("strace is not installed here", hint="apt-get install strace")
    log = folder.with_name(f"{folder.name}.strace")
    tracing = [strace, "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={_CALLS}", "-e", "signal=none"]
    done = subprocess.run(
        [*tracing, "-o", str(log), *command], env=dict(environment), capture_output=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise Permanent(f"exit status {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}")
    with log.open(encoding="latin-1") as lines:
        operations = _Reader(folder.resolve()).read(lines.read())
    log.unlink()
    return operations


class _Reader:
    """Takes the record apart. Keeps what every name under the folder means at each moment."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._names: dict[str, int] = {self._root: 0}
        self._is_folder = {0}
        self._contents: dict[int, bytearray] = {}
        self._positions: dict[int, int] = {}
        self._appending: set[int] = set()
        self._next = 1
        self._operations: list[Operation] = []

    def read(self, text: str) -> list[Operation]:
        waiting: dict[str, tuple[int, str]] = {}
        for line in text.splitlines():
            matched = _LINE.match(line)
            if matched is None:
                continue
            task, rest = matched[1], matched[2]
            begun = len(self._operations)
            if rest.endswith("<unfinished ...>"):
                waiting[task] = (begun, rest.removesuffix("<unfinished ...>").rstrip())
                continue
            if resumed := _RESUMED.match(rest):
                begun, head = waiting.pop(task)
                rest = head + resumed[2].lstrip() if head.endswith(("(", ",")) else head + resumed[2]
            call = _CALL.match(rest)
            if call is not None and not call[3].startswith(("-", "?")):
                self._take(begun, call[1], _arguments(call[2]), int(call[3]), call[4])
            elif call is not None and call[1] in ("access", "faccessat", "faccessat2"):
                self._marked(begun, _arguments(call[2]))
        return self._operations

    # ------------------------------------------------------------ calls

    def _take(self, begun: int, call: str, arguments: list[bytes | str], result: int, rest: str) -> None:
        match call:
            case "open" | "creat":
                flags = "O_CREAT|O_TRUNC" if call == "creat" else str(arguments[1])
                self._opened(begun, self._path(arguments[0]), flags)
            case "openat":
                self._opened(begun, self._path(arguments[1], arguments[0]), str(arguments[2]))
            case "write" | "pwrite64":
                data = arguments[1]
                assert isinstance(data, bytes)
                self._wrote(begun, arguments[0], data[:result], int(str(arguments[3])) if call == "pwrite64" else None)
            case "ftruncate" | "truncate":
                inode = self._inode_of(arguments[0]) if call == "ftruncate" else self._known(self._path(arguments[0]))
                self._resized(begun, inode, int(str(arguments[1])), call)
            case "fallocate":
                inode = self._inode_of(arguments[0])
                if inode is not None and "KEEP_SIZE" not in str(arguments[1]):
                    size = int(str(arguments[2])) + int(str(arguments[3]))
                    self._resized(begun, inode, max(size, self._size(inode)), call)
            case "fsync" | "fdatasync":
                inode = self._inode_of(arguments[0])
                if inode is not None:
                    self._add(Operation(begun, call, synced=inode))
            case "rename" | "renameat" | "renameat2":
                wide = call != "rename"
                source = self._path(arguments[1], arguments[0]) if wide else self._path(arguments[0])
                target = self._path(arguments[3], arguments[2]) if wide else self._path(arguments[1])
                self._renamed(begun, source, target)
            case "link" | "linkat":
                wide = call == "linkat"
                source = self._path(arguments[1], arguments[0]) if wide else self._path(arguments[0])
                target = self._path(arguments[3], arguments[2]) if wide else self._path(arguments[1])
                if self._inside(target):
                    inode = self._known(source)
                    if inode is None:
                        raise Permanent(f"a link from outside cannot be followed: {source}")
                    self._name(begun, target, inode, "link")
            case "unlink" | "rmdir":
                self._removed(begun, self._path(arguments[0]), call)
            case "unlinkat":
                self._removed(begun, self._path(arguments[1], arguments[0]), call)
            case "mkdir" | "mkdirat":
                path = self._path(arguments[1], arguments[0]) if call == "mkdirat" else self._path(arguments[0])
                if self._inside(path):
                    self._name(begun, path, self._fresh(folder=True), "mkdir")
            case "access" | "faccessat" | "faccessat2" | "sync_file_range":
                pass
            case "sendfile":
                self._copied(begun, arguments, result)
            case "lseek":
                inode = self._inode_of(arguments[0])
                if inode is not None and inode in self._positions:
                    self._positions[inode] = result
            case _:
                paths = [self._inode_of(each) for each in arguments if isinstance(each, str) and _FD.match(each)]
                if any(inode is not None for inode in paths):
                    raise Permanent(f"{call} on a file that is recorded cannot be followed")

    def _marked(self, begun: int, arguments: list[bytes | str]) -> None:
        for each in arguments:
            if isinstance(each, bytes) and each.startswith(_MARKS.encode()):
                self._add(Operation(begun, "mark", mark=each.decode().removeprefix(_MARKS)))

    def _opened(self, begun: int, path: str, flags: str) -> None:
        if not self._inside(path) or path == self._root:
            return
        inode = self._known(path)
        if inode is None:
            if "O_CREAT" not in flags:
                return  # a file from before, or a folder: named when it is written
            inode = self._fresh()
            self._name(begun, path, inode, "create")
        elif "O_TRUNC" in flags:
            self._resized(begun, inode, 0, "truncate")
        if inode in self._is_folder or "O_RDONLY" in flags:
            return
        (self._appending.add if "O_APPEND" in flags else self._appending.discard)(inode)
        self._positions[inode] = 0

    def _wrote(self, begun: int, descriptor: bytes | str, data: bytes, offset: int | None) -> None:
        inode = self._inode_of(descriptor)
        if inode is None:
            return
        if offset is None:
            offset = self._size(inode) if inode in self._appending else self._positions.get(inode, 0)
            self._positions[inode] = offset + len(data)
        content = self._contents.setdefault(inode, bytearray())
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data
        self._add(Operation(begun, "write", inode=inode, offset=offset, data=data))

    def _size(self, inode: int) -> int:
        return len(self._contents.get(inode, b""))

    def _copied(self, begun: int, arguments: list[bytes | str], length: int) -> None:
        """`sendfile(to, from, [offset] => …)`: strace tells how much, and what is ours to know."""
        source, target = self._inode_of(arguments[1]), self._inode_of(arguments[0])
        if target is None:
            return
        matched = re.match(r"\[(\d+)\]", str(arguments[2]))
        if source is None or matched is None:
            raise Permanent("a copy from elsewhere cannot be followed")
        offset = int(matched[1])
        self._wrote(begun, arguments[0], bytes(self._contents[source][offset : offset + length]), None)

    def _resized(self, begun: int, inode: int | None, size_bytes: int, what: str) -> None:
        if inode is not None:
            content = self._contents.setdefault(inode, bytearray())
            del content[size_bytes:]
            content.extend(bytes(size_bytes - len(content)))
            self._add(Operation(begun, what, inode=inode, size_bytes=size_bytes))

    def _renamed(self, begun: int, source: str, target: str) -> None:
        if not self._inside(source) and not self._inside(target):
            return
        inode = self._known(source)
        if inode is None or not self._inside(target):
            raise Permanent(f"a rename over the folder's border cannot be followed: {source} to {target}")
        edits = (self._edit(source, None), self._edit(target, inode))
        for path in [p for p in self._names if p == source or p.startswith(source + "/")]:
            self._names[target + path[len(source) :]] = self._names.pop(path)
        self._add(Operation(begun, "rename", edits=edits))

    def _removed(self, begun: int, path: str, what: str) -> None:
        if self._inside(path) and path in self._names:
            edit = self._edit(path, None)
            del self._names[path]
            self._add(Operation(begun, what, edits=(edit,)))

    def _name(self, begun: int, path: str, inode: int, what: str) -> None:
        edit = self._edit(path, inode)
        self._names[path] = inode
        folders = (inode,) if inode in self._is_folder and what == "mkdir" else ()
        self._add(Operation(begun, what, edits=(edit,), folders=folders))

    # ------------------------------------------------------------ names

    def _edit(self, path: str, inode: int | None) -> Edit:
        parent, _, name = path.rpartition("/")
        if parent not in self._names:
            raise Permanent(f"the folder of {path} was never seen to be made")
        return Edit(self._names[parent], name, inode)

    def _inside(self, path: str) -> bool:
        return path.startswith(self._root + "/") or path == self._root

    def _known(self, path: str) -> int | None:
        return self._names.get(path)

    def _inode_of(self, descriptor: bytes | str) -> int | None:
        """Of an open file, by the path that strace tells with its number; None outside, and of one without a name."""
        matched = _FD.match(descriptor) if isinstance(descriptor, str) else None
        if matched is None or matched[2] is None or matched[3]:
            return None
        return self._known(_text(matched[2]))

    def _path(self, argument: bytes | str, at: bytes | str = "") -> str:
        assert isinstance(argument, bytes), f"not a path: {argument!r}"
        path = argument.decode("utf-8", "surrogateescape")
        if not path.startswith("/"):
            matched = _FD.match(at) if isinstance(at, str) else None
            base = _text(matched[2]) if matched is not None and matched[2] is not None else str(Path.cwd())
            path = f"{base}/{path}"
        return os.path.normpath(path)

    def _fresh(self, *, folder: bool = False) -> int:
        inode, self._next = self._next, self._next + 1
        if folder:
            self._is_folder.add(inode)
        return inode

    def _add(self, operation: Operation) -> None:
        self._operations.append(operation)


def _arguments(text: str) -> list[bytes | str]:
    found: list[bytes | str] = []
    for matched in _ARGUMENT.finditer(text):
        if matched[3] is not None:
            if word := matched[3].strip():
                found.append(word)
        elif matched[2]:
            raise Permanent("strace cut a write short")
        else:
            found.append(_bytes(matched[1]))
    return found


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace("\\x", ""))


def _text(hexadecimal: str) -> str:
    return _bytes(hexadecimal).decode("utf-8", "surrogateescape")
