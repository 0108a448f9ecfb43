"""Judge a candidate beside the model it would replace, on held-out examples, slice by slice; refuse what is worse.

What is judged is the bundle's first variant as a device would run it (int8), not the network it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass

from marram.runtime.bundle import Bundle
from marram.runtime.model import Model
from marram.schema.errors import Permanent
from marram.train.data import Example


@dataclass(frozen=True, slots=True)
class Score:
    """One slice: how many held-out examples, and the share each model names rightly (0–1; None: no old model)."""

    slice: str
    examples: int
    old: float | None
    new: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the candidate may replace the old model, why, and the scores that say so."""

    accepted: bool
    reason: str
    scores: list[Score]


def accuracy(bundle: Bundle, examples: list[Example]) -> dict[str, float]:
    """Share of `examples` named rightly, by slice. An example the model cannot answer (NaN) counts as wrong."""
    model = Model.load(bundle)
    right: dict[str, list[bool]] = {}
    try:
        for example in examples:
            try:
                label = model.predict(example.image).label
            except Permanent:
                label = None
            named = bundle.labels[example.label] if example.label < len(bundle.labels) else None
            right.setdefault(example.slice, []).append(label is not None and label == named)
    finally:
        model.close()
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def judge(new: Bundle, old: Bundle | None, held_out: list[Example], tolerance: float) -> Verdict:
    """Compare `new` with `old` on `held_out`.

    Refused where a slice falls by more than `tolerance` (0–1) and by more than one example (one alone proves nothing),
    or where no slice gains: a version that changes nothing only costs its devices a download. Without an old model the
    first is accepted where it beats guessing.
    """
    after = accuracy(new, held_out)
    before = accuracy(old, held_out) if old is not None else {}
    sizes = {name: sum(e.slice == name for e in held_out) for name in after}
    scores = [Score(name, sizes[name], before.get(name), after[name]) for name in after]
    if old is None:
        guessing = 1 / max(1, len(new.labels))
        weak = [s for s in scores if s.new < guessing + (1 - guessing) / 10]
        if weak:
            return Verdict(False, f"on {weak[0].slice} it is hardly better than guessing ({weak[0].new:.1%})", scores)
        return Verdict(True, "the first version", scores)
    # Halves keep counts of examples, which are whole, off the edge that rounding makes.
    fallen = [
        s for s in scores if s.old is not None and (s.old - s.new) * s.examples > max(1.5, tolerance * s.examples)
    ]
    if fallen:
        worst = min(fallen, key=lambda s: s.new - (s.old or 0))
        return Verdict(False, f"on {worst.slice} it falls from {worst.old:.1%} to {worst.new:.1%}", scores)
    gained = [s for s in scores if s.old is None or s.new > s.old]
    if not gained:
        return Verdict(False, "it is no better anywhere", scores)
    best = max(gained, key=lambda s: s.new - (s.old or 0))
    return Verdict(True, f"on {best.slice} it rises from {best.old or 0:.1%} to {best.new:.1%}", scores)
