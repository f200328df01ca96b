"""Whether an event took anything from streams: which pods carried some, and what became of those.

A change under which nothing ran would show in no answer either. So events act on pods that carry
streams; their traces tell which were placed on another worker, and routers that are told to end
must finish those that they have.
"""

import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.kube import log_of, wait_until
from tests.cluster.load import Load, Question, Told
from tests.cluster.release import Release, spans_file
from understudy import Client
from understudy.client.results import Delta
from understudy.local.traces import Trace, TraceStore
from understudy.telemetry import names

Record = Callable[[str, object], None]

READ_TIMEOUT_S: Final = 10.0
STREAM_TIMEOUT_S: Final = 110.0
LONG: Final = Question("llm", "Tell me the story of a fox who learnt to sail.", False, 160)
"""A stream that outlasts the time for which a pod that is to end serves on as before."""
STREAMS_OF: Final = {
    "router": ("understudy_router_active_requests", ""),
    "attention": ("understudy_attention_running_sequences", ""),
    # An expert worker carries whatever its attention workers do.
    "experts": ("understudy_attention_running_sequences", "attention"),
}
DRAINING: Final = "Draining."


def carrier(release: Release, component: str, pool: str = "") -> Any:
    """Return the pod of a component that carries most streams; wait until one carries any."""
    metric, stands_in = STREAMS_OF[component]
    found: list[Any] = []

    def is_found() -> bool:
        pods = release.pods(stands_in or component, pool)
        loads = [sum_of(pod, metric) for pod in pods]
        most = max(range(len(pods)), key=loads.__getitem__)
        if loads[most]:
            found.append(release.pods(component, pool)[0] if stands_in else pods[most])
        return bool(found)

    wait_until(is_found, f"a stream on a pod of {component} {pool}")
    return found[0]


def sum_of(pod: Any, metric: str) -> float:
    """Return what a pod says of a metric, over all labels."""
    url = f"http://{pod['status']['podIP']}:{port_of(pod, 'metrics')}/metrics"
    with urllib.request.urlopen(url, timeout=READ_TIMEOUT_S) as response:
        families = text_string_to_metric_families(response.read().decode())
    return sum(one.value for each in families for one in each.samples if one.name == metric)


def port_of(pod: Any, name: str) -> int:
    """Return the port that a container of a pod calls so."""
    ports = [
        port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
        if port["name"] == name
    ]
    return int(ports[0])


@contextmanager
def placed_again(
    release: Release, state: Path, loads: Sequence[Load], record: Record, *pools: str
) -> Iterator[None]:
    """Record how many streams were placed on another worker, in each of the pools.

    Nothing is asserted of it: a worker that drains finishes what ends in time, which on a fast
    machine is all. The streams have to have ended when this does.
    """
    starts = [len(load.told) for load in loads]
    yield
    path = spans_file(state, release.kube)

    def told() -> list[Told]:
        return [one for load, start in zip(loads, starts, strict=True) for one in load.told[start:]]

    found = replacements(path, told())
    for pool in pools:
        record(f"placed again in {pool}", found[pool])


def replacements(path: Path, told: Sequence[Told]) -> Counter[str]:
    """Count, by pool, how often these streams lost their worker and went on with another."""
    found: Counter[str] = Counter()
    with TraceStore.open(path, read_only=True) as store:
        for trace in map(store.get, [one.trace_id for one in told]):
            if trace is not None:
                found += losses(trace)
    return found


def losses(trace: Trace) -> Counter[str]:
    """Count, by pool, the sequences of a trace that followed another one of their attempt."""
    pools = {
        span.span_id: str(span.attributes[names.POOL])
        for span in trace.spans
        if span.name == names.ROUTER_ATTEMPT
    }
    sequences = [span for span in trace.spans if span.name == names.ATTENTION_SEQUENCE]
    found: Counter[str] = Counter()
    for attempt, number in Counter(span.parent_id for span in sequences).items():
        if attempt in pools and number > 1:
            found[pools[attempt]] += number - 1
    return found


@contextmanager
def outlasting(router: Any, state: Path, api_key: str, record: Record) -> Iterator[None]:
    """Check that streams on a router which the block tells to end are finished while it drains.

    One is the SDK's, one OpenAI's. Both know this router alone: no other one can answer them.
    """
    address = router["status"]["podIP"]
    begun = [threading.Event(), threading.Event()]
    with ThreadPoolExecutor(len(begun)) as pool:
        streams = [
            pool.submit(sdk_tokens, f"{address}:{port_of(router, 'grpc')}", api_key, begun[0]),
            pool.submit(
                openai_pieces, f"http://{address}:{port_of(router, 'http')}/v1", api_key, begun[1]
            ),
        ]

        def have_begun() -> bool:
            for stream in streams:
                if stream.done():
                    stream.result()
            return all(event.is_set() for event in begun)

        wait_until(have_begun, "streams to begin")
        yield
        wait_until(lambda: DRAINING in log_of(state, router, "router"), "the router to drain")
        assert not any(stream.done() for stream in streams), "these streams are too short"
        record("pieces beyond the end of their router", [one.result() for one in streams])


def sdk_tokens(address: str, api_key: str, begun: threading.Event) -> int:
    """Read a long stream of the SDK; return its tokens."""
    messages = [{"role": "user", "content": LONG.text}]
    with (
        Client(address, api_key=api_key, timeout_s=STREAM_TIMEOUT_S) as client,
        client.generate(messages=messages, model=LONG.model, max_tokens=LONG.max_tokens) as stream,
    ):
        for event in stream:
            if isinstance(event, Delta):
                begun.set()
        return stream.answer().usage.completion_tokens


def openai_pieces(url: str, api_key: str, begun: threading.Event) -> int:
    """Read a long stream of the `openai` client; return its pieces."""
    messages: list[Any] = [{"role": "user", "content": LONG.text}]
    ends: list[str] = []
    pieces = 0
    with OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=STREAM_TIMEOUT_S) as client:
        for chunk in client.chat.completions.create(
            model=LONG.model, messages=messages, max_tokens=LONG.max_tokens, stream=True
        ):
            begun.set()
            pieces += 1
            ends += [one.finish_reason for one in chunk.choices if one.finish_reason]
    assert ends, "the stream broke off without a word"
    return pieces
