"""Other names for an app's models, put into its text: for a path what was pushed, for a channel its version."""

from __future__ import annotations

from collections.abc import Mapping

from marram.schema.app import App, app_on, model_uses
from marram.schema.errors import Invalid
from marram.schema.page import Page, Place


def with_references(page: Page, text: str, app: App, given: Mapping[Place, str]) -> str:
    """`text` (of `page` and `app`) with the model at each place called as `given` says; else the same byte for byte.

    Raises Invalid where a name cannot be put in place.
    """
    if not given:
        return text
    spans = {(*span, name) for place, name in given.items() if (span := page.span(place)) is not None}
    changed = text
    for start, end, name in sorted(spans, reverse=True):
        changed = changed[:start] + name + changed[end:]
    again = app_on(Page.read(changed, page.name))
    if [use.reference for use in model_uses(again)] != [given.get(use.place, use.reference) for use in model_uses(app)]:
        raise Invalid(
            "a model's name cannot be put in place here (an anchor or alias?)",
            where=page.name,
            hint="Write each one out; a folder: `marram model add` it and write its name.",
        )
    return changed
