"""`python -m services.distiller`: settings -> parts -> serve()."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from services.distiller.executor import Executor
from services.distiller.metrics import observe_runs
from services.distiller.runs import RunBook
from services.distiller.servicer import CALLERS, SERVICE, WATCH, DistillerServicer
from services.distiller.settings import DistillerSettings
from understudy.serving import ServingSettings, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Run what is queued until told to stop."""
    settings, registry = DistillerSettings.from_env(environ), CollectorRegistry()
    book = RunBook(settings.directory / "runs", settings.max_queued)
    observe_runs(registry, book.listed)
    executor = Executor(book, settings.directory, settings.threads)
    await serve("distiller", DistillerServicer(book).register, settings=serving,
                services=[SERVICE], endless=[WATCH], registry=registry,
                tasks=[executor.run_forever], callers=CALLERS)  # fmt: skip


if __name__ == "__main__":
    run_service("distiller", main)
