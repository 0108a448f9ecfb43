"""series: files as people have them, whole or broken; windows by rows and by time."""

from __future__ import annotations

import datetime
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marram.pipeline.contract import Frame
from marram.pipeline.plugins import open_source
from marram.pipeline.sources.series import Series
from marram.pipeline.windows import Window
from marram.schema.app import SeriesSource, parse_app
from marram.schema.errors import Invalid, Missing

CSV = (
    "time,temperature,state\n2026-11-22T10:00:00Z,20.5,ok\n2026-11-22T10:00:01Z,21.5,ok\n2026-11-22T10:00:02Z,22,hot\n"
)


def opened(folder: Path, content: str | bytes, options: str = "", name: str = "a.csv") -> Series:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    app = parse_app(f"app: test\nsource: {{series: {name}{options}}}\nsteps: [{{filter: 'true'}}]")
    assert isinstance(app.source, SeriesSource)
    source = open_source(app.source, folder)
    assert isinstance(source, Series)
    return source


def read(folder: Path, content: str | bytes, options: str = "", name: str = "a.csv") -> list[Frame]:
    return list(opened(folder, content, options, name).frames())


# ---------------------------------------------------------------- rows


def test_rows_become_readings(tmp_path: Path) -> None:
    frames = read(tmp_path, CSV)
    assert [f.index for f in frames] == [0, 1, 2]
    assert frames[0].reading == {"temperature": 20.5, "state": "ok", "time": "2026-11-22T10:00:00Z"}
    assert frames[2].time_s == datetime.datetime(2026, 11, 22, 10, 0, 2, tzinfo=datetime.UTC).timestamp()
    assert frames[2].tensor is not None
    assert (frames[2].tensor.dtype, frames[2].tensor.tolist()) == (np.float32, [[22.0]])
    assert frames[0].name == "a.csv"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("a.tsv", CSV.replace(",", "\t")),
        ("a.csv", CSV.replace(",", ";")),
        ("a.csv", CSV.replace(",", ";").replace(".5", ",5")),
        ("a.csv", "\ufeff" + CSV),
        ("a.csv", CSV.replace("\n", "\r\n")),
        ("a.csv", CSV.rstrip("\n")),
        ("a.csv", CSV.replace("\n", "\n\n")),
        ("a.csv", CSV.replace("20.5", '"20.5"')),
        ("a.csv", CSV.replace("time,temperature", " time , temperature ")),
        (
            "a.jsonl",
            '{"time": "2026-11-22T10:00:00Z", "temperature": 20.5, "state": "ok"}\n\n'
            '{"time": "2026-11-22T10:00:01Z", "temperature": 21.5, "state": "ok"}\n'
            '{"time": "2026-11-22T10:00:02Z", "temperature": 22, "state": "hot"}',
        ),
    ],
)
def test_the_same_rows_in_every_dress(tmp_path: Path, name: str, content: str | bytes) -> None:
    source = opened(tmp_path, content, name=name)
    frames = list(source.frames())
    assert [(f.reading["temperature"], f.reading["state"]) for f in frames] == [(20.5, "ok"), (21.5, "ok"), (22, "hot")]
    assert frames[1].time_s - frames[0].time_s == 1
    assert source.errors == 0


@pytest.mark.parametrize(
    ("written", "unix_s"),
    [
        ("1700000000", 1_700_000_000),
        ("1700000000.25", 1_700_000_000.25),
        ("1700000000250", 1_700_000_000.25),
        ("1700000000250000", 1_700_000_000.25),
        ("1700000000250000000", 1_700_000_000.25),
        ("2023-11-14T22:13:20+00:00", 1_700_000_000),
        ("2023-11-15 06:13:20+08:00", 1_700_000_000),
        ("2023-11-14 22:13:20", datetime.datetime(2023, 11, 14, 22, 13, 20).timestamp()),
        ("12.5", 12.5),
    ],
)
def test_times_as_files_write_them(tmp_path: Path, written: str, unix_s: float) -> None:
    (frame,) = read(tmp_path, f"Timestamp,v\n{written},1\n")
    assert frame.time_s == pytest.approx(unix_s, abs=1e-3)


