"""A template from outside cannot make the worker build what nobody asked for."""

from __future__ import annotations

import time

import pytest
from jinja2.exceptions import SecurityError, TemplateError

from aios.text.sandbox import ALLOWANCE, Sandbox

BOMBS = {
    "a width in a format": "{{ '%0900000000d' % 1 }}",
    "a width from an argument": "{{ '%*d' % (900000000, 1) }}",
    "a width in str.format": "{{ '{:>900000000}'.format(1) }}",
    "a fill": "{{ 'x'.ljust(900000000) }}",
    "a filling filter": "{{ 'x' | center(900000000) }}",
    "an indent": "{{ 'x' | indent(900000000) }}",
    "an indent in JSON": "{{ [1] | tojson(indent=900000000) }}",
    "tabs": "{{ '\t'.expandtabs(900000000) }}",
    "a replacement": "{{ ('x' * 65536).replace('x', 'y' * 65536) }}",
    "a replacing filter": "{{ ('x' * 65536) | replace('x', 'y' * 65536) }}",
    "a product of texts": "{{ 'x' * 60000 * 60000 }}",
    "a product of products": "{{ (['x' * 60000] * 60000) | join('x' * 60000) }}",
    "texts doubled":
        "{% set n = namespace(s='xxxxxxx') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "texts added": "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "lists doubled":
        "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "squares": "{% set n = namespace(s=9) %}{% for i in range(40) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "batches": "{{ [1] | batch(900000000, 'x') | list }}",
    "slices": "{{ [1] | slice(900000000) | list }}",
    "bytes of a number": "{{ (1).to_bytes(900000000, 'big') }}",
    "a sum of lists": "{{ ([[1] * 60000] * 60000) | sum(start=[]) }}",
}


def render(source: str) -> str:
    sandbox = Sandbox()
    template = sandbox.from_string(source)
    sandbox.begin()
    return template.render(text="two\nlines", items=[1, 2, {"a": "b"}])


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_what_explodes_is_refused_before_it_is_built(source):
    started = time.process_time()
    with pytest.raises(SecurityError):
        render(source)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(("source", "expected"), [
    ("{{ 'a' ~ 1 ~ none }}", "a1None"), ("{{ '%s-%05d' % ('x', 7) }}", "x-00007"), ("{{ 6 * 7 % 4 }}", "2"),
    ("{{ '-' * 5 + '>' }}", "----->"), ("{{ text | indent(2) }}", "two\n  lines"), ("{{ items | tojson }}",
     '[1, 2, {"a": "b"}]'), ("{{ ['a', 'b'] | join(', ') }}", "a, b"), ("{{ text.split('\n') | map('upper') | list }}",
     "['TWO', 'LINES']"), ("{{ text.replace('two', '2') | trim }}", "2\nlines"), ("{{ 'x'.center(5) }}", "  x  "),
    ("{{ range(4) | sum }}", "6"), ("{{ missing | default(99999999) }}", "99999999"), ("{{ text[::-1][:5] }}", "senil"),
    ("{{ items | selectattr('a', 'defined') | list | length }}", "1"), ("{{ ', '.join(['a', 'b']) }}", "a, b"),
])
def test_what_templates_do_works_as_in_jinja(source, expected):
    assert render(source) == expected


def test_every_rendering_has_an_allowance_of_its_own():
    sandbox = Sandbox()
    template = sandbox.from_string("{% for i in range(n) %}{% set x = 'x' * 65536 %}{% endfor %}")
    for _ in range(3):
        sandbox.begin()
        template.render(n=ALLOWANCE // 65536 - 10)
    with pytest.raises(SecurityError, match="characters and items"):
        template.render(n=100)


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__ }}", "{{ [].append(1) }}", "{{ cycler.__init__.__globals__ }}", "{{ lipsum(n=9) }}",
    "{{ 'x' | pprint }}"])
def test_the_way_out_stays_closed(source):
    with pytest.raises((SecurityError, TemplateError)):
        render(source)
