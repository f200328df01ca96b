"""`python -m understudy.local.traces`: the trace store as a process."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

from understudy.local.traces.receiver import SERVICE, Receiver
from understudy.local.traces.settings import TracesSettings
from understudy.local.traces.store import TraceStore
from understudy.serving import ServingSettings, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Receive spans until told to stop; the store's own address and no traces of itself."""
    settings = TracesSettings.from_env(environ)
    own = replace(serving, listen=settings.listen, ready_file=settings.ready_file, otlp_endpoint="")
    with (
        TraceStore.open(settings.path, max_spans=settings.max_spans) as store,
        closing(Receiver(store)) as receiver,
    ):
        await serve("traces", receiver.register, settings=own, services=[SERVICE])


if __name__ == "__main__":
    run_service("traces", main)
