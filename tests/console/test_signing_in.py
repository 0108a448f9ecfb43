"""People at the console, in a real browser: who they are, what they see, and that it ends when they are shut out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from tests.console.test_browser import World, browser, until, world

__all__ = ["browser", "world"]

WORDS = "correct horse battery"
# Where to leave pictures for whoever wants to look.
PICTURES = os.environ.get("PICTURES")


def add(world: World, name: str, role: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "marram", "user", "add", name, "-", "--role", role],
        input=f"{WORDS}\n", capture_output=True, text=True, timeout=60, env=world.environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def picture(browser: WebDriver, name: str) -> None:
    if PICTURES:
        browser.save_screenshot(str(Path(PICTURES) / f"{name}.png"))


def sign_in(browser: WebDriver, url: str, name: str) -> None:
    browser.get(f"{url}/sign-in")
    browser.find_element(By.NAME, "name").send_keys(name)
    browser.find_element(By.NAME, "password").send_keys(f"{WORDS}\n")
    until(lambda: browser.current_url == f"{url}/", "signed in")
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "[data-id=who]"), "the page")


def who(browser: WebDriver) -> str:
    return browser.find_element(By.CSS_SELECTOR, "[data-id=who]").text


def test_a_person_signs_in_sees_what_the_role_may_and_is_shut_out_at_once(world: World, browser: WebDriver) -> None:
    found = re.search(r"console +(http\S+)", world.log("cloud"))
    assert found is not None and "first sign-in: marram user add" in world.log("cloud")
    url = found[1]
    add(world, "vic", "viewer")
    add(world, "olga", "operator")

    # A wrong password says no more than that, and keeps the name that was typed, harmlessly.
    browser.get(url)
    picture(browser, "sign-in")
    browser.find_element(By.NAME, "name").send_keys('"><b id=evil>')
    browser.find_element(By.NAME, "password").send_keys("wrong\n")
    until(lambda: "password is wrong" in browser.find_element(By.CLASS_NAME, "fault").text, "the fault")
    picture(browser, "sign-in-wrong")
    assert browser.find_element(By.NAME, "name").get_attribute("value") == '"><b id=evil>'
    assert not browser.find_elements(By.ID, "evil")

    # A viewer sees who they are, and no step that is not theirs.
    sign_in(browser, url, "VIC")
    until(lambda: who(browser) == "vic · viewer", "who is signed in")
    until(lambda: "No devices yet" in browser.page_source, "the empty state")
    picture(browser, "viewer")
    assert "marram token create" not in browser.page_source and "An operator can let some join" in browser.page_source
    cookie = browser.get_cookie("marram_session")
    assert cookie is not None and cookie["httpOnly"] and cookie["sameSite"] == "Lax"

    # Another role counts on the open page; so does being disabled, which also ends what was open.
    world("user", "role", "vic", "operator")
    until(lambda: who(browser) == "vic · operator" and "marram token create" in browser.page_source, "the new role")
    picture(browser, "operator")
    world("user", "disable", "vic")
    until(lambda: browser.current_url == f"{url}/sign-in", "the page ends with its person")
    with httpx.Client(base_url=url, trust_env=False, cookies={"marram_session": cookie["value"]}) as client:
        assert client.get("/").headers["location"] == "/sign-in"

    # Signing out ends the session for good, not only in this browser.
    sign_in(browser, url, "olga")
    cookie = browser.get_cookie("marram_session")
    assert cookie is not None
    browser.find_element(By.CSS_SELECTOR, 'form[action="/sign-out"] button').click()
    until(lambda: browser.current_url == f"{url}/sign-in", "signed out")
    with httpx.Client(base_url=url, trust_env=False, cookies={"marram_session": cookie["value"]}) as client:
        assert client.get("/").status_code == 303
    assert "user:olga" in world("audit", "list", "--action", "session")
