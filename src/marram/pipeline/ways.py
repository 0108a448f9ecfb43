"""The ways in which one step's inference may be answered, and what each of them sends.

Made once for a step; `of` lists them for a frame, `encode` makes what is sent on one of them and learns from it how
large it came out and how long that took. What may not be (privacy, no such model, too much accuracy lost) is no way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marram.pipeline.view import View
from marram.placement.contract import Way
from marram.placement.envelope import Envelope, Option, options_of
from marram.runtime.codecs import AS_THEY_ARE, codecs_for, cuts_for, encode, encode_cut
from marram.runtime.model import Model
from marram.schema.model import Codec, Cut, ModelCard
from marram.schema.payload import Payload
from marram.schema.result import Place

# How fast size and time of an encoding follow: pictures of one source resemble each other.
_FOLLOW = 0.25


@dataclass(slots=True)
class _Encoding:
    """What sending in one form costs here: bytes of an input, seconds; `accuracy` as `Way`'s."""

    size_bytes: float
    encode_s: float
    accuracy: float | None = None

    def learn(self, size_bytes: int, encode_s: float) -> None:
        self.size_bytes += _FOLLOW * (size_bytes - self.size_bytes)
        self.encode_s += _FOLLOW * (encode_s - self.encode_s)


class Ways:
    """`model`: the edge's. `cloud`: the card of the cloud's model, None where it is not asked; its cuts are ways
    where they can win and this device has their fronts, which `fronts` names. `peer`: the card of the edge's model,
    where other devices may be asked. With `surest` a codec that is never the soonest is a way too, for what it keeps of
    the accuracy.
    """

    def __init__(
        self,
        model: Model,
        cloud: ModelCard | None,
        fronts: Sequence[str] = (),
        *,
        peer: ModelCard | None = None,
        surest: bool = False,
    ) -> None:
        self._edge = f"{model.bundle.reference}/{model.variant.name}"
        self._edge_accuracy = model.variant.accuracy
        self._cloud, self._peer = cloud, peer
        self._peers = {} if peer is None else _encodings(peer, model.variant.accuracy, surest=surest)
        self._encodings: dict[str, _Encoding] = {}
        self._cuts: dict[str, Cut] = {}
        # Whether the cloud's model is parted here, in words; "" where there is nothing to say.
        self.about_cuts = ""
        if cloud is None:
            return
        # Where nobody measured it, its own answers to the input as it is count as right; codecs and cuts fall short.
        best = max((v.accuracy for v in cloud.variants if v.accuracy is not None), default=1.0)
        self._encodings = _encodings(cloud, best, surest=surest)
        winning = winning_cuts(cloud, edge=model.bundle.reference == cloud.reference)
        self.about_cuts = _about_cuts(cloud, winning, fronts)
        for cut in cuts_for(cloud):
            if cut.name in fronts and cut.name in winning:
                accuracy = None if best is None else best * (1 - cut.loss)
                self._encodings[_of_cut(cut)] = _Encoding(cut.bytes, 0.0, accuracy)
                self._cuts[_of_cut(cut)] = cut

    def of(self, shape: str, *, away: bool = True) -> tuple[Way, ...]:
        """For an input of `shape` (see `pipeline/inputs.py`); those that lead away from here only with `away`."""
        edge = Way(Place.EDGE, self.edge_key(shape), accuracy=self._edge_accuracy)
        if not away:
            return (edge,)
        return (
            edge,
            *(self._far(codec, encoding, shape) for codec, encoding in self._encodings.items()),
            *(self._among(codec, encoding, shape) for codec, encoding in self._peers.items()),
        )

    def edge_key(self, shape: str) -> str:
        """At the edge a picture's size counts: fitting it is part of the work."""
        return f"{self._edge} {shape}"

    def cut(self, way: Way) -> Cut:
        """Where a way of `split` parts the model."""
        return self._cuts[way.codec]

    def encode(self, way: Way, view: View) -> Payload:
        """What is sent on a way to the cloud, or a peer. Raises Invalid where the input is not what the model takes."""
        begun_s = time.perf_counter()
        payload = encode(way.codec, self.card(way), view.data)
        encodings = self._peers if way.place is Place.PEER else self._encodings
        encodings[way.codec].learn(len(payload.body), time.perf_counter() - begun_s)
        return payload

    def card(self, way: Way) -> ModelCard:
        """Of the model that answers elsewhere."""
        card = self._peer if way.place is Place.PEER else self._cloud
        assert card is not None
        return card

    def encode_crossing(self, way: Way, view: View, crossing: np.ndarray) -> Payload:
        """What is sent on a way of `split`: what its front gave."""
        begun_s = time.perf_counter()
        frame_size = (int(view.data.shape[0]), int(view.data.shape[1])) if view.data.ndim == 3 else None
        payload = encode_cut(self._cuts[way.codec], crossing, frame_size)
        self._encodings[way.codec].learn(len(payload.body), time.perf_counter() - begun_s)
        return payload

    def _far(self, codec: str, encoding: _Encoding, shape: str) -> Way:
        assert self._cloud is not None
        cloud = self._cloud
        size, encode_s, accuracy = round(encoding.size_bytes), encoding.encode_s, encoding.accuracy
        cut = self._cuts.get(codec)
        if cut is not None:
            front = f"{cloud.reference}/{cut.name}/front {shape}"
            return Way(Place.SPLIT, f"{cloud.reference}/{cut.name}", size, front, codec, encode_s, accuracy)
        return Way(Place.CLOUD, _key(cloud, shape), size, None, codec, encode_s, accuracy)

    def _among(self, codec: str, encoding: _Encoding, shape: str) -> Way:
        assert self._peer is not None
        size, encode_s = round(encoding.size_bytes), encoding.encode_s
        # Apart from the cloud's replicas, which may serve the same model.
        key = f"peers:{_key(self._peer, shape)}"
        return Way(Place.PEER, key, size, None, codec, encode_s, encoding.accuracy)


