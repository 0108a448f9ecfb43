"""`marram cloud root`: the keys behind signed updates, and the two documents that only a person renews.

It works on the cloud's own database, whether the cloud runs or not; `key` and `sign` need no cloud at all: they are for
the machine, best without a network, where the offline keys live. No passphrase is ever an argument.
"""

from __future__ import annotations

import contextlib
import getpass
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from marram.cli import _show
from marram.cli._options import one_of
from marram.cloud.settings import Settings
from marram.cloud.signing import Signing
from marram.schema import paths
from marram.schema.errors import Invalid, Missing, Refused
from marram.schema.signed import OFFLINE, ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from marram.schema.words import file_fault
from marram.store import open_store
from marram.store.audit import auditing
from marram.system import files
from marram.trust import signers
from marram.trust.draft import Draft, merged
from marram.trust.keys import Keys

app = typer.Typer(no_args_is_help=True, help="The root of trust of updates: who may sign, and until when.")


class Role(StrEnum):
    """Whose keys."""

    ROOT = ROOT
    TARGETS = TARGETS
    MAIN = "main"
    SNAPSHOT = SNAPSHOT
    TIMESTAMP = TIMESTAMP


class Which(StrEnum):
    """What is renewed."""

    BOTH = "both"
    ROOT = ROOT
    TARGETS = TARGETS


Folder = Annotated[Path | None, typer.Option(help="The cloud's folder. Default: $MARRAM_HOME/cloud")]
Database = Annotated[
    str | None,
    typer.Option(envvar="MARRAM_DATABASE", help="postgresql://USER:PASSWORD@HOST/NAME; default: SQLite in the folder."),
]
KeysFolder = Annotated[Path | None, typer.Option("--keys", help="Where its keys are. Default: keys/ in the folder.")]
KeyFiles = Annotated[
    list[Path] | None, typer.Option("--key", help="A key file to sign with; default: those in keys/offline.")
]
To = Annotated[
    Path | None, typer.Option(help="Write a draft to this file, to be signed elsewhere, and change nothing.")
]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="A file that holds the passphrase; else it is asked for.", show_default=False)
]


@dataclass(frozen=True, slots=True)
class _Here:
    """The cloud's database and keys."""

    signing: Signing
    keys: Keys

    def draft(self) -> Draft:
        documents = self.signing.repository.documents()
        return Draft(documents.root, documents.targets)


@contextlib.contextmanager
def _here(folder: Path | None, database: str | None, keys: Path | None) -> Iterator[_Here]:
    settings = Settings(folder=(folder or paths.cloud()).absolute(), database=database, keys=keys)
    if isinstance(settings.database_url, Path) and not settings.database_url.exists():
        raise Missing(
            "there is no cloud here",
            where=str(settings.folder),
            hint="--folder says where it is. Start it: marram cloud",
        )
    store, place = open_store(settings.database_url), Keys(settings.keys_folder)
    try:
        yield _Here(Signing(store, place), place)
    finally:
        store.close()


@app.command()
def status(folder: Folder = None, database: Database = None, keys: KeysFolder = None) -> None:
    """Who may sign what, until when it is good, and which keys are on this machine."""
    with _here(folder, database, keys) as here:
        documents = here.signing.repository.documents()
        have = {signer.public_key.keyid for signer in signers.load_all(here.keys.signing).values()} | _public(
            here.keys.offline
        )
        rows = _show.table("signs", "version", "good until", "needs", "keys (* is here)")
        for role in ROLES:
            document, delegator = documents.of(role), documents.targets if role not in _IN_ROOT else documents.root
            listed = delegator.signed.get_delegated_role(role)
            shown = " ".join(signers.short(each) + ("*" if each in have else "") for each in listed.keyids)
            until = f"{document.signed.expires:%Y-%m-%d %H:%M}"
            rows.add_row(
                role, str(document.signed.version), until, f"{listed.threshold} of {len(listed.keyids)}", shown
            )
        _show.console().print(rows)
        for words in here.signing.warnings():
            print(words)
        if any((here.keys.offline).glob("*.pem")):
            print(f"The keys of root and targets are on this machine: move {here.keys.offline} to a safe place.")


@app.command()
def renew(
    which: Annotated[Which, typer.Argument(help="both, root or targets.", **one_of(Which, "document"))] = Which.BOTH,
    to: To = None,
    key: KeyFiles = None,
    passphrase_file: PassphraseFile = None,
    folder: Folder = None,
    database: Database = None,
    keys: KeysFolder = None,
) -> None:
    """Give root and targets another year."""
    with _here(folder, database, keys) as here:
        draft = here.draft()
        draft.renew(OFFLINE if which is Which.BOTH else (which.value,), time.time())
        _finish(here, draft, to, key or [], passphrase_file)


