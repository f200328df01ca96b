"""Batches, checkpoints, and a run that is cut off resumes to the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.distiller import losses
from services.distiller.batches import Batch, Batches, Interleaved, collate
from services.distiller.checkpoint import latest_checkpoint, load_checkpoint
from services.distiller.scoring import Scorer
from services.distiller.teaching import Teaching, TopTokens
from services.distiller.trainer import Trainer, TrainingParams, learning_rate
from tests.unit.distiller.parts import CONFIG, examples, flat, weights
from understudy.errors import FailedPrecondition
from understudy.model.attention import PackedCausal
from understudy.model.transformer import Transformer

PARAMS = TrainingParams(num_steps=6, learning_rate=1e-2, seed=5, warmup_steps=2, checkpoint_every=2)


def trainer(directory: Path, params: TrainingParams = PARAMS) -> tuple[Trainer, dict[str, Tensor]]:
    trained = weights()
    for tensor in trained.values():
        tensor.requires_grad_()
    scorer = Scorer(Transformer(CONFIG, trained), trained)

    def loss(batch: Batch) -> Tensor:
        return losses.sft(scorer.logits(batch), batch.targets, batch.allowed)

    batches = Batches(examples(), 4, params.seed)
    return Trainer(trained, loss, batches, params, directory), trained


def test_a_run_that_is_cut_off_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, whole_weights = trainer(tmp_path / "whole")
    whole.resume()
    history: list[float] = []
    whole.run(lambda step, loss: history.append(loss))

    first, _ = trainer(tmp_path / "cut")
    first.resume()
    first.run(lambda step, loss: None, stop_at=3)
    again, again_weights = trainer(tmp_path / "cut")
    assert again.resume()
    assert again.step == 3
    resumed: list[float] = []
    again.run(lambda step, loss: resumed.append(loss))

    assert resumed == history[3:]
    assert torch.equal(flat(again_weights), flat(whole_weights))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, TrainingParams(num_steps=40, learning_rate=1e-2, seed=1))
    run.resume()
    history: list[float] = []
    run.run(lambda step, loss: history.append(loss))
    assert np.mean(history[-5:]) < 0.5 * np.mean(history[:5])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path)
    run.resume()
    run.run(lambda step, loss: None, stop_at=2)
    other, _ = trainer(tmp_path, TrainingParams(num_steps=6, learning_rate=1.0, seed=5))
    with pytest.raises(FailedPrecondition, match="other settings"):
        other.resume()


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path)
    run.resume()
    run.run(lambda step, loss: None, stop_at=4)
    (tmp_path / ".step-000006.tmp").mkdir()
    (tmp_path / "step-000008").mkdir()
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-000004"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path)
    run.resume()
    run.run(lambda step, loss: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000006"]


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path)
    run.resume()
    path = run.save()
    (path / "optimiser.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(FailedPrecondition, match="step-000000"):
        load_checkpoint(path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    parameter = torch.ones(2, requires_grad=True)
    run = Trainer(
        {"p": parameter},
        lambda batch: (parameter * float("nan")).sum(),
        Batches(examples(), 4, 1),
        PARAMS,
        tmp_path,
    )
    with pytest.raises(FailedPrecondition, match="became nan at step 0"):
        run.run(lambda step, loss: None)


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    assert learning_rate(PARAMS, 0) == pytest.approx(0.5e-2)
    assert learning_rate(PARAMS, 2) == pytest.approx(1e-2)
    assert learning_rate(PARAMS, 4) == pytest.approx(0.5e-2)
    assert learning_rate(PARAMS, 6) == pytest.approx(0.0)


def test_every_epoch_shows_every_example_once_in_another_order() -> None:
    data = examples(24)
    batches = Batches(data, 4, 3)
    assert batches.num_per_epoch == 6
    epochs = [[batches.of_step(e * 6 + i).tokens.tolist() for i in range(6)] for e in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sum(map(len, epoch)) == sum(int(example.free[-1]) for example in data)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    ahead, behind = Batches(examples(), 4, 3), Batches(examples(), 4, 3)
    ahead.of_step(11)
    assert torch.equal(ahead.of_step(7).tokens, behind.of_step(7).tokens)


def test_scores_of_a_packed_batch_equal_those_of_each_example_alone() -> None:
    data = list(examples(5))
    tensors = weights()
    model = Transformer(CONFIG, tensors)
    batch = collate(data)
    scores = Scorer(model, tensors).logits(batch)
    row = 0
    for example in data:
        tokens = torch.from_numpy(example.tokens).long()
        hidden = model.forward(tokens, torch.arange(len(tokens)), PackedCausal([len(tokens)]))
        expected = model.logits(hidden)[torch.from_numpy(example.free).long() - 1]
        part = scores[row : row + len(example.free)]
        assert torch.allclose(part, expected[:, batch.vocabulary], atol=1e-4)
        row += len(example.free)
    assert torch.equal(
        batch.vocabulary[batch.targets],
        torch.cat([torch.from_numpy(e.tokens[e.free]).long() for e in data]),
    )


def test_labels_stand_in_the_columns_of_their_tokens(tmp_path: Path) -> None:
    data = list(examples(3))
    labels = [
        TopTokens(
            np.stack([np.array([c[0], -1], dtype=np.int32) for c in example.candidates]),
            np.zeros((len(example.free), 2), dtype=np.float16),
        )
        for example in data
    ]
    Teaching.pack(labels).save(tmp_path / "labels.npz")
    teaching = Teaching.load(tmp_path / "labels.npz")
    batch = collate(data, [teaching[index] for index in range(3)])
    assert batch.teacher_columns is not None
    firsts = np.concatenate([[c[0] for c in example.candidates] for example in data])
    assert batch.vocabulary[batch.teacher_columns[:, 0]].tolist() == firsts.tolist()
    assert (batch.teacher_columns[:, 1] == losses.UNUSED).all()


def test_unreadable_labels_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "labels.npz").write_bytes(b"no")
    with pytest.raises(FailedPrecondition, match=r"labels\.npz"):
        Teaching.load(tmp_path / "labels.npz")


def test_rare_batches_come_once_a_period() -> None:
    rare, common = Batches(examples(8, seed=1), 4, 1), Batches(examples(12, seed=2), 4, 1)
    both = Interleaved(rare, common, period=3)
    assert both.num_per_epoch == 6
    expected = [rare.of_step(0), common.of_step(0), common.of_step(1), rare.of_step(1)]
    for step, batch in enumerate(expected):
        assert torch.equal(both.of_step(step).tokens, batch.tokens)
