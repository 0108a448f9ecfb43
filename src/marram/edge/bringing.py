"""Brings all that a version needs onto the device, once: believed, fetched, installed; and what its worker is told.

One try, without patience of its own: who waits, for how long, and what is said meanwhile is the keeper's business.
Whatever is fetched was believed first; nothing is parsed whose digest was not checked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from marram.edge.before import earlier
from marram.edge.bundles import check_size
from marram.edge.deploy import AppRecord
from marram.edge.ground import Ground
from marram.edge.measuring import ASKED, Ways, measure_app
from marram.edge.sandbox import plan
from marram.edge.supervisor import WorkerSpec
from marram.edge.variants import app_file, card_alone, chosen, engines, memory_limit, needed, taste_of
from marram.edge.vetting import check_sizes
from marram.schema.device import Chosen, DesiredApp
from marram.schema.errors import Permanent, Retryable, Untrusted
from marram.schema.health import Health
from marram.schema.model import Engine, Manifest
from marram.schema.units import format_duration, format_size

log = logging.getLogger("marram.edge")

LARGEST_BUNDLE_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True)
class Brought:
    """A version that is here: its folder, those of its models and of its functions' packages, its secrets.

    `chosen`: which variants of its models run, and why. `passed_over`: which engines for them do not load here, for
    people.
    """

    app: DesiredApp
    folder: Path
    models: list[Path]
    packages: list[Path]
    secrets: dict[str, str]
    chosen: list[Chosen]
    passed_over: str


class Bringing:
    """For one app; `waiting` is told while the link makes it wait."""

    def __init__(self, ground: Ground, name: str, waiting: Callable[[str], None]) -> None:
        self._ground, self._name, self._waiting = ground, name, waiting

    async def bring(self, app: DesiredApp, *, proven: bool, believed: bool) -> Brought:
        """All of `app`; `believed`: its signature was checked before.

        Raises Retryable, Untrusted (try again later), Permanent, Invalid (it will never do).
        """
        ground, bundles, broken = self._ground, self._ground.bundles, self._ground.engines.broken
        async with ground.files(app):
            if not believed:
                await self._believed(app)
                check_sizes(app)
            # A card says which variant runs here; all that is needed then is one reservation.
            await self._fetch([app_file(app), *map(card_alone, app.models)])
            taste = await asyncio.to_thread(taste_of, app, bundles, broken, ground.choices)
            if not proven:
                await measure_app(app, self._ways, taste)
            models = [await asyncio.to_thread(needed, m, bundles, taste, proven=proven) for m in app.models]
            wheels = await asyncio.to_thread(ground.envs.wheels, app)
            await self._fetch([app.files, *models, wheels])
            folders = [await asyncio.to_thread(bundles.install, m) for m in (app.files, *models)]
            packages = [await ground.envs.install(wheels)] if wheels.files else []
            secrets = await ground.secrets(app.secrets)
            passed_over = ground.engines.words(await self._suspects(app, proven=proven))
            picked = [await asyncio.to_thread(chosen, m, bundles, taste, proven=proven) for m in app.models]
        flat = [each for of_one in picked for each in of_one]
        return Brought(app, folders[0], folders[1:], packages, secrets, flat, passed_over)

    async def spec(self, brought: Brought, record: AppRecord, *, proven: bool) -> WorkerSpec:
        """What its worker is told."""
        ground, folder, app = self._ground, self._ground.folder, brought.app
        replaced = record.runs if not proven else None
        before = await asyncio.to_thread(earlier, replaced, ground.bundles, ground.engines.broken, ground.choices)
        places = {f"{m.name}@{m.version}": place for m, place in zip(app.models, brought.models, strict=True)}
        page = _page(brought.folder / "app.yaml")
        return WorkerSpec(
            device=ground.device,
            app=app.name,
            version=app.version,
            folder=brought.folder,
            models=places,
            cloud=[model.model_dump(mode="json") for model in app.cloud],
            outbox=folder.outbox,
            work=folder.work(app.name),
            log=folder.log_file(app.name),
            memory_bytes=memory_limit(page),
            health=_health(page),
            verify=not proven,
            started=record.started,
            packages=tuple(brought.packages),
            before=before,
            secrets=brought.secrets,
            peers=app.peer_models,
            plan=plan(
                folder.path,
                [brought.folder, *brought.models, *brought.packages, *(before.folders if before else [])],
                [folder.work(app.name)],
                None if ground.groups is None else ground.groups.place(app.name, app.version),
                [folder.outbox.parent],
            ),
        )

    async def measure(self, app: DesiredApp, model: str | None) -> list[Chosen]:
        """Measure the variants of its models (`model`: of one) anew: which are the best now. Raises MarramError."""
        bundles, broken = self._ground.bundles, self._ground.engines.broken
        async with self._ground.files(app):
            taste = await asyncio.to_thread(taste_of, app, bundles, broken, self._ground.choices)
            await measure_app(app, self._ways, taste, ASKED, again=True, only=model)
            picked = [await asyncio.to_thread(chosen, m, bundles, taste, proven=False) for m in app.models]
        return [each for of_one in picked for each in of_one]

    async def examine(self, app: DesiredApp, *, proven: bool) -> tuple[bool, str]:
        """Whether other engines for its models load than was known, and in words those that do not."""
        suspects = await self._suspects(app, proven=proven)
        changed = await self._ground.engines.examine(suspects)
        return changed, self._ground.engines.words(suspects)

    async def _suspects(self, app: DesiredApp, *, proven: bool) -> set[Engine]:
        found, bundles, broken = set[Engine](), self._ground.bundles, self._ground.engines.broken
        taste = await asyncio.to_thread(taste_of, app, bundles, broken, self._ground.choices)
        for model in app.models:
            found |= await asyncio.to_thread(engines, model, bundles, taste, proven=proven)
        return found

    @property
    def _ways(self) -> Ways:
        """How variants are fetched and measured for this app: by a process that sees of the device what it measures."""
        ground, path = self._ground, self._ground.folder.path
        return Ways(
            ground.bundles, ground.choices, ground.engines, self._fetch, lambda bundle: plan(path, [bundle], [])
        )

    async def _believed(self, app: DesiredApp) -> None:
        """Whatever is wrong with a signature, or with asking for it, is no fault of the version.

        Raises Untrusted, Retryable.
        """
        try:
            await self._ground.verify(app)
        except Untrusted:
            raise
        except Permanent as error:
            raise Retryable(error.what, where=error.where, hint=error.hint) from error

    async def _fetch(self, manifests: list[Manifest]) -> None:
        """Fetch what is not here of them. Raises Permanent, Invalid, Retryable (no room)."""
        for manifest in manifests:
            check_size(manifest, LARGEST_BUNDLE_BYTES)
        missing = await asyncio.to_thread(self._ground.bundles.missing, manifests)
        if missing:
            started_s = time.monotonic()
            await self._ground.fetcher.fetch(missing, self._waiting)
            size, took = sum(f.size_bytes for f in missing), time.monotonic() - started_s
            log.info("%s: fetched %s in %s", self._name, format_size(size), format_duration(took))


def _page(file: Path) -> dict[str, Any]:
    """An app file, as far as it can be read. The worker parses it in full and says what is wrong with it."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _health(page: dict[str, Any]) -> Health:
    """`health` of an app file."""
    try:
        return Health.model_validate(page.get("health") or {})
    except ValidationError:
        return Health()
