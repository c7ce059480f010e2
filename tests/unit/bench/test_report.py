import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from quire.bench.report import Spread, as_json, percentile, table


@pytest.mark.parametrize("q", [0, 1, 50, 90, 99, 100])
def test_percentiles_interpolate_like_numpy(q):
    values = [5.0, 1.0, 4.0, 2.0, 9.0, 3.0]
    assert percentile(values, q) == pytest.approx(np.percentile(values, q))


def test_a_quantity_that_was_never_measured_is_not_zero():
    assert math.isnan(Spread.of([]).p50)
    assert "-" in table(["a", "b"], [["x", math.nan]]).splitlines()[-1]


def test_columns_line_up():
    lines = table(["name", "n"], [["a", 1], ["longer", 12345.6], ["b", 0.12345]]).splitlines()
    assert lines == ["name        n", "------  -----", "a           1", "longer  12346", "b       0.123"]


def test_json_has_null_for_what_was_not_measured():
    @dataclass
    class Result:
        a: float
        b: list

    assert json.loads(as_json(Result(math.nan, [1.5, math.inf]))) == {"a": None, "b": [1.5, None]}


def test_json_carries_the_derived_numbers_a_report_prints():
    """S5: the multiple is in the file a program reads, not only in the table."""

    @dataclass
    class Side:
        tokens: int
        seconds: float

        @property
        def rate(self):
            return self.tokens / self.seconds

    @dataclass
    class Result:
        alone: Side
        together: Side

        @property
        def speedup(self):
            return self.together.rate / self.alone.rate

    found = json.loads(as_json(Result(Side(10, 5.0), Side(30, 5.0))))
    assert (found["alone"]["rate"], found["together"]["rate"], found["speedup"]) == (2.0, 6.0, 3.0)
