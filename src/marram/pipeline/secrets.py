"""`${NAME}` in an app's addresses: where it may stand, and what it becomes.

Secrets are put into the app as it runs, never into its file, its folder or anything that is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from marram.schema.app import App, FunctionStep, MqttSink, MqttSource, VideoSource
from marram.schema.errors import Invalid, MarramError, NotReady
from marram.schema.page import Place, field
from marram.schema.words import did_you_mean

_USE = re.compile(r"\$\{([^}]*)\}")


def addresses(app: App) -> Iterator[tuple[Place, str]]:
    """The texts of `app` in which `${NAME}` means a secret, each with its field."""
    if isinstance(app.source, MqttSource):
        yield ("source", "broker"), app.source.broker
    elif isinstance(app.source, VideoSource) and "://" in app.source.video:
        yield ("source", "video"), app.source.video
    for index, step in enumerate(app.steps):
        if isinstance(step, FunctionStep) and step.mqtt is not None:
            yield ("steps", index, "mqtt"), step.mqtt
    for index, sink in enumerate(app.sinks):
        if isinstance(sink, MqttSink):
            yield ("sinks", index, "broker"), sink.broker


def undeclared(app: App) -> list[MarramError]:
    """A fault for each `${NAME}` that `secrets:` does not list."""
    found: list[MarramError] = []
    for place, text in addresses(app):
        for name in _USE.findall(text):
            if name not in app.secrets:
                near = did_you_mean(name, app.secrets)
                hint = None if near else f"Add it to the app: `secrets: [{name}]`."
                found.append(Invalid(f'"${{{name}}}" is no secret of this app{near}', where=field(place), hint=hint))
    return found


def with_secrets(app: App, values: Mapping[str, str]) -> App:
    """`app` with each `${NAME}` replaced, escaped as a URL wants it. Raises Invalid, NotReady (one is not here)."""
    for fault in undeclared(app):
        raise fault
    missing = [name for name in app.secrets if name not in values]
    if missing:
        raise NotReady(
            f"waits for the secret {', '.join(missing)}", where="secrets", hint=f"marram secret set {missing[0]}"
        )
    found = {place: text for place, text in addresses(app) if "${" in text}

    def given(model: Any, *place: str | int) -> Any:
        """`model` with what its field at `place` becomes."""
        if place not in found:
            return model
        text = _USE.sub(lambda match: quote(values[match[1]], safe=""), found[place])
        return model.model_copy(update={str(place[-1]): text})

    source = given(given(app.source, "source", "broker"), "source", "video")
    steps = [given(step, "steps", index, "mqtt") for index, step in enumerate(app.steps)]
    sinks = [given(sink, "sinks", index, "broker") for index, sink in enumerate(app.sinks)]
    return app.model_copy(update={"source": source, "steps": steps, "sinks": sinks})
