"""The generator of the chart's values table and schema."""

import json
from pathlib import Path

import pytest

from deploy.tools.chart_docs import (
    END,
    START,
    ValuesError,
    main,
    make_schema,
    make_table,
    read_keys,
)

VALUES = """\
# A sentence about
# the whole file.

# How many.
# @schema {"minimum": 1}
replicas: 2

# Parts.
part:
  # Share.
  ratio: 0.5
  # Switch.
  enabled: true
  # Labels.
  labels: {}
# Things.
# @schema {"required": ["name"]}
things:
  - # Its name.
    # @schema {"pattern": "^[a-z]+$"}
    name: one
    # More of it.
    # @schema {"$ref": "#/properties/part"}
    part: {}
  - name: two
"""


def test_types_come_from_defaults_and_annotations_narrow_them() -> None:
    schema = make_schema(read_keys(VALUES))
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert isinstance(properties, dict)
    assert properties["replicas"] == {"description": "How many.", "type": "integer", "minimum": 1}
    assert properties["part"]["properties"]["ratio"]["type"] == "number"
    assert properties["part"]["properties"]["enabled"]["type"] == "boolean"
    assert properties["part"]["additionalProperties"] is False
    assert properties["part"]["properties"]["labels"] == {
        "description": "Labels.",
        "type": "object",
    }


def test_a_list_of_mappings_is_described_by_its_first_item() -> None:
    properties = make_schema(read_keys(VALUES))["properties"]
    assert isinstance(properties, dict)
    assert properties["things"]["items"] == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"description": "Its name.", "type": "string", "pattern": "^[a-z]+$"},
            "part": {"$ref": "#/properties/part"},
        },
        "required": ["name"],
    }


def test_the_table_has_a_row_for_every_leaf() -> None:
    rows = make_table(read_keys(VALUES)).splitlines()
    assert "| `replicas` | `2` | How many. |" in rows
    assert "| `part.ratio` | `0.5` | Share. |" in rows
    assert '| `things[].name` | `"one"` | Its name. |' in rows
    assert not any("`part`" in row for row in rows)


def test_a_pipe_in_a_comment_does_not_break_the_table() -> None:
    assert r"`a \| b`" in make_table(read_keys("# Either `a | b`.\nkey: 1\n"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("key: 1\n", "key has no comment"),
        ("# Outer.\nouter:\n  key: 1\n", "outer.key has no comment"),
        ("# Key.\n# @schema {oops\nkey: 1\n", "key: its @schema line is not JSON"),
        ("# List.\nkeys:\n  - 1\n", "keys: a list in block style holds mappings"),
        ("# Nothing.\nkey:\n", "key has no default whose type"),
        ("- 1\n", "values.yaml is not a mapping"),
    ],
)
def test_values_that_cannot_be_documented_are_refused_by_name(values: str, sentence: str) -> None:
    with pytest.raises(ValuesError, match=sentence):
        make_schema(read_keys(values))


def test_check_names_stale_files_and_writing_mends_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "values.yaml").write_text(VALUES)
    (tmp_path / "README.md").write_text(f"Head\n{START}\n{END}\nTail\n")
    arguments = ["--chart", str(tmp_path)]
    assert main(["--check", *arguments]) == 1
    assert "stale: README.md" in capsys.readouterr().out
    assert not (tmp_path / "values.schema.json").exists()
    assert main(arguments) == 0
    assert main(["--check", *arguments]) == 0
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("Head\n")
    assert readme.endswith("Tail\n")
    assert json.loads((tmp_path / "values.schema.json").read_text())["type"] == "object"


def test_a_readme_without_a_place_for_the_table_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "values.yaml").write_text(VALUES)
    (tmp_path / "README.md").write_text("Nothing here.\n")
    assert main(["--chart", str(tmp_path)]) == 2
    assert "README.md lacks the lines" in capsys.readouterr().err
