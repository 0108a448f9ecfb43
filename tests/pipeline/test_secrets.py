"""`${NAME}` in an app's addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from marram.pipeline.addresses import parse_broker
from marram.pipeline.check import look_ahead, rules
from marram.pipeline.secrets import with_secrets
from marram.schema.app import parse_app
from marram.schema.errors import Invalid, NotReady

PAGE = """
app: keyed
source: {mqtt: sensors/x, broker: "mqtt://${USER}:${PASSWORD}@plc:${PORT}"}
steps:
  - function: handler.py:handle
    mqtt: "mqtts://gate:${PASSWORD}@broker"
sinks:
  - {mqtt: out/x, broker: "${USER}:1883"}
  - {jsonl: "${PASSWORD}.jsonl"}
secrets: [USER, PASSWORD, PORT]
"""
VALUES = {"USER": "me", "PASSWORD": "p@ss/w:rd ${USER}", "PORT": "8884"}


def test_they_stand_in_addresses_escaped_and_nowhere_else() -> None:
    app = with_secrets(parse_app(PAGE), VALUES)
    broker = parse_broker(app.source.broker, "source")  # type: ignore[union-attr]
    assert (broker.host, broker.port, broker.user, broker.password) == ("plc", 8884, "me", VALUES["PASSWORD"])
    assert parse_broker(str(app.functions[0].mqtt), "").password == VALUES["PASSWORD"]
    assert [sink.model_dump() for sink in app.sinks] == [
        {"mqtt": "out/x", "broker": "me:1883"}, {"jsonl": "${PASSWORD}.jsonl"},
    ]  # fmt: skip
    assert VALUES["PASSWORD"] not in repr(parse_app(PAGE))


def test_a_stream_has_its_password() -> None:
    text = 'app: a\nsource: {video: "rtsp://me:${KEY}@camera/1"}\nsteps: [{filter: "true"}]\nsecrets: [KEY]\n'
    app = with_secrets(parse_app(text), {"KEY": "a/b"})
    assert app.source.video == "rtsp://me:a%2Fb@camera/1"  # type: ignore[union-attr]


def test_one_that_is_not_declared_is_a_fault_at_its_field() -> None:
    app = parse_app(PAGE.replace("secrets: [USER, PASSWORD, PORT]", "secrets: [USR, PASSWORD, PORT]"))
    faults = [str(fault) for fault in rules(app).faults]
    assert faults == [
        'source.broker: "${USER}" is no secret of this app; did you mean "USR"?',
        'sinks[0].broker: "${USER}" is no secret of this app; did you mean "USR"?',
    ]
    with pytest.raises(Invalid, match="is no secret of this app"):
        with_secrets(app, VALUES)
    with pytest.raises(Invalid, match=r"Add it to the app: `secrets: \[KEY\]`"):
        with_secrets(parse_app('app: a\nsource: {mqtt: x, broker: "${KEY}"}\nsteps: [{filter: "true"}]'), {})


def test_one_that_is_not_here_is_waited_for() -> None:
    with pytest.raises(NotReady, match=r"secrets: waits for the secret PORT. marram secret set PORT"):
        with_secrets(parse_app(PAGE), {"USER": "me", "PASSWORD": "x"})


def test_an_address_is_checked_as_it_will_be(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("def handle(event, context):\n    pass\n")
    found = look_ahead(parse_app(PAGE), tmp_path)
    assert [str(fault) for fault in found.faults] == []
    found = look_ahead(parse_app(PAGE.replace("mqtts://gate", "http://gate")), tmp_path)
    assert ["is not a broker" in str(fault) for fault in found.faults] == [True]


@pytest.mark.parametrize("name", ["key", "1KEY", "KEY-1", "", "K" * 65])
def test_what_names_no_secret(name: str) -> None:
    with pytest.raises(Invalid, match="secrets"):
        parse_app(f'app: a\nsource: {{mqtt: x}}\nsteps: [{{filter: "true"}}]\nsecrets: ["{name}"]')
