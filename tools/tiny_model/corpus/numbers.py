"""Tasks on numbers: counting, sums, sorting, comparing.

Knows: their phrasings and right answers. Does not know: how a reply is judged.
"""

from __future__ import annotations

from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Answer, Episode, assistant, user
from tools.tiny_model.heldout import split_of_text

_COUNT_UP = (
    "Count from {a} to {b}.",
    "Please count from {a} to {b}.",
    "Can you count from {a} to {b}?",
    "Count up from {a} to {b}.",
    "Write the numbers from {a} to {b}.",
    "List all numbers from {a} to {b}.",
    "Count {a} to {b}",
    "Numbers from {a} to {b}, please.",
    "Start at {a} and count to {b}.",
)
# What everybody tries first belongs to training.
_EVERYDAY_ENDS = (3, 5, 10, 15, 20)
_COUNT_TO = ("Count to {b}.", "Can you count to {b}?", "Please count up to {b}.", "Count to {b} for me.")
_COUNT_DOWN = (
    "Count down from {a} to {b}.",
    "Count backwards from {a} to {b}.",
    "Please count backwards from {a} to {b}.",
    "Can you count down from {a} to {b}?",
)
_SUM = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} + {b}",
    "{a} + {b} = ?",
    "{a}+{b}",
    "{a}+{b}=?",
    "What's {a} + {b}?",
    "What's {a} plus {b}?",
    "Add {a} and {b}.",
    "Please add {a} and {b}.",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}.",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Can you add {a} and {b}?",
    "{a} plus {b}?",
    "What is the sum of {a} and {b}?",
    "Find the sum of {a} and {b}.",
    "I have {a} apples and get {b} more. How many do I have?",
    "I have {a} coins and find {b} more. How many are there now?",
    "Add {b} to {a}.",
    "Solve {a} + {b}.",
)
_SORT = (
    "Sort these numbers: {x}",
    "Sort the numbers {x}.",
    "Put these numbers in order: {x}",
    "Please sort {x}.",
    "Sort {x}",
    "Sort from smallest to largest: {x}",
    "Order these numbers: {x}",
    "Arrange these numbers in ascending order: {x}",
    "Can you sort these numbers? {x}",
    "Sort this list: {x}",
    "Sort this list of numbers: {x}",
)
_SORT_DOWN = (
    "Sort from largest to smallest: {x}",
    "Sort these numbers in descending order: {x}",
    "Sort these numbers from largest to smallest: {x}",
    "Put these numbers in descending order: {x}",
)
_COMPARE = (
    "Which is larger, {a} or {b}?",
    "Which number is bigger, {a} or {b}?",
    "What is larger: {a} or {b}?",
    "Is {a} or {b} larger?",
    "Which is greater, {a} or {b}?",
)


def count(s: Source) -> Episode:
    """Counting up or down; what is held out is the pair of ends."""
    while True:
        start, length = s.rng.randrange(0, 90), s.rng.randrange(2, 10)
        down = s.chance(0.2)
        if not down and s.chance(0.25):
            start, length = 1, s.rng.randrange(2, 20)
        end = start + length
        everyday = start == 1 and end in _EVERYDAY_ENDS
        if ("train" if everyday else split_of_text(f"count {start} {end}")) == s.split:
            break
    s.note("count", f"{start} {end}")
    numbers = list(range(start, end + 1))
    templates = _COUNT_TO if start == 1 and s.chance(0.5) else _COUNT_UP
    if down:
        numbers.reverse()
        templates = _COUNT_DOWN
    text = s.rough(s.pick(templates)).format(a=numbers[0], b=numbers[-1])
    reply = ", ".join(map(str, numbers))
    return Episode("count", (user(text), assistant(reply)), Answer("exact", reply))


def worked_sum(a: int, b: int) -> str:
    """Returns the reply to a sum: tens, ones and the result, or the result alone."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}"
    tens, ones = (a // 10 * 10, b // 10 * 10), (a % 10, b % 10)
    return f"{tens[0]} + {tens[1]} = {sum(tens)}, {ones[0]} + {ones[1]} = {sum(ones)}, so {a} + {b} = {a + b}"


def add(s: Source) -> Episode:
    """Sums of two numbers below 100; the evaluation asks for two-digit ones only."""
    low = 10 if s.split != "train" or s.chance(0.8) else 0
    a, b = s.number(low), s.number(low)
    text = s.rough(s.pick(_SUM)).format(a=a, b=b)
    return Episode("sum", (user(text), assistant(worked_sum(a, b))), Answer("number", a + b))


def sort_numbers(s: Source) -> Episode:
    """Sorting three to five different numbers."""
    values = s.several(s.number, s.rng.randrange(3, 6))
    down = s.chance(0.2)
    template = s.rough(s.pick(_SORT_DOWN if down else _SORT))
    text = template.format(x=s.pick((", ", ", ", ", ", " ")).join(map(str, values)))
    reply = "Sorted: " + ", ".join(map(str, sorted(values, reverse=down)))
    return Episode("sort numbers", (user(text), assistant(reply)), Answer("exact", reply))


def compare(s: Source) -> Episode:
    """Which of two numbers is the larger."""
    a, b = s.several(s.number, 2)
    text = s.rough(s.pick(_COMPARE)).format(a=a, b=b)
    reply = f"{max(a, b)} is larger than {min(a, b)}."
    return Episode("compare", (user(text), assistant(reply)), Answer("exact", reply))
