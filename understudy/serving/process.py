"""The outermost frame of every service process: environment in, exit code out."""

import asyncio
import atexit
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Final, NoReturn

from understudy.errors import UnderstudyError
from understudy.serving.service_settings import ServingSettings
from understudy.serving.settings import SettingsError
from understudy.telemetry import configure_logging

EXIT_FAILED: Final = 1
EXIT_BAD_SETTINGS: Final = 2
EXIT_INTERRUPTED: Final = 130

Main = Callable[[Mapping[str, str], ServingSettings], Coroutine[None, None, None]]


def run_service(service_name: str, main: Main) -> NoReturn:
    """Run `main(environ, serving_settings)` and exit.

    Exit code 0 after a drain, 2 with a sentence for bad settings, 1 with a sentence when the
    service could not start or failed, 130 when interrupted before it served.
    """
    try:
        serving = ServingSettings.from_env(os.environ)
        configure_logging(service_name, serving.log_level)
        asyncio.run(main(os.environ, serving))
    except SettingsError as error:
        _exit(service_name, error, EXIT_BAD_SETTINGS)
    except UnderstudyError as error:
        _exit(service_name, error, EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    _leave()


def _exit(service_name: str, error: UnderstudyError, code: int) -> NoReturn:
    sys.stderr.write(f"understudy {service_name}: {error.message}\n")
    sys.exit(code)


def _leave() -> NoReturn:
    """End the process with what is registered for its end, but without taking it apart.

    Freeing every object and unloading torch costs a second or two of a CPU, and the process that
    takes the place of this one waits for its end.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - nothing public runs them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
