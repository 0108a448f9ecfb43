"""Code written for Greengrass V1, as its documentation and samples write it, in a function step."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from marram.pipeline.contract import Frame, Step
from marram.pipeline.greengrass.shadow import ShadowFault, Shadows
from marram.schema.errors import Invalid, Permanent
from marram.schema.event import EventKind

Make = Callable[..., Step]
pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def make(tmp_path: Path, last_step: Callable[[str], Step]) -> Iterator[Make]:
    made: list[Any] = []

    def build(code: str, more: str = "", name: str = "function_handler") -> Step:
        (tmp_path / "handler.py").write_text(code)
        made.append(last_step(f"source: {{mqtt: t}}\nsteps: [{{function: 'handler.py:{name}'{more}}}]"))
        return made[-1]  # type: ignore[no-any-return]

    yield build
    for step in made:
        step.close()


def frame(reading: Any = None, name: str = "sensors/1") -> Frame:
    return Frame(0, 1.0, 0.0, reading=reading, name=name)


# The hello-world of Greengrass V1's documentation: pinned, publishing from a timer that its top level starts.
HELLO = """
import logging, platform, sys
from threading import Timer
import greengrasssdk

logger = logging.getLogger(__name__)
logging.basicConfig(stream=sys.stdout, level=logging.DEBUG)
client = greengrasssdk.client("iot-data")
my_platform = platform.platform()

def greengrass_hello_world_run():
    try:
        client.publish(topic="hello/world", queueFullPolicy="AllOrException", payload="Hello from " + my_platform)
    except Exception as e:
        logger.error("Failed to publish message: " + repr(e))
    Timer(0.01, greengrass_hello_world_run).start()

greengrass_hello_world_run()

def function_handler(event, context):
    return
"""


def test_a_pinned_function_publishes_from_its_own_timer(make: Make, heard: Any) -> None:
    step = make(HELLO)
    assert heard.until(lambda: len(heard.events) >= 3)
    event = heard.events[2]
    assert (event.kind, event.app) == (EventKind.MESSAGE, "test")
    assert event.data["topic"] == "hello/world"
    assert event.data["payload"].startswith("Hello from ")
    assert len(list(step(frame()))) == 1
    step.close()  # type: ignore[attr-defined]
    count = len(heard.events)
    assert not heard.until(lambda: len(heard.events) > count, timeout_s=0.1)


TURBINE = """
import json
import greengrasssdk

client = greengrasssdk.client('iot-data')

def function_handler(event, context):
    inbound_topic = context.client_context.custom['subject']
    if not ('turbine_speed' in event.keys()):
        return
    client.publish(topic='out/' + inbound_topic, qos=0, payload=json.dumps(event).encode())
    return True
"""


def test_a_handler_answers_messages_by_messages(make: Make, heard: Any) -> None:
    step = make(TURBINE)
    list(step(frame({"turbine_speed": 12}, "farm/3")))
    list(step(frame({"other": 1}, "farm/3")))
    (event,) = heard.events
    assert event.data == {
        "topic": "out/farm/3",
        "function": "handler.py:function_handler",
        "payload": {"turbine_speed": 12},
    }


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        ("'text'", "text"),
        ("b'bytes of text'", "bytes of text"),
        ("'{\"a\": [1, 2.5, null]}'", {"a": [1, 2.5, None]}),
        ("'21.5'", 21.5),
        ("'{\"a\": NaN}'", '{"a": NaN}'),
        ("'{\"a\": ' + '9' * 30 + '}'", '{"a": ' + "9" * 30 + "}"),
        ("'[' * 5000", "[" * 5000),
        ("{'a': 1}", {"a": 1}),
        ("''", ""),
    ],
)
def test_payloads_travel_as_what_they_are(make: Make, heard: Any, payload: str, wanted: Any) -> None:
    step = make(
        "import greengrasssdk\nclient = greengrasssdk.client('iot-data')\n"
        f"def function_handler(event, context):\n    client.publish(topic='t', payload={payload})\n"
    )
    list(step(frame()))
    assert heard.errors == []
    assert heard.events[0].data["payload"] == wanted


def test_bytes_that_are_no_text_travel_as_body(make: Make, heard: Any) -> None:
    step = make(
        "import greengrasssdk\nclient = greengrasssdk.client('iot-data')\n"
        "def function_handler(event, context):\n    client.publish(topic='t', payload=b'\\xff\\x00\\xfe')\n"
    )
    list(step(frame()))
    assert heard.events[0].body == b"\xff\x00\xfe"
    assert "payload" not in heard.events[0].data


PUBLISH = """
import greengrasssdk
client = greengrasssdk.client("iot-data")
def function_handler(event, context):
    client.publish(**event)
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"payload": "x"}, 'Parameter "topic" is a required parameter'),
        ({"topic": "a/+/b", "payload": "x"}, "wildcard"),
        ({"topic": "", "payload": "x"}, "not an MQTT topic"),
        ({"topic": "t", "payload": "x", "qos": 2}, "qos is 0 or 1"),
        ({"topic": "t", "payload": "x", "queueFullPolicy": "Maybe"}, "queueFullPolicy"),
        ({"topic": "t", "payload": "x" * 3_000_001}, "too large"),
        ({"topic": "t", "payload": {"a": {1, 2}, "b": print}}, "payload.b"),
    ],
)
def test_wrong_arguments_are_the_handlers_fault_with_its_line(
    make: Make, heard: Any, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(Permanent, match=rf"^handler\.py:5  ValueError.*{re.escape(says)}"):
        make(PUBLISH)(frame(arguments))
    assert heard.events == []


def test_a_full_disk_is_counted_or_raised_as_the_policy_says(make: Make, heard: Any) -> None:
    step = make(PUBLISH)
    heard.full = True
    assert len(list(step(frame({"topic": "t", "payload": "x", "queueFullPolicy": "BestEffort"})))) == 1
    assert heard.errors == ["a message on t was given up: the disk is full"]
    with pytest.raises(Permanent, match="GreengrassRuntimeException: the disk is full"):
        step(frame({"topic": "t", "payload": "x", "queueFullPolicy": "AllOrException"}))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("greengrasssdk.client('lambda').invoke(FunctionName='other')", "InvocationException: cannot invoke other"),
        ("greengrasssdk.client('lambda').invoke()", "FunctionName"),
        ("greengrasssdk.client('secretsmanager').get_secret_value(SecretId='s')", "no secret 's' on this device"),
        ("greengrasssdk.client('dynamodb')", 'no service "dynamodb"'),
        ("import greengrasssdk.stream_manager", "stream_manager is not part of Marram"),
    ],
)
def test_what_is_not_there_says_what_to_do_instead(make: Make, call: str, says: str) -> None:
    with pytest.raises(Permanent, match=re.escape(says)):
        make(f"import greengrasssdk\ndef function_handler(event, context):\n    {call}\n")(frame())


