"""What TLS between services costs: `python -m benchmarks.tls [--rounds N]`.

Plaintext and TLS side by side against one server process each: a new connection with its first
call, a unary call, and round trips of frames of three sizes on one stream, as expert workers get
them. Arms alternate within each round; medians over all rounds are reported.
"""

import argparse
import asyncio
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Final, cast

import grpc
import grpc.aio

from deploy.certificates import main as certificates
from understudy.rpc import WITHOUT_POLICY, Peer, open_sync_channel
from understudy.serving import Identity, ServingSettings, start_service

STREAM: Final = "/understudy.benchmark.Echo/Stream"
CALL: Final = "/understudy.benchmark.Echo/Call"
FRAME_BYTES: Final = (4 * 1024, 64 * 1024, 512 * 1024)
ROUND_TRIPS: Final = 60
CONNECTIONS: Final = 5
DOMAIN: Final = "understudy"


async def _stream(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:  # noqa: ARG001
    async for request in requests:
        yield request


async def _call(request: bytes, context: object) -> bytes:  # noqa: ARG001
    return request


def _register(server: grpc.aio.Server) -> None:
    methods = {
        "Stream": grpc.stream_stream_rpc_method_handler(_stream),
        "Call": grpc.unary_unary_rpc_method_handler(_call),
    }
    handlers = grpc.method_handlers_generic_handler("understudy.benchmark.Echo", methods)
    server.add_generic_rpc_handlers((handlers,))


async def serve(folder: Path | None) -> None:
    """Echo until the other end of stdin closes; the port is the first line of stdout."""
    service = await start_service(
        "experts",
        _register,
        settings=ServingSettings(tls_dir=folder),
        services=[],
        callers=("attention",),
        endless=[STREAM],
    )
    sys.stdout.write(f"{service.port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await service.drain(0)


@contextmanager
def server(folder: Path | None) -> Iterator[str]:
    """A server process of its own."""
    command = [sys.executable, "-m", "benchmarks.tls", "--serve", str(folder or "")]
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None, "it is piped"
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate()


def measure(address: str, peer: Peer | None) -> dict[str, list[float]]:
    """Return seconds by what was done, for one round."""
    found: dict[str, list[float]] = {"connection and first call": []}
    for _ in range(CONNECTIONS):
        started = time.perf_counter()
        options = (*WITHOUT_POLICY, ("grpc.use_local_subchannel_pool", 1))
        with open_sync_channel(address, options=options, peer=peer) as channel:
            channel.unary_unary(CALL, None, None)(b"", timeout=20)
        found["connection and first call"].append(time.perf_counter() - started)
    with open_sync_channel(address, options=WITHOUT_POLICY, peer=peer) as channel:
        call = channel.unary_unary(CALL, None, None)
        call(b"", timeout=20)
        found["unary call"] = [_timed(lambda: call(b"", timeout=20)) for _ in range(ROUND_TRIPS)]
        for size in FRAME_BYTES:
            frames: SimpleQueue[bytes | None] = SimpleQueue()
            stream = channel.stream_stream(STREAM, None, None)
            answers = cast("Iterator[bytes]", stream(iter(frames.get, None)))
            frame = bytes(size)

            def turn(frames: SimpleQueue[bytes | None] = frames, frame: bytes = frame) -> None:
                frames.put(frame)
                next(answers)  # noqa: B023  # used up within this pass

            turn()
            name = f"round trip of a frame of {size // 1024} KiB"
            found[name] = [_timed(turn) for _ in range(ROUND_TRIPS)]
            frames.put(None)
    return found


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def compare(num_rounds: int) -> None:
    """Measure both arms in turn, and print medians and their ratio."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "certificates"
        certificates(["make", str(folder)])
        identity = Identity(folder / "attention", DOMAIN)
        look_s = median(_timed(identity.current) for _ in range(2000))
        with server(None) as plain, server(folder / "experts") as secured:
            arms = [(plain, None), (secured, identity.peer("experts"))]
            rounds = [[measure(*arm) for arm in arms] for _ in range(num_rounds)]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {num_rounds} rounds"
    )
    print(f"looking at the files of an identity: {look_s * 1e6:.0f} us")
    print(f"{'':38}{'plaintext':>12}{'TLS':>12}{'ratio':>8}")
    for name in rounds[0][0]:
        times = [
            median(itertools.chain.from_iterable(one[arm][name] for one in rounds))
            for arm in range(2)
        ]
        figures = "".join(f"{seconds * 1e3:>9.2f} ms" for seconds in times)
        print(f"{name:38}{figures}{times[1] / times[0]:>8.2f}")


def main(arguments: list[str]) -> None:
    """Serve, or compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.serve is not None:
        asyncio.run(serve(Path(asked.serve) if asked.serve else None))
    else:
        compare(asked.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
