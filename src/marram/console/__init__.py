"""The web page: the fleet at a glance. `mount(app, state)` puts it on the API's port, behind a sign-in."""

from marram.console.mount import Console, mount

__all__ = ["Console", "mount"]
