"""What may be said about repeated measurements, and how it is drawn."""

import math
import re
from html.parser import HTMLParser

import pytest

from quire.base.errors import ConfigError
from quire.bench.chart import page
from quire.bench.compare import CompareResult
from quire.bench.suite import Sizes, draw_ids, mixed_asks
from quire.bench.verdicts import Measure, Range, Row, judge

RATE, DELAY = Measure("decode", "tok/s"), Measure("first token", "ms", False)


@pytest.mark.parametrize(
    ("measure", "first", "other", "verdict"),
    [
        (RATE, [10, 11, 12], [7, 8, 9], "better"),
        (RATE, [7, 8, 9], [10, 11, 12], "worse"),
        (DELAY, [7, 8, 9], [10, 11, 12], "better"),
        (DELAY, [10, 11, 12], [7, 8, 9], "worse"),
        (RATE, [8, 11, 14], [5, 8, 9], "undecided"),
        (RATE, [9, 10, 11], [7, 8, 9], "undecided"),
        (RATE, [100, 101], [1, 2], "undecided"),
        (RATE, [100, 101, 102], [], "undecided"),
        (RATE, [100, 101, math.nan], [1, 2, 3], "undecided"),
    ],
)
def test_a_side_is_ahead_only_when_all_of_its_values_are(measure, first, other, verdict):
    found = judge(Range.of(first), Range.of(other), is_higher_better=measure.is_higher_better)
    assert found == verdict


def test_the_ratio_is_of_medians_and_always_first_over_other():
    row = Row(DELAY, {"a": [1.0, 2.0, 9.0], "b": [4.0, 4.0, 5.0], "c": []})
    b, c = row.comparisons
    assert (b.other, b.ratio, b.verdict) == ("b", 0.5, "undecided")
    assert math.isnan(c.ratio) and row.ranges["c"].count == 0


def test_what_was_not_measured_is_left_out_of_the_spread():
    assert Range.of([3.0, math.nan, 1.0]) == Range(2.0, 1.0, 3.0, 2)


def test_prompts_depend_on_the_seed_and_on_nothing_else():
    sizes = Sizes(token_low=5, token_high=9, seed=3)
    assert draw_ids(sizes, 20, "single", 0) == draw_ids(sizes, 20, "single", 0)
    assert draw_ids(sizes, 20, "single", 0) != draw_ids(sizes, 20, "single", 1)
    assert set(draw_ids(sizes, 200, "x")) == {5, 6, 7, 8}
    asks = mixed_asks(sizes, 40, "offline")
    assert asks == mixed_asks(sizes, 40, "offline")
    assert all(32 <= len(ask.prompt) <= 256 and 64 <= ask.output_tokens <= 128 for ask in asks)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"clients": ()}, "clients is"),
        ({"prefill_tokens": (512, 0)}, "prefill_tokens is"),
        ({"output_tokens": 1}, "at least 2"),
        ({"prompt_high": 8}, "prompt_high is 8, below prompt_low"),
        ({"token_low": 7, "token_high": 7}, "token_high is 7"),
    ],
)
def test_sizes_that_measure_nothing_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        Sizes(**wrong)


class Reader(HTMLParser):
    """Collects tags, addresses and text, and checks that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_one_file_that_shows_every_figure_and_runs_nothing():
    result = CompareResult(
        machine="two <cores>", began="now", commands={"a": "x <script>", "b": "y"}, rounds=3, rounds_begun=3
    )
    for value in (10.0, 11.0, 12.0):
        result.add(RATE, "a", value)
        result.add(RATE, "b", value / 2)
        result.add(DELAY, "a", value)
    result.problems.append("round 1: <b>bad</b>")
    text = page(result)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.addresses == [] and not re.search(r"https?:|url\(|@import", text)
    assert "script" not in reader.seen and "b" not in reader.seen
    assert reader.seen.count("svg") == 2 and reader.seen.count("rect") == 3
    words = "".join(reader.words)
    for part in ("11 (10-12)", "5.5 (5-6)", "2.00 better", "lower is better", "problem: round 1: <b>bad</b>"):
        assert part in words
