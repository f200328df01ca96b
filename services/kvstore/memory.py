"""Chunks in host memory: least recently used out, bytes capped."""

from collections import OrderedDict


class HostMemory:
    """Encoded chunks by key. Belongs to one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: OrderedDict[str, bytes] = OrderedDict()
        self._size_bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._chunks

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def size_bytes(self) -> int:
        """Bytes held, headers included."""
        return self._size_bytes

    def get(self, key: str) -> bytes | None:
        """Return a chunk and make it the most recently used; None for a miss."""
        data = self._chunks.get(key)
        if data is not None:
            self._chunks.move_to_end(key)
        return data

    def put(self, key: str, data: bytes) -> int:
        """Keep a chunk and return how many others had to leave.

        A chunk that alone exceeds the cap is not kept and displaces nothing.
        """
        if len(data) > self._max_bytes:
            return 0
        self._size_bytes += len(data) - len(self._chunks.pop(key, b""))
        self._chunks[key] = data
        num_evicted = 0
        while self._size_bytes > self._max_bytes:
            _, evicted = self._chunks.popitem(last=False)
            self._size_bytes -= len(evicted)
            num_evicted += 1
        return num_evicted