@app.command()
def rotate(
    role: Annotated[Role, typer.Argument(help="Whose key.", **one_of(Role, "role"))],
    old: Annotated[
        str, typer.Option(help="How the id of the key to replace begins; needed where there are several.")
    ] = "",
    new: Annotated[Path | None, typer.Option(help="The new key's public half (.pub); default: made here.")] = None,
    to: To = None,
    key: KeyFiles = None,
    passphrase_file: PassphraseFile = None,
    folder: Folder = None,
    database: Database = None,
    keys: KeysFolder = None,
) -> None:
    """Replace a key by another: what the old one signs counts no longer."""
    with _here(folder, database, keys) as here:
        draft = here.draft()
        present = draft.keyids(role.value)
        if not old and len(present) > 1:
            raise Invalid(f"{role} has {len(present)} keys", hint="Say which: --old ID; `marram cloud root status`.")
        gone = signers.find(present, old or present[0])
        used = [*(key or [])]
        _check_somebody_signs(here, to, used)  # before a key is made that nobody would ever use
        if new is not None:
            public = signers.load_public(new)
        else:
            place = here.keys.offline if role.value in OFFLINE else here.keys.signing
            file = signers.free_name(place, role.value)
            made = signers.new_signer()
            signers.save(made, file)
            public = made.public_key
            print(f"new key   {signers.short(public.keyid)}   {file}")
            if role.value in OFFLINE and key:
                used.append(file)
        draft.replace_key(role.value, gone, public, time.time())
        _finish(here, draft, to, used, passphrase_file)
        if to is None:
            print(f"The key {signers.short(gone)} is of no use any more, once a device has heard of it.")


@app.command("add-key")
def add_key(
    public: Annotated[Path, typer.Argument(help="The new key's public half (.pub).")],
    role: Annotated[Role, typer.Option(help="What it may sign.", **one_of(Role, "role"))] = Role.ROOT,
    to: To = None,
    key: KeyFiles = None,
    passphrase_file: PassphraseFile = None,
    folder: Folder = None,
    database: Database = None,
    keys: KeysFolder = None,
) -> None:
    """Let one more key sign."""
    with _here(folder, database, keys) as here:
        draft = here.draft()
        draft.add_key(role.value, signers.load_public(public), time.time())
        _finish(here, draft, to, key or [], passphrase_file)


@app.command("remove-key")
def remove_key(
    keyid: Annotated[str, typer.Argument(help="How its id begins.")],
    role: Annotated[Role, typer.Option(help="What it may no longer sign.", **one_of(Role, "role"))] = Role.ROOT,
    to: To = None,
    key: KeyFiles = None,
    passphrase_file: PassphraseFile = None,
    folder: Folder = None,
    database: Database = None,
    keys: KeysFolder = None,
) -> None:
    """Let a key sign no longer."""
    with _here(folder, database, keys) as here:
        draft = here.draft()
        draft.remove_key(role.value, signers.find(draft.keyids(role.value), keyid), time.time())
        _finish(here, draft, to, key or [], passphrase_file)


@app.command()
def threshold(
    count: Annotated[int, typer.Argument(help="How many keys must sign.", min=1, max=16)],
    role: Annotated[Role, typer.Option(help="root or targets.", **one_of(Role, "role"))] = Role.ROOT,
    to: To = None,
    key: KeyFiles = None,
    passphrase_file: PassphraseFile = None,
    folder: Folder = None,
    database: Database = None,
    keys: KeysFolder = None,
) -> None:
    """How many of the keys must sign."""
    with _here(folder, database, keys) as here:
        draft = here.draft()
        draft.set_threshold(role.value, count, time.time())
        _finish(here, draft, to, key or [], passphrase_file)


