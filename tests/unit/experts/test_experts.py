"""The expert worker's parts: settings, queue, holdings, spans."""

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.experts.batching import ComputeThread, LayerQueue, Work
from services.experts.holdings import Holdings
from services.experts.settings import ExpertsSettings, parse_ids
from services.experts.spans import IDLE_S, ComputeSpan, SpanAggregator
from tests.contract.experts.parts import DENSE, MIXTURE, seeded
from understudy.errors import FailedPrecondition
from understudy.exchange.frame import Frame, FrameType, Header
from understudy.exchange.tensors import Request
from understudy.exchange.traces import TraceSegment, pack_segments
from understudy.serving import SettingsError

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _header(layer: int = 0, **fields: int) -> Header:
    return Header(FrameType.REQUEST, 1, 0, layer, 0, 0, **{"num_shards": 1, **fields})


def _work(layer: int, received_ns: int = 0, answer=lambda frames: None) -> Work:
    return Work(Frame(_header(layer, remaining_us=5), memoryview(b"")), received_ns, answer)


def test_ids_are_read_from_numbers_and_ranges():
    assert parse_ids("all", "X") is None
    assert parse_ids("3, 0-1,1", "X") == (0, 1, 3)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0-70000", "²"])
def test_ids_that_are_no_ranges_are_refused_by_name(text: str):
    with pytest.raises(SettingsError, match="UNDERSTUDY_EXPERTS_LAYERS"):
        parse_ids(text, "UNDERSTUDY_EXPERTS_LAYERS")


@pytest.mark.parametrize(
    ("name", "value"), [("CREDITS", "0"), ("THREADS", "0"), ("LAYERS", "x"), ("NONSENSE", "1")]
)
def test_a_bad_setting_is_refused_by_name(name: str, value: str):
    environ = {"UNDERSTUDY_EXPERTS_MODEL": "m.gguf", f"UNDERSTUDY_EXPERTS_{name}": value}
    with pytest.raises(SettingsError, match=name):
        ExpertsSettings.from_env(environ)


def test_settings_have_defaults_for_all_but_the_model():
    settings = ExpertsSettings.from_env({"UNDERSTUDY_EXPERTS_MODEL": "m.gguf"})
    assert settings == ExpertsSettings("m.gguf", "all", "all", 8, 1)


def test_the_layer_whose_head_is_oldest_goes_next_with_all_its_frames():
    queue = LayerQueue()
    for layer in (4, 2, 4, 3, 4):
        queue.put(_work(layer))
    assert len(queue) == 5
    taken = [[work.frame.header.layer for work in queue.take()] for _ in range(4)]
    assert taken == [[4, 4, 4], [2], [3], []]


@UNHURRIED
@given(layers=st.lists(st.integers(0, 3)))
def test_no_frame_is_lost_or_reordered_within_its_layer(layers: list[int]):
    queue = LayerQueue()
    for number, layer in enumerate(layers):
        queue.put(_work(layer, received_ns=number))
    taken = []
    while batch := queue.take():
        assert len({work.frame.header.layer for work in batch}) == 1
        taken.extend(work.received_ns for work in batch)
    assert sorted(taken) == list(range(len(layers)))


def test_the_thread_computes_what_is_queued_before_it_ends():
    batches: list[int] = []
    gate = threading.Event()

    def run(batch: list[Work]) -> None:
        gate.wait(10)
        batches.append(len(batch))

    thread = ComputeThread(run)
    thread.start()
    for layer in (0, 1, 1):
        thread.put(_work(layer))
    gate.set()
    thread.close()
    assert sum(batches) == 3


def test_a_deadline_is_counted_from_arrival():
    assert _work(0, received_ns=1000).deadline_ns == 6000


def test_holdings_name_whole_experts_of_a_mixture_and_shards_of_a_dense_model():
    assert Holdings.take(seeded(MIXTURE), expert_ids=[2, 3]).shards == (1,)
    assert Holdings.take(seeded(MIXTURE)).expert_ids == (0, 1, 2, 3)
    assert Holdings.take(seeded(DENSE), expert_ids=[1, 3]).expert_ids == (1, 3)


