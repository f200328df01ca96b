"""The outermost frame of every service process: environment in, exit code out."""

import asyncio
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
    sys.exit(0)


def _exit(service_name: str, error: UnderstudyError, code: int) -> NoReturn:
    sys.stderr.write(f"understudy {service_name}: {error.message}\n")
    sys.exit(code)
