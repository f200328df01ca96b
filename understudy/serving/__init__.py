"""The chassis of every service: settings from the environment, one server, health, drain.

A service hands `serve()` its servicer and gets, the same everywhere: errors as statuses, request
ids, deadlines, admission, tracing, metrics, health, reflection and a drain on SIGTERM.
"""

from understudy.serving.addresses import parse_address
from understudy.serving.followed import Followed
from understudy.serving.health import HealthState
from understudy.serving.identity import Identity
from understudy.serving.memory import give_back_memory, return_large_buffers
from understudy.serving.process import run_service
from understudy.serving.running import RunningService, start_service
from understudy.serving.serve import serve
from understudy.serving.service_settings import ServingSettings
from understudy.serving.settings import SettingsError, read_settings, text_or_file
from understudy.serving.transport import ANYONE, PLAINTEXT, Transport

__all__ = [
    "ANYONE",
    "PLAINTEXT",
    "Followed",
    "HealthState",
    "Identity",
    "RunningService",
    "ServingSettings",
    "SettingsError",
    "Transport",
    "give_back_memory",
    "parse_address",
    "read_settings",
    "return_large_buffers",
    "run_service",
    "serve",
    "start_service",
    "text_or_file",
]
