"""The faces of an attention worker that the controller looks at."""

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from services.attention.metrics import EngineMetrics
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc


class WorkerPod(attention_pb2_grpc.AttentionServiceServicer):
    """The faces of an attention worker that the controller looks at; its metrics are real."""

    def __init__(self, ip: str = "127.0.0.1") -> None:
        self.ip = ip
        self.registry = CollectorRegistry()
        self.metrics = EngineMetrics(self.registry)
        self.info = attention_pb2.InfoResponse(num_blocks=100, num_free_blocks=100)

    def work(self, steps: int, prefill: int, decode: int, ended: int, step_s: float) -> None:
        """Count some steps."""
        for _ in range(steps):
            self.metrics.step_seconds.observe(step_s)
        self.metrics.computed_tokens.labels(phase="prefill").inc(prefill)
        self.metrics.computed_tokens.labels(phase="decode").inc(decode)
        self.metrics.ended_sequences.labels(reason="stop").inc(ended)

    async def Info(self, request, context):  # noqa: N802
        return self.info

    async def expose(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry))
