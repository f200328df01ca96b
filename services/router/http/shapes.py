"""Events -> OpenAI's objects and chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.router.answers import Decision, Delta, Finished, Usage
from services.router.requests import ToolCall
from services.router.stage import ModelCard

Json = dict[str, object]
Kind = Literal["chat", "text"]
Shown = Delta | Finished


@dataclass(frozen=True, slots=True)
class Shaper:
    """Shapes one answer; the same id and time in every chunk."""

    kind: Kind
    request_id: str
    model: str
    created_s: int

    def whole(self, deltas: Sequence[Delta], finished: Finished) -> Json:
        """Return the object of an answer that is not streamed."""
        text = "".join(delta.text for delta in deltas)
        calls = [call for delta in deltas for call in delta.tool_calls]
        choice: Json = {"index": 0, "finish_reason": finished.finish_reason, "logprobs": None}
        if self.kind == "chat":
            message: Json = {"role": "assistant", "content": text or None, "refusal": None}
            if calls:
                message["tool_calls"] = [_tool_call(call) for call in calls]
            elif not text:
                message["content"] = ""
            choice["message"] = message
        else:
            choice["text"] = text
        body = self._envelope("chat.completion" if self.kind == "chat" else "text_completion")
        return {**body, "choices": [choice], "usage": usage(finished.usage)}

    def delta(self, delta: Delta) -> Json:
        """Return the chunk of a piece; the first one names the role."""
        if self.kind == "text":
            choice: Json = {"index": 0, "text": delta.text, "finish_reason": None, "logprobs": None}
            return self._chunk([choice])
        content: Json = {"role": "assistant"} if delta.index == 0 else {}
        if delta.text:
            content["content"] = delta.text
        if delta.tool_calls:
            content["tool_calls"] = [
                {"index": index, **_tool_call(call)} for index, call in enumerate(delta.tool_calls)
            ]
        return self._chunk([{"index": 0, "delta": content, "finish_reason": None}])

    def end(self, finished: Finished) -> Json:
        """Return the chunk that says why the answer ended."""
        choice: Json = {"index": 0, "finish_reason": finished.finish_reason}
        rest: Json = {"text": "", "logprobs": None} if self.kind == "text" else {"delta": {}}
        return self._chunk([choice | rest])

    def usage_chunk(self, finished: Finished) -> Json:
        """Return the last chunk: usage and decision, without choices."""
        chunk = self._chunk([])
        return {**chunk, "usage": usage(finished.usage), "understudy": facts(finished.decision)}

    def _chunk(self, choices: list[Json]) -> Json:
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._envelope(name), "choices": choices}

    def _envelope(self, name: str) -> Json:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": name,
            "created": self.created_s,
            "model": self.model,
        }


def usage(tokens: Usage) -> Json:
    """Return exact token counts of the answering attempt."""
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tokens.cached_prompt_tokens},
    }


def facts(decision: Decision) -> Json:
    """Return what the router decided, as an extension field."""
    return {
        "pool": decision.pool,
        "reason": decision.reason,
        "confidence": decision.confidence,
        "threshold": decision.threshold,
        "cost": decision.cost,
        "cost_ratio": decision.cost_ratio,
        "attempts": len(decision.attempts),
        "gaps": list(decision.attempts[-1].gaps),
        "trace_id": decision.trace_id,
    }


def fact_headers(decision: Decision) -> dict[str, str]:
    """Return what the router decided, as headers."""
    headers = {
        "x-understudy-pool": decision.pool,
        "x-understudy-reason": decision.reason,
        "x-understudy-cost": f"{decision.cost:.6g}",
        "x-understudy-cost-ratio": f"{decision.cost_ratio:.6g}",
        "x-understudy-trace-id": decision.trace_id,
    }
    if decision.confidence is not None:
        headers["x-understudy-confidence"] = f"{decision.confidence:.6g}"
    if gaps := decision.attempts[-1].gaps:
        headers["x-understudy-gaps"] = ",".join(gaps)
    return headers


def models(cards: Sequence[ModelCard], created_s: int) -> Json:
    """Return the list of models."""
    return {"object": "list", "data": [model(card, created_s) for card in cards]}


def model(card: ModelCard, created_s: int) -> Json:
    """Return one model."""
    return {
        "id": card.id,
        "object": "model",
        "created": created_s,
        "owned_by": "understudy",
        "version": card.version,
        "max_model_len": card.max_context_tokens,
        "cost_per_position": card.cost_per_position,
    }


def sse(chunk: Json) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _tool_call(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.id, "type": "function", "function": function}
