"""The best that could have been done: each frame at the edge, in the cloud or dropped, by whoever knows the future.

A dynamic programme over the frames. What the past leaves behind is when the link and when the edge are free again, and
what was paid so far; of all such states only those stay that no other one beats in all three (a Pareto front).
"""

from __future__ import annotations

import math
from bisect import bisect_right

from marram.lab.oracle.stream import Stream

GRID_S = 0.004


def best_loss_s(stream: Stream, grid_s: float = GRID_S) -> float:
    """The least total loss, seconds. True link and true service times; both queues first come, first served.

    Times at which something is free again are rounded up to `grid_s`, so that states meet: the schedule found can be
    kept, and a finer grid would find one that is better by little. A frame that would be late is dropped instead: that
    costs the same and keeps nothing busy. Time O(frames x front x log front).
    """
    setting = stream.setting
    deadline_s, miss_s, size = setting.deadline_s, setting.miss_s, setting.payload_bytes
    finish = stream.up.finish
    front: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)]  # loss so far, link free, edge free
    for frame in range(setting.frames):
        now_s = stream.captured_s(frame)
        edge_s, cloud_s = stream.edge_s[frame], setting.rtt_s + stream.cloud_s[frame]
        left: dict[float, float] = {}
        reached: dict[tuple[float, float], float] = {}

        def reach(link_s: float, free_s: float, loss_s: float, reached: dict[tuple[float, float], float]) -> None:
            if loss_s < reached.get((link_s, free_s), math.inf):
                reached[link_s, free_s] = loss_s

        for loss_s, link_s, free_s in front:
            link_s, free_s = max(link_s, now_s), max(free_s, now_s)
            reach(link_s, free_s, loss_s + miss_s, reached)
            done_s = free_s + edge_s
            if done_s - now_s <= deadline_s:
                reach(link_s, _up(done_s, grid_s), loss_s + done_s - now_s, reached)
            if link_s not in left:
                left[link_s] = finish(link_s, size)
            latency_s = left[link_s] + cloud_s - now_s
            if latency_s <= deadline_s:
                reach(_up(left[link_s], grid_s), free_s, loss_s + latency_s, reached)
        front = _unbeaten([(loss_s, *state) for state, loss_s in reached.items()])
    return min(loss_s for loss_s, _, _ in front)


def _up(at_s: float, grid_s: float) -> float:
    return math.ceil(at_s / grid_s - 1e-9) * grid_s


def _unbeaten(states: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Those that no other one equals or betters in all three: by rising loss, a staircase of (link, edge) so far."""
    states.sort()
    kept: list[tuple[float, float, float]] = []
    links: list[float] = []  # rising; the edge's times beside them fall
    edges: list[float] = []
    for state in states:
        _, link_s, edge_s = state
        at = bisect_right(links, link_s)
        if at and edges[at - 1] <= edge_s:
            continue
        kept.append(state)
        if at and links[at - 1] == link_s:
            at -= 1
        end = at
        while end < len(links) and edges[end] >= edge_s:
            end += 1
        links[at:end], edges[at:end] = [link_s], [edge_s]
    return kept
