"""What is recorded about each served call: its span, its count, its duration."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, Tracer

from understudy.rpc.metadata import current_request_id
from understudy.rpc.traces import extract
from understudy.serving.identity import Identity
from understudy.serving.transport import Transport
from understudy.telemetry import Instruments, exemplar, names

_QUIET: Final = frozenset({"OK", "CANCELLED"})


@dataclass(slots=True)
class Outcome:
    """How a call ended; CANCELLED until it is told otherwise."""

    code: str = "CANCELLED"
    """Name of the gRPC status code."""
    detail: str = ""
    """One sentence for the span; empty when all went well."""


class CallObserver:
    """Opens the spans of served calls and counts them.

    Methods in `spans` get a SERVER span of that name; the others run in the caller's trace
    context, so that spans which the service starts itself are still its children.
    """

    def __init__(self, tracer: Tracer, instruments: Instruments, spans: Mapping[str, str]) -> None:
        self._tracer = tracer
        self._spans = dict(spans)
        self._calls = instruments.counter("calls", "Calls served.", ("method", "code"))
        self._active = instruments.gauge("active_calls", "Calls being served.", ("method",))
        self._duration = instruments.histogram(
            "call_duration", "Time from admission to the end of a call.", ("method",)
        )

    @contextmanager
    def observed(self, method: str, headers: Mapping[str, str]) -> Iterator[Outcome]:
        """Record one call; the caller sets the outcome before it leaves."""
        outcome = Outcome()
        started_at = time.monotonic()
        self._active.labels(method).inc()
        with self._spanned(method, extract(headers)) as span:
            try:
                yield outcome
            finally:
                _conclude(span, outcome)
                self._active.labels(method).dec()
                self._calls.labels(method, outcome.code).inc()
                self._duration.labels(method).observe(
                    time.monotonic() - started_at, exemplar(span.get_span_context())
                )

    @contextmanager
    def _spanned(self, method: str, parent: Context | None) -> Iterator[Span]:
        name = self._spans.get(method)
        if name is None:
            token = otel_context.attach(Context() if parent is None else parent)
            try:
                yield INVALID_SPAN
            finally:
                otel_context.detach(token)
            return
        service, _, call = method.removeprefix("/").rpartition("/")
        attributes = {
            names.RPC_SERVICE: service,
            names.RPC_METHOD: call,
            names.REQUEST_ID: current_request_id(),
        }
        with self._tracer.start_as_current_span(
            name,
            Context() if parent is None else parent,
            SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span


def _conclude(span: Span, outcome: Outcome) -> None:
    span.set_attribute(names.RPC_STATUS, outcome.code)
    if outcome.code != "OK":
        span.set_attribute(names.ERROR_TYPE, outcome.code)
    if outcome.code not in _QUIET:
        span.set_status(Status(StatusCode.ERROR, outcome.detail))


class CertificateObserver:
    """Tells how long certificates last, and how many sets could not be used."""

    def __init__(self, instruments: Instruments) -> None:
        self._remaining = instruments.gauge(
            "certificate_remaining", "Time until the certificate ends.", ("towards",), "seconds"
        )
        self._refusals = instruments.counter(
            "certificate_refusals", "Sets of certificates that could not be used.", ("towards",)
        )

    def observe(self, transport: Transport) -> None:
        """Follow the identities of a process; the files are looked at with each scrape."""
        named = (("peers", transport.identity), ("callers", transport.public))
        for towards, identity in named:
            if identity is not None:
                self._remaining.labels(towards).set_function(partial(_remaining_s, identity))
                identity.subscribe(self._refusals.labels(towards).inc)


def _remaining_s(identity: Identity) -> float:
    return identity.remaining_s
