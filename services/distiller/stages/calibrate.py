"""Stage 4: the calibrator of the shipped student, measured on rows no training has seen.

Both arms answer the calibration rows as serving would. The student's margins and outcomes make the
calibrator; the teacher's outcomes and costs say which confidence is worth accepting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from services.distiller.answering import Answered, Answerer, Question
from services.distiller.display import Report
from services.distiller.stages.adapter import trained_adapter
from services.distiller.stages.slm import DISTILLED, FOLDER, NAME, SUPERVISED
from services.distiller.workshop import Workshop
from understudy.errors import InvalidArgument
from understudy.evidence import (
    Operation,
    choose_threshold,
    cross_validated_confidences,
    fit_calibrator,
)
from understudy.grammar import Compiler, GrammarSource
from understudy.model.adapter import Adapter
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, load_model
from understudy.registry import write_manifest
from understudy.workloads.metrics import Figures, figures, is_exact_match
from understudy.workloads.snips.dataset import Row, Split, load_split
from understudy.workloads.workload import ToolCall

MAX_LOSS = 0.015
CONFIDENCE_Z = 1.96
"""The pair's paired 95 % interval against the LLM alone ends no lower than -1.5 points."""
CALIBRATOR = "calibrator.json"
PART_SIZE = 500
_FIELDS = (
    "token_ids",
    "logprobs",
    "margins",
    "mask_losses",
    "is_forced",
    "is_finished",
    "num_positions",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm's answers to some rows."""

    rows: Sequence[Row]
    answers: Sequence[Answered]
    calls: Sequence[ToolCall | None]

    @property
    def passed(self) -> np.ndarray:
        """Which rows were answered exactly right, (N,) bool."""
        pairs = zip(self.calls, self.rows, strict=True)
        return np.array([is_exact_match(call, row.gold) for call, row in pairs])

    @property
    def positions(self) -> np.ndarray:
        """Positions computed for each row, (N,)."""
        return np.array([answer.num_positions for answer in self.answers])

    @property
    def figures(self) -> Figures:
        """Quality over all rows."""
        golds = [row.gold for row in self.rows]
        return figures(zip(self.calls, golds, strict=True))


def calibrate(workshop: Workshop) -> None:
    """Fit calibrator and threshold, and write the version's manifest."""
    folder = workshop.directory / "models" / FOLDER
    student = load_model(folder)
    slm = measure(workshop, "calibration", "slm", student, None)
    llm = measure(workshop, "calibration", "llm", workshop.teacher, trained_adapter(workshop))
    features = np.stack([answer.evidence.features() for answer in slm.answers])
    confidences = cross_validated_confidences(features, slm.passed)
    operation = choose_threshold(
        confidences,
        slm.passed,
        llm.passed,
        slm.positions * float(student.config.cost_per_position()),
        llm.positions * float(workshop.teacher.config.cost_per_position()),
        max_loss=MAX_LOSS,
        z=CONFIDENCE_Z,
    )
    calibrator = fit_calibrator(
        features,
        slm.passed,
        slm_version=f"{NAME}@{student.digest[:8]}",
        workload=workshop.workload.name,
        output_type=workshop.workload.output_type,
    )
    calibrator.with_operation(operation).save(folder / CALIBRATOR)
    write_manifest(
        folder,
        name=NAME,
        model_digest=student.digest,
        files=["config.json", "model.safetensors", "tokenizer.json"],
        calibrators=[CALIBRATOR],
        facts=_facts(workshop, student, slm, llm, operation),
    )
    workshop.display.say(f"slm {slm.figures}; llm {llm.figures}; {operation}")


def measure(
    workshop: Workshop, split: Split, arm: str, model: LoadedModel, adapter: Adapter | None
) -> Measured:
    """Answer a split with one arm, in parts that survive interruptions."""
    rows = load_split(split)
    identity = model.digest if adapter is None else adapter.digest
    folder = workshop.directory / "answers" / f"{split}-{arm}-{identity[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    answers: list[Answered] = []
    answerer: Answerer | None = None
    with workshop.display.task(f"{arm} answers {split}", len(rows)) as report:
        for start in range(0, len(rows), PART_SIZE):
            path = folder / f"part-{start:06d}.json"
            if not path.exists():
                answerer = answerer or _answerer(workshop, model, adapter)
                part = rows[start : start + PART_SIZE]
                _save(path, _answer(workshop, answerer, part, _shifted(report, start)))
            answers += _load(path)
    return Measured(rows, answers, [_call(workshop, answer) for answer in answers])


def _answerer(workshop: Workshop, model: LoadedModel, adapter: Adapter | None) -> Answerer:
    tokenizer = workshop.tokenizer
    compiler = Compiler(
        tokenizer.source, eos_ids=[workshop.end_id], vocab_size=tokenizer.vocab_size
    )
    return Answerer(
        Transformer(model.config, model.weights),
        compiler,
        end_id=workshop.end_id,
        adapter=adapter,
        max_tokens=workshop.workload.max_answer_tokens,
    )


def _answer(
    workshop: Workshop, answerer: Answerer, rows: Sequence[Row], progress: Callable[[int], None]
) -> list[Answered]:
    questions = [
        Question(
            workshop.tokenizer.encode_prompt(workshop.prompt(row)),
            GrammarSource("lark", workshop.workload.grammar(workshop.messages(row))[1]),
        )
        for row in rows
    ]
    return answerer.answer(questions, progress)


def _shifted(report: Report, start: int) -> Callable[[int], None]:
    return lambda done: report(start + done, None)


def _call(workshop: Workshop, answer: Answered) -> ToolCall | None:
    try:
        return workshop.workload.parse(workshop.tokenizer.decode(answer.token_ids))
    except InvalidArgument:
        return None


def _save(path: Path, answers: Sequence[Answered]) -> None:
    raw = [{name: getattr(answer, name) for name in _FIELDS} for answer in answers]
    staging = path.with_suffix(".tmp")
    staging.write_text(json.dumps(raw), encoding="utf-8")
    staging.rename(path)


def _load(path: Path) -> list[Answered]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    return [Answered(**fields, is_over=True) for fields in raw]


def _facts(
    workshop: Workshop,
    student: LoadedModel,
    slm: Measured,
    llm: Measured,
    operation: Operation,
) -> dict[str, object]:
    teacher_cost = workshop.teacher.config.cost_per_position()
    return {
        "teacher_digest": workshop.teacher.digest,
        "cost_per_position": student.config.cost_per_position(),
        "cost_per_position_of_llm": teacher_cost,
        "calibration_rows": len(slm.rows),
        "slm_exact_match": slm.figures.exact_match,
        "llm_exact_match": llm.figures.exact_match,
        "threshold": operation.threshold,
        "expected_coverage": operation.coverage,
        "expected_exact_match": operation.quality,
        "expected_cost_ratio": operation.cost_ratio,
        "supervised": asdict(workshop.changes.apply(SUPERVISED)),
        "distilled": asdict(workshop.changes.apply(DISTILLED)),
        "max_loss": MAX_LOSS,
        "confidence_z": CONFIDENCE_Z,
    }