@pytest.mark.parametrize(
    ("config", "holding", "sentence"),
    [
        (MIXTURE, {"expert_ids": [0, 1, 2]}, r"Experts \[2\] are not whole shards"),
        (DENSE, {"expert_ids": [4]}, r"Experts \[4\]"),
        (DENSE, {"layers": [0, 2]}, "not consecutive"),
        (DENSE, {"layers": [2, 3]}, "below 3"),
    ],
)
def test_holdings_that_do_not_divide_the_model_are_refused(config, holding, sentence):
    with pytest.raises(FailedPrecondition, match=sentence):
        Holdings.take(seeded(config), **holding)


def test_only_held_layers_and_shards_are_held():
    holdings = Holdings.take(seeded(DENSE), layers=[1, 2], expert_ids=[0, 1])
    assert holdings.holds(_header(1, num_shards=2))
    assert not holdings.holds(_header(0, num_shards=2))
    assert not holdings.holds(_header(1, first_shard=1, num_shards=2))


class _Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def _segment(digit: str, rows: int) -> TraceSegment:
    segment = TraceSegment.from_traceparent(f"00-{digit * 32}-{digit * 16}-01", rows)
    assert segment is not None
    return segment


def _end(*segments: TraceSegment) -> Frame:
    header = Header(FrameType.TRACE_END, 0, 0, 0, 0, 0, num_traces=len(segments))
    return Frame(header, memoryview(pack_segments(segments)))


def test_rows_are_added_up_by_attempt_and_group_of_layers(clock: _Clock):
    spans: list[ComputeSpan] = []
    aggregator = SpanAggregator(30, spans.append, clock)
    for _ in range(2):
        for layer in range(30):
            clock.now_ns += 10
            segments = [_segment("1", 3), _segment("2", 1)]
            aggregator.add(segments, _header(layer, first_shard=1), compute_ns=4)
    aggregator.end(_end(_segment("1", 0)))
    assert [span.key.first_layer for span in spans] == [0, 5, 10, 15, 20, 25]
    assert {(span.num_layers, span.tokens, span.compute_ns) for span in spans} == {(5, 30, 40)}
    assert (spans[0].start_ns, spans[0].end_ns) == (6, 350)
    aggregator.close()
    assert len(spans) == 12


def test_a_span_tells_how_many_of_its_frames_triton_computed(clock: _Clock):
    spans: list[ComputeSpan] = []
    aggregator = SpanAggregator(30, spans.append, clock)
    for is_from_triton in (True, False, True):
        aggregator.add([_segment("1", 1)], _header(0), 0, is_from_triton=is_from_triton)
    aggregator.close()
    assert [span.triton_frames for span in spans] == [2]


def test_the_last_group_of_layers_may_be_smaller(clock: _Clock):
    spans: list[ComputeSpan] = []
    aggregator = SpanAggregator(8, spans.append, clock)
    aggregator.add([_segment("1", 1)], _header(7), 0)
    aggregator.close()
    assert [(span.key.first_layer, span.num_layers) for span in spans] == [(6, 2)]
    SpanAggregator(7, spans.append, clock).add([], _header(6), 0)
    assert len(spans) == 1


def test_an_attempt_that_falls_silent_is_closed(clock: _Clock):
    spans: list[ComputeSpan] = []
    aggregator = SpanAggregator(6, spans.append, clock)
    aggregator.add([_segment("1", 1)], _header(0), 0)
    clock.now_ns = int(IDLE_S * 5e8)
    aggregator.add([_segment("2", 1)], _header(0), 0)
    aggregator.close_idle()
    assert spans == []
    clock.now_ns = int(IDLE_S * 1e9)
    aggregator.close_idle()
    assert [span.key.traceparent[3] for span in spans] == ["1"]


def test_open_spans_are_bounded(clock: _Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("services.experts.spans.MAX_OPEN", 2)
    spans: list[ComputeSpan] = []
    aggregator = SpanAggregator(6, spans.append, clock)
    for digit in "123":
        aggregator.add([_segment(digit, 1)], _header(0), 0)
    assert [span.key.traceparent[3] for span in spans] == ["1"]


def test_a_sum_over_shards_is_added_in_ascending_order():
    holdings = Holdings.take(seeded(DENSE))
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))

    total = holdings.compute(
        _header(1, first_shard=0, num_shards=3), Request((), hidden, None, None)
    )
    partials = [holdings.weights.partial(1, shard, hidden, None) for shard in range(3)]
    assert torch.equal(total, (partials[0] + partials[1]) + partials[2])
