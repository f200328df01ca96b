"""Reads what an engine sends around an answer, bounded in bytes and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import httpx2

READ_OUT_S: Final = 0.2
"""Longest wait for the end of a response whose answer is whole; then its connection is closed."""
MAX_READ_OUT_BYTES: Final = 64 * 1024


async def read_body(response: httpx2.Response, max_bytes: int) -> bytes:
    """Read a body up to a limit; what is beyond it is left."""
    data = b""
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > max_bytes:
            break
    return data[: max_bytes + 1]


async def read_out(chunks: AsyncIterator[bytes]) -> None:
    """Read what follows an answer that is whole, so that its connection can be used again."""
    num_read = 0
    with suppress(httpx2.HTTPError, httpx2.StreamError, TimeoutError):
        async with asyncio.timeout(READ_OUT_S):
            async for chunk in chunks:
                num_read += len(chunk)
                if num_read > MAX_READ_OUT_BYTES:
                    return
