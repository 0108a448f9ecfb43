"""Put the console on the API's application: the gate, the sign-in, the page, and the watcher that feeds it."""

from __future__ import annotations

from dataclasses import dataclass

import nicegui
from fastapi import FastAPI
from nicegui import Client, ui

from marram.cloud.api.contract import State
from marram.console.gate import COOKIE, Gate, sign_in_router, signed_in
from marram.console.page import Page
from marram.console.sessions import Codes
from marram.console.viewer import Viewer
from marram.console.watcher import Watcher

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><path fill="#0b7f63" d="M16 30C15 20 11 12 4 8c8 2 12 '
    '8 12.500 14C17 14 21 6 29 3c-7 6-11 14-11 27z"/></svg>'
)


@dataclass(frozen=True, slots=True)
class Console:
    """The mounted console."""

    codes: Codes

    def link(self, base_url: str) -> str:
        """An address that signs in once, within an hour: for the terminal of whoever started the cloud."""
        return f"{base_url.rstrip('/')}/sign-in?code={self.codes.new_code()}"


def mount(app: FastAPI, state: State) -> Console:
    """Serve the console from `app` (made by `create_app`), at `/`. Once in a process: NiceGUI has one world only."""
    codes = Codes()
    watcher = Watcher(state)
    app.include_router(sign_in_router(state, codes, app.state.desk, app.state.failures))
    app.add_middleware(Gate, access=state.access)

    @ui.page("/", title="Marram", favicon=_ICON)
    async def page(client: Client) -> None:
        cookie = client.request.cookies.get(COOKIE)
        viewer = Viewer(state.access, cookie, await signed_in(state.access, cookie))
        watcher.viewers += 1

        def gone() -> None:
            watcher.viewers -= 1

        client.on_delete(gone)
        Page(watcher, viewer)

    nicegui.app.on_startup(watcher.start)
    nicegui.app.on_shutdown(watcher.stop)
    ui.run_with(app, title="Marram", dark=None, tailwind=False, show_welcome_message=False, reconnect_timeout=10)
    return Console(codes)
