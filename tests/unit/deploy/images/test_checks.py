"""What is checked of the Dockerfile, on ours and on ones with a single fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.images.checks import copied, main, problems
from deploy.images.dockerfile import DockerfileError, IgnoreRules, parse
from deploy.images.targets import DOCKERFILE, ROOT, TARGETS

IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8")
TEXT = DOCKERFILE.read_text(encoding="utf-8")
NAMES = [target.name for target in TARGETS]


def test_the_dockerfile_has_no_problem() -> None:
    assert main() == 0


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("python:3.12.11-slim-bookworm", "python:latest", "pinned by neither tag nor digest"),
        ("python:3.12.11-slim-bookworm", "python", "pinned by neither tag nor digest"),
        ("python:3.12.11-slim-bookworm", "host:5000/python", "pinned by neither tag nor digest"),
        ("COPY models models", "COPY weights models", "weights does not exist"),
        ("COPY models models", "COPY tests models", "tests is left out by .dockerignore"),
        ("COPY models models", "COPY models/* models", "does not exist"),
        ("COPY models models", "COPY --from=nobody /a /b", "no earlier stage nobody"),
        ("COPY models models", "COPY --from=router /a /b", "no earlier stage router"),
        ("COPY models models", "ADD https://example.com/models models", "use COPY"),
        ("FROM base AS router", "FROM distiller AS router", "the stage distiller comes later"),
        ("USER 10001:10001\nCMD", "USER root\nCMD", "runs as root"),
        ("USER 10001:10001\nCMD", "USER 0\nCMD", "runs as 0"),
        ("USER 10001:10001\nCMD", "USER understudy\nCMD", "runs as understudy"),
        ("--require-hashes", "", "pip installs without --require-hashes"),
        ("--no-deps", "", "pip installs without --no-deps"),
        ("WORKDIR /app", "ARG REGISTRY_TOKEN=", "REGISTRY_TOKEN would keep a secret"),
        ("PYTHONUNBUFFERED=1", "REDIS_PASSWORD=x", "REDIS_PASSWORD would keep a secret"),
        ("apt-get update", "curl https://example.com | sh", "curl is not for images"),
        ('CMD ["python", "-m", "services.router"]', "CMD python -m services.router", "exec form"),
        ('CMD ["python", "-m", "services.router"]', "", "Target router: it has no CMD"),
        ("AS distiller", "AS trainer", "There is no target distiller"),
        ("RUN python -m compileall", "RUN true", "Target worker: compile its sources"),
    ],
)
def test_a_fault_is_named(before: str, after: str, sentence: str) -> None:
    assert before in TEXT
    found = problems(TEXT.replace(before, after), IGNORED, ROOT, NAMES)
    assert any(sentence in one for one in found), found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# syntax=docker/dockerfile:1\nFROM a:1 AS a", "parser directives"),
        ("FROM a:1", "give the stage a name"),
        ("FROM a:1 AS a\nFROM b:1 AS a", "two stages are named a"),
        ("FROM ${BASE} AS a", "BASE has no default"),
        ("RUN true\nFROM a:1 AS a", "before the first FROM"),
        ("FROM a:1 AS a\nONBUILD RUN true", "ONBUILD is not understood"),
        ("FROM a:1 AS a\nRUN <<EOF\nEOF", "here-documents"),
        ("FROM a:1 AS a\nRUN true \\", "not finished"),
    ],
)
def test_what_is_not_understood_is_refused_by_line(text: str, sentence: str) -> None:
    with pytest.raises(DockerfileError, match=sentence):
        parse(text)


def test_lines_are_joined_comments_skipped_and_flags_read() -> None:
    stages = parse(
        "ARG TAG=2\nFROM a:${TAG} AS one\n# why\nRUN x \\\n  # inside\n  && y\n"
        "FROM one AS two\nCOPY --from=one --chown=1:1 /a /b\n"
    )
    assert stages["one"].base == "a:2"
    (run,) = stages["one"].instructions
    assert (run.line, run.text) == (4, "x && y")
    (copy,) = stages["two"].instructions
    assert (copy.flags, copy.words) == ({"from": "one", "chown": "1:1"}, ["/a", "/b"])


def test_the_last_pattern_that_matches_decides_what_reaches_the_builder() -> None:
    rules = IgnoreRules.parse("# why\n*\n!a/b\n!c\n**/*.pyc\na/b/secret\n")
    assert rules.lets_through("a/b/x.py") and rules.lets_through("c")
    for path in ("d", "a/x", "a/b/x.pyc", "c/x/y.pyc", "a/b/secret/x"):
        assert not rules.lets_through(path), path
    with pytest.raises(DockerfileError, match="not understood"):
        IgnoreRules.parse("a/*/b")


def test_images_hold_their_own_services_and_weights_only_where_they_are_read() -> None:
    stages = parse(TEXT)
    for target in TARGETS:
        shown = copied(stages[target.name], stages)
        services = {module.split(".")[1] for module in target.modules if "services." in module}
        assert services == {
            one.removeprefix("services/") for one in shown if Path(ROOT / one).is_dir()
            and one.startswith("services/")
        }  # fmt: skip
    assert "kernels/understudy_kernels" not in copied(stages["router"], stages)
