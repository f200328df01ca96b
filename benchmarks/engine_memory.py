"""What a worker takes in memory beyond a process that only imported torch.

Looked at three times: when it says that it is ready, after a first plain request (a prompt of
several steps, then tokens one by one) and after a first request with a grammar.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.contestants.protocol import anonymous_bytes, prompt
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.api.types.v1 import types_pb2
from understudy.errors import Unavailable
from understudy.grammar import GrammarSource
from understudy.local.processes import Child, child_environment, last_lines
from understudy.model.locate import locate_model
from understudy.rpc import WITHOUT_POLICY, open_sync_channel

MIB: Final = 1 << 20
KV_MIB: Final = 64
ALLOWED: Final = 1.3
START_TIMEOUT_S: Final = 300.0
REQUEST_TIMEOUT_S: Final = 300.0
POLL_S: Final = 0.1
LOG_LINES: Final = 20
PROMPT_TOKENS: Final = 512
OUTPUT_TOKENS: Final = 32
BARE: Final = "import torch, sys; print(flush=True); sys.stdin.read()"
SCHEMA: Final = GrammarSource("json_schema", json.dumps({"type": "object"}))
ROOT: Final = b"r" * 32


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB of memory that no file backs."""

    ready_mib: float
    """Of a worker that has just become ready."""
    plain_mib: float
    """After its first plain request."""
    grammar_mib: float
    """After its first request with a grammar."""
    bare_mib: float
    """Of a process that imported torch."""
    file_mib: float
    kv_mib: float

    @property
    def allowed_mib(self) -> float:
        """1.3 times the file, and the KV."""
        return ALLOWED * self.file_mib + self.kv_mib

    def rows(self) -> list[tuple[str, float]]:
        """Return each moment and what the worker had added to the bare process by then."""
        moments = (
            ("ready", self.ready_mib),
            (f"after a plain request of {PROMPT_TOKENS} + {OUTPUT_TOKENS} tokens", self.plain_mib),
            ("after a request with a grammar", self.grammar_mib),
        )
        return [(name, mib - self.bare_mib) for name, mib in moments]


def memory_table(memory: Memory) -> str:
    """Return every moment against the allowance."""
    title = (
        f"Anonymous memory of a worker above `import torch` ({memory.bare_mib:.0f} MiB); 1.3 x the"
        f" file + KV is {memory.allowed_mib:.0f} MiB (file {memory.file_mib:.0f}, KV"
        f" {memory.kv_mib:.0f})."
    )
    rows = [
        f"| {name} | {above:.1f} | {above / memory.allowed_mib:.0%} |"
        for name, above in memory.rows()
    ]
    head = ("| moment | MiB | of the allowance |", "| --- | --- | --- |")
    return "\n".join((title, "", *head, *rows))


def measure_memory() -> Memory:
    """Start an attention worker over SmolLM2 as the platform does, ask it, and look at it.

    Raises Unavailable with the worker's last words where it never becomes ready.
    """
    file_mib = locate_model("smollm2").stat().st_size / MIB
    with _worker() as (child, port):
        ready = anonymous_bytes(child.pid) / MIB
        _ask(port, 1, None)
        plain = anonymous_bytes(child.pid) / MIB
        _ask(port, 2, SCHEMA)
        grammar = anonymous_bytes(child.pid) / MIB
    return Memory(ready, plain, grammar, _bare_bytes() / MIB, file_mib, KV_MIB)


def wait_for_port(child: Child, ready: Path, timeout_s: float = START_TIMEOUT_S) -> int:
    """Return the port that a service writes when it is ready.

    Raises Unavailable with the end of its log where it ends or takes too long.
    """
    ends_at = time.monotonic() + timeout_s
    while not ready.exists():
        code = child.exit_code()
        if code is not None or time.monotonic() > ends_at:
            why = f"was not ready after {timeout_s:g} s" if code is None else f"ended with {code}"
            words = "\n".join(last_lines(child.log, LOG_LINES)) or "(nothing)"
            raise Unavailable(f"The worker {why}; the last it said:\n{words}")
        time.sleep(POLL_S)
    return int(json.loads(ready.read_text("utf-8"))["port"])


def _bare_bytes() -> int:
    with subprocess.Popen(  # noqa: S603 - our own Python
        [sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None, "it was opened with a pipe"
        process.stdout.readline()
        return anonymous_bytes(process.pid)


@contextmanager
def _worker() -> Iterator[tuple[Child, int]]:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        environ = child_environment(os.environ) | {
            "UNDERSTUDY_SERVING_LISTEN": "127.0.0.1:0",
            "UNDERSTUDY_SERVING_METRICS_LISTEN": "127.0.0.1:0",
            "UNDERSTUDY_SERVING_READY_FILE": str(ready),
            "UNDERSTUDY_ATTENTION_MODEL": "smollm2",
            "UNDERSTUDY_ATTENTION_MODEL_NAME": "smollm2",
            "UNDERSTUDY_ATTENTION_KV_MEMORY_MIB": str(KV_MIB),
        }
        command = (sys.executable, "-m", "services.attention")
        child = Child(command, environ, Path(folder) / "log")
        try:
            yield child, wait_for_port(child, ready)
        finally:
            child.kill()


def _ask(port: int, sequence_id: int, grammar: GrammarSource | None) -> None:
    """Run one sequence to its end. Raises Unavailable with the worker's sentence if it fails."""
    submit = attention_pb2.Submit(
        sequence_id=sequence_id,
        tokens=prompt(sequence_id, PROMPT_TOKENS),
        kv_root=ROOT,
        tenant="bench",
        sampling=types_pb2.SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=grammar is None),
    )
    if grammar is not None:
        kind = types_pb2.Grammar.KIND_JSON_SCHEMA
        submit.grammar.CopyFrom(
            types_pb2.Grammar(kind=kind, source=grammar.source, hash=grammar.hash)
        )
    request = attention_pb2.SessionRequest(submit=submit)
    with open_sync_channel(f"127.0.0.1:{port}", options=WITHOUT_POLICY) as channel:
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        for response in stub.Session(iter([request]), timeout=REQUEST_TIMEOUT_S):
            if response.failed:
                sentence = response.failed[0].status.message
                raise Unavailable(f"The worker failed the sequence: {sentence}")
            if response.finished:
                return
    raise Unavailable("The worker closed the session before the sequence had ended.")
