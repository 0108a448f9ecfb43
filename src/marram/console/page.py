"""The one page: builds its frame once for each viewer, then changes what changed, once a second."""

from __future__ import annotations

from html import escape
from pathlib import Path

from nicegui import ui

from marram import __version__
from marram.console import draw, stages
from marram.console.viewer import Viewer
from marram.console.watcher import MOST_DEVICES, Watcher
from marram.schema.device import Device, DeviceState
from marram.schema.people import Permission

_CSS = Path(__file__).parent / "console.css"
_REFRESH_S = 1.0
# A filter narrows a larger fleet: a browser draws this many cards without effort.
_CARDS = 60
# The theme is the system's until a person chooses; the choice stays in the browser.
_THEME = """
<script>
  document.documentElement.dataset.theme = localStorage.getItem('marram-theme') || '';
  function marramTheme() {
    const root = document.documentElement.dataset;
    const dark = root.theme ? root.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.theme = dark ? 'light' : 'dark';
    localStorage.setItem('marram-theme', root.theme);
  }
</script>
"""
_LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><path d="M16 30C15 20 11 12 4 8c8 2 12 8 12.500 14'
    'C17 14 21 6 29 3c-7 6-11 14-11 27z"/></svg>'
)


class Page:
    """One viewer's page. Elements are made when the page is built; `update` only changes contents that differ."""

    def __init__(self, watcher: Watcher, viewer: Viewer) -> None:
        self._watcher = watcher
        self._viewer = viewer
        self._left = False
        self._cards: dict[str, ui.html] = {}
        self._wanted = ""
        ui.add_css(_CSS)
        ui.add_head_html(_THEME)
        with ui.element("div").classes("page"):
            self._head()
            self._tiles = ui.html("", tag="section").classes("tiles")
            self._empty = ui.html("", tag="section")
            self._rollouts = ui.html("", tag="section").classes("rollouts")
            self._grid = ui.element("section").classes("grid")
            self._more = ui.html("").classes("more")
            with ui.element("section").classes("tail"):
                ui.html("<h2>Latest results</h2>")
                self._tail = ui.html("").classes("rows").props("data-id=tail")
            ui.html(f'Marram {__version__} · <a href="/docs">API</a>', tag="footer").classes("foot")
        self.update()
        ui.timer(_REFRESH_S, self._refresh)

    def _head(self) -> None:
        with ui.element("header").classes("top"):
            ui.html(f"{_LOGO}<h1>Marram</h1>").classes("brand")
            self._health = ui.html("").classes("health")
            self._filter = ui.input(placeholder="filter devices", on_change=self._narrow).props(
                'dense borderless clearable debounce=200 aria-label="filter devices"'
            )
            self._filter.classes("filter")
            ui.html('<button class="quiet" title="light or dark">◐</button>', sanitize=False, tag="span").on(
                "click", js_handler="() => marramTheme()"
            )
            self._who = ui.html("").classes("who").props("data-id=who")
            ui.html(
                '<form method="post" action="/sign-out"><button class="quiet">Sign out</button></form>', sanitize=False
            )

    def _narrow(self) -> None:
        self._wanted = str(self._filter.value or "").strip().lower()
        self.update()

    async def _refresh(self) -> None:
        if await self._viewer.look():
            self.update()
        elif not self._left:
            self._left = True
            ui.navigate.to("/sign-in")

    def update(self) -> None:
        """Bring the page to the watcher's newest picture; nothing for whom it is over."""
        if not self._viewer.name:
            return
        picture = self._watcher.picture
        _put(self._who, escape(self._viewer.name))
        _put(self._health, draw.health(picture))
        _put(self._tiles, draw.tiles(picture))
        empty = picture.status is not None and not picture.devices
        _put(self._empty, draw.no_devices(self._viewer.may(Permission.DEVICES)) if empty else "")
        _put(self._rollouts, stages.rollouts(picture.rollouts))
        self._filter.set_visibility(len(picture.devices) > 3)
        matching = [device for device in picture.devices[:MOST_DEVICES] if _matches(device, self._wanted)]
        self._update_cards(matching[:_CARDS])
        hidden = len(matching) - len(matching[:_CARDS]) + max(0, len(picture.devices) - MOST_DEVICES)
        _put(self._more, f"and {hidden:,} more: narrow them with the filter" if hidden else "")
        _put(self._tail, draw.tail(picture.tail))

    def _update_cards(self, devices: list[Device]) -> None:
        names = [device.id for device in devices]
        for gone in [name for name in self._cards if name not in names]:
            self._cards.pop(gone).delete()
        for index, device in enumerate(devices):
            element = self._cards.get(device.id)
            if element is None:
                with self._grid:
                    element = ui.html("", tag="article").classes("card").props(f"data-device={device.id}")
                element.move(self._grid, index)
                self._cards[device.id] = element
            apps = device.reported.apps if device.reported else []
            histories = {app.name: self._watcher.history(device.id, app) for app in apps}
            _put(element, draw.card(device, histories, may_deploy=self._viewer.may(Permission.DEPLOY)))
            if device.state is DeviceState.OFFLINE:
                element.classes(add="away")
            else:
                element.classes(remove="away")


def _put(element: ui.html, markup: str) -> None:
    if element.content != markup:
        element.set_content(markup)


def _matches(device: Device, wanted: str) -> bool:
    words = [device.id, device.state.value, *(f"{key}={value}" for key, value in device.labels.items())]
    words += [app.name for app in device.desired.apps]
    return not wanted or all(any(part in word.lower() for word in words) for part in wanted.split())
