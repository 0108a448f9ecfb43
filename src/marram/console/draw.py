"""The page's parts as HTML: tiles, a device's card with its charts, rows of results. Pure: data in, markup out.

Everything that came from a device or a person passes `escape`; there is no other way into the markup.
"""

from __future__ import annotations

import time
from html import escape
from typing import Any

from marram.console.watcher import HISTORY_S, Picture, Point
from marram.schema.api import EventView
from marram.schema.device import REPORT_INTERVAL_S, AppState, Device, DeviceState, ReportedApp
from marram.schema.figures import figure
from marram.schema.units import format_duration, format_rate, format_size

# The size of a card's chart, in units of its drawing.
_WIDTH, _HEIGHT = 300, 44


def tiles(picture: Picture) -> str:
    """The row of figures at the top."""
    apps = [app for d in picture.devices if d.reported and d.state is DeviceState.ONLINE for app in d.reported.apps]
    fps = sum(figure(app.stats.get("fps")) or 0 for app in apps)
    edge = sum(figure(app.stats.get("edge")) or 0 for app in apps)
    cloud = sum(figure(app.stats.get("cloud")) or 0 for app in apps)
    waiting = sum(d.reported.outbox_depth for d in picture.devices if d.reported)
    status = picture.status
    online = sum(d.state is DeviceState.ONLINE for d in picture.devices)
    share = f"{100 * edge / (edge + cloud):.0f}<small>%</small>" if edge + cloud else "–"
    parts = [
        _tile("devices online", f"{online:,}<small> of {len(picture.devices):,}</small>", "devices-online"),
        _tile("frames answered", f"{fps:,.1f}<small>/s</small>", "fps"),
        _tile("answered at the edge", share, "edge-share"),
        _tile("events stored", f"{status.events:,}" if status else "–", "events-stored"),
        _tile("waiting on devices", f"{waiting:,}", "outbox-total"),
    ]
    return "".join(parts)


def _tile(name: str, value: str, id: str) -> str:
    return f'<div class="tile"><div class="value" data-id="{id}">{value}</div><div class="name">{name}</div></div>'


def health(picture: Picture) -> str:
    """A dot for each part of the cloud, or what keeps the page from being fresh."""
    if picture.fault:
        return f'<span class="pill bad" role="alert">{escape(picture.fault[:300])}</span>'
    if picture.status is None:
        return '<span class="pill">looking …</span>'
    return "".join(
        f'<span class="pill {"ok" if check.ok else "bad"}" title="{escape(check.detail[:300], quote=True)}">'
        f"<i></i>{escape(check.name)}</span>"
        for check in picture.status.checks
    ) + "".join(
        f'<span class="pill warn" role="alert">{escape(words[:300])}</span>' for words in picture.status.warnings
    )


def no_devices(may_join: bool = True) -> str:
    """What to do first, for whom it is to do."""
    if not may_join:
        return '<div class="empty"><h2>No devices yet</h2><p>An operator can let some join.</p></div>'
    return (
        '<div class="empty"><h2>No devices yet</h2><p>Make a token where this cloud runs, then type the line it '
        "prints on the device:</p>"
        "<pre>marram token create --labels site=home</pre>"
        "<pre>marram edge join …   # on the device\nmarram edge run</pre></div>"
    )


def card(device: Device, histories: dict[str, list[Point]], *, may_deploy: bool = True) -> str:
    """One device: its state, and each app's placement, delay, link and outbox."""
    now_s = time.time()
    state = device.state.value
    labels = "".join(
        f'<span class="label">{escape(f"{key}={value}"[:60])}</span>'
        for key, value in sorted(device.labels.items())[:6]
    )
    heard = "never heard" if device.seen_s is None else f"heard {_ago(now_s - device.seen_s)}"
    head = (
        f'<header><span class="dot {state}"></span><h2>{escape(device.id)}</h2>'
        f'<span class="state {state}">{state}</span><span class="heard">{heard}</span></header>'
        f'<div class="labels">{labels}</div>'
    )
    said = {app.name: app for app in device.reported.apps} if device.reported else {}
    wanted = {app.name: app.version for app in device.desired.apps}
    body = "".join(
        _app(said[name], wanted.get(name), histories.get(name, []))
        if name in said
        else f'<p class="hint"><b>{escape(name)} {wanted[name]}</b> is on its way</p>'
        for name in sorted(said.keys() | wanted.keys())
    )
    if not body:
        how = "<br><code>marram deploy app.yaml --to all</code>" if may_deploy else ""
        body = f'<p class="hint">No app here yet.{how}</p>'
    return f"{head}{body}{_foot(device)}"


