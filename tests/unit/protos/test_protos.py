"""The contracts keep their form: names, comments, enums, and no back doors for untyped data."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import google.rpc
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

PROTOS: Final = Path(__file__).resolve().parents[3] / "protos"
# Field numbers of descriptor.proto, by which source locations name elements.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, NESTED_ENUMS, ONEOFS, VALUES, METHODS = 2, 3, 4, 8, 2, 2

Path_ = tuple[int, ...]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    target = tmp_path_factory.mktemp("protos") / "set"
    includes = [f"-I{PROTOS}", f"-I{Path(google.rpc.__path__[0]).parents[1]}"]
    out = ["--include_source_info", f"--descriptor_set_out={target}"]
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, *out, *sources]
    subprocess.run(command, check=True, timeout=60)
    return list(FileDescriptorSet.FromString(target.read_bytes()).file)


def _messages(file: FileDescriptorProto) -> Iterator[tuple[Path_, DescriptorProto]]:
    waiting = [((MESSAGES, i), message) for i, message in enumerate(file.message_type)]
    while waiting:
        path, message = waiting.pop()
        yield path, message
        waiting += [((*path, NESTED, i), one) for i, one in enumerate(message.nested_type)]


def _enums(file: FileDescriptorProto) -> Iterator[tuple[Path_, EnumDescriptorProto]]:
    yield from (((ENUMS, i), enum) for i, enum in enumerate(file.enum_type))
    for path, message in _messages(file):
        yield from (((*path, NESTED_ENUMS, i), one) for i, one in enumerate(message.enum_type))


def _elements(file: FileDescriptorProto) -> Iterator[tuple[Path_, str]]:
    for path, message in _messages(file):
        yield path, message.name
        yield from (
            ((*path, FIELDS, i), f"{message.name}.{f.name}") for i, f in enumerate(message.field)
        )
        real = [one for one in enumerate(message.oneof_decl) if not one[1].name.startswith("_")]
        yield from (((*path, ONEOFS, i), f"{message.name}.{one.name}") for i, one in real)
    for path, enum in _enums(file):
        yield path, enum.name
        yield from (((*path, VALUES, i), value.name) for i, value in enumerate(enum.value))
    for s, service in enumerate(file.service):
        yield (SERVICES, s), service.name
        yield from (((SERVICES, s, METHODS, i), one.name) for i, one in enumerate(service.method))


def _screaming(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def test_every_element_has_a_comment(files: list[FileDescriptorProto]) -> None:
    for file in files:
        comments = {
            tuple(location.path): location.leading_comments.strip()
            for location in file.source_code_info.location
        }
        silent = [name for path, name in _elements(file) if not comments.get(path)]
        assert not silent, file.name


def test_packages_follow_their_folders_and_name_a_version(files: list[FileDescriptorProto]) -> None:
    for file in files:
        assert file.package == str(Path(file.name).parent).replace("/", ".")
        assert re.fullmatch(r"understudy\.api\.[a-z]+\.v1", file.package)


def test_services_and_calls_have_messages_of_their_own(files: list[FileDescriptorProto]) -> None:
    used = [
        name
        for file in files
        for service in file.service
        for method in service.method
        for name in (method.input_type, method.output_type)
    ]
    assert len(used) == len(set(used))
    for file in files:
        for service in file.service:
            assert service.name.endswith("Service")
            for method in service.method:
                prefix = f".{file.package}.{method.name}"
                assert (method.input_type, method.output_type) == (
                    f"{prefix}Request",
                    f"{prefix}Response",
                )


def test_enums_start_unspecified_and_prefix_their_values(files: list[FileDescriptorProto]) -> None:
    for file in files:
        for _, enum in _enums(file):
            prefix = f"{_screaming(enum.name)}_"
            assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}UNSPECIFIED", 0)
            assert all(value.name.startswith(prefix) for value in enum.value)


def test_no_map_or_any_is_an_escape_hatch(files: list[FileDescriptorProto]) -> None:
    for file in files:
        assert "google/protobuf/any.proto" not in file.dependency
        assert "google/protobuf/struct.proto" not in file.dependency
        assert not [m.name for _, m in _messages(file) if m.options.map_entry]


def test_times_are_durations_and_timestamps_not_numbers(files: list[FileDescriptorProto]) -> None:
    texts_and_messages = (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_STRING)
    for file in files:
        for _, message in _messages(file):
            for field in message.field:
                is_number = field.type not in texts_and_messages
                is_time = re.search(r"_(s|ms|us|seconds|time)$", field.name) is not None
                assert not (is_number and is_time), f"{message.name}.{field.name}"


def test_booleans_say_so_in_their_names(files: list[FileDescriptorProto]) -> None:
    verbs = re.compile(r"(is|has|can|ignore)_")
    for file in files:
        for _, message in _messages(file):
            for field in message.field:
                if field.type == FieldDescriptorProto.TYPE_BOOL:
                    assert verbs.match(field.name), f"{message.name}.{field.name}"


def test_the_readme_names_every_service_and_call(files: list[FileDescriptorProto]) -> None:
    text = (PROTOS / "README.md").read_text()
    for file in files:
        for service in file.service:
            assert f"`{service.name}`" in text
            for method in service.method:
                assert re.search(rf"`(\w+\.)?{method.name}`", text), method.name
