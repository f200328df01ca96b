"""The state machine of one answer: repeat, resume, refuse."""

import pytest

from understudy import (
    Delta,
    Finished,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RetryPolicy,
    Started,
    Unavailable,
)
from understudy.api.router.v1 import router_pb2
from understudy.client.progress import Progress
from understudy.client.retries import Tries

REQUEST = router_pb2.GenerateRequest(prompt="Hi", idempotency_key="k")


def new_progress() -> Progress:
    tries = Tries(
        RetryPolicy(max_attempts=3),
        timeout_s=60.0,
        request_id="sent",
        clock=lambda: 0.0,
        draw=lambda: 0.0,
    )
    return Progress(REQUEST, tries)


def started(token: str = "t1", request_id: str = "given") -> router_pb2.GenerateResponse:
    event = router_pb2.Started(request_id=request_id, resume_token=token)
    return router_pb2.GenerateResponse(started=event)


def delta(index: int, text: str = "x") -> router_pb2.GenerateResponse:
    return router_pb2.GenerateResponse(delta=router_pb2.Delta(index=index, text=text))


def finished() -> router_pb2.GenerateResponse:
    return router_pb2.GenerateResponse(finished=router_pb2.Finished())


def test_an_undisturbed_answer_is_put_together() -> None:
    progress = new_progress()
    assert progress.next_step().request == REQUEST
    assert isinstance(progress.receive(started()), Started)
    assert isinstance(progress.receive(delta(0, "Hel")), Delta)
    progress.receive(delta(1, "lo"))
    assert not progress.is_finished
    assert isinstance(progress.receive(finished()), Finished)
    assert progress.is_finished
    assert progress.answer().text == "Hello"
    assert progress.answer().request_id == "given"


def test_a_stream_that_broke_after_deltas_is_resumed_from_them() -> None:
    progress = new_progress()
    progress.receive(started())
    progress.receive(delta(0))
    progress.fail(Unavailable("gone"))
    resume = router_pb2.ResumeRequest(resume_token="t1", received_deltas=1)
    assert progress.next_step().request == resume
    assert progress.receive(started()) is None
    assert progress.receive(delta(0)) is None
    assert isinstance(progress.receive(delta(1)), Delta)


def test_a_stream_that_broke_before_it_started_is_asked_again_with_the_same_key() -> None:
    progress = new_progress()
    progress.fail(Unavailable("gone"))
    assert progress.next_step().request == REQUEST


def test_without_a_resume_token_only_an_answer_without_deltas_is_asked_again() -> None:
    progress = new_progress()
    progress.receive(started(token=""))
    progress.fail(Unavailable("gone"))
    assert progress.next_step().request == REQUEST
    progress.receive(delta(0))
    with pytest.raises(Unavailable, match="cannot be resumed") as caught:
        progress.fail(Unavailable("gone"))
    assert caught.value.request_id == "given"


def test_a_resume_token_nobody_knows_is_dropped_while_nothing_was_committed() -> None:
    progress = new_progress()
    progress.receive(started())
    progress.fail(Unavailable("gone"))
    progress.fail(NotFound("expired"))
    assert progress.next_step().request == REQUEST


def test_a_resume_token_nobody_knows_is_final_once_text_was_committed() -> None:
    progress = new_progress()
    progress.receive(started())
    progress.receive(delta(0))
    with pytest.raises(NotFound):
        progress.fail(NotFound("expired"))


def test_a_full_queue_is_waited_for_as_long_as_it_asks() -> None:
    assert new_progress().fail(ResourceExhausted("full", retry_after_s=4.0)) == 4.0


def test_an_early_end_counts_as_a_broken_stream() -> None:
    progress = new_progress()
    progress.receive(started())
    progress.end_early()
    assert progress.next_step().request == router_pb2.ResumeRequest(resume_token="t1")


def test_a_bad_request_is_final_and_carries_the_id_it_was_sent_under() -> None:
    with pytest.raises(InvalidArgument) as caught:
        new_progress().fail(InvalidArgument("bad"))
    assert caught.value.request_id == "sent"


def test_a_gap_between_deltas_is_the_platforms_bug() -> None:
    progress = new_progress()
    progress.receive(started())
    with pytest.raises(Internal, match="delta 2 where 0"):
        progress.receive(delta(2))


def test_an_event_of_a_newer_router_is_passed_over() -> None:
    assert new_progress().receive(router_pb2.GenerateResponse()) is None