def test_shadows_are_kept_on_the_device(make: Make, heard: Any) -> None:
    code = """
import json
import greengrasssdk
from greengrasssdk.IoTDataPlane import ShadowError
client = greengrasssdk.client("iot-data")

def function_handler(event, context):
    try:
        client.get_thing_shadow(thingName="pump")
    except ShadowError as error:
        assert "404" in str(error)
    client.update_thing_shadow(thingName="pump", payload=json.dumps({"state": {"desired": {"speed": 3, "mode": "a"}}}))
    client.update_thing_shadow(thingName="pump", payload=b'{"state": {"reported": {"speed": 2, "mode": "a"}}}')
    got = json.loads(client.get_thing_shadow(thingName="pump")["payload"])
    client.delete_thing_shadow(thingName="pump")
    return {"delta": got["state"]["delta"], "version": got["version"], "stamped": got["metadata"]["reported"]["speed"]}
"""
    (out,) = make(code)(frame())
    assert heard.errors == []
    assert out.result is not None
    assert (out.result.extra["delta"], out.result.extra["version"]) == ({"speed": 3}, 2)
    assert out.result.extra["stamped"]["timestamp"] > 0


def test_the_thing_is_named_in_the_environment(make: Make) -> None:
    code = "import os\ndef function_handler(event, context):\n    return {'thing': os.environ['AWS_IOT_THING_NAME']}\n"
    (out,) = make(code)(frame())
    assert out.result is not None
    assert out.result.extra["thing"]


def test_messages_go_to_the_local_broker_too(make: Make, heard: Any, mosquitto: Any) -> None:
    got: list[tuple[str, bytes]] = []
    subscribed, arrived = threading.Event(), threading.Event()
    listener = paho.Client(CallbackAPIVersion.VERSION2)
    listener.on_subscribe = lambda *_: subscribed.set()
    listener.on_message = lambda client, data, m: (got.append((m.topic, bytes(m.payload))), arrived.set())
    listener.connect("127.0.0.1", mosquitto.port)
    listener.subscribe("sensor/data")
    listener.loop_start()
    assert subscribed.wait(30)
    try:
        step = make(PUBLISH, more=f", mqtt: '{mosquitto.address}'")
        list(step(frame({"topic": "sensor/data", "payload": '{"t": 21}'})))
        assert arrived.wait(30)
    finally:
        listener.disconnect()
        listener.loop_stop()
    assert got == [("sensor/data", b'{"t": 21}')]
    assert heard.events[0].data["payload"] == {"t": 21}


def test_a_local_broker_that_is_away_loses_no_event(make: Make, heard: Any) -> None:
    step = make(PUBLISH, more=", mqtt: '127.0.0.1:9'")
    list(step(frame({"topic": "sensor/data", "payload": "1"})))
    assert len(heard.events) == 1
    assert heard.until(lambda: heard.errors)
    assert "no MQTT broker answers at 127.0.0.1:9" in heard.errors[0]


def test_a_local_broker_that_is_none_is_refused(make: Make) -> None:
    with pytest.raises(Invalid, match=r"steps\[0\]\.function\.mqtt: .*host:port"):
        make(PUBLISH, more=", mqtt: 'http://there'")


