"""A tiny served model, a router's end of a session, and the reference both are compared with."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc.aio
import torch
from google.protobuf.duration_pb2 import Duration
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.api.types.v1 import types_pb2
from understudy.errors import UnderstudyError
from understudy.grammar import GrammarSource
from understudy.model.adapter import Adapter, AdapterBatch, adapter_shapes, save_adapter
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.safetensors_io import save_model
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy.rpc import error_from_proto

EOS = 256
VOCAB = 264
ROOT = b"r" * 32
WAIT_S = 60.0

CONFIG = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=48,
    max_positions=2048,
    bos_id=None,
    eos_ids=(EOS,),
)
KINDS = {"lark": types_pb2.Grammar.KIND_LARK, "json_schema": types_pb2.Grammar.KIND_JSON_SCHEMA}


def write_model(directory: Path) -> LoadedModel:
    """Write a seeded model, a byte tokenizer and two adapters; return the model as loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    save_model(directory, CONFIG, random_weights(CONFIG, seed=7, deviation=0.4))
    (directory / "tokenizer.json").write_text(byte_tokenizer())
    loaded = load_model(directory)
    for index, name in enumerate(("left", "right")):
        save_adapter(make_adapter(name, index, loaded.digest), adapter_path(directory, name))
    return loaded


def adapter_path(directory: Path, name: str) -> Path:
    """Where an adapter of the model is; apart from the weights, so that they are found alone."""
    (directory / name).mkdir(exist_ok=True)
    return directory / name / "adapter.safetensors"


def make_adapter(name: str, seed: int, base_digest: str) -> Adapter:
    """A seeded adapter that changes the output."""
    generator = torch.Generator().manual_seed(seed)
    shapes = adapter_shapes(CONFIG, rank=2)
    tensors = {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes}
    return Adapter(name, 2, 4.0, base_digest, tensors)


def byte_tokenizer() -> str:
    """A `tokenizer.json` with a token per byte and an end-of-sequence token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    source = json.loads(tokenizer.to_str())
    return json.dumps(source)


def greedy(
    loaded: LoadedModel, prompt: Sequence[int], count: int, adapter: Adapter | None = None
) -> list[int]:
    """The reference: whole sequences through `PackedCausal`, one at a time, argmax."""
    model = Transformer(loaded.config, loaded.weights)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            length = len(tokens)
            batch = AdapterBatch.of_rows([adapter] * length)
            hidden = model.forward(
                torch.tensor(tokens), torch.arange(length), PackedCausal([length]), batch
            )
            tokens.append(int(model.logits(hidden[-1:])[:, : EOS + 1].argmax()))
    return tokens[len(prompt) :]


def submit(
    sequence_id: int,
    tokens: Sequence[int],
    *,
    grammar: GrammarSource | None = None,
    time_left_s: float = WAIT_S,
    kv_root: bytes = b"",
    committed: int = 0,
    adapter: str = "",
    priority: types_pb2.Priority.ValueType = types_pb2.PRIORITY_UNSPECIFIED,
    tenant: str = "",
    **sampling: object,
) -> attention_pb2.Submit:
    """A submit as a router sends it; end-of-sequence is ignored unless told otherwise."""
    message = attention_pb2.Submit(
        sequence_id=sequence_id,
        tokens=tokens,
        committed_tokens=committed,
        sampling=types_pb2.SamplingParams(**{"ignore_eos": grammar is None, **sampling}),
        adapter=adapter,
        kv_root=kv_root,
        tenant=tenant or ("acme" if kv_root else ""),
        priority=priority,
    )
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=time_left_s))
    message.time_left.CopyFrom(duration)
    if grammar is not None:
        message.grammar.CopyFrom(
            types_pb2.Grammar(kind=KINDS[grammar.kind], source=grammar.source, hash=grammar.hash)
        )
    return message


@dataclass
class Output:
    """All that a session said about one sequence."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    mask_losses: list[float] = field(default_factory=list)
    is_forced: list[bool] = field(default_factory=list)
    finished: attention_pb2.SequenceFinished | None = None
    error: UnderstudyError | None = None

    @property
    def has_ended(self) -> bool:
        return self.finished is not None or self.error is not None

    @property
    def reason(self) -> int:
        assert self.finished is not None, self.error
        return self.finished.finish_reason


class Router:
    """One session, read only when asked."""

    def __init__(self, stub: attention_pb2_grpc.AttentionServiceStub) -> None:
        self.call: grpc.aio.StreamStreamCall = stub.Session()
        self.outputs: dict[int, Output] = {}
        self.steps: list[int] = []

    async def send(self, *submits: attention_pb2.Submit) -> None:
        for message in submits:
            await self.call.write(attention_pb2.SessionRequest(submit=message))

    async def cancel(self, sequence_id: int) -> None:
        cancel = attention_pb2.Cancel(sequence_id=sequence_id)
        await self.call.write(attention_pb2.SessionRequest(cancel=cancel))

    async def read(self) -> None:
        """Take in one message."""
        response = await asyncio.wait_for(self.call.read(), WAIT_S)
        assert response is not grpc.aio.EOF, "The session ended."
        self.steps.append(response.step)
        for run in response.tokens:
            output = self.outputs.setdefault(run.sequence_id, Output())
            output.tokens.extend(run.token_ids)
            output.logprobs.extend(run.logprobs)
            output.margins.extend(run.margins)
            output.mask_losses.extend(run.mask_losses)
            output.is_forced.extend(run.is_forced)
        for finished in response.finished:
            self.outputs.setdefault(finished.sequence_id, Output()).finished = finished
        for failed in response.failed:
            output = self.outputs.setdefault(failed.sequence_id, Output())
            output.error = error_from_proto(failed.status)

    async def result(self, sequence_id: int) -> Output:
        """Read until a sequence has ended."""
        while not self.outputs.setdefault(sequence_id, Output()).has_ended:
            await self.read()
        return self.outputs[sequence_id]

    async def run(self, message: attention_pb2.Submit) -> Output:
        """Send one submit and read until it has ended."""
        await self.send(message)
        return await self.result(message.sequence_id)
