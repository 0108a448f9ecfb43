"""The console in Debian's chromium, over a real `marram cloud` and two real `marram edge run`: what a person would see.

With KEEP_SCREENSHOT=1 the page is kept as docs/images/console.png, for the README.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "console.png"
KEEP = os.environ.get("KEEP_SCREENSHOT") == "1"
SIZE = 64
CARD = f"""
model: NAME
version: 1
task: classification
input: {{size: [{SIZE}, {SIZE}], layout: NCHW, mean: [127.5], std: [127.5]}}
output: {{form: logits}}
variants: [{{name: onnx, engine: onnx, file: model.onnx}}]
labels: [red, green, blue]
licence: Apache-2.0
source: made by the tests
"""


class World:
    """A cloud and its devices as processes, each on a folder of its own; the command line is how they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "MARRAM_HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1"}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str, **environment: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "marram", *arguments], stdout=log, stderr=log, env=self.environment | environment
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "marram", *arguments],
            capture_output=True, text=True, timeout=120, env=self.environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def stop(self) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(condition: Callable[[], object], what: str, timeout_s: float = 40.0) -> None:
    """Wait for a condition of the page or a process; `what` is told where it never holds."""
    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except (NoSuchElementException, StaleElementReferenceException):
            pass  # the page is not there yet, or was redrawn while it was read
        assert time.monotonic() < ends_s, f"never so: {what}"
        time.sleep(0.1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.start("cloud", "cloud", "--port", "0")
    try:
        until(lambda: "sign-in?code=" in made.log("cloud"), "the cloud starts")
        yield made
    finally:
        made.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium-driver), which are not installed here")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "no-proxy-server", "disable-dev-shm-usage", "hide-scrollbars",
        f"user-data-dir={tmp_path / 'chromium'}", "window-size=1280,900",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def write_app(folder: Path, place: str) -> str:
    """A classifier on nine pictures, over and over: `small` on the device, `large` in the cloud."""
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    for name in ("colours-small", "colours-large"):
        bundle = folder / name
        bundle.mkdir(parents=True, exist_ok=True)
        nodes = [helper.make_node("GlobalAveragePool", ["p"], ["m"]), helper.make_node("Flatten", ["m"], ["l"])]
        ends = (("p", [1, 3, SIZE, SIZE]), ("l", [1, 3]))
        values = [helper.make_tensor_value_info(end, real, shape) for end, shape in ends]
        graph = helper.make_graph(nodes, "colours", values[:1], values[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            str(bundle / "model.onnx"),
        )
        (bundle / "model.yaml").write_text(CARD.replace("NAME", name))
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    for number in range(9):
        colour = np.roll(np.array([220, 20, 20], np.uint8), number % 3)
        Image.fromarray(np.full((48, 64, 3), colour, np.uint8)).save(photos / f"{number}.png")
    app = folder / "app.yaml"
    app.write_text(
        f"app: colours\nsource: {{images: {photos}, every: 100 ms, repeat: true}}\n"
        f"steps:\n  - classify: ./colours-small\n    cloud: ./colours-large\n    place: {place}\nraw: allowed\n"
    )
    return str(app)


def said(browser: WebDriver, selector: str) -> str:
    """What an element of the page says now, "" where there is none; in one step, since the page is redrawn any time."""
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def figure(browser: WebDriver, name: str) -> str:
    return said(browser, f'[data-id="{name}"]').strip()


def edge_share(browser: WebDriver, device: str) -> int:
    """The device's share of inferences at the edge, percent; -1 before the first."""
    script = "return document.querySelector(arguments[0])?.getAttribute('data-edge') || '-1'"
    return int(browser.execute_script(script, f'[data-device="{device}"] [data-edge]'))


def card(browser: WebDriver, device: str) -> str:
    return said(browser, f'[data-device="{device}"]')


def test_a_person_sees_the_fleet_work(world: World, browser: WebDriver, tmp_path: Path) -> None:
    link = re.search(r"http\S+code=\S+", world.log("cloud"))
    assert link is not None
    url = link[0].partition("/sign-in")[0]

    # Nothing is visible without a session; a wrong token is told, the one-time link opens, once.
    browser.get(url)
    assert browser.current_url == f"{url}/sign-in"
    browser.find_element(By.NAME, "name").send_keys("ann")
    browser.find_element(By.NAME, "password").send_keys("wrong\n")
    until(lambda: "password is wrong" in browser.find_element(By.CLASS_NAME, "fault").text, "the fault")
    browser.get(link[0])
    until(lambda: "No devices yet" in browser.page_source, "the empty state")
    assert "marram token create" in browser.page_source and browser.title == "Marram"

    # Two devices come, without a reload.
    at, token = world("token", "create", "--uses", "2").split()[3:5]  # marram edge join https://… TOKEN
    for name, site, slowdown in (("gate-fast", "shanghai", "1"), ("gate-slow", "hangzhou", "400")):
        home = tmp_path / name
        world("edge", "join", at, token, "--name", name, "--label", f"site={site}", "--folder", str(home))
        world.start(name, "edge", "run", "--folder", str(home), "--report-every", "0.5", MARRAM_SLOWDOWN=slowdown)
    until(lambda: figure(browser, "devices-online") == "2 of 2", "two devices online")
    assert "marram deploy app.yaml --to all" in card(browser, "gate-fast")

    # An app: results appear, and each device answers where it answers soonest.
    world("deploy", write_app(tmp_path / "app", "soonest"), "--to", "all")
    until(lambda: edge_share(browser, "gate-fast") > 60, "the fast device answers at the edge")
    until(lambda: 0 <= edge_share(browser, "gate-slow") < 40, "the slow device lets the cloud answer")
    until(lambda: "committed" in card(browser, "gate-slow") and " ms" in card(browser, "gate-slow"), "state and delay")
    until(
        lambda: (
            {"gate-fast", "gate-slow"} <= set((tail := figure(browser, "tail")).split())
            and "cloud" in tail
            and re.search(r"(red|green|blue) \d+ %", tail)
        ),
        "results of both",
    )
    stored = int(figure(browser, "events-stored").replace(",", ""))
    until(lambda: int(figure(browser, "events-stored").replace(",", "")) > stored, "more events are stored")
    if KEEP:
        until(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".bars rect")) > 90, "some history", 150)
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(SCREENSHOT))

    # The shares move with what the app says, and a device that falls silent is seen.
    before = edge_share(browser, "gate-slow")
    world("deploy", write_app(tmp_path / "app", "edge"), "--to", "site=hangzhou", "--now")
    until(lambda: edge_share(browser, "gate-slow") > before + 15, "the share at the edge grows")
    world.kill("gate-fast")
    until(lambda: "offline" in card(browser, "gate-fast"), "the silent device is offline")
    assert figure(browser, "devices-online") == "1 of 2"

    # Everything came from this port, nothing broke in the page, and the door is shut to others.
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert loaded and all(name.startswith((url, "data:")) for name in loaded)
    severe = [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "401" not in entry["message"]
    ]
    assert severe == []
    with httpx.Client(base_url=url, trust_env=False) as stranger:
        assert [stranger.get(path).status_code for path in ("/", "/_nicegui/x", "/_nicegui_ws/socket.io/")] == [
            303,
            401,
            401,
        ]
        asset = next(name for name in loaded if name.startswith(url) and "static" in name)
        assert stranger.get(asset).status_code == 401
        assert stranger.get(link[0]).status_code == 401, "the link works once"
    browser.find_element(By.CSS_SELECTOR, 'form[action="/sign-out"] button').click()
    until(lambda: browser.current_url == f"{url}/sign-in", "signed out")
    browser.get(url)
    assert browser.current_url == f"{url}/sign-in"
