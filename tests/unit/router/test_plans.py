"""Plans: workload by name or exact tool set, else a generic prompt and the caller's schema."""

from __future__ import annotations

import json

import pytest

from services.router.plans import Planner
from services.router.requests import Message, Request, Sampling, Tool, ToolCall
from services.router.verifiers import tool_calls, verify
from understudy.errors import InvalidArgument, NotFound, UnsupportedSchema
from understudy.grammar import Compiler
from understudy.testing.tiny_tokenizer import EOS_ID, tiny_tokenizer
from understudy.workloads import find_workload

TOKENIZER = tiny_tokenizer()
USER = (Message("user", "play some jazz music"),)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(TOKENIZER, Compiler(TOKENIZER.source, eos_ids=[EOS_ID]))


def snips_tools() -> tuple[Tool, ...]:
    functions = [tool["function"] for tool in find_workload("snips").tools]
    return tuple(Tool(f["name"], f["description"], f["parameters"]) for f in functions)


def test_a_workload_is_known_by_its_exact_tool_set(planner: Planner) -> None:
    plan = planner.plan(Request(messages=USER, tools=snips_tools()[::-1]))
    assert plan.workload_name == "snips"
    assert plan.adapter == "snips-tools"
    assert plan.grammar is not None and plan.grammar.kind == "lark"
    assert plan.is_held
    assert planner.plan(Request(messages=USER, workload="snips")).tokens == plan.tokens


def test_a_changed_tool_set_is_no_workload(planner: Planner) -> None:
    plan = planner.plan(Request(messages=USER, tools=snips_tools()[1:]))
    assert (plan.workload, plan.adapter) == (None, "")
    assert plan.grammar is not None and plan.grammar.kind == "json_schema"


def test_a_named_choice_narrows_the_grammar_and_leaves_the_workload(planner: Planner) -> None:
    plan = planner.plan(
        Request(messages=USER, tools=snips_tools(), tool_mode="named", tool_name="PlayMusic")
    )
    assert plan.workload is None
    assert plan.schema is not None and len(plan.schema["anyOf"]) == 1  # type: ignore[arg-type]


def test_no_choice_and_tool_results_are_answered_in_text(planner: Planner) -> None:
    tools = (Tool("go", "", {}),)
    history = (
        *USER,
        Message("assistant", "", (ToolCall("1", "go", "{}"),)),
        Message("tool", "done", (), "1"),
    )
    assert planner.plan(Request(messages=USER, tools=tools, tool_mode="none")).output_type == "text"
    plan = planner.plan(Request(messages=history, tools=tools))
    assert (plan.output_type, plan.grammar) == ("text", None)
    assert '{"name": "go", "arguments": {}}' in TOKENIZER.decode(plan.tokens)
    required = planner.plan(Request(messages=history, tools=tools, tool_mode="required"))
    assert required.output_type == "tool_call"


def test_tools_are_described_to_the_model_after_the_callers_system_turn(planner: Planner) -> None:
    tools = (Tool("go", "Goes.", {"properties": {"to": {"type": "string"}}}),)
    messages = (Message("system", "Be brief."), *USER)
    text = TOKENIZER.decode(planner.plan(Request(messages=messages, tools=tools)).tokens)
    assert text.index("Be brief.") < text.index("Goes.") < text.index("play some jazz")


def test_control_tokens_in_caller_text_stay_text(planner: Planner) -> None:
    plan = planner.plan(Request(messages=(Message("user", "<|im_end|>"),)))
    assert plan.tokens.count(EOS_ID) == 2, "one for each closed turn"


def test_raw_prompts_are_continued_as_they_are(planner: Planner) -> None:
    plan = planner.plan(Request(prompt="Once", sampling=Sampling(max_tokens=7)))
    assert TOKENIZER.decode(plan.tokens) == "Once"
    assert (plan.max_tokens, plan.is_held) == (7, False)


def test_schemas_make_json_plans(planner: Planner) -> None:
    schema = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
    request = Request(messages=USER, schema_json=schema)
    plan = planner.plan(request)
    assert plan.output_type == "json"
    assert [v.passed for v in verify(plan, request, '{"a":1}')] == [True]
    assert [v.passed for v in verify(plan, request, '{"a":"x"}')] == [False]
    assert [v.passed for v in verify(plan, request, '{"a":')] == [False]


def test_unknown_workloads_and_schemas_for_workloads_are_refused(planner: Planner) -> None:
    with pytest.raises(NotFound):
        planner.plan(Request(messages=USER, workload="poetry"))
    with pytest.raises(InvalidArgument):
        planner.plan(Request(messages=USER, workload="snips", schema_json="{}"))


def test_verifiers_check_the_schema_before_the_workload(planner: Planner) -> None:
    request = Request(messages=USER, workload="snips")
    plan = planner.plan(request)
    good = '{"name":"PlayMusic","arguments":{"genre":"jazz"}}'
    foreign = '{"name":"PlayMusic","arguments":{"genre":"rock"}}'
    assert all(v.passed for v in verify(plan, request, good))
    assert {v.verifier for v in verify(plan, request, foreign) if not v.passed} >= {"spans"}
    assert [v.verifier for v in verify(plan, request, '{"name":"Fly"}')] == ["json_schema"]


def test_tool_calls_are_read_only_when_complete() -> None:
    (call,) = tool_calls('{"name":"go","arguments":{"to":"Köln"}}')
    assert call is not None
    assert json.loads(call.arguments_json) == {"to": "Köln"}
    assert tool_calls('{"name":"go","argu') == ()
    assert tool_calls("[]") == ()
    (call,) = tool_calls('{"name":"go","arguments":{"to":"\\ud83d"}}')
    assert call.arguments_json == '{"to":"\\ud83d"}'


@pytest.mark.parametrize("bound", ["NaN", "1e999", "9" * 400])
def test_a_schema_whose_numbers_no_grammar_holds_is_the_callers(
    planner: Planner, bound: str
) -> None:
    schema = f'{{"type":"integer","minimum":{bound}}}'
    with pytest.raises(UnsupportedSchema) as caught:
        planner.plan(Request(messages=USER, schema_json=schema))
    assert caught.value.metadata["field"] == "response_schema_json"
