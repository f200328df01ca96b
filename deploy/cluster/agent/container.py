"""One container of a pod: starts it, probes it, restarts it by its policy, stops it in order."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Protocol

from deploy.cluster.agent import probes
from deploy.cluster.agent.api import Json
from deploy.cluster.agent.environment import ConfigError
from deploy.cluster.agent.launcher import ContainerOrder, ExecOrder
from deploy.cluster.agent.launching import Exit, Launched, Launcher, LaunchError, run_to_end
from deploy.cluster.agent.status import State, now, terminated

FIRST_BACKOFF_S: Final = 10.0
MAX_BACKOFF_S: Final = 300.0
FORGIVEN_AFTER_S: Final = 600.0
CONFIG_RETRY_S: Final = 1.0
LAST_CHANCE_S: Final = 2.0
"""What a program still gets after a `preStop` that took the whole grace period."""


class Home(Protocol):
    """What a container needs of its pod."""

    folder: Path

    def order(self, container: Json) -> ContainerOrder:
        """Say how the container starts. Raises ConfigError where it cannot."""

    def target(self, container: Json, run: probes.Exec) -> probes.Target:
        """Say where the container is probed."""

    def changed(self) -> None:
        """Take note that the container's state is another."""

    def event(self, reason: str, message: str, *, is_warning: bool) -> None:
        """Tell the API server of something that happened."""


