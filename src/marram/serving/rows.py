"""Several questions' tensors as one run of the engine, each with rows of its own in the first dimension, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from marram.runtime.contract import Tensor, TensorInfo
from marram.runtime.model import Answerer
from marram.runtime.session import format_shape
from marram.schema.errors import Invalid


def run(answerer: Answerer, items: Sequence[list[Tensor]], most: int) -> list[list[Tensor]]:
    """Every output of the file for each of `items`, which have one kind and any number of rows each.

    At most `most` rows go through the engine at once. Raises Invalid, Permanent.
    """
    session = answerer.session
    if len(items) == 1 and len(items[0][0]) <= most:
        return [session.run(items[0])]
    rows = [np.concatenate(column) if len(column) > 1 else column[0] for column in zip(*items, strict=True)]
    total = len(rows[0])
    parts = [session.run([tensor[at : at + most] for tensor in rows]) for at in range(0, total, most)]
    whole = [np.concatenate(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True)]
    answers, at = [], 0
    for item in items:
        count = len(item[0])
        # Copies: a view would keep everybody's answer in memory as long as one of them is read.
        answers.append([tensor[at : at + count].copy() for tensor in whole])
        at += count
    return answers


def in_order(tensors: Mapping[str, Tensor], inputs: Sequence[TensorInfo], where: str) -> list[Tensor]:
    """The tensors as the session takes them. Raises Invalid where they are not the model's, or not of equal length."""
    wanted = [info.name for info in inputs]
    if set(tensors) != set(wanted):
        raise Invalid(f"takes {', '.join(wanted)}; got {', '.join(tensors) or 'nothing'}", where=where)
    ordered = [tensors[name] for name in wanted]
    for info, tensor in zip(inputs, ordered, strict=True):
        takes = info.shape[1:]
        got = tensor.shape
        if len(got) != len(info.shape) or any(d not in (-1, n) for d, n in zip(takes, got[1:], strict=True)):
            raise Invalid(
                f"input {info.name} takes shape {format_shape((-1, *takes))}, got {format_shape(got)}", where=where
            )
    if len({len(tensor) for tensor in ordered}) != 1 or len(ordered[0]) == 0:
        raise Invalid("the inputs hold different numbers of items, or none", where=where)
    return ordered


def kind(tensors: Sequence[Tensor]) -> Hashable:
    """What two items have in common whose tensors can be joined: shapes but for the rows, types."""
    return tuple((tensor.shape[1:], tensor.dtype.str) for tensor in tensors)
