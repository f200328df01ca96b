"""Answers on their way out: counted until written, bounded, and never waited for in vain."""

import asyncio

import pytest

from services.experts.outbox import Outbox


class Peer:
    """Takes frames only while it reads."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.reads = asyncio.Event()

    async def write(self, frame: bytes) -> None:
        await self.reads.wait()
        self.frames.append(frame)


async def test_answers_are_written_whole_and_in_order():
    outbox, peer = Outbox(2), Peer()
    writer = asyncio.create_task(outbox.write_to(peer.write))
    await asyncio.to_thread(outbox.send, [b"a1", b"a2"])
    outbox.send([b"b"])
    emptied = asyncio.create_task(outbox.wait_empty())
    await asyncio.sleep(0)
    assert not emptied.done()
    assert outbox.num_waiting == 2
    peer.reads.set()
    await emptied
    assert peer.frames == [b"a1", b"a2", b"b"]
    assert outbox.num_waiting == 0
    writer.cancel()


async def test_there_is_no_room_above_the_bound_until_the_peer_reads():
    outbox, peer = Outbox(2), Peer()
    writer = asyncio.create_task(outbox.write_to(peer.write))
    for _ in range(2):
        outbox.send([b"x"])
    await outbox.wait_for_room()
    outbox.send([b"x"])
    waiting = asyncio.create_task(outbox.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    peer.reads.set()
    await waiting
    writer.cancel()


@pytest.mark.parametrize("is_broken", [True, False])
async def test_nobody_waits_for_a_peer_that_has_left(is_broken: bool):
    async def leave(frame: bytes) -> None:
        if is_broken:
            raise ConnectionError("gone")
        await asyncio.Event().wait()

    outbox = Outbox(0)
    writer = asyncio.create_task(outbox.write_to(leave))
    outbox.send([b"x"])
    waiting = [asyncio.create_task(wait()) for wait in (outbox.wait_for_room, outbox.wait_empty)]
    await asyncio.sleep(0)
    if not is_broken:
        writer.cancel()
    await asyncio.gather(*waiting)
    assert outbox.num_waiting == 0
    await asyncio.gather(writer, return_exceptions=True)
