"""Offline decoding equals the packed reference and obeys its grammars."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.distiller.answering import Answerer, Question
from services.distiller.grid import Grid
from tests.unit.distiller.parts import CONFIG, VOCAB, weights
from understudy.grammar import Compiler, GrammarSource
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.traits import LatentShape
from understudy.model.transformer import Transformer
from understudy.model.weights import random_weights

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def compiler() -> Compiler:
    """Letters are tokens 3 to 28; token 2 ends."""
    names = ["<0>", "<1>", "<2>", *LETTERS, *(f"<{n}>" for n in range(29, VOCAB))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([name for name in names if name.startswith("<")])
    return Compiler(tokenizer.to_str(), eos_ids=[2], vocab_size=VOCAB)


def ids(text: str) -> list[int]:
    return [3 + LETTERS.index(letter) for letter in text]


def question(prompt: str, rule: str) -> Question:
    return Question(ids(prompt), GrammarSource("lark", f"start: {rule}\n"))


LATENT = replace(
    CONFIG,
    latent=LatentShape(kv_rank=6, nope_dim=4, rope_dim=4, value_dim=6),
    num_kv_heads=CONFIG.num_heads,
    head_dim=8,
)


@pytest.mark.parametrize("config", [CONFIG, LATENT], ids=["grouped", "latent"])
def test_a_grid_in_pieces_equals_whole_sequences(config: ModelConfig) -> None:
    model = Transformer(config, random_weights(config, seed=1, deviation=0.3))
    tokens = [torch.arange(3, 12), torch.arange(20, 26)]
    whole = model.forward(
        torch.cat(tokens), torch.cat([torch.arange(9), torch.arange(6)]), PackedCausal([9, 6])
    )
    grid = Grid(config, num_places=3, max_positions=16)
    pieces: list[list[torch.Tensor]] = [[], []]
    for start, counts in ((0, [4, 1]), (4, [1, 3]), (5, [4, 2])):
        starts = [start, [0, 1, 4][[0, 4, 5].index(start)]]
        positions = grid.begin([2, 0], starts, counts)
        packed = torch.cat([tokens[i][starts[i] : starts[i] + counts[i]] for i in range(2)])
        hidden = model.forward(packed, positions, grid).split(counts)
        for i in range(2):
            pieces[i].append(hidden[i])
    assert torch.allclose(torch.cat([*pieces[0], *pieces[1]]), whole, atol=1e-4)


def test_forced_tokens_are_marked_and_cost_no_choice() -> None:
    answerer = Answerer(Transformer(CONFIG, weights()), compiler(), end_id=2)
    [answered] = answerer.answer([question("abc", '"xyz"')], lambda done: None)
    assert answered.token_ids == ids("xyz")
    assert answered.is_forced == [True, True, True]
    assert answered.num_positions == 0
    assert answered.is_finished


def test_answers_do_not_depend_on_how_many_run_together() -> None:
    questions = [question(prompt, "/[a-d]{3}z[e-h]{2}/") for prompt in ("abc", "hello", "q", "zz")]
    model = Transformer(CONFIG, weights())
    heard: list[int] = []
    alone = Answerer(model, compiler(), end_id=2, num_places=1).answer(questions, heard.append)
    together = Answerer(model, compiler(), end_id=2, num_places=3).answer(
        questions, lambda done: None
    )
    assert heard == [1, 2, 3, 4]
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        assert one.is_forced == other.is_forced
        assert one.num_positions == other.num_positions
        assert torch.allclose(torch.tensor(one.margins), torch.tensor(other.margins), atol=1e-4)


def test_the_first_choice_is_the_models_best_allowed_token() -> None:
    model = Transformer(CONFIG, weights())
    [answered] = Answerer(model, compiler(), end_id=2).answer(
        [question("hello", "/[a-d]/")], lambda done: None
    )
    tokens = torch.tensor(ids("hello"))
    hidden = model.forward(tokens, torch.arange(5), PackedCausal([5]))
    allowed = ids("abcd")
    logits = model.logits(hidden[-1:])[0, allowed]
    assert answered.token_ids == [allowed[int(logits.argmax())]]
    top = logits.softmax(0).topk(2).values
    assert abs(answered.margins[0] - float(top[0] - top[1])) < 1e-5
    assert answered.evidence.is_finished


def test_an_endless_answer_stops_at_the_limit() -> None:
    answerer = Answerer(Transformer(CONFIG, weights()), compiler(), end_id=2, max_tokens=7)
    [answered] = answerer.answer([question("a", "/[ab]{20}/")], lambda done: None)
    assert len(answered.token_ids) == 7
    assert not answered.evidence.is_finished
