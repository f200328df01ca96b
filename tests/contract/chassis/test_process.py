"""Services as processes: signals, exit codes, ready file, metrics, and traces over real OTLP."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import understudy.errors
from understudy import errors
from understudy.api.distiller.v1 import distiller_pb2, distiller_pb2_grpc
from understudy.local.traces import TraceStore
from understudy.rpc import WITHOUT_POLICY, from_rpc_error, open_sync_channel
from understudy.telemetry import names

ROOT = Path(understudy.errors.__file__).parents[1]
PROBE = [sys.executable, str(Path(__file__).with_name("probe_service.py"))]
TRACES = [sys.executable, "-m", "understudy.local.traces"]
TRACE_ID = "ab" * 16
PARENT_ID = "cd" * 8


def environment(**variables):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UNDERSTUDY_")}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


@dataclass
class Service:
    """A running service process."""

    process: subprocess.Popen
    port: int
    metrics_port: int | None

    def end(self):
        """Ask it to drain; its exit code and what it said since it was ready."""
        self.process.send_signal(signal.SIGTERM)
        return self.finished()

    def finished(self):
        """Its exit code and what it said since it was ready."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def running(command, **variables):
    """Start a process and wait until it says that it is ready."""
    process = subprocess.Popen(
        command, env=environment(**variables), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if '"message": "Ready on' in line:
                break
        else:
            pytest.fail("".join(said))
        fields = json.loads(said[-1])
        yield Service(process, fields["port"], fields["metrics_port"])
    finally:
        process.kill()
        process.communicate()


def failed(command, **variables):
    done = subprocess.run(
        command, env=environment(**variables), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


@contextmanager
def stub_of(service):
    with open_sync_channel(f"127.0.0.1:{service.port}", options=WITHOUT_POLICY) as channel:
        yield distiller_pb2_grpc.DistillerServiceStub(channel)


def test_a_drained_process_runs_its_exit_hooks_and_is_not_taken_apart():
    with running(PROBE, PROBE_TASK="tell") as service:
        code, said = service.end()
    assert code == 0
    assert "hooks ran" in said
    assert "taken apart" not in said


def test_running_stream_survives_sigterm_while_health_says_not_serving(tmp_path):
    ready_file = tmp_path / "ready.json"
    with running(PROBE, UNDERSTUDY_SERVING_READY_FILE=str(ready_file)) as service:
        told = json.loads(ready_file.read_text())
        assert told == {"port": service.port, "metrics_port": None, "pid": service.process.pid}
        with open_sync_channel(f"127.0.0.1:{service.port}", options=WITHOUT_POLICY) as channel:
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            stub = distiller_pb2_grpc.DistillerServiceStub(channel)
            stream = stub.Watch(distiller_pb2.WatchRequest(), timeout=60)
            seen = [next(stream).run.run_id]
            statuses = [next(health).status]

            service.process.send_signal(signal.SIGTERM)
            seen += [response.run.run_id for response in stream]
            statuses.append(next(health).status)

        assert seen == ["first", "last"]
        assert statuses == [1, 2]
        assert service.finished()[0] == 0


def test_stream_that_outlives_the_grace_ends_unavailable_and_the_process_exits_well():
    with (
        running(PROBE, UNDERSTUDY_SERVING_DRAIN_GRACE_S="0.1") as service,
        stub_of(service) as stub,
    ):
        stream = stub.Watch(distiller_pb2.WatchRequest(run_id="forever"), timeout=60)
        next(stream)

        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)

        assert isinstance(from_rpc_error(caught.value), errors.Unavailable)
        assert service.finished()[0] == 0


def test_second_interrupt_cuts_the_grace_short():
    with running(PROBE, UNDERSTUDY_SERVING_DRAIN_GRACE_S="3600") as service:
        with stub_of(service) as stub:
            stream = stub.Watch(distiller_pb2.WatchRequest(run_id="forever"), timeout=60)
            next(stream)

            service.process.send_signal(signal.SIGINT)
            for line in service.process.stderr:
                if '"Draining."' in line:
                    break
            service.process.send_signal(signal.SIGINT)
            with pytest.raises(grpc.RpcError):
                next(stream)

        assert service.finished()[0] == 0


def test_bad_setting_exits_2_with_a_sentence():
    code, said = failed(PROBE, UNDERSTUDY_SERVING_DRAIN_GRACE_S="soon")

    assert code == 2
    assert said == "understudy probe: UNDERSTUDY_SERVING_DRAIN_GRACE_S is 'soon'; set a number.\n"


def test_unknown_setting_exits_2_naming_it():
    code, said = failed(PROBE, UNDERSTUDY_SERVING_LISTN="127.0.0.1:1")

    assert code == 2
    assert "UNDERSTUDY_SERVING_LISTN is not a setting" in said


def test_certificates_that_cannot_be_read_exit_2_naming_the_file(tmp_path):
    code, said = failed(PROBE, UNDERSTUDY_SERVING_TLS_DIR=str(tmp_path))

    assert code == 2
    assert said.startswith(f"understudy probe: The file {tmp_path}/tls.crt cannot be read (No such")
    assert len(said.splitlines()) == 1


def test_port_in_use_exits_1_with_a_sentence():
    with running(PROBE) as service:
        code, said = failed(PROBE, UNDERSTUDY_SERVING_LISTEN=f"127.0.0.1:{service.port}")

    assert code == 1
    assert "another process may hold the port" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_metrics_port_in_use_exits_1_with_a_sentence():
    with running(PROBE, UNDERSTUDY_SERVING_METRICS_LISTEN="127.0.0.1:0") as service:
        listen = f"127.0.0.1:{service.metrics_port}"
        code, said = failed(PROBE, UNDERSTUDY_SERVING_METRICS_LISTEN=listen)

    assert code == 1
    assert f"The metrics address {listen} cannot be listened on" in said


def test_failed_task_stops_the_process_with_an_error():
    code, said = failed(PROBE, PROBE_TASK="fail")

    assert code == 1
    assert "A task of the service failed; the service stops." in said


def test_metrics_are_exposed_over_http():
    with running(PROBE, UNDERSTUDY_SERVING_METRICS_LISTEN="127.0.0.1:0") as service:
        with stub_of(service) as stub, pytest.raises(grpc.RpcError):
            stub.List(distiller_pb2.ListRequest(), timeout=60)
        url = f"http://127.0.0.1:{service.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as response:
            text = response.read().decode()

        assert "understudy_serving_calls_total" in text
        assert service.end()[0] == 0


def test_spans_of_finished_and_cancelled_streams_reach_the_trace_store(tmp_path):
    path = tmp_path / "traces.sqlite"
    settings = {
        "UNDERSTUDY_TRACES_LISTEN": "127.0.0.1:0",
        "UNDERSTUDY_TRACES_PATH": str(path),
        "UNDERSTUDY_TRACES_READY_FILE": str(tmp_path / "ready.json"),
    }
    with running(TRACES, **settings) as traces:
        assert json.loads((tmp_path / "ready.json").read_text())["port"] == traces.port
        endpoint = f"http://127.0.0.1:{traces.port}"
        with running(PROBE, UNDERSTUDY_SERVING_OTLP_ENDPOINT=endpoint) as service:
            metadata = (
                ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),
                ("x-request-id", "req-5"),
            )
            with stub_of(service) as stub:
                forever = distiller_pb2.WatchRequest(run_id="forever")
                left = stub.Watch(forever, metadata=metadata, timeout=60)
                next(left)
                left.cancel()
                unread = stub.Watch(forever, metadata=metadata, timeout=60)
                assert unread.initial_metadata() is not None
                unread.cancel()
            assert service.end()[0] == 0
        with TraceStore.open(path, read_only=True) as store:
            trace = store.get(TRACE_ID)
        assert traces.end()[0] == 0

    assert [span.name for span in trace.spans] == ["probe.watch", "probe.watch"]
    assert {span.parent_id for span in trace.spans} == {PARENT_ID}
    assert trace.services == ("probe",)
    for span in trace.spans:
        assert span.attributes[names.RPC_STATUS] == "CANCELLED"
        assert span.attributes[names.REQUEST_ID] == "req-5"
        assert not span.is_error


def test_trace_store_refuses_bad_settings_and_foreign_files(tmp_path):
    assert failed(TRACES, UNDERSTUDY_TRACES_MAX_SPANS="10")[0] == 2
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"x" * 1000)

    code, said = failed(TRACES, UNDERSTUDY_TRACES_PATH=str(foreign))

    assert code == 1
    assert "cannot be opened" in said
