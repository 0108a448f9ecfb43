"""The one statement SQL's dialects spell differently: insert, and on a taken key either leave the row or change it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

# PostgreSQL takes at most 65,535 parameters in one statement.
_ROWS_A_STATEMENT = 1000


def insert_ignore(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> int:
    """Insert `rows` (all with the same columns), leaving out those whose key is there; returns how many were new.

    In the driver's own words: building SQLAlchemy's parameters costs a fast ingest a quarter of its time.
    """
    if not rows:
        return 0
    columns = list(rows[0])
    in_process = connection.dialect.name == "sqlite"
    one = f"({', '.join(['?' if in_process else '%s'] * len(columns))})"
    head, tail = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ", " ON CONFLICT DO NOTHING"
    values = [tuple(row[column] for column in columns) for row in rows]
    if in_process:
        result = connection.exec_driver_sql(head + one + tail, values, execution_options={"preserve_rowcount": True})
        return max(0, result.rowcount)
    new = 0
    for begin in range(0, len(values), _ROWS_A_STATEMENT):  # one message to the server instead of one for each row
        part = values[begin : begin + _ROWS_A_STATEMENT]
        flat = tuple(value for row in part for value in row)
        new += connection.exec_driver_sql(head + ", ".join([one] * len(part)) + tail, flat).rowcount
    return new


def upsert(connection: Connection, table: Table, row: dict[str, Any], change: dict[str, Any] | None = None) -> None:
    """Insert `row`; where its primary key is there, set `change` (default: all of `row`) on it.

    Values of `change` may be SQL expressions over the table's columns (the row that is there).
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    keys = [column.name for column in table.primary_key.columns]
    values = change if change is not None else {name: value for name, value in row.items() if name not in keys}
    connection.execute(insert(table).values(**row).on_conflict_do_update(index_elements=keys, set_=values))
