"""What should run where: level-triggered, newest deployment wins, devices that join later included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.registry import Registry
from marram.rollout import Rollout, desired_apps, holding, living
from marram.schema.device import DesiredApp, DeviceInfo
from marram.schema.errors import Invalid, Missing, Untrusted
from marram.schema.ids import matches
from marram.schema.model import Engine, File, Input, Manifest, ModelCard, Output, Task, Variant
from marram.schema.rollout import RolloutState, at_once
from marram.store import DeploymentRow, ModelRow, Objects, Standing, Store, open_store

NOTHING = Manifest(files=[])
APP = """\
app: gate
source: {images: photos}
steps:
  - classify: small
    cloud: large
"""
PLAIN = """\
app: counter
source: {series: rows.csv}
steps:
  - function: count.py:handler
files: [table.csv]
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(folder / "cloud.db")
        self.objects = Objects(folder / "objects")
        self.registry = Registry(self.store.models, self.objects)
        self.rollout = Rollout(self.store, self.registry, self.objects)

    def device(self, name: str, **labels: str) -> None:
        self.store.devices.add(name, labels, DeviceInfo())

    def model(self, name: str, weights: bytes = b"1", version: int = 1) -> None:
        """A registered version, as a row: what the registry looks for in its files is not what is tried here."""
        card = ModelCard(
            model=name,
            version=version,
            task=Task.CLASSIFICATION,
            input=Input(size=[8, 8]),
            output=Output(form="softmax"),
            variants=[Variant(name="fp32", engine=Engine.ONNX, file="net.onnx")],
            licence="MIT",
            source="made for this test",
        )
        manifest = Manifest(files=[self.file("net.onnx", weights)])
        self.store.models.add(ModelRow(name, version, f"{name}{version}", card, manifest))

    def file(self, path: str, content: bytes) -> File:
        body = self.objects.put(content)
        return File(path=path, sha256=body.sha256, size_bytes=body.size_bytes)

    def runs(self, device: str) -> dict[str, int]:
        return {app.name: app.version for app in self.store.states.desired(device).apps}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.model("small")
    made.model("large", b"2")
    yield made
    made.store.close()


def app(name: str, comment: str = "") -> str:
    return f"app: {name}\nsource: {{images: photos}}\nsteps:\n  - filter: 'true'\n# {comment}\n"


def test_a_deployment_reaches_matching_devices_and_names_them(world: World) -> None:
    world.device("a", site="x")
    world.device("b", site="y")
    rolled = world.rollout.deploy(APP, NOTHING, {"site": "x"})
    assert (rolled.deployment.version, rolled.changed) == (1, ["a"])
    [desired] = world.store.states.desired("a").apps
    assert [(m.name, m.version) for m in desired.models] == [("small", 1)]
    assert [(m.name, m.version, m.card.model) for m in desired.cloud] == [("large", 1, "large")]
    [text] = desired.files.files
    assert (text.path, world.objects.get(text.sha256).decode()) == ("app.yaml", APP)
    assert world.runs("b") == {}


def test_a_device_that_joins_later_gets_it_too(world: World) -> None:
    world.rollout.deploy(app("a"), NOTHING, {"site": "x"})
    world.device("late", site="x")
    assert world.rollout.refresh("late") == ["late"]
    assert world.runs("late") == {"a": 1}
    assert world.rollout.refresh() == []


def test_labels_that_change_change_what_runs(world: World) -> None:
    world.device("a", site="x")
    world.rollout.deploy(app("a"), NOTHING, {"site": "x"})
    world.store.devices.set_labels("a", {"site": "y"})
    assert world.rollout.refresh() == ["a"]
    assert world.runs("a") == {}


def test_the_newest_deployment_of_an_app_wins_and_others_stay(world: World) -> None:
    world.device("a", site="x")
    world.device("b", site="y")
    world.rollout.deploy(app("one"), NOTHING, {})
    world.rollout.deploy(app("two"), NOTHING, {})
    world.rollout.deploy(app("one", "changed"), NOTHING, {"site": "x"}, at_once())
    assert world.runs("a") == {"one": 2, "two": 1}
    assert world.runs("b") == {"one": 1, "two": 1}
    world.rollout.deploy(app("one"), NOTHING, {}, at_once())  # the old content again is the old version again
    assert world.runs("a") == {"one": 1, "two": 1}


