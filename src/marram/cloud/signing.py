"""What the cloud signs for its devices, kept true: every version they may be told to run, and never out of date.

An app version is signed when it is made, before any device's desired state names it; what a crash between two writes
left unsigned, `tend` finds. The list is whole on every device, so versions that nobody needs any more are taken off it.
Any number of processes may do this at once. It signs only what stands in the cloud's own tables, and never with a key
that belongs into a safe: root and targets are a person's to renew, and `warnings` asks for it in time.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from marram.schema.device import DesiredApp, ModelRef, app_target, model_target
from marram.schema.errors import Conflict, Invalid
from marram.schema.signed import OFFLINE, ONLINE, ROOT, TARGETS, TIMESTAMP, parse_metadata_name
from marram.store import Store, actor, auditing
from marram.trust import signers
from marram.trust.keys import Keys
from marram.trust.repository import DAY_S, MOST_TARGETS, Repository, first_documents

log = logging.getLogger(__name__)

# A person is told so long before root or targets expire.
WARN_S = 30 * DAY_S
_MOST_ROOT_KEYS = 16
# Of each app and each model, so many of the newest versions stay signed, whoever runs them; fewer where that is a lot.
_KEEP = (10, 3, 1)
_TIDY_EVERY_S = 600.0


class Signing:
    """Over one store and one folder of keys. Blocking; safe from any thread."""

    def __init__(self, store: Store, keys: Keys, now_s: Callable[[], float] = time.time) -> None:
        self._store, self._keys, self._now_s = store, keys, now_s
        self._tidied_s = float("-inf")
        self._loaded: tuple[frozenset[Path], Repository] | None = None

    @property
    def repository(self) -> Repository:
        """With the online keys that are in the folder now: a rotation brings new ones while the cloud runs.

        Raises Refused, Invalid where a key cannot be used.
        """
        here = frozenset(self._keys.signing.glob("*.pem"))
        if self._loaded is None or self._loaded[0] != here:
            self._loaded = (here, Repository(self._store.signed, signers.load_all(self._keys.signing), self._now_s))
        return self._loaded[1]

    def open(self) -> None:
        """Begin, in a database where nothing was ever signed, with the documents that `make_keys` left.

        Raises Missing where they are not here.
        """
        repository = self.repository
        if repository.exists:
            return
        try:
            repository.create(self._keys.read(_first_root(self._keys)), self._keys.read(_first_targets(self._keys)))
        except Conflict:
            return  # another process did, at the same moment
        log.info("the first root of trust is in force; keep its keys safe: %s", self._keys.offline)

    # ------------------------------------------------------------ what is signed

    def sign(self, app: DesiredApp) -> None:
        """Sign an app version and the model versions it names, where they are not. Raises as `Repository.publish`."""
        with auditing(actor(), "update.sign", app.target):
            targets = {app.target: app.signed(), **{model.target: model.signed() for model in app.models}}
            self.repository.publish(targets)

    def sign_model(self, name: str, version: int) -> None:
        """Sign a model version, where it is not."""
        path = model_target(name, version)
        with auditing(actor(), "update.sign", path):
            self.repository.publish({path: self._document(path)})

    def tend(self) -> None:
        """Sign what is missing, renew what will expire, and now and then take off what nobody needs."""
        self._sign_missing(self._newest(_KEEP[-1]))
        if time.monotonic() - self._tidied_s > _TIDY_EVERY_S:
            self.tidy()
            self._tidied_s = time.monotonic()
        renewed = self.repository.refresh()
        if renewed:
            log.info("signed anew: %s", ", ".join(renewed))

    def tidy(self) -> set[str]:
        """Take off what no device should run and what is not among the newest; returns it."""
        self._sign_missing(needed := self._needed())
        surplus = self.repository.targets() - needed
        if surplus:
            self.repository.retire(surplus)
            log.info("%d versions that no device needs are no longer signed", len(surplus))
        return surplus

    def _sign_missing(self, needed: set[str]) -> None:
        missing = needed - self.repository.targets()
        if missing:
            self.repository.publish({path: self._document(path) for path in missing})
            log.warning("%d versions were not signed when they were made; now they are", len(missing))

    def _document(self, path: str) -> bytes:
        kind, _, name, file = path.split("/")
        version = int(file.removesuffix(".json"))
        if kind == "apps":
            app = self._store.apps.get(name, version)
            assert app is not None, "versions are never deleted"
            return app.app.signed()
        model = self._store.models.get(name, version)
        assert model is not None, "versions are never deleted"
        return ModelRef(name=name, version=version, manifest=model.manifest).signed()

    def _needed(self) -> set[str]:
        told = {app.target: app for desired in self._store.states.all_desired().values() for app in desired.apps}
        running = set(told) | {model.target for app in told.values() for model in app.models}
        for keep in _KEEP:
            needed = running | self._newest(keep)
            if len(needed) <= MOST_TARGETS // 2:
                break
        return needed

    def _newest(self, keep: int) -> set[str]:
        """The newest versions of each app and of each model: those made last, and those deployed last."""
        deployed = [(row.app, row.version) for row in self._store.deployments.list() if row.version is not None]
        apps = _first(self._store.apps.versions(), keep) | _first(deployed, keep)
        models = _first(self._store.models.versions(), keep)
        return {app_target(*each) for each in apps} | {model_target(*each) for each in models}

    # ------------------------------------------------------------ what is told

    def root(self) -> bytes:
        """What a device that joins is given to trust."""
        return self.repository.root()

    def read(self, name: str) -> bytes | None:
        """A metadata file by its name; None where there is none. Raises Invalid (no such name at all)."""
        role, version = parse_metadata_name(name)
        if version is None and role != TIMESTAMP:
            return None
        return self.repository.read(role, version)

    def warnings(self) -> list[str]:
        """What a person has to do soon, in words; empty where nothing."""
        now_s, found = self._now_s(), []
        for role, expires_s in self.repository.expires_s().items():
            if role not in OFFLINE or expires_s - now_s > WARN_S:
                continue
            left_s = expires_s - now_s
            when = f"expires in {left_s / DAY_S:.0f} days" if left_s > 0 else "has expired: devices take no new version"
            found.append(f"what is signed as {role} {when}. Renew it: marram cloud root renew")
        return found


def make_keys(keys: Keys, now_s: float, *, root_keys: int = 1, threshold: int = 1, offline: Path | None = None) -> bool:
    """Make the update keys, where there are none; whether they were made. Raises Invalid, Refused, Conflict.

    `offline`: where the keys of root and targets go, instead of `keys.offline`. They sign the first documents here, and
    are needed again when those are renewed or changed: a running cloud never reads them.
    """
    if (keys.signing / f"{TIMESTAMP}.pem").exists():
        return False
    if not 1 <= threshold <= root_keys <= _MOST_ROOT_KEYS:
        raise Invalid(f"{threshold} of {root_keys} root keys cannot be: there may be 1 to {_MOST_ROOT_KEYS}")
    roots, targets = [signers.new_signer() for _ in range(root_keys)], signers.new_signer()
    online = {role: signers.new_signer() for role in ONLINE}
    first = first_documents(
        roots, targets, {role: signer.public_key for role, signer in online.items()}, threshold, now_s
    )
    folder = offline or keys.offline
    for signer in roots:
        signers.save(signer, signers.free_name(folder, ROOT))
    signers.save(targets, signers.free_name(folder, TARGETS))
    for file, content in zip((_first_root(keys), _first_targets(keys)), first, strict=True):
        keys.write(file, content)
    # The timestamp's last: where it is, everything is.
    for role, signer in online.items():
        signers.save(signer, keys.signing / f"{role}.pem")
    return True


def _first_root(keys: Keys) -> Path:
    return keys.signing / "first.root.json"


def _first_targets(keys: Keys) -> Path:
    return keys.signing / "first.targets.json"


def _first(versions: Sequence[tuple[str, int]], keep: int) -> set[tuple[str, int]]:
    """Of each name, the first `keep` different versions."""
    found = defaultdict[str, list[int]](list)
    for name, version in versions:
        if len(found[name]) < keep and version not in found[name]:
            found[name].append(version)
    return {(name, version) for name, each in found.items() for version in each}
