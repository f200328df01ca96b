"""`python -m services.kvstore`: settings -> parts -> serve()."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from services.kvstore.assembly import open_store
from services.kvstore.servicer import CALLERS, SERVICE, SPANS, KvStoreServicer
from services.kvstore.settings import KvStoreSettings
from understudy.serving import ServingSettings, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Keep chunks until told to stop."""
    registry = CollectorRegistry()
    async with open_store(KvStoreSettings.from_env(environ), registry) as opened:
        await serve("kvstore", KvStoreServicer(opened.store).register, settings=serving,
                    services=[SERVICE], spans=SPANS, on_drain=opened.drain,
                    registry=registry, callers=CALLERS)  # fmt: skip


if __name__ == "__main__":
    run_service("kvstore", main)
