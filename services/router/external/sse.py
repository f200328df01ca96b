"""Server-sent events from bytes, bounded: the `data` of each event, whatever the chunks were."""

from __future__ import annotations

from collections.abc import Iterator

from understudy.errors import Unavailable

MAX_LINE_BYTES = 1 << 20
MAX_EVENT_BYTES = 1 << 20
MAX_STREAM_BYTES = 64 << 20
"""Of a whole answer: with candidates, an event takes about 500 bytes a token."""


class EventReader:
    """Push bytes as they come; take the data of every event that is complete.

    Comments, names and ids are passed over. Raises Unavailable for what is no event stream.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []
        self._size_bytes = 0
        self._num_read = 0

    def push(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of the events that these bytes complete."""
        self._num_read += len(chunk)
        if self._num_read > MAX_STREAM_BYTES:
            raise Unavailable(f"The engine sent more than {MAX_STREAM_BYTES} bytes.")
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if len(self._pending) > MAX_LINE_BYTES:
            raise Unavailable(f"The engine sent a line of more than {MAX_LINE_BYTES} bytes.")
        for line in lines:
            if (data := self._take(line.removesuffix(b"\r"))) is not None:
                yield data

    def _take(self, line: bytes) -> bytes | None:
        """Take one line; return the data of the event that it ends."""
        if not line:
            data, self._data, self._size_bytes = self._data, [], 0
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._size_bytes += len(value)
            if self._size_bytes > MAX_EVENT_BYTES:
                raise Unavailable(f"The engine sent an event of more than {MAX_EVENT_BYTES} bytes.")
            self._data.append(value.removeprefix(b" "))
        elif name not in (b"", b"event", b"id", b"retry"):
            raise Unavailable("The engine sent what is no stream of events.")
        return None
