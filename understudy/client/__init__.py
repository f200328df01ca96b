"""The SDK: `Client` and `AsyncClient` on the router's gRPC API.

One core decides everything (`requests`, `events`, `retries`, `progress`: pure, no I/O); the two
clients only move its messages, so they cannot drift apart. Light: grpcio and protobuf, no torch,
no numpy, no redis. It never hides a failure: what retries and resumes cannot mend is raised as the
class of `understudy.errors` that the platform raised, with the request id.
"""

from understudy.client.asynchronous import AsyncAnswerStream, AsyncClient
from understudy.client.requests import GenerateParams, Message, Tool
from understudy.client.results import (
    Answer,
    Attempt,
    Decision,
    DecisionReason,
    Delta,
    Event,
    Finished,
    FinishReason,
    Model,
    Started,
    ToolCall,
    Usage,
    Verdict,
)
from understudy.client.retries import RetryPolicy
from understudy.client.sync import AnswerStream, Client
from understudy.client.tls import Tls

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "Attempt",
    "Client",
    "Decision",
    "DecisionReason",
    "Delta",
    "Event",
    "FinishReason",
    "Finished",
    "GenerateParams",
    "Message",
    "Model",
    "RetryPolicy",
    "Started",
    "Tls",
    "Tool",
    "ToolCall",
    "Usage",
    "Verdict",
]