class Container:
    """A container with its state; `run` ends when it will not be started again."""

    def __init__(self, home: Home, spec: Json, policy: str, grace_s: float) -> None:
        self._home, self.spec, self._policy, self._grace_s = home, spec, policy, grace_s
        self.state = State(spec["name"], spec.get("image", ""), waiting="PodInitializing")
        self.started = asyncio.Event()
        self._is_stopping = False
        self._stop_asked = asyncio.Event()
        self._launched: Launched | None = None
        self._ended = asyncio.Event()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._order: ContainerOrder | None = None

    @property
    def logs(self) -> Path:
        """The folder with a log for each start."""
        return self._home.folder / "logs" / str(self.spec["name"])

    async def run(self) -> None:
        """Start the container, again and again as its policy says."""
        backoff_s = 0.0
        while not self._is_stopping:
            began_s = asyncio.get_running_loop().time()
            ended = await self._once()
            if ended is None:
                await self._pause(CONFIG_RETRY_S)
                continue
            if not self._is_again(ended):
                return
            if asyncio.get_running_loop().time() - began_s > FORGIVEN_AFTER_S:
                backoff_s = 0.0
            await self._back_off(backoff_s)
            backoff_s = min(MAX_BACKOFF_S, backoff_s * 2 or FIRST_BACKOFF_S)

    async def stop(self, deadline_s: float) -> None:
        """End the container for good: `preStop`, SIGTERM, and SIGKILL at the deadline."""
        self._is_stopping = True
        self._stop_asked.set()
        await self._end(deadline_s)

    def kill(self) -> None:
        """End the container at once and for good."""
        self._is_stopping = True
        self._stop_asked.set()
        if self._launched is not None:
            self._launched.kill()

    async def run_inside(self, command: list[str], timeout_s: float) -> str:
        """Run a program in the container; return what is wrong, or an empty text."""
        if self._launched is None or self._order is None:
            return "the container does not run"
        order: ExecOrder = {
            "target": self._launched.pid,
            "command": command,
            "environment": self._order["environment"],
            "folder": self._order["folder"],
            "user": self._order["user"],
            "group": self._order["group"],
            "keeps_capabilities": self._order["keeps_capabilities"],
            "may_gain_privileges": self._order["may_gain_privileges"],
        }
        output = self.logs / "exec.log"
        try:
            ended = await run_to_end("exec", {**order}, output, timeout_s)
        except LaunchError as error:
            return str(error)
        return "" if ended.code == 0 else f"{command[0]} ended with status {ended.code}"

    def _is_again(self, ended: Exit) -> bool:
        if self._is_stopping:
            return False
        return self._policy == "Always" or (self._policy == "OnFailure" and ended.code != 0)

    async def _back_off(self, backoff_s: float) -> None:
        state = self.state
        state.last = terminated(state)
        state.restarts += 1
        state.exit_code, state.started_at = None, ""
        state.waiting, state.message = "ContainerCreating", ""
        if backoff_s:
            state.waiting = "CrashLoopBackOff"
            state.message = f"back-off {backoff_s:g}s restarting failed container"
            self._home.event("BackOff", f"{state.message} {state.name}", is_warning=True)
        self._home.changed()
        await self._pause(backoff_s)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop_asked.wait()
        except TimeoutError:
            return

    async def _once(self) -> Exit | None:
        try:
            self._order = self._home.order(self.spec)
        except ConfigError as error:
            self._wait_for(error)
            return None
        self.logs.mkdir(parents=True, exist_ok=True)
        self._ended.clear()
        with (self.logs / f"{self.state.restarts}.log").open("wb") as log:
            launcher = Launcher("container", {**self._order}, log)
            try:
                self._launched = await launcher.start()
            except LaunchError as error:
                return self._finish(Exit(128, str(error)), "StartError")
        self._begin(self._launched)
        try:
            ended = await launcher.wait()
        finally:
            self._launched.kill()
        return self._finish(ended, "Completed" if ended.code == 0 else "Error")

    def _wait_for(self, error: ConfigError) -> None:
        reason = error.reason
        if (self.state.waiting, self.state.message) != (reason, str(error)):
            self.state.waiting, self.state.message = reason, str(error)
            self._home.event("Failed", str(error), is_warning=True)
            self._home.changed()

    def _begin(self, launched: Launched) -> None:
        state = self.state
        state.started_at, state.exit_code, state.waiting, state.message = now(), None, "", ""
        state.container_id = f"process://{launched.pid}"
        state.is_started = "startupProbe" not in self.spec
        state.is_ready = state.is_started and "readinessProbe" not in self.spec
        self._home.event("Started", f"started container {state.name}", is_warning=False)
        post_start = self.spec.get("lifecycle", {}).get("postStart")
        if post_start is not None:
            self._spawn("postStart", self._after_start(post_start))
        if state.is_started:
            self._has_started()
        else:
            self._watch("startup", self._startup_told)
        self._home.changed()
        if self._is_stopping:
            launched.kill()

    def _has_started(self) -> None:
        self.state.is_started = True
        self.started.set()
        if "readinessProbe" in self.spec:
            self._watch("readiness", self._readiness_told)
        else:
            self.state.is_ready = True
        if "livenessProbe" in self.spec and not self._is_stopping:
            self._watch("liveness", self._liveness_told)
        self._home.changed()

    def _watch(self, kind: str, tell: Callable[[bool, str], None]) -> None:
        probe = self.spec[f"{kind}Probe"]
        target = self._home.target(self.spec, self.run_inside)
        self._spawn(kind, probes.watch(probe, target, tell, starts_good=kind == "liveness"))

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._watches[name] = asyncio.get_running_loop().create_task(work)

    def _startup_told(self, is_good: bool, problem: str) -> None:
        if is_good:
            self._watches.pop("startup").cancel()
            self._has_started()
        else:
            self._fail("Startup", problem)

    def _readiness_told(self, is_good: bool, problem: str) -> None:
        if self.state.is_ready and not is_good:
            message = f"readiness probe of {self.state.name} failed: {problem}"
            self._home.event("Unhealthy", message, is_warning=True)
        if self.state.is_ready != is_good:
            self.state.is_ready = is_good
            self._home.changed()

    def _liveness_told(self, is_good: bool, problem: str) -> None:
        if not is_good:
            self._fail("Liveness", problem)

    def _fail(self, kind: str, problem: str) -> None:
        message = f"{kind} probe of {self.state.name} failed: {problem}; it will be restarted"
        self._home.event("Unhealthy", message, is_warning=True)
        for name in ("startup", "liveness"):
            watch = self._watches.pop(name, None)
            if watch is not None:
                watch.cancel()
        probe = self.spec[f"{kind.lower()}Probe"]
        grace_s = float(probe.get("terminationGracePeriodSeconds", self._grace_s))
        self._spawn("end", self._end(asyncio.get_running_loop().time() + grace_s))

    async def _after_start(self, hook: Json) -> None:
        problem = await self._run_hook(hook)
        if problem:
            self._home.event("FailedPostStartHook", problem, is_warning=True)
            await self._end(asyncio.get_running_loop().time() + self._grace_s)

    async def _end(self, deadline_s: float) -> None:
        launched = self._launched
        if launched is None or self._ended.is_set():
            return
        for name in ("startup", "liveness"):
            if name in self._watches:
                self._watches.pop(name).cancel()
        self._home.event("Killing", f"stopping container {self.state.name}", is_warning=False)
        loop = asyncio.get_running_loop()
        pre_stop = self.spec.get("lifecycle", {}).get("preStop")
        if pre_stop is not None:
            try:
                async with asyncio.timeout_at(deadline_s):
                    hook = asyncio.ensure_future(self._run_hook(pre_stop))
                    ended = asyncio.ensure_future(self._ended.wait())
                    await asyncio.wait((hook, ended), return_when=asyncio.FIRST_COMPLETED)
                    ended.cancel()
                    hook.cancel()
            except TimeoutError:
                self._home.event("FailedPreStopHook", "it took too long", is_warning=True)
            deadline_s = max(deadline_s, loop.time() + LAST_CHANCE_S)
        launched.send(signal.SIGTERM)
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._ended.wait()
        except TimeoutError:
            launched.kill()
            await self._ended.wait()

    async def _run_hook(self, hook: Json) -> str:
        if "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"]["seconds"]))
            return ""
        if "httpGet" in hook:
            target = self._home.target(self.spec, self.run_inside)
            return await probes.check_http(hook["httpGet"], target)
        return await self.run_inside(hook["exec"]["command"], self._grace_s)

    def _finish(self, ended: Exit, reason: str) -> Exit:
        for name, watch in list(self._watches.items()):
            if name != "end":
                watch.cancel()
        self._launched = None
        state = self.state
        state.exit_code, state.finished_at = ended.code, now()
        state.reason, state.message = reason, ended.message
        state.started_at = state.started_at or state.finished_at
        state.is_ready, state.is_started = False, False
        self._ended.set()
        self._home.changed()
        return ended
