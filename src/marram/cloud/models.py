"""The models of a cloud as its API shows them: who changed what, where a version comes from, who uses it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from pydantic import ValidationError

from marram.cloud.views import model_view
from marram.registry import Registry
from marram.schema.api import ChannelView, Lineage, ModelAsk, ModelStep, ModelUser, ModelView, Origin
from marram.schema.device import DesiredApp
from marram.store import ModelRow, Store, actor, auditing

# A line of versions this long is told whole; older ones are in the list.
_MOST_ANCESTORS = 100


class ModelDesk:
    """Over one store and its registry. Blocking; safe from any thread."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry

    def add(self, ask: ModelAsk) -> ModelView:
        """See `api.contract.State`."""
        lineage: dict[str, Any] = {"by": actor()}
        if ask.origin is not None:
            lineage["origin"] = ask.origin.model_dump(mode="json", exclude_defaults=True)
        with auditing(actor(), "model.add", ask.card.model):
            row = self._registry.add(ask.card, ask.manifest, version=ask.version, lineage=lineage)
        return self._view(row)

    def all(self) -> list[ModelView]:
        """Every version, by name, newest first."""
        pointing = defaultdict(list)
        for (name, channel), version in self._store.models.channels().items():
            pointing[name, version].append(channel)
        return [model_view(row, pointing[row.name, row.version]) for row in self._registry.list()]

    def get(self, name: str, version: int | None) -> ModelView:
        """One version. Raises Missing."""
        return self._view(self._registry.get(name, version))

    def tag(self, name: str, channel: str, version: int) -> ChannelView:
        """Move a channel. Raises Missing."""
        with auditing(actor(), "model.tag", f"{name}@{channel}", version=version):
            before = self._registry.tag(name, channel, version)
        return ChannelView(model=name, channel=channel, version=version, before=before)

    def untag(self, name: str, channel: str) -> None:
        """Take a channel away. Raises Missing."""
        with auditing(actor(), "model.untag", f"{name}@{channel}"):
            self._registry.untag(name, channel)

    def lineage(self, name: str, version: int | None) -> Lineage:
        """Raises Missing."""
        row = self._registry.get(name, version)
        rows = {each.version: each for each in self._registry.list(name)}
        origins = {number: _origin(each) for number, each in rows.items()}
        ancestors: list[ModelStep] = []
        parent = _parent(origins[row.version])
        seen = {row.version}
        while parent in rows and parent not in seen and len(ancestors) < _MOST_ANCESTORS:
            seen.add(parent)
            ancestors.append(_step(rows[parent], origins[parent]))
            parent = _parent(origins[parent])
        return Lineage(
            name=row.name,
            version=row.version,
            digest=row.digest,
            created_s=row.created_s,
            by=str(row.lineage.get("by", "")),
            origin=origins[row.version],
            ancestors=ancestors,
            children=sorted(number for number, origin in origins.items() if _parent(origin) == row.version),
            channels=self._channels(row),
            apps=self._users(row),
            unchecked=list(row.lineage.get("unchecked", [])),
        )

    def _users(self, row: ModelRow) -> list[ModelUser]:
        running = Counter(
            (app.name, app.version)
            for desired in self._store.states.all_desired().values()
            for app in desired.apps
            if _uses(app, row)
        )
        return [
            ModelUser(app=each.name, version=each.version, devices=running[each.name, each.version])
            for each in self._store.apps.list()
            if _uses(each.app, row)
        ]

    def _view(self, row: ModelRow) -> ModelView:
        return model_view(row, self._channels(row))

    def _channels(self, row: ModelRow) -> list[str]:
        return sorted(c for c, version in self._registry.channels(row.name).items() if version == row.version)


def _uses(app: DesiredApp, row: ModelRow) -> bool:
    named = {(model.name, model.version) for model in app.models} | {(model.name, model.version) for model in app.cloud}
    return (row.name, row.version) in named


def _origin(row: ModelRow) -> Origin | None:
    try:
        return Origin.model_validate(row.lineage["origin"]) if "origin" in row.lineage else None
    except ValidationError:
        return None  # written by another version of Marram: what cannot be read is not told


def _parent(origin: Origin | None) -> int:
    return (origin.parent if origin else None) or 0


def _step(row: ModelRow, origin: Origin | None) -> ModelStep:
    return ModelStep(
        version=row.version,
        created_s=row.created_s,
        by=str(row.lineage.get("by", "")),
        accuracy=origin.accuracy if origin else [],
    )
