"""The commands and their help."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from understudy.cli import ask, startup
from understudy.cli.demo import run_demo
from understudy.cli.evaluation import Comparison, compare
from understudy.cli.failures import FAILED, Commands, describe
from understudy.cli.tables import evaluation_table, interval_line, print_failures
from understudy.cli.traffic import Target
from understudy.cli.waterfall import find_trace, show_trace
from understudy.client import Client, GenerateParams, Tls
from understudy.errors import InvalidArgument
from understudy.local.platform import find_platform, require_platform
from understudy.local.settings import LocalSettings
from understudy.local.site import TRACES_FILE
from understudy.workloads import find_workload
from understudy.workloads.snips.dataset import Row, Split, load_rows, load_split

API_KEY_VARIABLE: Final = "UNDERSTUDY_API_KEY"

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language models, the small one first: run the platform here, and ask it.",
)

Address = Annotated[
    str | None,
    typer.Option(help="Router to ask, host:port; left out, the platform that runs here."),
]
ApiKey = Annotated[str | None, typer.Option(envvar=API_KEY_VARIABLE, help="Your API key.")]
Trusted = Annotated[
    Path | None,
    typer.Option("--tls", help="Speak TLS and trust the authorities in this PEM file."),
]
ModelName = Annotated[str, typer.Option("--model", help="auto, slm or llm.")]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one answer.")]
PriorityName = Annotated[str, typer.Option("--priority", help="interactive, standard or batch.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens to generate.")]


@app.command()
def up() -> None:
    """Start the platform on this machine and leave it running.

    Ports, Redis servers and models come from UNDERSTUDY_LOCAL_* variables; see `status` for where
    it listens.
    """
    console = Console()
    platform = startup.start(LocalSettings.from_env(os.environ), console, is_bound=False)
    console.print(
        f"The platform is up: gRPC {platform.grpc_address}, OpenAI {platform.http_url}/v1"
    )
    console.print("Ask it with `understudy call`, stop it with `understudy down`.")


@app.command()
def down() -> None:
    """Stop the platform on this machine."""
    console = Console()
    was_up = startup.stop(_run_dir(), console)
    console.print("The platform is down." if was_up else "No platform was up.")


@app.command()
def status() -> None:
    """Show the services of the platform on this machine; exit code 1 when it is not up."""
    console = Console()
    platform = find_platform(_run_dir())
    if platform is None:
        console.print(f"No platform runs from {_run_dir()}; start one with `understudy up`.")
        raise typer.Exit(FAILED)
    table = Table("service", "phase", "pid", "port", "metrics", "restarts", box=None)
    for service in platform.state.services:
        ports = (service.port or "–", service.metrics_port or "–")
        cells = (service.name, service.phase, service.pid or "–", *ports, service.restarts)
        table.add_row(*map(str, cells))
    console.print(table)
    console.print(f"The platform is {platform.state.phase}; logs: {platform.run_dir / 'logs'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.json and trace.html.")] = Path("out"),
) -> None:
    """Start everything, send real requests, show who answered and one trace, stop everything."""
    report = run_demo(Console(), out)
    if report.failed:
        raise typer.Exit(FAILED)


@app.command()
def call(
    text: Annotated[str, typer.Argument(help="What to ask.")],
    model: ModelName = "auto",
    tools: Annotated[
        str | None, typer.Option(help="A workload's tools by name (snips), or a JSON file.")
    ] = None,
    schema: Annotated[str | None, typer.Option(help="JSON Schema file for the answer.")] = None,
    max_tokens: MaxTokens = None,
    priority: PriorityName = "standard",
    timeout_s: TimeoutS = 120.0,
    address: Address = None,
    api_key: ApiKey = None,
    trusted: Trusted = None,
) -> None:
    """Ask one question and print the answer and the decision behind it."""
    params: GenerateParams = {
        "messages": [{"role": "user", "content": text}],
        "model": model,
        "priority": priority,
        "timeout_s": timeout_s,
    }
    if max_tokens is not None:
        params["max_tokens"] = max_tokens
    if tools is not None:
        params = {**params, **ask.tools_option(tools)}
    if schema is not None:
        params = {**params, **ask.schema_option(schema)}
    with Client(_address(address), api_key=api_key, tls=_tls(trusted)) as client:
        ask.print_answer(Console(), client.generate(**params))


@app.command()
def chat(
    model: ModelName = "auto",
    max_tokens: MaxTokens = None,
    timeout_s: TimeoutS = 120.0,
    address: Address = None,
    api_key: ApiKey = None,
    trusted: Trusted = None,
) -> None:
    """Talk with a model; end with Ctrl-D."""
    params: GenerateParams = {"model": model, "timeout_s": timeout_s}
    if max_tokens is not None:
        params["max_tokens"] = max_tokens
    console = Console()
    with Client(_address(address), api_key=api_key, tls=_tls(trusted)) as client:
        ask.converse(console, client, params, lambda: console.input("[bold]> [/]"), describe)


@app.command()
def trace(
    trace_id: Annotated[
        str | None, typer.Argument(help="Trace id; left out, the latest request's.")
    ] = None,
    escalated: Annotated[bool, typer.Option(help="The latest escalated request's.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write it as one HTML page.")] = None,
) -> None:
    """Draw the trace of a request as a waterfall."""
    found = find_trace(_run_dir() / TRACES_FILE, trace_id, is_escalated=escalated)
    show_trace(found, Console(), html)


@app.command("eval")
def evaluate_command(
    file: Annotated[
        Path | None,
        typer.Option(help='JSON lines {"text", "tool", "arguments"}, .gz or not.'),
    ] = None,
    split: Annotated[str, typer.Option(help="Shipped rows to use instead: dev.")] = "dev",
    pool: Annotated[str, typer.Option(help="auto, slm or llm.")] = "auto",
    compare_llm: Annotated[
        bool, typer.Option("--compare-llm", help="Also ask the LLM alone; paired interval.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many rows.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Questions at once.")] = 8,
    timeout_s: TimeoutS = 120.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here, - for stdout.")
    ] = None,
    address: Address = None,
    api_key: ApiKey = None,
    trusted: Trusted = None,
) -> None:
    """Score the platform on rows of the SNIPS workload; starts one when none is up."""
    if pool not in ("auto", "slm", "llm"):
        raise InvalidArgument(f"--pool is {pool!r}; use auto, slm or llm.", {"field": "pool"})
    rows = _rows(file, split, limit)
    console = Console(stderr=json_file == Path("-"))
    workload = find_workload("snips")

    def run(router: str) -> Comparison:
        target = Target(router, api_key, concurrency, timeout_s, _tls(trusted))
        return compare(console, target, workload, rows, pool, is_paired=compare_llm)

    if address is not None:
        result = run(address)
    else:
        with startup.some_platform(console, "eval") as platform:
            result = run(platform.grpc_address)
    _show(console, result, pool, json_file)
    if any(outcome.decision is None for outcome in result.outcomes):
        raise typer.Exit(FAILED)


def _show(console: Console, result: Comparison, pool: str, json_file: Path | None) -> None:
    arms = [(pool, result.arm)]
    figures: dict[str, object] = asdict(result.arm)
    if result.llm_only is not None and result.interval is not None:
        arms.append(("LLM alone", result.llm_only))
        figures |= {
            "llm_only": asdict(result.llm_only),
            "exact_match_difference": asdict(result.interval),
        }
    console.print(evaluation_table(arms))
    if result.interval is not None:
        console.print(interval_line(result.interval), highlight=False, soft_wrap=True)
    print_failures(console, result.outcomes)
    if json_file == Path("-"):
        typer.echo(json.dumps(figures, indent=2))
    elif json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def _rows(file: Path | None, split: str, limit: int | None) -> list[Row]:
    rows = (load_rows(file) if file is not None else load_split(_split(split)))[:limit]
    if not rows:
        raise InvalidArgument("There are no rows to evaluate.", {"field": "file"})
    return rows


def _split(name: str) -> Split:
    if name == "dev":
        return "dev"
    if name == "calibration":
        return "calibration"
    raise InvalidArgument(f"--split is {name!r}; use dev or calibration.", {"field": "split"})


def _address(address: str | None) -> str:
    return address or require_platform(_run_dir()).grpc_address


def _tls(trusted: Path | None) -> Tls | None:
    return None if trusted is None else Tls.trusting(trusted)


def _run_dir() -> Path:
    return LocalSettings.from_env(os.environ).run_dir.resolve()
