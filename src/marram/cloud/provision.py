"""A cloud's keys, made once: by `marram cloud init`, or by the first start of a cloud that shares nothing.

Each part makes its own file, where there is none; what is there is never replaced. Keys are not state: where the
database is somewhere else, other processes may share it, and keys made here would be a second authority that no device
knows; there a person says where the keys are. Nor is one made in the place of one that was lost: a new authority would
turn every device away, and nobody would be told why.
"""

from __future__ import annotations

import fcntl

from marram.bus.accounts import Accounts
from marram.cloud.signing import Signing, make_keys
from marram.schema.errors import Missing, Refused
from marram.schema.signed import ROOT, TIMESTAMP
from marram.store import Store
from marram.trust.authority import Authority
from marram.trust.keys import Keys
from marram.trust.sealing import make_seal_key


def provision(keys: Keys, now_s: float) -> bool:
    """Make every key that is not there; whether it made them. Raises Refused, Permanent (folder), Invalid (a key)."""
    keys.make()
    try:
        lock = (keys.folder / "lock").open("w")
    except OSError as error:
        raise Refused(f"cannot write here: {error.strerror}", where=str(keys.folder)) from error
    with lock:
        # Two that start at once on a new folder make one authority: the second waits for the first.
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = not keys.ca_certificate.exists()
        Authority.create(keys, now_s)
        if not keys.callout_seed.exists():
            keys.write(keys.callout_seed, Accounts.new_seed())
        make_keys(keys, now_s)
        make_seal_key(keys)
    return made


def check_kept(keys: Keys, store: Store) -> None:
    """That no key is gone which the database relies on. Raises Missing, which says what hangs on it; `check_belong`."""
    timestamp = keys.signing / f"{TIMESTAMP}.pem"
    for file, used, what in (
        (keys.ca_certificate, store.certificates.any, "devices have certificates of this authority"),
        (keys.ca_key, store.certificates.any, "devices have certificates of this authority"),
        (timestamp, lambda: store.signed.newest(ROOT) is not None, "devices trust updates by these keys alone"),
        (keys.seal_key, lambda: bool(store.secrets.list()), "secrets are sealed with this key"),
    ):
        if not file.exists() and used():
            raise Missing(
                f"this key is gone, and {what}",
                where=str(file),
                hint=f"Restore {keys.folder} from its copy. Without one, begin anew with another --folder: "
                "every device joins again.",
            )
    check_belong(keys, store)


def check_belong(keys: Keys, store: Store) -> None:
    """That the keys that are here are those the database was made with. Raises Refused; Invalid, Missing (a key)."""
    known = store.certificates.authority()
    if known is not None and keys.ca_certificate.exists():
        here = Authority.open(keys).fingerprint
        if here != known:
            raise _strangers(
                keys,
                f"the database's devices have certificates of the authority {known}, and ca.pem is another, {here}: "
                "the two do not belong together",
            )
    signing = Signing(store, keys).repository
    if signing.exists and not signing.signs():
        raise _strangers(
            keys,
            "none of the keys in signing/ is among those that the database's devices trust for updates: "
            "the two do not belong together",
        )


def _strangers(keys: Keys, what: str) -> Refused:
    return Refused(
        what,
        where=str(keys.folder),
        hint="Restore the keys that this database was made with from their copy. To begin anew on purpose, take an "
        "empty database (another --folder, or --database): every device joins again.",
    )


def provided(keys: Keys) -> None:
    """That keys made elsewhere are here. Raises Missing."""
    if not keys.ca_certificate.exists():
        raise Missing(
            "there are no keys of a cloud here",
            where=str(keys.folder),
            hint="Make them once, marram cloud init --keys FOLDER, and give every role the same: --keys FOLDER.",
        )