def test_the_same_deployment_again_changes_nothing(world: World) -> None:
    world.device("a")
    world.rollout.deploy(APP, NOTHING, {})
    before = world.store.states.desired("a")
    assert world.rollout.deploy(APP, NOTHING, {}).changed == []
    assert world.store.states.desired("a") == before


def test_a_newer_model_makes_a_newer_app_version_only_when_deployed_again(world: World) -> None:
    world.device("a")
    world.rollout.deploy(APP, NOTHING, {})
    world.model("small", b"better", version=2)
    assert world.rollout.refresh() == []
    assert world.rollout.deploy(APP, NOTHING, {}, at_once()).deployment.version == 2
    [desired] = world.store.states.desired("a").apps
    assert [(m.name, m.version) for m in desired.models] == [("small", 2)]
    pinned = APP.replace("small", "small@1")
    world.rollout.deploy(pinned, NOTHING, {}, at_once())
    [desired] = world.store.states.desired("a").apps
    assert (desired.version, [m.version for m in desired.models]) == (3, [1])


def test_what_covers_faces_comes_along_where_raw_alone_asks_for_it(world: World) -> None:
    world.device("pi-1")
    with pytest.raises(Missing, match="blazeface"):
        world.rollout.deploy(APP + "raw: redacted\n", NOTHING, {})
    world.model("blazeface", b"3")
    world.rollout.deploy(APP + "raw: redacted\n", NOTHING, {})
    (app,) = world.store.states.desired("pi-1").apps
    assert [model.name for model in app.models] == ["blazeface", "small"]
    assert [model.name for model in app.cloud] == ["large"]


def test_the_variants_that_steps_name_go_with_the_model(world: World) -> None:
    world.device("pi-1")
    world.rollout.deploy(APP, NOTHING, {})
    assert world.store.states.desired("pi-1").apps[0].models[0].variants == [None]
    twice = APP + "  - {classify: small, variant: fp32}\n"
    world.rollout.deploy(twice, NOTHING, {}, at_once())
    (model,) = world.store.states.desired("pi-1").apps[0].models
    assert model.variants == [None, "fp32"]
    with pytest.raises(Invalid, match='small@1 has no variant "int8"; it has fp32'):
        world.rollout.deploy(twice.replace("fp32", "int8"), NOTHING, {})


def test_an_app_is_taken_off_where_the_selector_says(world: World) -> None:
    world.device("a", site="x")
    world.device("b", site="y")
    world.rollout.deploy(app("one"), NOTHING, {})
    assert world.rollout.remove("one", {"site": "x"}).changed == ["a"]
    assert (world.runs("a"), world.runs("b")) == ({}, {"one": 1})
    assert [row.app for row in world.rollout.current()] == ["one"]
    assert set(world.rollout.targets("one")) == {"b"}
    assert world.rollout.remove("one").changed == ["b"]
    assert world.rollout.current() == []
    with pytest.raises(Missing):
        world.rollout.remove("never")


def test_replicas_serve_what_apps_ask_for_and_no_longer(world: World) -> None:
    world.device("a")
    assert world.rollout.served() == set()
    world.rollout.deploy(APP, NOTHING, {})
    assert world.rollout.served() == {("large", 1)}
    world.rollout.remove("gate")
    assert world.rollout.served() == set()


