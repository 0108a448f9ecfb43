"""Attacks on the API: guessing, doing more than one may, and changing what the audit log says."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from marram.bus.http import CloudApi
from marram.lab.attacks.scene import Scene, Suite
from marram.schema.errors import Refused, Threat, Untrusted
from marram.schema.people import Permission, Role
from marram.store import open_store
from marram.trust import API, new_token

SUITE = Suite()
_PASSWORD = "sand holds where marram grows"
# Many more than anybody may try at once.
_GUESSES = 60


# ---------------------------------------------------------------- guessing


@SUITE.attack("guessing: a password", "too many wrong passwords")
def _passwords(scene: Scene) -> None:
    with _admin(scene) as admin:
        admin.add_user("guessed", Role.VIEWER, _PASSWORD)
    with scene.api() as cloud:
        _guess(lambda number: cloud.sign_in("guessed", f"marram grows where {number}"))


@SUITE.attack("guessing: a password, of people who do not exist", "too many wrong passwords")
def _names(scene: Scene) -> None:
    with scene.api() as cloud:
        _guess(lambda number: cloud.sign_in(f"somebody-{number}", _PASSWORD))


@SUITE.attack("guessing: an API token", "too many wrong tokens")
def _tokens(scene: Scene) -> None:
    def guess(number: int) -> None:
        with scene.api(new_token(API).text) as cloud:
            cloud.devices()

    _guess(guess)


@SUITE.attack("guessing: a join token", "too many wrong tokens")
def _join_tokens(scene: Scene) -> None:
    _guess(lambda number: scene.join(f"guest-{number}", f"{scene.token()[:-50]}{number:06d}{scene.token()[-44:]}"))


def _guess(one: Callable[[int], object]) -> None:
    """Until it is told to wait. Each try must be refused; who is let try them all was never stopped."""
    for number in range(_GUESSES):
        with contextlib.suppress(Refused):
            one(number)
            return


# ---------------------------------------------------------------- more than one may


def _admin(scene: Scene) -> CloudApi:
    """Whoever made this cloud."""
    assert scene.cloud.admin_token is not None
    return scene.api(scene.cloud.admin_token)


def _signed_in(scene: Scene, role: Role) -> CloudApi:
    """A person of that role, on a command line."""
    with _admin(scene) as admin:
        if role.value not in {user.name for user in admin.users()}:
            admin.add_user(role.value, role, _PASSWORD)
    with scene.api() as cloud:
        return scene.api(cloud.sign_in(role.value, _PASSWORD).token)


def _with_token(scene: Scene, *scopes: Permission) -> CloudApi:
    """A program of an admin, with a token for `scopes` alone."""
    _signed_in(scene, Role.ADMIN).close()
    with _admin(scene) as admin:
        return scene.api(admin.create_api_token("program", owner=Role.ADMIN.value, scopes=scopes).token)


_NOT_ALLOWED = "may not do this: it needs the permission"
_NO_SCOPE = "has no scope"
_NO_TOKEN = frozenset({"this needs a token", "HTTP 401 Unauthorized"})  # the second where an answer has no body
_DOES: dict[str, Callable[[CloudApi], object]] = {
    "makes a join token": lambda cloud: cloud.create_token(),
    "removes a device": lambda cloud: cloud.remove_device("victim"),
    "takes an app off": lambda cloud: cloud.undeploy("gate"),
    "uploads content": lambda cloud: cloud.put_blob(b"attack"),
    "sets a secret": lambda cloud: cloud.set_secret("camera", "attack"),
    "moves a channel": lambda cloud: cloud.tag("faces", "stable", 1),
    "aborts a rollout": lambda cloud: cloud.steer(1, "abort"),
    "labels a sample": lambda cloud: cloud.label_sample(1, "attack"),
    "adds a person": lambda cloud: cloud.add_user("mallory", Role.ADMIN, _PASSWORD),
    "reads the audit log": lambda cloud: cloud.audit(),
}
for _what, _act in _DOES.items():

    @SUITE.attack(f"beyond one's rights: a viewer {_what}", _NOT_ALLOWED)
    def _viewer(scene: Scene, act: Callable[[CloudApi], object] = _act) -> None:
        with _signed_in(scene, Role.VIEWER) as cloud:
            act(cloud)

    @SUITE.attack(f"beyond one's rights: a token to read {_what}", _NO_SCOPE)
    def _reader(scene: Scene, act: Callable[[CloudApi], object] = _act) -> None:
        with _with_token(scene, Permission.READ) as cloud:
            act(cloud)

    @SUITE.attack(f"beyond one's rights: a stranger {_what}", _NO_TOKEN)
    def _stranger(scene: Scene, act: Callable[[CloudApi], object] = _act) -> None:
        with scene.api() as cloud:
            act(cloud)


@SUITE.attack("beyond one's rights: an operator makes an admin", _NOT_ALLOWED)
def _promotes(scene: Scene) -> None:
    with _signed_in(scene, Role.OPERATOR) as cloud:
        cloud.change_user("operator", role=Role.ADMIN)


@SUITE.attack("beyond one's rights: an operator takes an admin's password", _NOT_ALLOWED)
def _takes_password(scene: Scene) -> None:
    with _signed_in(scene, Role.OPERATOR) as cloud:
        cloud.change_user("admin", password=_PASSWORD + "!")


@SUITE.attack("beyond one's rights: a token for people changes an admin", "it lacks")
def _scoped(scene: Scene) -> None:
    with _with_token(scene, Permission.PEOPLE) as cloud:
        cloud.change_user("admin", password=_PASSWORD + "!")


@SUITE.attack("beyond one's rights: a token for people adds an admin", "it lacks")
def _adds_admin(scene: Scene) -> None:
    with _with_token(scene, Permission.PEOPLE) as cloud:
        cloud.add_user("mallory", Role.ADMIN, _PASSWORD)


@SUITE.attack("beyond one's rights: a viewer makes a token with more scopes", "has no permission")
def _more_scopes(scene: Scene) -> None:
    with _signed_in(scene, Role.VIEWER) as cloud:
        cloud.create_api_token("more", scopes=[Permission.READ, Permission.PEOPLE])


@SUITE.attack("beyond one's rights: a token makes another, to outlive itself", "an API token makes no other tokens")
def _breeds(scene: Scene) -> None:
    with _with_token(scene, *Permission) as cloud:
        cloud.create_api_token("child")


_NOT_ONE = "the token is not one of this cloud's, or it is over"


@SUITE.attack("no longer allowed: a revoked token", _NOT_ONE)
def _revoked(scene: Scene) -> None:
    with _with_token(scene, Permission.READ) as cloud, _admin(scene) as admin:
        for made in admin.api_tokens(Role.ADMIN.value):
            admin.revoke_api_token(made.id)
        cloud.devices()


@SUITE.attack("no longer allowed: the session of a person who was disabled", _NOT_ONE)
def _disabled(scene: Scene) -> None:
    with _admin(scene) as admin, scene.api() as door:
        admin.add_user("gone", Role.OPERATOR, _PASSWORD)
        with scene.api(door.sign_in("gone", _PASSWORD).token) as cloud:
            admin.change_user("gone", disabled=True)
            cloud.devices()


# ---------------------------------------------------------------- the audit log

_TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name LIKE 'audit%'"
_CHANGES = {
    "a row is edited": "UPDATE audit SET actor = 'user:mallory' WHERE id = 2",
    "a row is taken out": "DELETE FROM audit WHERE id = 2",
    "a row is replaced": "INSERT OR REPLACE INTO audit SELECT 2, time_s, 'user:mallory', action, target, detail,"
                         " previous, digest FROM audit WHERE id = 2",
    "its end is cut off": "DELETE FROM audit WHERE id = 3",
    "its end is noted anew": "UPDATE audit_head SET id = 2",
}  # fmt: skip
for _how, _statement in _CHANGES.items():

    @SUITE.attack(f"audit log: {_how}, with the cloud's own rights", "the database refuses")
    def _with_rights(scene: Scene, statement: str = _statement) -> None:
        with contextlib.closing(sqlite3.connect(_log(scene))) as database:
            try:
                database.execute(statement)
            except sqlite3.IntegrityError as error:
                raise Refused(f"the database refuses: {error}") from error

    @SUITE.attack(f"audit log: {_how}, by whoever may do anything to the file", Threat.TAMPERED)
    def _with_file(scene: Scene, statement: str = _statement) -> None:
        log = _log(scene)
        with contextlib.closing(sqlite3.connect(log)) as database, database:
            for (trigger,) in database.execute(_TRIGGERS).fetchall():
                database.execute(f"DROP TRIGGER {trigger}")
            database.execute(statement)
        _check(log)


@SUITE.attack("audit log: a row is put in that follows none", Threat.TAMPERED)
def _put_in(scene: Scene) -> None:
    """The cloud itself must be able to add rows, so the database takes it; whoever checks the log finds it."""
    log = _log(scene)
    with contextlib.closing(sqlite3.connect(log)) as database, database:
        database.execute(
            "INSERT INTO audit SELECT 4, time_s, 'user:mallory', action, target, detail, previous, digest"
            " FROM audit WHERE id = 3"
        )
    _check(log)


def _check(log: Path) -> None:
    """As `marram audit verify` does. Raises Untrusted where it is not whole."""
    store = open_store(log)
    try:
        found = store.audit.verify()
    finally:
        store.close()
    if found.broken is not None:
        raise Untrusted(f"row {found.broken}: {found.why}", threat=Threat.TAMPERED)


def _log(scene: Scene) -> Path:
    """The database of a cloud where three things were done."""
    file = scene.path("audit.db")
    store = open_store(file)
    for name in ("ann", "bob", "cy"):
        store.audit.add(f"user:{name}", "session.open", name)
    store.close()
    return file
