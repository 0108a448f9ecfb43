"""The `iot-data` client: messages and thing shadows. Arguments and answers are those of Greengrass V1."""

from __future__ import annotations

import json
from typing import Any

from marram.pipeline.greengrass.shadow import ShadowFault
from marram.pipeline.greengrass.station import Station, current
from marram.schema.errors import Invalid, MarramError


class ShadowError(Exception):
    """The shadow service refused a request."""


class GreengrassRuntimeException(Exception):
    """A message could not be taken, and `queueFullPolicy` is `AllOrException`."""


class Client:
    """Publishes to where the app's messages go; see `marram.pipeline.greengrass.station`."""

    def __init__(self) -> None:
        # Kept: a timer of the module's publishes for the app in which the module was loaded.
        self._made_in = current()

    def publish(self, **kwargs: Any) -> dict[str, Any]:
        """`topic`, `payload` (bytes or str); `qos`, `queueFullPolicy` (`AllOrException`, `BestEffort`).

        The message is an event of the device: kept durably, delivered once, whatever the link does. Raises ValueError
        for arguments that cannot travel, GreengrassRuntimeException where the device cannot take it (a full disk) and
        `queueFullPolicy` asks for that.
        """
        topic = _required("topic", kwargs)
        policy = kwargs.get("queueFullPolicy")
        if policy not in (None, "AllOrException", "BestEffort"):
            raise ValueError(f'queueFullPolicy is "AllOrException" or "BestEffort", not {policy!r}')
        if kwargs.get("qos", 0) not in (0, 1):
            raise ValueError(f"qos is 0 or 1, not {kwargs['qos']!r}")
        station = self._station()
        try:
            station.publish(topic, kwargs.get("payload", b""))
        except MarramError as error:
            if isinstance(error, Invalid):
                raise ValueError(str(error)) from error
            station.error(f"a message on {topic} was given up: {error}")
            if policy == "AllOrException":
                raise GreengrassRuntimeException(str(error)) from error
        return {"Payload": b"", "FunctionError": ""}

    def get_thing_shadow(self, **kwargs: Any) -> dict[str, bytes]:
        """`thingName`. Answers `{"payload": JSON as bytes}`. Raises ShadowError."""
        return self._shadow("get", _required("thingName", kwargs))

    def update_thing_shadow(self, **kwargs: Any) -> dict[str, bytes]:
        """`thingName`, `payload` (JSON with `state`). Answers `{"payload": what was accepted}`. Raises ShadowError."""
        return self._shadow("update", _required("thingName", kwargs), _required("payload", kwargs))

    def delete_thing_shadow(self, **kwargs: Any) -> dict[str, bytes]:
        """`thingName`. Answers `{"payload": version and timestamp}`. Raises ShadowError."""
        return self._shadow("delete", _required("thingName", kwargs))

    def _shadow(self, operation: str, *arguments: Any) -> dict[str, bytes]:
        try:
            answer = getattr(self._station().shadows, operation)(*arguments)
        except ShadowFault as fault:
            raise ShadowError(
                f'Request for shadow state returned error code {fault.code} with message "{fault.words}"'
            ) from fault
        return {"payload": json.dumps(answer).encode()}

    def _station(self) -> Station:
        station = self._made_in or current()
        if station is None:
            raise RuntimeError("greengrasssdk works inside a Marram app only: a `function` step runs this file")
        return station


def _required(name: str, arguments: dict[str, Any]) -> Any:
    if name not in arguments:
        raise ValueError(f'Parameter "{name}" is a required parameter, but was not provided.')
    return arguments[name]