def _key(card: ModelCard, shape: str) -> str:
    """Elsewhere pictures come already fitted to the model: all of one shape."""
    return card.reference if card.input.kind == "image" else f"{card.reference} {shape}"


def _encodings(card: ModelCard, best: float | None, *, surest: bool) -> dict[str, _Encoding]:
    """In what form an input may be sent to the model of `card`, whose accuracy is `best`."""
    if card.input.kind != "image":
        return {AS_THEY_ARE: _Encoding(float(4 * np.prod(card.input.size)), 0.0, best)}
    return {
        codec.name: _Encoding(codec.bytes, codec.encode_ms / 1e3, None if best is None else best * (1 - codec.loss))
        for codec in (codecs_for(card) if surest else _soonest(codecs_for(card)))
    }


def winning_cuts(cloud: ModelCard, *, edge: bool) -> set[str]:
    """The cuts of `cloud` that are worth parting it at, on some link and for some device, as its card measured them.

    `edge`: the edge has this very model too, so that a cut has to be sooner than that as well.
    """
    cuts = cuts_for(cloud)
    if not cuts:
        return set()
    gains = Envelope(options_of(cloud, codecs_for(cloud), cuts, edge=edge)).gains()
    return {cut.name for cut in cuts if any(gain.option.name == _of_cut(cut) for gain in gains)}


def _about_cuts(cloud: ModelCard, winning: set[str], fronts: Sequence[str]) -> str:
    if not cloud.cuts:
        return ""
    if not winning:
        return f"no cut of {cloud.reference} ever wins, whatever the link: it is never parted"
    here = sorted(winning & set(fronts))
    if not here:
        return f"{cloud.reference} could be parted at {', '.join(sorted(winning))}, and no front of that is here"
    return f"{cloud.reference} is parted at {', '.join(here)} where that is soonest"


def _soonest(codecs: list[Codec]) -> list[Codec]:
    """Those that are the soonest on some link, by what their encoding takes and how large it comes out."""
    options = [Option(c.name, Place.CLOUD, encode_s=c.encode_ms / 1e3, bytes=c.bytes) for c in codecs]
    names = {option.name for option in Envelope(options).winners()}
    return [codec for codec in codecs if codec.name in names]


def _of_cut(cut: Cut) -> str:
    return f"cut:{cut.name}"
