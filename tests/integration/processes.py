"""Starting real services and talking to an attention worker as a router would."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.local.processes import Child, child_environment, last_lines
from understudy.rpc import WITHOUT_POLICY, Peer, open_sync_channel

START_TIMEOUT_S = 120.0
SESSION_TIMEOUT_S = 150.0
POLL_S = 0.05
LOOPBACK = "127.0.0.1"


@dataclass
class Running:
    """A service process that is ready."""

    child: Child
    port: int

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"


class Processes:
    """Starts services as `python -m services.<name>` and ends what it started."""

    def __init__(self, directory: Path, certificates: Path | None = None) -> None:
        """With certificates, a folder per component, services talk over TLS."""
        self._directory = directory
        self._certificates = certificates
        self._children: list[Child] = []

    def start(self, service: str, port: int = 0, **settings: str) -> Running:
        """Start a service with `UNDERSTUDY_<SERVICE>_*` settings and wait until it is ready."""
        number = len(self._children)
        ready = self._directory / f"{number}.ready"
        log = self._directory / f"{number}-{service}.log"
        prefix = f"UNDERSTUDY_{service.upper()}_"
        environ = child_environment(os.environ) | {
            "UNDERSTUDY_SERVING_LISTEN": f"{LOOPBACK}:{port}",
            "UNDERSTUDY_SERVING_READY_FILE": str(ready),
            "UNDERSTUDY_SERVING_DRAIN_GRACE_S": "2",
            **{prefix + name.upper(): value for name, value in settings.items()},
        }
        if self._certificates is not None:
            environ["UNDERSTUDY_SERVING_TLS_DIR"] = str(self._certificates / service)
        child = Child((sys.executable, "-m", f"services.{service}"), environ, log)
        self._children.append(child)
        wait_until(
            lambda: ready.exists() or child.exit_code() is not None,
            f"{service} to become ready",
        )
        assert child.exit_code() is None, "\n".join(last_lines(log, 20))
        return Running(child, json.loads(ready.read_text())["port"])

    def stop(self) -> None:
        """End everything."""
        for child in reversed(self._children):
            child.terminate()
        for child in reversed(self._children):
            child.kill()


def wait_until(
    condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Wait for a condition that no event announces; fail with a sentence when it never holds."""
    pause = threading.Event()
    for _ in range(int(timeout_s / POLL_S)):
        if condition():
            return
        pause.wait(POLL_S)
    pytest.fail(f"Waited {timeout_s:g} s for {what}.")


@dataclass
class Outcome:
    """What came back for one sequence."""

    tokens: list[int] = field(default_factory=list)
    finished: attention_pb2.SequenceFinished | None = None
    failed: str = ""


def run_session(
    address: str,
    submits: Sequence[attention_pb2.Submit],
    on_tokens: Callable[[int], None] = lambda _: None,
    peer: Peer | None = None,
) -> dict[int, Outcome]:
    """Run sequences on one session to their ends; `on_tokens` sees the number of tokens so far.

    A `peer` says how TLS is spoken with the worker; without one it is plaintext.
    """
    outcomes = {submit.sequence_id: Outcome() for submit in submits}
    is_over = threading.Event()

    def requests() -> Iterator[attention_pb2.SessionRequest]:
        for submit in submits:
            yield attention_pb2.SessionRequest(submit=submit)
        is_over.wait(SESSION_TIMEOUT_S)

    with open_sync_channel(address, options=WITHOUT_POLICY, peer=peer) as channel:
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        stream = stub.Session(requests(), timeout=SESSION_TIMEOUT_S, wait_for_ready=True)
        pending = set(outcomes)
        while pending:
            message = next(stream)
            for run in message.tokens:
                outcomes[run.sequence_id].tokens.extend(run.token_ids)
            for finished in message.finished:
                outcomes[finished.sequence_id].finished = finished
                pending.discard(finished.sequence_id)
            for failed in message.failed:
                outcomes[failed.sequence_id].failed = failed.status.message
                pending.discard(failed.sequence_id)
            on_tokens(sum(len(outcome.tokens) for outcome in outcomes.values()))
        is_over.set()
        stream.cancel()
    return outcomes


def submit_of(sequence_id: int, tokens: Sequence[int], max_tokens: int) -> attention_pb2.Submit:
    """A greedy sequence that ignores the end token."""
    submit = attention_pb2.Submit(
        sequence_id=sequence_id, tokens=tokens, kv_root=b"r" * 32, tenant="test"
    )
    submit.sampling.max_tokens = max_tokens
    submit.sampling.ignore_eos = True
    submit.time_left.FromSeconds(int(SESSION_TIMEOUT_S))
    return submit
