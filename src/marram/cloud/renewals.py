"""Answers devices that renew their certificates over the bus: who asks is proven by the broker, and by the old key."""

from __future__ import annotations

import asyncio

from pydantic import ValidationError

from marram.bus import subjects
from marram.bus.client import Bus, Message
from marram.cloud.enrolment import Enrolment
from marram.schema.api import RenewAsk, Renewed
from marram.schema.errors import Invalid

_QUEUE = "renewals"
_PARALLEL = 4


class Renewals:
    """Part of the fleet role; start as many as needed."""

    def __init__(self, bus: Bus, enrolment: Enrolment) -> None:
        self._bus, self._enrolment = bus, enrolment

    async def start(self) -> None:
        """Subscribe; it ends with the bus."""
        await self._bus.subscribe(subjects.RENEWALS, self._on_renewal, _QUEUE, parallel=_PARALLEL)

    async def _on_renewal(self, message: Message) -> bytes:
        device = subjects.device_of(message.subject)
        try:
            ask = RenewAsk.model_validate_json(message.payload)
        except ValidationError as error:
            raise Invalid("this is no request for a certificate", where=device) from error
        issued = await asyncio.to_thread(self._enrolment.renew, ask, device)
        return Renewed(certificate=issued.pem.decode()).model_dump_json().encode()
