"""The waterfall in the terminal and as a page."""

import io
import re
from html.parser import HTMLParser

from rich.console import Console

from understudy.local.traces import Trace, render_html, render_terminal
from understudy.local.traces.facts import milliseconds
from understudy.telemetry import names

WATERFALL = """\
trace abababababababababababababababab  100.0 ms  7 spans  router, attention-slm, attention-llm, kvstore, experts
span                    service            time                                  facts
router.generate         router         100.0 ms  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
  router.attempt        router          20.0 ms  ━━━━━━                          pool slm  confidence 0.4212
    attention.sequence  attention-slm   13.0 ms   ╺━━━╸
  router.attempt        router          75.0 ms         ╺━━━━━━━━━━━━━━━━━━━━━━  pool llm
    attention.sequence  attention-llm   65.0 ms           ━━━━━━━━━━━━━━━━━━━╸
      kvstore.lookup    kvstore         2.00 ms           ╺                      failed: the store is away
      experts.compute   experts         55.0 ms            ╺━━━━━━━━━━━━━━━━     layers 0-4  rows 40
"""  # noqa: E501


def terminal(trace, width=120):
    output = io.StringIO()
    render_terminal(trace, Console(file=output, width=width, color_system=None))
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


def test_waterfall_shows_tree_times_and_facts(escalated):
    assert terminal(escalated) == WATERFALL


def test_narrow_terminal_leaves_facts_out(escalated):
    drawn = terminal(escalated, width=80)

    assert "facts" not in drawn
    assert all(len(line) <= 80 for line in drawn.splitlines())
    assert "experts.compute" in drawn


def test_terminal_is_not_steered_by_span_text(span):
    evil = span(1, 0, "\x1b[2J[bold]x[/bold]", "\x1b]0;owned\x07", 0, 1)

    drawn = terminal(Trace(evil.trace_id, (evil,)))

    assert "\x1b" not in drawn
    assert "\x07" not in drawn
    assert "[bold]x[/bold]" in drawn


def test_long_trace_is_cut_and_says_so(span):
    spans = tuple(span(n, 1 if n > 1 else 0, "w", "s", 0, 1) for n in range(1, 301))

    assert "and 50 more spans" in terminal(Trace(spans[0].trace_id, spans))


def test_orphans_and_cycles_are_still_drawn_once(span):
    spans = (
        span(1, 99, "orphan", "s", 0, 1),
        span(2, 3, "cycle-a", "s", 0, 1),
        span(3, 2, "cycle-b", "s", 0, 1),
    )
    trace = Trace(spans[0].trace_id, spans)

    assert sorted(row.span.name for row in trace.rows) == ["cycle-a", "cycle-b", "orphan"]
    assert trace.root.name == "orphan"


def test_deep_trace_needs_no_recursion(span):
    spans = tuple(span(n, n - 1, "w", "s", 0, 1) for n in range(1, 3001))

    assert Trace(spans[0].trace_id, spans).rows[-1].depth == 2999


def test_spans_without_duration_have_a_place(span):
    instant = span(1, 0, "instant", "s", 5, 5)

    (row,) = Trace(instant.trace_id, (instant,)).rows

    assert (row.offset, row.width) == (0.0, 0.0)


def test_durations_read_well():
    assert [milliseconds(value) for value in (0.5, 42.0, 1234.5)] == [
        "0.50 ms",
        "42.0 ms",
        "1.23 s",
    ]


class Page(HTMLParser):
    """Collects tags, text and references; notices tags that are not closed."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.references, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_stands_alone(escalated):
    html = render_html(escalated)
    page = Page(html)

    assert page.open == []
    assert page.references == []
    assert "script" not in page.tags
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert '<html lang="en">' in html


def test_page_shows_every_span_with_its_attributes(escalated):
    page = Page(render_html(escalated))

    assert page.tags.count("details") == len(escalated.spans)
    for expected in ("experts.compute", "layers 0-4", names.LAYER_COUNT, "the store is away"):
        assert expected in page.text
    assert "event at 1.00 ms" in page.text
    assert escalated.trace_id in page.text


def test_page_is_a_table_with_headings_that_name_rows_and_columns(escalated):
    html = render_html(escalated)

    assert html.count('scope="col"') == 5
    assert html.count('scope="row"') == len(escalated.spans)
    assert re.search(r'role="region" aria-label="Waterfall" tabindex="0"', html)


def test_page_escapes_everything_that_came_from_spans(span):
    evil = '"><script>alert(1)</script>$title<img src=x onerror=y>'
    hostile = span(
        1, 0, evil, evil, 0, 1, is_error=True, status_message=evil, attributes={evil: (evil, 1)}
    )

    page = Page(render_html(Trace(hostile.trace_id, (hostile,))))

    assert "script" not in page.tags
    assert "img" not in page.tags
    assert evil in page.text
