"""Measures the calibrator of an SLM through the pools of a router: `python -m ...calibrate`.

Both pools answer labelled rows as serving would, so that the calibrator belongs to the evidence
that they give: an external engine's margins differ from those of native workers on the same
answers. Writes a version directory; its threshold keeps the pair within `MAX_LOSS` of the LLM.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from opentelemetry.trace import INVALID_SPAN
from prometheus_client import CollectorRegistry

from services.router.admission import Admission
from services.router.casting import build_pools, make_compiler, read_tokenizer
from services.router.holding import Holding
from services.router.metrics import RouterMetrics
from services.router.plans import Planner
from services.router.policy import LLM, SLM
from services.router.pools import WorkerInfo
from services.router.requests import Message, Request
from services.router.settings import RouterSettings
from services.router.stage import Stage
from services.router.tenants import Tenants
from services.router.tries import Assignment, Company, begin
from understudy.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    UnderstudyError,
)
from understudy.evidence import (
    Operation,
    choose_threshold,
    cross_validated_confidences,
    fit_calibrator,
)
from understudy.registry import write_manifest
from understudy.rpc import Deadline
from understudy.serving import PLAINTEXT
from understudy.workloads import Workload, find_workload
from understudy.workloads.metrics import is_exact_match
from understudy.workloads.snips.dataset import Row, load_rows, load_split

MAX_LOSS: Final = 0.015
CONFIDENCE_Z: Final = 1.96
"""The pair's paired 95 % interval against the LLM alone ends no lower than -1.5 points."""
CALIBRATOR: Final = "calibrator.json"
ROW_TIMEOUT_S: Final = 600.0
MAX_REFUSALS: Final = 8
_VERSION_ID: Final = re.compile(r"([A-Za-z0-9._-]{1,100})@([0-9a-f]{8})")
_UNKNOWN_DIGITS: Final = "0" * 56
"""Of an engine's weights nobody here knows more than the digits that its operator named."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One pool's answer to one row."""

    has_passed: bool
    cost: float
    features: np.ndarray


class Measuring:
    """Asks pools for rows, a few at a time."""

    def __init__(self, company: Company, planner: Planner, workload: Workload) -> None:
        self._company = company
        self._planner = planner
        self._workload = workload

    async def measure(self, rows: Sequence[Row], pool: str, num_at_once: int) -> list[Measured]:
        """Return a pool's answers in the order of the rows; raises what a pool fails with."""
        places = asyncio.Semaphore(num_at_once)
        tasks = [asyncio.ensure_future(self._row(row, pool, places)) for row in rows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, row: Row, pool: str, places: asyncio.Semaphore) -> Measured:
        async with places:
            for _ in range(MAX_REFUSALS):
                try:
                    return await self._ask(row, pool)
                except ResourceExhausted as error:
                    await asyncio.sleep(error.retry_after_s)
            return await self._ask(row, pool)

    async def _ask(self, row: Row, pool: str) -> Measured:
        request = Request(
            model=pool, messages=(Message("user", row.text),), workload=self._workload.name
        )
        plan = await asyncio.to_thread(self._planner.plan, request)
        deadline = Deadline.after(ROW_TIMEOUT_S)
        assignment = Assignment(request, plan, "calibration", deadline, INVALID_SPAN)
        with begin(self._company, assignment, pool) as attempt:
            text = await attempt.speaker.complete()
            transcript = attempt.speaker.transcript
            if pool == SLM and "margins" in transcript.gaps:
                raise FailedPrecondition(
                    "The engine of the SLM does not name two candidates for every token; without "
                    "them nothing can be calibrated. Set logprobs, and see what the engine returns."
                )
            cost = attempt.facts((), None).cost
            return Measured(self._has_passed(text, row), cost, transcript.evidence().features())

    def _has_passed(self, text: str, row: Row) -> bool:
        try:
            return is_exact_match(self._workload.parse(text), row.gold)
        except InvalidArgument:
            return False


