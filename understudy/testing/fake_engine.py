"""An OpenAI-compatible engine on a loopback port whose every answer, and misbehaviour, is scripted.

It speaks just enough HTTP by hand, because a proper server cannot cut a stream or send garbage.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body


@dataclass(frozen=True, slots=True)
class EngineReply:
    """What is sent: a status, then raw events or a body, then how the connection ends."""

    events: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_cut: bool = False
    """Closes the connection in the middle of the stream."""
    holds: bool = False
    """Says nothing more after the events until the other side leaves."""


def event(body: Body) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def chunk(choice: Body) -> bytes:
    """Return the event of one choice."""
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]})


def text_chunk(text: str, margin: float | None = None) -> bytes:
    """Return the event of one token of text, with two candidates that lie a margin apart."""
    logprobs = None if margin is None else {"content": [token_facts(text, margin)]}
    return chunk({"delta": {"content": text}, "finish_reason": None, "logprobs": logprobs})


def token_facts(token: str, margin: float) -> Body:
    """Return a token's entry: the best candidate takes all that the margin leaves."""
    best, second = (1 + margin) / 2, (1 - margin) / 2
    named = [
        {"token": name, "logprob": math.log(max(probability, 1e-12))}
        for name, probability in ((token, best), ("?", second))
    ]
    return {**named[0], "top_logprobs": named}


def call_chunk(name: str, arguments: str, *, index: int = 0, margin: float | None = None) -> bytes:
    """Return the event of a piece of a tool call."""
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    call = {"index": index, "id": f"call-{index}", "type": "function", "function": function}
    logprobs = None if margin is None else {"content": [token_facts(arguments, margin)]}
    return chunk({"delta": {"tool_calls": [call]}, "finish_reason": None, "logprobs": logprobs})


def finish_chunk(reason: str = "stop") -> bytes:
    """Return the event that says why the answer ended."""
    return chunk({"delta": {}, "finish_reason": reason})


def usage_chunk(prompt: int, completion: int, cached: int = 0) -> bytes:
    """Return the event with the engine's counts."""
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return event({"object": "chat.completion.chunk", "choices": [], "usage": usage})


def spoken(text: str, *, margin: float | None = None) -> EngineReply:
    """Return a proper answer, a token a word."""
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1].removesuffix(" ")
    pieces = [text_chunk(word, margin) for word in words]
    return EngineReply([*pieces, finish_chunk(), usage_chunk(7, len(words), 3), DONE])


class FakeEngine:
    """The engine; `reply` decides what each request for an answer gets."""

    def __init__(
        self,
        reply: Callable[[Asked], EngineReply],
        *,
        model: str = "engine-model",
        max_model_len: int = 4096,
        key: str = "",
        trust: ssl.SSLContext | None = None,
        keeps_alive: bool = False,
    ) -> None:
        """`keeps_alive`: connections take one request after another."""
        self.reply = reply
        self.asked: list[Asked] = []
        self.num_left = 0
        self.num_looks = 0
        self.num_connections = 0
        self.key = key
        self.cards: Body = {"data": [{"id": model, "max_model_len": max_model_len}]}
        self._trust = trust
        self._keeps_alive = keeps_alive
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Condition()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"{'https' if self._trust else 'http'}://127.0.0.1:{self._port}/v1"

    async def start(self) -> str:
        """Listen, on the same port again after a stop; returns the URL."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, ssl=self._trust
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self.url

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            await self._server.wait_closed()
            self._server = None

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition holds; it is looked at after each request and each leave."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(condition)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.num_connections += 1
        try:
            is_open = True
            while is_open:
                asked = await _read(reader)
                is_open = await self._answer(asked, reader, writer) and self._keeps_alive
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await self._note(left=True)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; tells whether the connection can take another."""
        if self.key and asked.headers.get("authorization") != f"Bearer {self.key}":
            await self._send(writer, EngineReply(status=401, body=b'{"error":{"message":"no"}}'))
            return True
        if asked.method == "GET":
            self.num_looks += 1
            await self._send(writer, EngineReply(body=json.dumps(self.cards).encode()))
            await self._note()
            return True
        self.asked.append(asked)
        await self._note()
        reply = self.reply(asked)
        await self._send(writer, reply)
        if reply.holds:
            await reader.read()  # returns when the other side leaves
            await self._note(left=True)
        return not reply.holds and not reply.is_cut

    async def _send(self, writer: asyncio.StreamWriter, reply: EngineReply) -> None:
        await _send(writer, reply, "keep-alive" if self._keeps_alive else "close")

    async def _note(self, *, left: bool = False) -> None:
        async with self._changed:
            self.num_left += left
            self._changed.notify_all()


async def _read(reader: asyncio.StreamReader) -> Asked:
    first = (await reader.readuntil(b"\n")).decode()  # raises where the other side left
    method, path, _ = first.split(" ", 2)
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    data = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, json.loads(data) if data else {})


async def _send(writer: asyncio.StreamWriter, reply: EngineReply, connection: str) -> None:
    is_stream = reply.status == 200 and not reply.body
    kind = "text/event-stream" if is_stream else "application/json"
    headers = {"content-type": kind, "connection": connection, **reply.headers}
    if is_stream:
        headers["transfer-encoding"] = "chunked"
    else:
        headers["content-length"] = str(len(reply.body))
    lines = [f"HTTP/1.1 {reply.status} x", *(f"{name}: {text}" for name, text in headers.items())]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body)
    for data in reply.events:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
    if is_stream and not reply.is_cut and not reply.holds:
        writer.write(b"0\r\n\r\n")
    await writer.drain()
