"""Hostile templates end in a TemplateError (SEC-6), placed where a stranger would place them: tokenizer_config.json."""

from __future__ import annotations

import json
import re
import tracemalloc

import pytest

from quire.base.errors import TemplateError
from quire.text.chat import ChatTemplate
from quire.text.meter import Meter, RenderLimitError

USER = [{"role": "user", "content": "hi"}]
LOOP = "{% for i in range(100000) %}"
GROWING = "{% set ns = namespace(x='a', y='a', l=[1]) %}{% for i in range(64) %}"

ESCAPES = {
    "class_of_a_string": "{{ ''.__class__.__mro__ }}",
    "class_by_subscript": "{{ ''['__class__']['__base__'] }}",
    "attr_filter": "{{ ('' | attr('__class__')).mro() }}",
    "globals_of_cycler": "{{ cycler.__init__.__globals__ }}",
    "globals_of_our_functions": "{{ raise_exception.__globals__.json }}",
    "globals_of_namespace": "{{ namespace.__init__.__globals__ }}",
    "format_string": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "format_filter_name": "{{ ['{0.__class__.__mro__}'] | map('format', 1) | list | first | attr('x') + 1 }}",
    "self_environment": "{{ self._TemplateReference__context.environment }}",
    "macro_code": "{% macro m() %}{% endmacro %}{{ m.__call__.__func__.__code__ }}",
    "mutating_messages": "{{ messages.append(1) }}",
    "mutating_a_dict": "{{ messages[0].update({'role': 'x'}) }}",
    "underscore_namespace": "{{ namespace(__class__=1) }}",
    "underscore_set": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
}
BOMBS = {
    "range": "{% for i in range(10**12) %}x{% endfor %}",
    "string_product": "{{ 'a' * 10**10 }}",
    "product_of_variables": "{% set n = 10**9 %}{{ messages[0].content * n }}",
    "list_product": "{{ [0] * 10**9 }}",
    "nested_lists": "{{ (range(100000) | list) * 100000 }}",
    "power": "{{ (2 ** 100000) ** 100000 }}",
    "product_of_numbers": GROWING.replace("x='a'", "x=9") + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "nested_loops": LOOP * 3 + "{% endfor %}" * 3,
    "text_in_loops": LOOP * 2 + "x" * 1000 + "{% endfor %}" * 2,
    "captured_text_in_loops": "{% set x %}" + LOOP * 2 + "y" * 100 + "{% endfor %}" * 2 + "{% endset %}",
    "endless_macro": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "branching_macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive_loop": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "doubling_by_tilde": GROWING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling_by_plus": GROWING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling_by_capture": GROWING + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling_lists": GROWING + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "doubling_by_join": GROWING + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "tree_printed": GROWING + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "tree_as_json": GROWING + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "trees_compared": GROWING
    + "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "tree_as_key": GROWING + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "percent_width": "{{ '%1000000000d' % 1 }}",
    "percent_star": "{{ '%*d' % (10**9, 1) }}",
    "percent_filter": "{{ '%1000000000d' | format(1) }}",
    "percent_many": "{{ ('%(a)s' * 100000) % {'a': 'b' * 1000000} }}",
    "format_width": "{{ '{:>1000000000}'.format(1) }}",
    "format_nested_width": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format_many": "{{ ('{0}' * 100000).format('b' * 1000000) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "center_filter": "{{ 'a' | center(10**10) }}",
    "expandtabs": "{{ ('\\t' * 1000).expandtabs(10**7) }}",
    "zfill": "{{ '1'.zfill(10**10) }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "replace_filter": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "replace_nothing": "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "join": "{{ range(1000) | join('a' * 10**6) }}",
    "join_method": "{{ ('a' * 10**6).join(range(1000) | map('string')) }}",
    "json_indent": "{{ [1] | tojson(indent=10**9) }}",
    "json_indent_text": "{{ range(100000) | list | tojson(indent='a' * 10**6) }}",
    "indent_filter": "{{ ('\\n' * 10**6) | indent(10**6) }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "sum_of_lists": "{{ ([range(1000) | list] * 100000) | sum(start=[]) }}",
    "translate": "{{ ('a' * 10**6).translate({97: 'b' * 10**6}) }}",
    "strftime_width": "{{ strftime_now('%999999999d') }}",
    "lorem_ipsum": "{{ lipsum(n=10**9) }}",
    "slices_kept": "{% set s = 'a' * 8000000 %}{% set ns = namespace(l=[]) %}" + LOOP
    + "{% set ns.l = [ns.l, s[1:]] %}{% endfor %}",
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep_nesting": "{% for a in messages %}" * 60 + "{% endfor %}" * 60,
    "huge_source": "x" * (2**20 + 1),
}  # fmt: skip


def template_of(tmp_path, source):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    return ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_cannot_reach_out_of_the_sandbox(name, tmp_path):
    """SEC-6: attributes with underscores, loaders and mutation end in a TemplateError."""
    messages = [dict(message) for message in USER]
    with pytest.raises(TemplateError):
        template_of(tmp_path, ESCAPES[name]).render(messages)
    assert messages == USER


SLOW_BOMBS = ("branching_macro", "sum_of_lists", "tree_as_json")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW_BOMBS)) for n in BOMBS])
def test_a_template_cannot_eat_the_machine(name, tmp_path):
    """SEC-6: each bomb ends in a TemplateError before it has taken a few hundred megabytes."""
    with pytest.raises(TemplateError) as caught:
        template_of(tmp_path, BOMBS[name]).render(USER)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["string_product", "slices_kept", "doubling_lists", "join_method", "format_many"])
def test_a_bomb_takes_little_memory(name, tmp_path):
    """SEC-6: peak memory while rendering stays within the limits of the meter."""
    template = template_of(tmp_path, BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            template.render(USER)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400 * 2**20


def test_the_clock_ends_what_the_counters_do_not():
    """SEC-6: time is looked at on every charge."""
    now = [0.0]
    meter = Meter(seconds=5.0, clock=lambda: now[0])
    meter.charge(1)
    now[0] = 5.1
    with pytest.raises(RenderLimitError, match="longer than 5 s"):
        meter.charge(1)


def test_a_template_works_again_after_a_bomb(tmp_path):
    """SEC-6: limits are per rendering."""
    source = "{% for m in messages %}{{ m.content }}{{ 'x' * n }}{% endfor %}"
    template = template_of(tmp_path, source)
    with pytest.raises(TemplateError):
        template.render(USER, n=10**10)
    assert template.render(USER, n=3) == "hixxx"


def test_long_honest_conversations_stay_within_the_limits(tmp_path):
    """SEC-6: two thousand turns and two million characters render."""
    source = "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim + '</s>' }}{% endfor %}"
    messages = [{"role": "user", "content": " " + "word " * 200}] * 2000
    assert len(template_of(tmp_path, source).render(messages)) > 2_000_000


def test_a_prompt_longer_than_the_cap_is_refused(tmp_path):
    """SEC-6: output-size cap."""
    with pytest.raises(TemplateError, match=re.escape("at most 8388608")):
        template_of(tmp_path, "{{ messages[0].content }}{{ messages[0].content }}").render(
            [{"role": "user", "content": "a" * 5_000_000}]
        )