def _app(app: ReportedApp, wanted: int | None, points: list[Point]) -> str:
    stats = app.stats
    good = app.state in (AppState.COMMITTED, AppState.PROVISIONAL)
    shade = "ok" if app.state is AppState.COMMITTED else "" if good else "bad"
    state = escape(app.state.value.replace("_", " "))
    going = f' <span class="chip">→ {wanted}</span>' if wanted is not None and wanted != app.version else ""
    fps = figure(stats.get("fps"))
    line = (
        f'<div class="app"><b>{escape(app.name)}</b> {app.version} <span class="chip {shade}">{state}</span>{going}'
        f'<span class="fps">{"" if fps is None else f"{fps:.1f} frames/s"}</span></div>'
    )
    if app.reason:
        line += f'<p class="fault">{escape(app.reason[:400])}</p>'
    return line + _chosen(app) + _placement(stats, points) + _figures(stats, points) + _errors(stats)


def _chosen(app: ReportedApp) -> str:
    """Which variant of each model runs there, and why."""
    return "".join(
        f'<p class="why">{escape(each.model[:80])} {escape(each.variant)}: {escape(each.why[:200])}</p>'
        for each in app.chosen[:8]
    )


def _placement(stats: dict[str, Any], points: list[Point]) -> str:
    """Where inferences ran: now (the last half minute), and over the last minutes as stacked bars."""
    if not (figure(stats.get("edge")) or figure(stats.get("cloud"))):
        return ""
    recent = [p for p in points if points[-1].time_s - p.time_s < 30] if points else []
    edge = sum(p.edge for p in recent) or 0
    cloud = sum(p.cloud for p in recent) or 0
    if not edge + cloud:
        edge, cloud = int(figure(stats.get("edge")) or 0), int(figure(stats.get("cloud")) or 0)
    at_edge = round(100 * edge / (edge + cloud)) if edge + cloud else 0
    words = f"{at_edge} % at the edge, {100 - at_edge} % in the cloud"
    return (
        f'<div class="shares" data-edge="{at_edge}"><span class="edge">edge {at_edge} %</span>'
        f'<span class="cloud">cloud {100 - at_edge} %</span></div>'
        f'<svg class="bars" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{words}; the last minutes">{_bars(points)}</svg>'
    )


def _bars(points: list[Point]) -> str:
    """Stacked bars, one a report, newest at the right: edge from below, cloud on top; a gap where none was."""
    span_s = _span_s(points)
    parts = []
    for index, point in enumerate(points):
        placed = point.edge + point.cloud
        if not placed:
            continue
        # A bar reaches back to the report before; after a silence it stays as wide as a usual one.
        before_s = points[index - 1].time_s if index else point.time_s - REPORT_INTERVAL_S
        width = _WIDTH * min(point.time_s - before_s, 2 * REPORT_INTERVAL_S) / span_s
        x = _WIDTH * (1 - (points[-1].time_s - point.time_s) / span_s) - width
        edge = _HEIGHT * point.edge / placed
        parts.append(_rect("c", x, 0, width, _HEIGHT - edge))
        parts.append(_rect("e", x, _HEIGHT - edge, width, edge))
    return "".join(parts)


def _rect(name: str, x: float, y: float, width: float, height: float) -> str:
    if height <= 0:
        return ""
    return f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{max(width - 0.5, 0.8):.1f}" height="{height:.1f}"/>'


def _span_s(points: list[Point]) -> float:
    """The time a chart spans: what is known, but a minute at least and five at most."""
    return min(HISTORY_S, max(60.0, points[-1].time_s - points[0].time_s + REPORT_INTERVAL_S)) if points else HISTORY_S


def _figures(stats: dict[str, Any], points: list[Point]) -> str:
    cells = [
        _cell("p50", _ms(stats.get("p50_ms"))),
        _cell("p95", _ms(stats.get("p95_ms"))),
        _cell("link", _link(stats)),
    ]
    # What always choosing one side would have cost, where audit blocks measured it.
    for name, key in (("all-edge", "always_edge_p50_ms"), ("all-cloud", "always_cloud_p50_ms")):
        if figure(stats.get(key)) is not None:
            cells.append(_cell(name, _ms(stats.get(key))))
    if line := _spark(points):
        # Beside the audit's two figures, or a row of its own.
        cells.append(_cell("p50 over time", line, "" if len(cells) > 3 else "wide"))
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _cell(name: str, value: str, shape: str = "") -> str:
    return f'<div data-figure="{name}" class="{shape}"><dt>{name}</dt><dd>{value}</dd></div>'


