"""Keeps spans in SQLite (WAL), bounded by their number, and finds traces again."""

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self, cast
from urllib.parse import quote

from understudy.errors import FailedPrecondition
from understudy.local.traces.spans import Event, Span, Trace, Value
from understudy.telemetry import names

DEFAULT_MAX_SPANS: Final = 200_000
MAX_TRACE_SPANS: Final = 5_000
"""Spans read of one trace; a request makes at most 200."""

_BUSY_TIMEOUT_S: Final = 5.0
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS spans (
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    service TEXT NOT NULL,
    name TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    is_error INTEGER NOT NULL,
    status_message TEXT NOT NULL,
    is_escalated INTEGER NOT NULL,
    attributes TEXT NOT NULL,
    events TEXT NOT NULL,
    PRIMARY KEY (trace_id, span_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spans_by_start ON spans (start_ns);
CREATE INDEX IF NOT EXISTS spans_by_name ON spans (name, start_ns);
"""
_LATEST_NAMED: Final = """
SELECT trace_id FROM spans WHERE name = ? ORDER BY start_ns DESC LIMIT 1
"""
_LATEST: Final = """
SELECT trace_id FROM spans ORDER BY start_ns DESC LIMIT 1
"""
_LATEST_ESCALATED: Final = """
SELECT trace_id FROM spans WHERE name = ? AND is_escalated
ORDER BY start_ns DESC LIMIT 1
"""
_OLDEST: Final = """
DELETE FROM spans WHERE trace_id IN (
    SELECT trace_id FROM spans GROUP BY trace_id ORDER BY MAX(start_ns) LIMIT ?)
"""


class TraceStore:
    """One SQLite file of spans; one writer, many readers. Use it from one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, max_spans: int) -> None:
        self._connection = connection
        self._max_spans = max_spans

    @classmethod
    def open(
        cls, path: Path, *, max_spans: int = DEFAULT_MAX_SPANS, read_only: bool = False
    ) -> Self:
        """Open the file, which a writer creates where it is missing.

        Raises `FailedPrecondition` for a file that is missing (read-only), no trace store, or of
        another version.
        """
        try:
            return cls(_connect(path, read_only=read_only), max_spans)
        except (sqlite3.Error, OSError) as error:
            raise FailedPrecondition(
                f"The trace store {path} cannot be opened ({error}); start the platform, which "
                "creates it, or remove the file if it is no trace store."
            ) from error

    def add(self, spans: Iterable[Span]) -> None:
        """Store spans, replacing those sent before, and make room for them."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_to_row(span) for span in spans],
            )
            self._trim()

    def get(self, trace_id: str) -> Trace | None:
        """The trace of this id (32 hex digits, any case), None where nothing of it is stored."""
        rows = self._connection.execute(
            "SELECT * FROM spans WHERE trace_id = ? ORDER BY start_ns, span_id LIMIT ?",
            (trace_id.lower(), MAX_TRACE_SPANS),
        ).fetchall()
        spans = tuple(_from_row(row) for row in rows)
        return Trace(trace_id.lower(), spans) if spans else None

    def latest(self) -> Trace | None:
        """The latest request's trace, else the latest trace of any kind, None when empty."""
        return self._found(_LATEST_NAMED, names.ROUTER_GENERATE) or self._found(_LATEST)

    def latest_escalated(self) -> Trace | None:
        """The trace of the latest request that went from the SLM to the LLM, where there is one."""
        return self._found(_LATEST_ESCALATED, names.ROUTER_GENERATE)

    def count(self) -> int:
        """Spans stored."""
        (number,) = self._connection.execute("SELECT COUNT(*) FROM spans").fetchone()
        return int(number)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, query: str, *parameters: str) -> Trace | None:
        row = self._connection.execute(query, parameters).fetchone()
        return None if row is None else self.get(row["trace_id"])

    def _trim(self) -> None:
        """Delete the oldest traces, a sixteenth of all at a time, until the rest fits."""
        while self.count() > self._max_spans:
            (traces,) = self._connection.execute(
                "SELECT COUNT(DISTINCT trace_id) FROM spans"
            ).fetchone()
            self._connection.execute(_OLDEST, (max(1, traces // 16),))


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        path.parent.mkdir(parents=True, exist_ok=True)
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        check_same_thread=False,
    )
    try:
        connection.row_factory = sqlite3.Row
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in ((_SCHEMA_VERSION,) if read_only else (0, _SCHEMA_VERSION)):
            raise sqlite3.DatabaseError(f"its version is {version}, not {_SCHEMA_VERSION}")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _to_row(span: Span) -> tuple[str | int, ...]:
    return (
        span.trace_id,
        span.span_id,
        span.parent_id,
        span.service,
        span.name,
        span.start_ns,
        span.end_ns,
        int(span.is_error),
        span.status_message,
        int(span.attributes.get(names.ESCALATED) is True),
        json.dumps(dict(span.attributes)),
        json.dumps([[event.time_ns, event.name] for event in span.events]),
    )


def _from_row(row: sqlite3.Row) -> Span:
    attributes = cast("dict[str, Value | list[str]]", json.loads(row["attributes"]))
    return Span(
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        parent_id=row["parent_id"],
        service=row["service"],
        name=row["name"],
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        is_error=bool(row["is_error"]),
        status_message=row["status_message"],
        attributes={
            key: tuple(value) if isinstance(value, list) else value
            for key, value in attributes.items()
        },
        events=tuple(Event(time_ns, name) for time_ns, name in json.loads(row["events"])),
    )
