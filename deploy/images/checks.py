"""What can be said of the Dockerfile without a container engine: `python -m deploy.images.checks`.

Checked: bases pinned by tag or digest, sources of COPY present and not ignored, stages that exist,
nothing fetched by ADD, packages installed by hash and without resolving, no secret in ENV or ARG,
images that end as a numeric user other than root, with their sources compiled to bytecode, and
start a program without a shell. Not checked: that an image can be built, that a base or a system
package exists, what it contains.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.images.dockerfile import IgnoreRules, Instruction, Stage, parse
from deploy.images.targets import DOCKERFILE, ROOT, TARGETS

_SECRET: Final = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|PRIVATE|API_?KEY", re.I)
_USER: Final = re.compile(r"(\d+)(?::(\d+))?")
_TAG: Final = re.compile(r":([\w][\w.-]*)$")
_DIGEST: Final = re.compile(r"@sha256:[0-9a-f]{64}$")
_WANTED: Final = ("--no-deps", "--require-hashes", "--only-binary=:all:")


def problems(text: str, ignored: str, root: Path, targets: Sequence[str]) -> list[str]:
    """Return a sentence for everything that is wrong, with its line."""
    stages, rules = parse(text), IgnoreRules.parse(ignored)
    found = [f"There is no target {name}." for name in targets if name not in stages]
    for stage in stages.values():
        found += _of_base(stage, stages)
        found += _of_copies(stage, stages, rules, root)
        found += _of_variables(stage)
        found += _of_commands(stage)
    for name in targets:
        if name in stages:
            found += _of_target(stages[name], stages)
    return found


def _of_base(stage: Stage, stages: Mapping[str, Stage]) -> Iterator[str]:
    if stage.base in stages:
        if stages[stage.base].line >= stage.line:
            yield f"Line {stage.line}: the stage {stage.base} comes later."
        return
    tag = _TAG.search(stage.base)
    if not _DIGEST.search(stage.base) and (tag is None or tag[1] == "latest"):
        yield f"Line {stage.line}: the base {stage.base} is pinned by neither tag nor digest."


def _of_copies(
    stage: Stage, stages: Mapping[str, Stage], rules: IgnoreRules, root: Path
) -> Iterator[str]:
    for one in stage.named("ADD"):
        yield f"Line {one.line}: ADD unpacks and fetches; use COPY."
    for one in stage.named("COPY"):
        origin = one.flags.get("from")
        if origin is not None:
            if origin not in stages or stages[origin].line >= stage.line:
                yield f"Line {one.line}: there is no earlier stage {origin}."
            continue
        for source in sources(one):
            if not (root / source).exists():
                yield f"Line {one.line}: {source} does not exist."
            elif not rules.lets_through(source):
                yield f"Line {one.line}: {source} is left out by .dockerignore."
            elif ".." in Path(source).parts or re.search(r"[*?\[$]", source):
                yield f"Line {one.line}: {source} is not a plain path of the checkout."


def sources(one: Instruction) -> list[str]:
    """Return what a COPY copies."""
    return [source.rstrip("/") for source in one.words[:-1]]


def _of_variables(stage: Stage) -> Iterator[str]:
    for one in stage.named("ENV", "ARG"):
        for name in re.findall(r"(?:^|\s)(\w+)(?==|$)", one.text):
            if _SECRET.search(name):
                yield f"Line {one.line}: {name} would keep a secret in the image's history."


def _of_commands(stage: Stage) -> Iterator[str]:
    for one in stage.named("RUN"):
        for command in re.split(r"&&|\|\||;", one.text):
            if re.search(r"\bpip\b.*\binstall\b", command):
                missing = [flag for flag in _WANTED if flag not in command]
                if missing:
                    yield f"Line {one.line}: pip installs without {', '.join(missing)}."
            if re.search(r"\b(curl|wget|sudo)\b", command):
                yield f"Line {one.line}: {command.strip().split()[0]} is not for images."


def _of_target(target: Stage, stages: Mapping[str, Stage]) -> Iterator[str]:
    user = effective(target, stages, "USER")
    if user is None or not (found := _USER.fullmatch(user.text)) or int(found[1]) == 0:
        said = user.text if user else "nobody"
        yield f"Target {target.name}: it runs as {said}; end it with a numeric user, not 0."
    command = effective(target, stages, "CMD")
    for one in (command, effective(target, stages, "ENTRYPOINT")):
        if one is not None and not _is_exec_form(one.text):
            yield f"Line {one.line}: {one.name} needs its exec form, or a shell takes the signals."
    if command is None:
        yield f"Target {target.name}: it has no CMD."
    if copied(target, stages) and not _is_compiled(target):
        yield (
            f"Target {target.name}: compile its sources after the last COPY, since nothing can be"
            " written beside them later and each start would do it."
        )


def _is_compiled(target: Stage) -> bool:
    compiling = [one.line for one in target.named("RUN") if "compileall" in one.words]
    return bool(compiling) and compiling[-1] > max(one.line for one in target.named("COPY"))


def effective(stage: Stage, stages: Mapping[str, Stage], name: str) -> Instruction | None:
    """Return the last instruction of a name, in the stage or in what it stands on."""
    mine = stage.named(name)
    if mine:
        return mine[-1]
    return effective(stages[stage.base], stages, name) if stage.base in stages else None


def copied(stage: Stage, stages: Mapping[str, Stage]) -> list[str]:
    """Return what of the checkout an image holds, what it stands on included."""
    below = copied(stages[stage.base], stages) if stage.base in stages else []
    own = [one for one in stage.named("COPY") if "from" not in one.flags]
    return [*below, *(source for one in own for source in sources(one))]


def _is_exec_form(text: str) -> bool:
    try:
        words = json.loads(text)
    except ValueError:
        return False
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def main() -> int:
    """Check the Dockerfile of this checkout; returns the exit status."""
    ignored = (ROOT / ".dockerignore").read_text("utf-8")
    names = [target.name for target in TARGETS]
    found = problems(DOCKERFILE.read_text("utf-8"), ignored, ROOT, names)
    for sentence in found:
        print(sentence)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