async def calibrate(
    settings: RouterSettings, workload: Workload, rows: Sequence[Row], out: Path, num_at_once: int
) -> Operation:
    """Measure both pools, fit, and write the version to `out`; returns what it promises."""
    metrics = RouterMetrics(CollectorRegistry())
    tokenizer = read_tokenizer(settings.tokenizer)
    pools, watches = build_pools(settings.parsed_pools(), tokenizer, metrics, PLAINTEXT)
    if SLM not in pools:
        raise InvalidArgument("The pools name no slm; there is nothing to calibrate.")
    company = Company(
        stage=Stage(pools, None),
        tokenizer=tokenizer,
        tenants=Tenants(dict, b""),
        admission=Admission(num_at_once, num_at_once, num_at_once, lambda: 0.0),
        metrics=metrics,
        holding=Holding(metrics),
        slm_patience_s=settings.llm_patience_s,
        llm_patience_s=settings.llm_patience_s,
        wake_patience_s=settings.wake_patience_s,
    )
    _named(pools[SLM].info)
    measuring = Measuring(company, Planner(tokenizer, make_compiler(tokenizer)), workload)
    watching = [asyncio.ensure_future(watch()) for watch in watches]
    try:
        slm = await measuring.measure(rows, SLM, num_at_once)
        llm = await measuring.measure(rows, LLM, num_at_once)
        info = pools[SLM].info
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    named = _named(info)
    assert info is not None
    assert named is not None
    digest = info.digest.hex() or named[2] + _UNKNOWN_DIGITS
    return write(out, (named[1], digest), workload, slm, llm, pools[SLM].evidence)


def _named(info: WorkerInfo | None) -> re.Match[str] | None:
    """Return name and digits of the model, None while it is not known; refuses other names."""
    if info is None:
        return None
    matched = _VERSION_ID.fullmatch(info.model)
    if matched is None:
        raise InvalidArgument(
            f"The SLM is served as {info.model!r}; a version is name@ and eight hexadecimal "
            "digits, which change with the weights. Serve it under such a name."
        )
    return matched


def write(
    out: Path,
    version: tuple[str, str],
    workload: Workload,
    slm: Sequence[Measured],
    llm: Sequence[Measured],
    evidence: str,
) -> Operation:
    """Fit calibrator and threshold, and write them as a version: its name and digest."""
    name, digest = version
    features = np.stack([one.features for one in slm])
    passed, llm_passed = (np.array([one.has_passed for one in arm]) for arm in (slm, llm))
    costs, llm_costs = (np.array([one.cost for one in arm]) for arm in (slm, llm))
    operation = choose_threshold(
        cross_validated_confidences(features, passed), passed, llm_passed, costs, llm_costs,
        max_loss=MAX_LOSS, z=CONFIDENCE_Z,
    )  # fmt: skip
    calibrator = fit_calibrator(
        features, passed, slm_version=f"{name}@{digest[:8]}",
        workload=workload.name, output_type=workload.output_type,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    calibrator.with_operation(operation).save(out / CALIBRATOR)
    write_manifest(
        out,
        name=name,
        model_digest=digest,
        files=[],
        calibrators=[CALIBRATOR],
        facts={
            "evidence": evidence,
            "calibration_rows": len(slm),
            "slm_exact_match": float(passed.mean()),
            **_promises(operation),
        },
    )
    return operation


def _promises(operation: Operation) -> dict[str, float | None]:
    return {
        "llm_exact_match": operation.llm_quality,
        "threshold": operation.threshold,
        "expected_coverage": operation.coverage,
        "expected_exact_match": operation.quality,
        "expected_cost_ratio": operation.cost_ratio,
        "max_loss": MAX_LOSS,
        "confidence_z": CONFIDENCE_Z,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", required=True, help="pools as the router takes them, or @file")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer of native pools")
    parser.add_argument("--workload", default="snips", help="workload to calibrate")
    parser.add_argument("--rows", type=Path, help="labelled rows; default: the calibration split")
    parser.add_argument("--num-rows", type=int, default=1500, help="rows to ask at most")
    parser.add_argument("--at-once", type=int, default=8, help="requests at once")
    parser.add_argument("--out", type=Path, required=True, help="directory of the version")
    chosen = parser.parse_args(arguments)
    try:
        settings = RouterSettings(pools=chosen.pools, tokenizer=chosen.tokenizer, http_listen="")
        rows = load_rows(chosen.rows) if chosen.rows else load_split("calibration")
        workload = find_workload(chosen.workload)
        operation = asyncio.run(
            calibrate(settings, workload, rows[: chosen.num_rows], chosen.out, chosen.at_once)
        )
    except UnderstudyError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"{chosen.out}: {operation}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
