"""The dashboards, one file each."""

from typing import Final

from deploy.telemetry.boards.afd import AFD
from deploy.telemetry.boards.flywheel import FLYWHEEL
from deploy.telemetry.boards.kv_tier import KV_TIER
from deploy.telemetry.boards.request_path import REQUEST_PATH
from deploy.telemetry.boards.scaling import SCALING
from deploy.telemetry.boards.slm_first import SLM_FIRST

DASHBOARDS: Final = (REQUEST_PATH, SLM_FIRST, AFD, KV_TIER, FLYWHEEL, SCALING)