def test_chosen_columns_in_the_order_asked(tmp_path: Path) -> None:
    (frame,) = read(tmp_path, "a,b,c\n1,2,3\n", ", columns: [c, a]")
    assert frame.tensor is not None
    assert frame.tensor.tolist() == [[3, 1]]
    assert frame.reading == {"c": 3, "a": 1}


def test_a_field_of_an_object_inside(tmp_path: Path) -> None:
    rows = '{"motor": {"rpm": 90, "at": 5}, "a": 1}\n{"motor": 7, "a": 2}\n{"motor": {"rpm": 95, "at": 6}, "a": 3}\n'
    source = opened(tmp_path, rows, ", columns: [a, motor.rpm], time: motor.at", name="a.jsonl")
    frames = list(source.frames())
    assert [f.tensor.tolist() for f in frames] == [[[1, 90]], [[3, 95]]]
    assert frames[0].reading["motor.rpm"] == 90 and [f.time_s for f in frames] == [5, 6]
    assert (source.errors, source.last_error) == (1, "a.jsonl:2 motor.rpm is missing")
    with pytest.raises(Invalid, match=r'no column "motor\.volts"'):
        opened(tmp_path, rows, ", columns: [motor.volts]", name="a.jsonl")


def test_columns_that_are_counted_have_a_header(tmp_path: Path) -> None:
    """As pandas writes a table without names."""
    assert [f.reading for f in opened(tmp_path, "0,1\n5,6\n").frames()] == [{"0": 5, "1": 6}]


def test_every_tenth_row(tmp_path: Path) -> None:
    frames = read(tmp_path, "v\n" + "\n".join(map(str, range(100))), ", every: 10")
    assert [f.reading["v"] for f in frames] == list(range(0, 100, 10))


def test_repeat_starts_over_until_closed(tmp_path: Path) -> None:
    source = opened(tmp_path, "v\n1\n2\n", ", repeat: true")
    frames = source.frames()
    assert [next(frames).reading["v"] for _ in range(5)] == [1, 2, 1, 2, 1]
    assert next(frames).index == 5
    source.close()
    assert list(frames) == []


def test_close_ends_a_paced_one_at_once(tmp_path: Path) -> None:
    source = opened(tmp_path, "v\n1\n2\n", ", every: 1 h")
    frames = source.frames()
    assert next(frames).reading["v"] == 1
    source.close()
    assert list(frames) == []


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w") as file:
        file.write("time,v\n")
        file.writelines(f"{i},{i % 7}\n" for i in range(100_000))
    source = open_source(SeriesSource(series="a.csv"), tmp_path)
    tracemalloc.start()
    try:
        for count, _ in enumerate(source.frames()):
            if count == 10_000:
                break
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- what is wrong with a file


@pytest.mark.parametrize(
    ("content", "errors", "says", "values"),
    [
        ("v,w\n1,2\nabc,2\n3,4\n", 1, "a.csv:3 v is 'abc', not a number", [1, 3]),
        ("v,w\n1,2\nnan,2\n3,4\n", 1, "a.csv:3 v is 'nan'", [1, 3]),
        ("v,w\n1,2\ninf,2\n,2\n3,4\n", 2, "a.csv:4 v is ''", [1, 3]),
        ("v,w\n1,2\n1\n1,2,3\n3,4\n", 2, "a.csv:4 has 3 fields where the header has 2", [1, 3]),
        ("time,v\n1,1\nnever,2\n3,3\n", 1, "a.csv:3 time is 'never', not a time", [1, 3]),
        ("v,w\n1,2\n" + "9" * 200_000 + ",2\n3,4\n", 1, "field larger", [1, 3]),
        (b"v,w\n1,2\n\xff\xfe,2\n3,4\n", 1, "not a number", [1, 3]),
        (b"v,w\n1,2\n\x00\x00,2\n3,4\n", 1, "not a number", [1, 3]),
    ],
)
def test_a_bad_row_is_counted_and_stepped_over(
    tmp_path: Path, content: str | bytes, errors: int, says: str, values: list[int]
) -> None:
    source = opened(tmp_path, content)
    assert [f.reading["v"] for f in source.frames()] == values
    assert source.errors == errors
    assert says in source.last_error