def test_two_apps_publish_as_themselves(make: Make, heard: Any, tmp_path: Path) -> None:
    first = make(PUBLISH)
    module = sys.modules["handler"]
    second = make(PUBLISH, name="function_handler")
    list(first(frame({"topic": "a", "payload": "1"})))
    list(second(frame({"topic": "b", "payload": "2"})))
    assert [e.data["topic"] for e in heard.events] == ["a", "b"]
    second.close()  # type: ignore[attr-defined]
    list(first(frame({"topic": "c", "payload": "3"})))
    list(second(frame({"topic": "d", "payload": "4"})))
    assert [e.data["topic"] for e in heard.events] == ["a", "b", "c"]
    assert module is not sys.modules["handler"]


def test_it_is_importable_nowhere_else() -> None:
    code = "import marram.pipeline.build, importlib.util; print(importlib.util.find_spec('greengrasssdk'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "None\n"


# ---------------------------------------------------------------- shadow documents


@pytest.fixture
def shadows(tmp_path: Path) -> Shadows:
    return Shadows(tmp_path / "shadows")


def update(shadows: Shadows, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    return shadows.update("pump", json.dumps({"state": state, **more}))


def test_updates_merge_and_null_deletes(shadows: Shadows) -> None:
    update(shadows, {"desired": {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": 3}})
    update(shadows, {"desired": {"a": {"y": None, "z": 3}, "b": [9], "c": None}})
    assert shadows.get("pump")["state"] == {"desired": {"a": {"x": 1, "z": 3}, "b": [9]}}
    update(shadows, {"desired": None, "reported": {"a": 1}})
    document = shadows.get("pump")
    assert document["state"] == {"reported": {"a": 1}}
    assert set(document["metadata"]) == {"reported"}
    assert document["version"] == 3


def test_a_shadow_outlives_the_process_that_made_it(shadows: Shadows, tmp_path: Path) -> None:
    update(shadows, {"reported": {"a": 1}})
    assert Shadows(tmp_path / "shadows").get("pump")["state"] == {"reported": {"a": 1}}


def test_a_version_that_is_not_the_present_one_is_refused(shadows: Shadows) -> None:
    update(shadows, {"desired": {"a": 1}})
    assert update(shadows, {"desired": {"a": 2}}, version=1, clientToken="t") | {"timestamp": 0, "metadata": 0} == {
        "state": {"desired": {"a": 2}}, "version": 2, "clientToken": "t", "timestamp": 0, "metadata": 0,
    }  # fmt: skip
    with pytest.raises(ShadowFault, match="409: Version conflict"):
        update(shadows, {"desired": {"a": 3}}, version=1)
    assert shadows.get("pump")["state"]["desired"] == {"a": 2}


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"not json", 400),
        (b"[1]", 400),
        (b"{}", 400),
        (b'{"state": 3}', 400),
        (b'{"state": {"wanted": {}}}', 400),
        (b'{"state": {"desired": 3}}', 400),
        (b'{"state": {"desired": {"a": "' + b"x" * 9000 + b'"}}}', 413),
    ],
)
def test_a_wrong_update_is_refused_and_changes_nothing(shadows: Shadows, payload: bytes, code: int) -> None:
    update(shadows, {"desired": {"a": 1}})
    with pytest.raises(ShadowFault) as refused:
        shadows.update("pump", payload)
    assert refused.value.code == code
    assert shadows.get("pump")["version"] == 1


def test_a_document_never_grows_past_the_limit(shadows: Shadows) -> None:
    update(shadows, {"desired": {"a": "x" * 5000}})
    with pytest.raises(ShadowFault, match="413"):
        update(shadows, {"desired": {"b": "x" * 5000}})
    assert list(shadows.get("pump")["state"]["desired"]) == ["a"]


@pytest.mark.parametrize("thing", ["../pump", "", "a/b", "x" * 129, "pump\n"])
def test_a_thing_is_a_name_not_a_path(shadows: Shadows, thing: str) -> None:
    with pytest.raises(ShadowFault, match="400"):
        shadows.get(thing)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": 3, "version": 1}', "\0\0\0"])
def test_a_damaged_file_begins_anew(shadows: Shadows, tmp_path: Path, content: str) -> None:
    (tmp_path / "shadows").mkdir()
    (tmp_path / "shadows" / "pump.json").write_text(content)
    with pytest.raises(ShadowFault, match="404"):
        shadows.get("pump")
    assert update(shadows, {"desired": {"a": 1}})["version"] == 1


def test_many_processes_lose_no_update(tmp_path: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from marram.pipeline.greengrass.shadow import Shadows\n"
        "shadows = Shadows(Path(sys.argv[1]))\n"
        "for i in range(20): shadows.update('pump', json.dumps({'state': {'reported': {sys.argv[2] + str(i): i}}}))\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [process.wait() for process in started] == [0, 0, 0]
    document = Shadows(tmp_path).get("pump")
    assert document["version"] == 60
    assert len(document["state"]["reported"]) == 60


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShadowFault, match="500"):
        Shadows(tmp_path / "file" / "shadows").get("pump")