def _spark(points: list[Point]) -> str:
    """The median delay over time as a small line; it starts at zero, so its height means something."""
    values = [(p.time_s, p.p50_ms) for p in points if p.p50_ms is not None]
    if len(values) < 3:
        return ""
    span_s, newest_s, top = _span_s(points), values[-1][0], max(v for _, v in values) or 1.0
    places = " ".join(f"{119 - 118 * (newest_s - t) / span_s:.1f},{21 - 19 * v / top:.1f}" for t, v in values)
    shape = 'viewBox="0 0 120 22" preserveAspectRatio="none" aria-hidden="true"'
    return f'<svg class="spark" {shape}><polyline points="{places}"/></svg>'


def _link(stats: dict[str, Any]) -> str:
    if stats.get("link_up") is False:
        return '<span class="down">down</span>'
    rate, rtt = figure(stats.get("link_rate_bit_s")), figure(stats.get("link_rtt_ms"))
    parts = ([format_rate(rate)] if rate is not None else []) + ([f"{rtt:.0f} ms"] if rtt is not None else [])
    return " · ".join(parts) or "–"


def _errors(stats: dict[str, Any]) -> str:
    errors = int(figure(stats.get("errors")) or 0)
    if not errors:
        return ""
    last = escape(str(stats.get("last_error") or "")[:300])
    return f'<p class="fault">{errors:,} skipped for a fault{f": {last}" if last else ""}</p>'


def _foot(device: Device) -> str:
    if device.reported is None:
        return ""
    depth, given_up = device.reported.outbox_depth, device.reported.dropped
    size = f" ({format_size(device.reported.outbox_bytes)})" if depth else ""
    waiting = f'<span class="outbox{" some" if depth else ""}">{depth:,} in the outbox{size}</span>'
    lost = f'<span class="down">{given_up:,} given up</span>' if given_up else ""
    machine = " · ".join(
        part
        for part in (
            escape(device.info.machine[:20]),
            f"{device.info.cores} cores" if device.info.cores else "",
            f"{format_size(device.reported.memory_bytes)} in use" if device.reported.memory_bytes else "",
        )
        if part
    )
    return f"<footer>{waiting}{lost}<span>{machine}</span></footer>"


def tail(events: list[EventView]) -> str:
    """The newest events as table rows."""
    if not events:
        return '<p class="hint">Nothing yet: what devices answer appears here as it is stored.</p>'
    rows = "".join(_row(event) for event in events)
    return (
        '<table><thead><tr><th>time</th><th>device</th><th class="wide">app</th><th>answer</th><th>where</th>'
        f'<th class="right">delay</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _row(event: EventView) -> str:
    data = event.data
    place = data.get("place") if data.get("place") in ("edge", "cloud", "split", "peer") else ""
    delay = figure(data.get("latency_ms"))
    kind = event.kind.value
    tag = f'<span class="chip {kind}">{kind}</span> ' if kind != "result" else ""
    return (
        f'<tr data-event="{event.id}"><td class="time">{_clock(event.time_s)}</td>'
        f'<td class="device">{escape(event.device)}</td>'
        f'<td class="wide">{escape(event.app)}</td><td class="answer">{tag}{escape(answer(event))}</td>'
        f'<td><span class="place {place}">{place}</span></td>'
        f'<td class="right">{"" if delay is None else f"{delay:.0f} ms"}</td></tr>'
    )


def answer(event: EventView) -> str:
    """What the event says, in a few words."""
    data = event.data
    inner = data.get("result")
    result = inner if isinstance(inner, dict) else data
    words: list[str] = []
    if event.kind.value == "message":
        words.append(f"{data.get('topic', '')} {str(data.get('payload', ''))[:120]}".strip())
    if event.kind.value == "alert":
        words.append(f"{data.get('condition', '')} {data.get('state', '')}".strip())
    found = result.get("detections")
    if isinstance(found, list):
        names = [str(d.get("label")) for d in found[:100] if isinstance(d, dict)]
        words.append(", ".join(f"{names.count(n)} × {n}" for n in dict.fromkeys(names)) or "nothing found")
    elif result.get("label") is not None:
        confidence = figure(result.get("confidence"))
        words.append(str(result["label"]) + ("" if confidence is None else f" {100 * confidence:.0f} %"))
    for key in ("value", "score"):
        if (value := figure(result.get(key))) is not None:
            words.append(f"{'' if key == 'value' else 'score '}{value:.4g} {result.get('unit') or ''}".strip())
    return (" · ".join(words) or ", ".join(f"{k} {v}" for k, v in list(data.items())[:4]))[:240]


def _ms(value: Any) -> str:
    number = figure(value)
    if number is None:
        return "–"
    return f"{number:.0f} ms" if number >= 10 else f"{number:.1f} ms"


def _ago(past_s: float) -> str:
    if past_s < 1.5:
        return "just now"
    return f"{past_s / 86400:.0f} days ago" if past_s >= 2 * 86400 else f"{format_duration(round(past_s))} ago"


def _clock(time_s: float) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(time_s))
    except (OverflowError, ValueError, OSError):
        return "–"
