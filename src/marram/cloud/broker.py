"""The broker as one cloud process uses it: embedded or somebody else's, always over TLS, always with the cloud's keys.

It makes this process's certificates and makes them anew long before their end; nobody else has to renew anything. The
fleet role answers here who is let in, and cuts who should not be there. It decides neither: `admission` and `eviction`
do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from marram.bus.accounts import CALLOUT, CONTROL, SYSTEM, Accounts, ServerFiles, configuration
from marram.bus.callout import Callout
from marram.bus.client import Bus
from marram.bus.connections import Connections
from marram.bus.server import EmbeddedServer
from marram.bus.tls import TlsFiles
from marram.cloud.admission import Admission
from marram.cloud.eviction import Evictions, Pace
from marram.cloud.folder import make_folder
from marram.cloud.listeners import names_of
from marram.cloud.loops import DUE_LOOK_S, Due, for_ever
from marram.cloud.settings import BrokerAddress, Settings
from marram.schema.errors import MarramError, NotReady, Refused, Retryable
from marram.store import Store
from marram.trust.authority import SERVER_LIFE_S, Authority
from marram.trust.keys import Keys

log = logging.getLogger(__name__)

CONNECT_S = 10.0
_NOT_RENEWED = "the broker's certificates were not renewed"
# Of a server certificate's life: it lives for two more turns where one fails.
_RENEW_AT = 1 / 3


OWN_SERVER_LIFE_S = 397 * 86_400.0


def write_configuration(keys: Keys, folder: Path, names: Sequence[str], port: int) -> Path:
    """What a nats-server that somebody else runs needs, in `folder`: its configuration, certificate, authority.

    The server is started in that folder, and reached as `names`. Returns the configuration's file. Raises Missing,
    Refused (keys), Permanent (folder).
    """
    authority, accounts = Authority.open(keys), Accounts(keys.read(keys.callout_seed))
    make_folder(folder)
    certificate = authority.server_certificate(names, time.time(), OWN_SERVER_LIFE_S)
    files = ServerFiles(Path("server.pem"), Path("ca.pem"))
    text = json.dumps(configuration(accounts, files, "0.0.0.0", port, names[0]), indent=2) + "\n"
    keys.write(folder / files.identity, certificate)
    keys.write(folder / files.authority, authority.certificate_pem)
    keys.write(folder / "nats.json", text.encode())
    return folder / "nats.json"


class Broker:
    """`start` it, `connect` to it, and in the fleet role `guard` it; `stop` ends all of that."""

    def __init__(self, settings: Settings, keys: Keys, authority: Authority) -> None:
        """Raises Missing, Refused (the key of the callout), Invalid (the key, `settings.nats`)."""
        self._settings = settings
        self._keys = keys
        self._authority = authority
        self._accounts = Accounts(keys.read(keys.callout_seed))
        self._folder = settings.broker_folder
        self._closing = contextlib.AsyncExitStack()
        self._server: EmbeddedServer | None = None
        self.tls = TlsFiles(self._folder / "service.pem", keys.ca_certificate)
        self.address = BrokerAddress("", CONTROL, self._accounts.password(CONTROL))
        self.admission: Admission | None = None  # in the fleet role
        self._due = Due(SERVER_LIFE_S, _RENEW_AT)

    async def start(self) -> None:
        """The embedded one runs; of another one, this process has what it needs to connect.

        Raises Conflict (folder or port), Missing (nats-server), NotReady, Refused (folder).
        """
        settings = self._settings
        await asyncio.to_thread(make_folder, self._folder)
        files = ServerFiles(self._folder / "server.pem", self._keys.ca_certificate)
        await asyncio.to_thread(self._certify, files.identity)
        if settings.nats is None:
            self._server = EmbeddedServer(self._folder, self._accounts, files, settings.host, settings.broker_port)
            await asyncio.to_thread(self._server.start)
            self._closing.push_async_callback(asyncio.to_thread, self._server.stop)
            self.address = BrokerAddress(self._server.url, self.address.user, self.address.password)
        else:
            given = BrokerAddress.parse(settings.nats)
            user = given.user or CONTROL
            password = given.password or self._accounts.password(CONTROL)
            self.address = BrokerAddress(given.url, user, password)
        renewals = for_ever(_NOT_RENEWED, lambda: self._renew(files.identity), DUE_LOOK_S)
        renewing = asyncio.create_task(renewals, name="broker's certificates")
        self._closing.callback(renewing.cancel)

    async def stop(self) -> None:
        """Any number of times."""
        await self._closing.aclose()

    async def connect(self) -> Bus:
        """The control connection; the caller closes it. Raises Retryable (no broker), Refused (not let in)."""
        return await self._connected(self.address.user, "cloud", self.address.password)

    async def guard(self, control: Bus, store: Store, pace: Pace | None = None) -> None:
        """From now on this process, too, says who is let in, and cuts who should not be there. Raises as `connect`."""
        callout, system = [await self._connected(user, "fleet") for user in (CALLOUT, SYSTEM)]
        for bus in (callout, system):
            self._closing.push_async_callback(bus.close)
        self.admission = Admission(store, self._authority)
        evictions = Evictions(control, Connections(system), store, self.admission.bar, pace)
        self.admission.on_admitted = evictions.admitted
        await evictions.start()
        self._closing.push_async_callback(evictions.stop)
        await Callout(callout, self._accounts, self.admission.admit).start()

    # ------------------------------------------------------------

    async def _connected(self, user: str, name: str, password: str | None = None) -> Bus:
        url = self.address.url
        bus = await Bus.connect(url, user, password or self._accounts.password(user), tls=self.tls, name=name)
        try:
            await bus.wait_connected(CONNECT_S)
        except MarramError as error:
            await bus.close()
            if isinstance(error, Refused):
                raise Refused(
                    f"the broker does not let this cloud in: {error.what}",
                    where=url,
                    hint="Check --nats and --keys: the broker's configuration is of the same keys.",
                ) from error
            if isinstance(error, NotReady):
                why = f" ({bus.why})" if bus.why else ""
                raise Retryable(f"the broker does not answer{why}", where=url) from error
            raise
        return bus

    def _certify(self, server: Path) -> None:
        """New certificates for this process, and for the embedded broker. Raises Permanent (folder)."""
        now_s = time.time()
        self._keys.write(self.tls.identity, self._authority.service_certificate("cloud", now_s))
        if self._settings.nats is None:
            self._keys.write(server, self._authority.server_certificate(names_of(self._settings.host), now_s))

    async def _renew(self, server: Path) -> None:
        if self._due:
            await asyncio.to_thread(self._certify, server)
            if self._server is not None:
                await asyncio.to_thread(self._server.reload)
            self._due.made()