@app.command("key")
def new_key(
    file: Annotated[Path, typer.Argument(help="Where the key goes; its public half beside it, ending in .pub.")],
    plain: Annotated[bool, typer.Option("--plain", help="Without a passphrase.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a key, on any machine, for `add-key` or `rotate --new`."""
    made = signers.new_signer()
    public = signers.save(made, file, "" if plain else _new_passphrase(passphrase_file))
    print(f"key       {signers.short(made.public_key.keyid)}   {file}")
    print(f"public    {public}   give this one to the cloud")


@app.command()
def sign(
    draft: Annotated[Path, typer.Argument(help="The file that --to wrote.")],
    key: Annotated[list[Path], typer.Option("--key", help="A key file to sign with.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Sign a draft, on any machine: what it changes is shown first."""
    change = _draft(draft)
    for line in change.describe():
        print(line)
    if not yes and not typer.confirm("Sign this?"):
        raise typer.Exit(1)
    if not change.sign([signers.load(file, _asking(passphrase_file)) for file in key]):
        raise Refused(
            "none of these keys counts for this draft", hint="`marram cloud root status` lists those that do."
        )
    _write(draft, change.to_bytes())
    lacking = change.missing()
    print("\n".join(lacking) if lacking else f"signed; on the cloud: marram cloud root import {draft}")


@app.command("import")
def import_(
    draft: Annotated[
        list[Path], typer.Argument(help="The signed draft, or several copies of it, each signed by some.")
    ],
    folder: Folder = None,
    database: Database = None,
    keys: KeysFolder = None,
) -> None:
    """Put a signed draft into force."""
    change = merged([_draft(file) for file in draft])
    with _here(folder, database, keys) as here:
        _enforce(here, change)


_IN_ROOT = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)


def _finish(here: _Here, draft: Draft, to: Path | None, key: list[Path], passphrase_file: Path | None) -> None:
    """Write the draft for others to sign, or sign it with what is here and put it into force."""
    if to is not None:
        _write(to, draft.to_bytes())
        for line in draft.describe():
            print(line)
        print(f"written; where the keys are: marram cloud root sign {to} --key FILE")
        return
    ask = _asking(passphrase_file)
    _check_somebody_signs(here, to, key)
    found = [signers.load(file, ask) for file in key] if key else signers.load_all(here.keys.offline, ask).values()
    draft.sign(found)
    _enforce(here, draft)


def _check_somebody_signs(here: _Here, to: Path | None, key: list[Path]) -> None:
    if to is None and not key and not any(here.keys.offline.glob("*.pem")):
        raise Missing(
            "the keys that sign this are not on this machine",
            where=str(here.keys.offline),
            hint="Take a draft to them: add --to FILE. Or name them: --key FILE.",
        )


def _enforce(here: _Here, change: Draft) -> None:
    present = here.draft()
    # What the draft says is in force counts for nothing: what is in force decides whose signatures are needed.
    real = Draft(present.present_root, present.present_targets, change.root, change.targets)
    real.check()
    lines = real.describe()
    with auditing(f"machine:{getpass.getuser()}", "root.change", "updates", changes=lines):
        here.signing.repository.replace(change.root, change.targets)
    for line in lines:
        print(line)
    until = datetime.fromtimestamp(min(here.signing.repository.expires_s()[role] for role in OFFLINE), UTC)
    print(f"in force; to be renewed before {until:%Y-%m-%d}")


def _public(folder: Path) -> set[str]:
    """Ids of the keys in a folder, which may be locked: by their public halves."""
    found = set[str]()
    for file in folder.glob("*.pub"):
        with contextlib.suppress(Invalid):
            found.add(signers.load_public(file).keyid)
    return found


def _asking(file: Path | None) -> signers.AskPassphrase:
    def ask(key: Path) -> str:
        if file is not None:
            return _read(file).decode(errors="replace").strip("\r\n")
        if not sys.stdin.isatty():
            raise Refused("the key is locked with a passphrase", where=str(key), hint="--passphrase-file FILE")
        return getpass.getpass(f"passphrase of {key}: ")

    return ask


def _new_passphrase(file: Path | None) -> str:
    if file is not None or not sys.stdin.isatty():
        found = _asking(file)(Path("the new key"))
    else:
        found = getpass.getpass("a passphrase for the new key: ")
        if getpass.getpass("once more: ") != found:
            raise Invalid("the two are not the same")
    if len(found) < 8:
        raise Invalid("a passphrase has 8 characters or more", hint="--plain makes a key without one.")
    return found


def _draft(file: Path) -> Draft:
    try:
        return Draft.from_bytes(_read(file))
    except Invalid as error:
        error.where = error.where or str(file)
        raise


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot be read: {file_fault(error)}", where=str(file)) from error


def _write(file: Path, content: bytes) -> None:
    try:
        files.write(file, content)
    except OSError as error:
        raise Invalid(f"cannot be written: {file_fault(error)}", where=str(file)) from error