def test_files_that_the_app_names_must_come_along(world: World) -> None:
    handler, table = world.file("count.py", b"def handler(e, c): ..."), world.file("table.csv", b"1,2")
    for files in ([], [handler], [table]):
        with pytest.raises(Invalid, match="was not sent along"):
            world.rollout.deploy(PLAIN, Manifest(files=files), {})
    with pytest.raises(Missing, match="was not uploaded"):
        ghost = File(path="table.csv", sha256="a" * 64, size_bytes=1)
        world.rollout.deploy(PLAIN, Manifest(files=[handler, ghost]), {})
    with pytest.raises(Untrusted, match=r'"app.yaml" takes the place of another file'):
        world.rollout.deploy(PLAIN, Manifest(files=[handler, table, world.file("App.yaml", b"x")]), {})
    with pytest.raises(Invalid, match=r"another app\.yaml"):
        world.rollout.deploy(PLAIN, Manifest(files=[handler, table, world.file("app.yaml", b"x")]), {})
    longer = File(path="table.csv", sha256=table.sha256, size_bytes=99)
    with pytest.raises(Invalid, match="bytes long"):
        world.rollout.deploy(PLAIN, Manifest(files=[handler, longer]), {})
    world.device("a")
    world.rollout.deploy(PLAIN, Manifest(files=[table, handler]), {})
    [desired] = world.store.states.desired("a").apps
    assert [f.path for f in desired.files.files] == ["app.yaml", "count.py", "table.csv"]


def test_a_wrong_app_or_model_deploys_nothing(world: World) -> None:
    with pytest.raises(Invalid):
        world.rollout.deploy("app: gate\nsteps: []\n", NOTHING, {})
    with pytest.raises(Missing, match='did you mean "small"'):
        world.rollout.deploy(APP.replace("small", "smal"), NOTHING, {})
    with pytest.raises(Invalid, match="names no model"):
        world.rollout.deploy(APP.replace("small", "./models/small"), NOTHING, {})
    with pytest.raises(Missing, match="has no channel"):
        world.rollout.deploy(APP.replace("small", "small@new"), NOTHING, {})
    assert world.store.deployments.list() == []


# ---------------------------------------------------------------- the rule itself

Labels = st.dictionaries(st.sampled_from(["site", "line"]), st.sampled_from(["x", "y"]), max_size=2)
Deployments = st.lists(
    st.builds(
        lambda *parts: parts,
        st.sampled_from(["a", "b"]),
        st.none() | st.integers(1, 3),
        Labels,
        st.none() | st.sampled_from(RolloutState),
        st.booleans(),
    ),
    max_size=12,
)


@given(Labels, Deployments)
def test_the_rule_is_replaying_history_in_order(
    labels: dict[str, str], history: list[tuple[str, int | None, dict[str, str], RolloutState | None, bool]]
) -> None:
    """What a person would say happened, one decision after the other, is what the rule says."""
    standings = []
    expected: dict[str, int] = {}
    dead = (RolloutState.ROLLED_BACK, RolloutState.ABORTED)
    for n, (name, version, selector, state, reached) in enumerate(history, 1):
        state = state if version is not None else None  # a removal has no rollout
        row = DeploymentRow(n, name, version, selector, 0.0)
        standings += [Standing(row, state, frozenset({"pi"} if reached else ()))] if state not in dead else []
        if state in dead or not matches(selector, labels):
            continue
        if state in (None, RolloutState.COMPLETED) or reached:
            if version is None:
                expected.pop(name, None)
            else:
                expected[name] = version
    held = holding("pi", labels, reversed(standings))
    found = desired_apps(held, lambda name, version: DesiredApp(name=name, version=version, files=NOTHING))
    assert {each.name: each.version for each in found} == expected
    assert [each.name for each in found] == sorted(expected)
    assert set(expected) <= set(held)
    # Forgetting what can never hold again changes nothing for anybody.
    assert holding("pi", labels, living(standings)) == held


def test_each_version_is_signed_and_other_wheels_make_another(world: World) -> None:
    signed: list[tuple[str, int]] = []
    wheels: dict[str, Manifest] = {}
    rollout = Rollout(
        world.store,
        world.registry,
        world.objects,
        sign=lambda made: signed.append((made.name, made.version)),
        resolve=lambda requires, selector: dict(wheels),
    )
    nothing = Manifest(files=[])
    assert rollout.deploy(app("gate"), nothing, {}).deployment.version == 1
    wheels["aarch64"] = Manifest(files=[world.file("one.whl", b"one")])
    assert rollout.deploy(app("gate"), nothing, {}).deployment.version == 2
    assert signed == [("gate", 1), ("gate", 2)]