def test_a_bad_json_line_is_counted_and_stepped_over(tmp_path: Path) -> None:
    lines = ['{"v": 1}', "{", "[1]", "null", "{}", '{"w": 1}', '{"v": NaN}', '{"v": true}', "[" * 9000, '{"v": 2}']
    source = opened(tmp_path, "\n".join(lines), ", columns: [v]", "a.jsonl")
    assert [f.reading["v"] for f in source.frames()] == [1, 2]
    assert source.errors == 8


def test_a_truncated_gz_gives_what_can_be_read(tmp_path: Path) -> None:
    rows = "v\n" + "\n".join(str(i * 7919 % 1000) for i in range(5000))
    whole = gzip.compress(rows.encode())
    source = opened(tmp_path, whole[: len(whole) // 2], name="a.csv.gz")
    frames = list(source.frames())
    assert 500 < len(frames) < 5000
    assert source.errors == 1
    assert "damaged .gz" in source.last_error


@pytest.mark.parametrize(
    ("content", "options", "name", "kind", "says"),
    [
        (None, "", "absent.csv", Missing, "no such file"),
        ("", "", "a.csv", Invalid, "holds no rows"),
        ("v,w\n", "", "a.csv", Invalid, "holds no rows"),
        ("v,v\n1,2\n", "", "a.csv", Invalid, "different column names"),
        ("1.5,2\n3,4\n", "", "a.csv", Invalid, "begins with numbers, not with a header of column names. Write a first"),
        ("Temp (°C)\n1\n".encode("latin-1"), "", "a.csv", Invalid, "header in UTF-8. Is it text? Then convert it"),
        ("v\n1\n".encode("utf-16"), "", "a.csv", Invalid, "header in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "", "a.csv", Invalid, "a.csv"),
        (b"not a gz at all", "", "a.csv.gz", Invalid, "holds no rows"),
        (CSV, ", columns: [temprature]", "a.csv", Invalid, 'did you mean "temperature"?'),
        (CSV, ", time: when", "a.csv", Invalid, 'no column "when"; it has time, temperature, state'),
        ("v\n1\n", ", window: 2 s", "a.csv", Invalid, "needs to know when each row was measured"),
        ("v\n1\n", ", window: 0", "a.csv", Invalid, "source.window: must be more than 0"),
        ("v\n1\n", ", every: 0", "a.csv", Invalid, "source.every: must be more than 0"),
        (CSV, ", window: 2 s, every: 0 s", "a.csv", Invalid, "source.every: must be more than 0"),
    ],
)
def test_what_is_no_series_is_said_at_the_start(
    tmp_path: Path, content: Any, options: str, name: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as refused:
        if content is None:
            open_source(SeriesSource(series=name), tmp_path)
        else:
            opened(tmp_path, content, options, name)
    assert says in str(refused.value)


def test_a_folder_is_no_series(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(Invalid, match="is a folder"):
        open_source(SeriesSource(series="a.csv"), tmp_path)


# ---------------------------------------------------------------- windows


def windows(times: list[float], span: float | int, every: float | int | None = None) -> list[list[float]]:
    window = Window(span, every)
    due = (window.add(at, {"v": at}) for at in times)
    return [[round(at, 3) for at, _ in rows] for rows in due if rows is not None]


@pytest.mark.parametrize(
    ("times", "span", "every", "wanted"),
    [
        (range(6), 2.0, None, [[0, 1], [2, 3]]),
        (range(6), 2.0, 1.0, [[0, 1], [1, 2], [2, 3], [3, 4]]),
        (range(7), 3, None, [[0, 1, 2], [3, 4, 5]]),
        (range(5), 3, 1, [[0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        (range(8), 3, 2.0, [[0, 1, 2], [2, 3, 4], [4, 5, 6]]),
        (range(8), 2.0, 3, [[1, 2], [4, 5]]),
        # A gap: no window of what came before it is given again and again afterwards.
        ([0, 1, 2, 50, 51, 52], 2.0, 1.0, [[0, 1], [1, 2], [50], [50, 51]]),
        # The clock is set back: no window holds rows of both times.
        ([100, 101, 102, 10, 11, 12], 2.0, None, [[100, 101], [10, 11]]),
        ([100, 101, 10, 11, 12], 3, None, [[10, 11, 12]]),
        ([1, 1, 1, 1], 2, None, [[1, 1], [1, 1]]),
    ],
)
def test_windows(times: Any, span: float | int, every: float | int | None, wanted: list[list[float]]) -> None:
    assert windows([float(t) for t in times], span, every) == wanted


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 20))
def test_windows_of_a_steady_series_all_have_as_many_rows(span: int, every: int, hz: int) -> None:
    found = windows([i / hz for i in range(400)], span / hz, every / hz)
    assert {len(rows) for rows in found} <= {span}
    assert len(found) == max(0, (400 - span + every - 1) // every)
    starts = [rows[0] for rows in found]
    assert np.allclose(np.diff(starts), every / hz, atol=2e-3)


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(1, 8), st.integers(1, 8))
def test_windows_of_rows_never_mix_times(times: list[float], span: int, every: int) -> None:
    for rows in windows(times, span, every):
        assert len(rows) == span
        assert rows == sorted(rows)


def test_a_window_is_columns_and_a_tensor(tmp_path: Path) -> None:
    (frame,) = read(tmp_path, CSV, ", window: 3")
    assert frame.reading == {"temperature": [20.5, 21.5, 22], "state": ["ok", "ok", "hot"]}
    assert frame.tensor is not None
    assert frame.tensor.tolist() == [[20.5], [21.5], [22]]
    assert frame.time_s == datetime.datetime(2026, 11, 22, 10, 0, 2, tzinfo=datetime.UTC).timestamp()


def test_the_last_full_window_of_a_file_is_given(tmp_path: Path) -> None:
    content = "time,v\n" + "".join(f"{i},{i}\n" for i in range(6))
    frames = read(tmp_path, content, ", window: 2 s")
    assert [f.reading["v"] for f in frames] == [[0, 1], [2, 3], [4, 5]]
    assert [f.index for f in frames] == [0, 1, 2]
    assert len(read(tmp_path, content + "6,6\n", ", window: 2 s")) == 3


def test_a_repeated_file_never_joins_its_end_to_its_beginning(tmp_path: Path) -> None:
    source = opened(tmp_path, "v\n1\n2\n3\n", ", window: 2, repeat: true")
    frames = source.frames()
    assert [next(frames).reading["v"] for _ in range(3)] == [[1, 2], [1, 2], [1, 2]]
    source.close()


def test_a_real_series(shared_data: Path) -> None:
    path = "industrial/nab/machine_temperature_system_failure.csv"
    source = open_source(SeriesSource(series=path, window=24, every=12), shared_data)
    frames = list(source.frames())
    # In one place its clock runs backwards: the windows start anew there.
    assert len(frames) == 1888
    assert {f.tensor.shape for f in frames if f.tensor is not None} == {(24, 1)}
    assert source.errors == 0
    assert json.dumps(frames[0].reading).startswith('{"value": [73.96732207')
