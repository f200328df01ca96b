"""The supervisor process: settings -> site -> services -> run; one per run directory."""

import fcntl
import os
import sys

from understudy.errors import UnderstudyError
from understudy.local.processes import child_environment, start_time
from understudy.local.services import platform_services
from understudy.local.settings import LocalSettings
from understudy.local.site import prepare_site
from understudy.local.state import Phase, PlatformState
from understudy.local.supervisor import Supervisor


def main() -> int:
    """Run the platform until SIGTERM; what stands in its way goes into the state file."""
    settings = LocalSettings.from_env(os.environ)
    run_dir = settings.run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"Another supervisor runs in {run_dir}; stop it first.\n")
            return 1
        try:
            site = prepare_site(settings)
        except UnderstudyError as error:
            pid = os.getpid()
            PlatformState(pid, start_time(pid), Phase.FAILED, error.message).save(run_dir)
            return 1
        supervisor = Supervisor(
            platform_services(site),
            run_dir,
            child_environment(os.environ),
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
        )
        supervisor.state.traces = str(site.traces)
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
