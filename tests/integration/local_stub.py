"""A supervisor over stub services, run as a process by the tests of the local runner.

    python local_stub.py <run directory> <start timeout> <JSON list of {name, needs, behaviour}>

Behaviours: ready (serve until SIGTERM), crash (end at once with words), hang (never ready),
stubborn (ready, and deaf to SIGTERM), step (a step that is done at once).
"""

import json
import os
import sys
from pathlib import Path

from understudy.local.processes import child_environment
from understudy.local.services import Launch, Service, ready_file
from understudy.local.supervisor import Supervisor

STUB = """
import json, os, signal, sys, time
behaviour, ready, order = sys.argv[1:4]
if behaviour == "crash":
    sys.exit("The frobnicator is missing.")
if behaviour == "step":
    sys.exit(0)
def leave(*_):
    with open(order, "a") as file:
        file.write(os.environ["STUB_NAME"] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else leave)
if behaviour != "hang":
    with open(ready + ".draft", "w") as file:
        json.dump({"port": int(os.environ["STUB_PORT"]), "metrics_port": 0}, file)
    os.rename(ready + ".draft", ready)
while True:
    time.sleep(60)
"""


def service(run_dir: Path, index: int, name: str, needs: list[str], behaviour: str) -> Service:
    def launch(ports, port: int) -> Launch:
        assert all(ports[need] for need in needs if need != "step")
        order = str(run_dir / "stopped.txt")
        ready = str(ready_file(run_dir, name))
        environ = {"STUB_NAME": name, "STUB_PORT": str(port or 4000 + index)}
        return Launch((sys.executable, "-S", "-c", STUB, behaviour, ready, order), environ)

    return Service(name, tuple(needs), launch, "exit" if name == "step" else "file")


def main(run_dir: Path, timeout_s: float, table: list[dict]) -> int:
    services = [service(run_dir, index, **entry) for index, entry in enumerate(table)]
    environ = child_environment(os.environ)
    return Supervisor(
        services, run_dir, environ, start_timeout_s=timeout_s, stop_timeout_s=1.0
    ).run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])))
