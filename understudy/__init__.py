"""Understudy serves language models: the small one first, the large one when it must.

This is the callers' face: clients, results and errors. It stays light (grpcio and protobuf);
the platform's building blocks live in the subpackages and are imported by name.

    from understudy import Client

    with Client("127.0.0.1:9090") as client:
        answer = client.complete(messages=[{"role": "user", "content": "Hello"}])
        print(answer.text, answer.decision.pool, answer.decision.cost)
"""

from understudy.client import (
    Answer,
    AnswerStream,
    AsyncAnswerStream,
    AsyncClient,
    Attempt,
    Client,
    Decision,
    DecisionReason,
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerateParams,
    Message,
    Model,
    RetryPolicy,
    Started,
    Tls,
    Tool,
    ToolCall,
    Usage,
    Verdict,
)
from understudy.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    UnderstudyError,
    UnsupportedSchema,
)

__all__ = [
    "Aborted",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "Attempt",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Decision",
    "DecisionReason",
    "Delta",
    "Event",
    "FailedPrecondition",
    "FinishReason",
    "Finished",
    "GenerateParams",
    "Internal",
    "InvalidArgument",
    "Message",
    "Model",
    "NotFound",
    "PromptTooLong",
    "ResourceExhausted",
    "RetryPolicy",
    "Started",
    "Tls",
    "Tool",
    "ToolCall",
    "Unauthenticated",
    "Unavailable",
    "UnderstudyError",
    "UnsupportedSchema",
    "Usage",
    "Verdict",
]
