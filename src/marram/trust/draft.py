"""A change of root or targets on its way from the cloud to the machines that hold the offline keys, and back.

The cloud drafts it, whoever holds keys signs it (on a machine that need not know anything else), the cloud takes it
once enough have signed. A draft is a JSON file without secrets. Whoever signs is shown what it changes (`describe`),
from the documents themselves and not from what somebody wrote beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from securesystemslib.signer import Signer, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from marram.schema.errors import Invalid, MarramError, Missing, Permanent, Refused
from marram.schema.signed import PROJECT, ROLES, ROOT, TARGETS
from marram.trust.repository import date, next_version, parse, role_keyids
from marram.trust.signers import short

_FORMAT = "marram root draft 1"
_MOST_BYTES = 2_000_000


@dataclass(slots=True)
class Draft:
    """What would come into force. `root`, `targets`: None where that document stays as it is."""

    present_root: Metadata[Root]
    present_targets: Metadata[Targets]
    root: Metadata[Root] | None = None
    targets: Metadata[Targets] | None = None

    # ------------------------------------------------------------ changing

    def renew(self, roles: Iterable[str], now_s: float) -> None:
        """Give root, targets or both a new life."""
        for role in roles:
            if role == ROOT:
                self._new_root(now_s)
            else:
                self._new_targets(now_s)

    def replace_key(self, role: str, old: str, new: SSlibKey, now_s: float) -> None:
        """From now on `new` signs `role` instead of the key with id `old`. Raises Missing."""
        self.add_key(role, new, now_s)
        self.remove_key(role, old, now_s)

    def add_key(self, role: str, key: SSlibKey, now_s: float) -> None:
        """One more key may sign `role`. Raises Invalid where it may already."""
        if key.keyid in self.keyids(role):
            raise Invalid(f"the key {short(key.keyid)} may sign {role} already")
        if role == PROJECT:
            self._new_targets(now_s).signed.add_key(key, PROJECT)
            return
        self._new_root(now_s).signed.add_key(key, role)

    def remove_key(self, role: str, keyid: str, now_s: float) -> None:
        """That key may no longer sign `role`. Raises Missing, Invalid (too few would be left)."""
        if keyid not in self.keyids(role):
            raise Missing(f"no key {short(keyid)} may sign {role}")
        delegator = self._new_targets(now_s).signed if role == PROJECT else self._new_root(now_s).signed
        if len(self.keyids(role)) <= delegator.get_delegated_role(role).threshold:
            raise Invalid(
                f"{role} needs {delegator.get_delegated_role(role).threshold} keys", hint="Add the new one first."
            )
        delegator.revoke_key(keyid, role)
        if role == TARGETS:
            self._new_targets(now_s)  # what that key signed does not count any more

    def set_threshold(self, role: str, threshold: int, now_s: float) -> None:
        """So many keys must sign `role`. Raises Invalid."""
        if role not in (ROOT, TARGETS):
            raise Invalid(f"{role} is signed by the cloud itself: one key is all it has")
        if not 1 <= threshold <= len(self.keyids(role)):
            raise Invalid(f"{role} has {len(self.keyids(role))} keys; {threshold} of them cannot be asked for")
        self._new_root(now_s).signed.roles[role].threshold = threshold
        if role == TARGETS:
            self._new_targets(now_s)

    def keyids(self, role: str) -> list[str]:
        """Ids of the keys that may sign `role`, once the draft is in force."""
        return role_keyids(role, (self.root or self.present_root).signed, (self.targets or self.present_targets).signed)

    def _new_root(self, now_s: float) -> Metadata[Root]:
        if self.root is None:
            self.root = _copy(self.present_root)
            self.root.signed.version += 1
            date(self.root, ROOT, now_s)
        self.root.signatures.clear()
        return self.root

    def _new_targets(self, now_s: float) -> Metadata[Targets]:
        if self.targets is None:
            self.targets = _copy(self.present_targets)
            self.targets.signed.version = next_version(self.targets.signed.version, now_s)
            date(self.targets, TARGETS, now_s)
        self.targets.signatures.clear()
        return self.targets

    # ------------------------------------------------------------ signing

    def sign(self, signers: Iterable[Signer]) -> int:
        """Sign with whichever of `signers` count for something here; returns how many signatures that made."""
        made = 0
        for signer in signers:
            keyid = signer.public_key.keyid
            present = role_keyids(ROOT, self.present_root.signed, self._targets)
            if self.root is not None and keyid in {*present, *self.keyids(ROOT)}:
                self.root.sign(signer, append=True)
                made += 1
            if self.targets is not None and keyid in self.keyids(TARGETS):
                self.targets.sign(signer, append=True)
                made += 1
        return made

    def missing(self) -> list[str]:
        """What is still to be signed, in words; empty once the draft can come into force."""
        found = []
        if self.root is not None:
            present = _lacks(self.present_root.signed, ROOT, self.root, "present root keys")
            new = _lacks(self.root.signed, ROOT, self.root, "new root keys")
            same = self.keyids(ROOT) == role_keyids(ROOT, self.present_root.signed, self._targets)
            found += present or new if same and len(present) == len(new) else present + new
        if self.targets is not None:
            found += _lacks((self.root or self.present_root).signed, TARGETS, self.targets, "targets keys")
        return found

    def check(self) -> None:
        """That it may come into force. Raises Refused, saying who has to sign."""
        if self.root is None and self.targets is None:
            raise Invalid("the draft changes nothing")
        if lacking := self.missing():
            raise Refused(
                f"not enough have signed: {'; '.join(lacking)}", hint="marram cloud root sign DRAFT --key FILE"
            )

    # ------------------------------------------------------------ words, files

    def describe(self) -> list[str]:
        """What it changes, a line each."""
        lines = []
        for role, new in ((ROOT, self.root), (TARGETS, self.targets)):
            if new is not None:
                old = self.present_root if role == ROOT else self.present_targets
                until = f"{new.signed.expires:%Y-%m-%d}"
                lines.append(f"{role}: version {old.signed.version} becomes {new.signed.version}, good until {until}")
        before = Draft(self.present_root, self.present_targets)
        for role in ROLES:
            old_keys, new_keys = set(before.keyids(role)), set(self.keyids(role))
            lines += [f"{role}: the key {short(keyid)} no longer signs" for keyid in sorted(old_keys - new_keys)]
            lines += [f"{role}: the key {short(keyid)} may sign" for keyid in sorted(new_keys - old_keys)]
            old_count, new_count = before._threshold(role), self._threshold(role)
            if old_count != new_count:
                lines.append(f"{role}: {new_count} keys must sign instead of {old_count}")
        return lines

    def _threshold(self, role: str) -> int:
        root, targets = (self.root or self.present_root).signed, self._targets
        return (targets if role == PROJECT else root).get_delegated_role(role).threshold

    @property
    def _targets(self) -> Targets:
        return (self.targets or self.present_targets).signed

    def to_bytes(self) -> bytes:
        """As a file."""
        parts: dict[str, Metadata[Any] | None] = {
            "present root": self.present_root,
            "present targets": self.present_targets,
            "root": self.root,
            "targets": self.targets,
        }
        document: dict[str, Any] = {name: None if part is None else part.to_dict() for name, part in parts.items()}
        return json.dumps({"format": _FORMAT, **document}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Draft:
        """The inverse of `to_bytes`. Raises Invalid."""
        try:
            if len(content) > _MOST_BYTES:
                raise ValueError("too large")
            document = json.loads(content)
            if not isinstance(document, dict) or "format" not in document:
                raise ValueError("nothing in it says what it is")
            if document["format"] != _FORMAT:
                raise ValueError(f"the format {document['format']!r:.60}")
            root, targets = document["root"], document["targets"]
            return cls(
                parse(Root, _dump(document["present root"])),
                parse(Targets, _dump(document["present targets"])),
                None if root is None else parse(Root, _dump(root)),
                None if targets is None else parse(Targets, _dump(targets)),
            )
        except (ValueError, KeyError, TypeError, RecursionError, MarramError) as error:
            raise Invalid(f"this is no draft: {error}", hint="marram cloud root renew --to FILE makes one.") from error


def merged(drafts: Sequence[Draft]) -> Draft:
    """The signatures of several copies of one draft, together. Raises Invalid where they are not one draft."""
    first = drafts[0]
    for other in drafts[1:]:
        for mine, theirs in ((first.root, other.root), (first.targets, other.targets)):
            if (mine is None) != (theirs is None) or (mine and theirs and mine.signed_bytes != theirs.signed_bytes):
                raise Invalid("these files are drafts of different changes")
            if mine is not None and theirs is not None:
                mine.signatures.update(theirs.signatures)
    return first


def _lacks(delegator: Root | Targets, role: str, document: Metadata[Any], whose: str) -> list[str]:
    try:
        result = delegator.get_verification_result(role, document.signed_bytes, document.signatures)
    except (ValueError, RepositoryError) as error:
        raise Permanent(f"the draft contradicts itself: {error}") from error
    if result.verified:
        return []
    able = ", ".join(short(keyid) for keyid in sorted(result.unsigned))
    return [f"{role} needs {result.missing} more of the {whose} ({able})"]


def _copy(document: Metadata[Any]) -> Metadata[Any]:
    return Metadata.from_bytes(document.to_bytes())


def _dump(document: object) -> bytes:
    return json.dumps(document).encode()
