"""Jinja for templates from outside: what a template may build is weighed before it is built.

Jinja's own sandbox keeps a template away from the process; it does not keep it from asking for a text of a billion
characters in one step, during which no deadline can interrupt it. Here every step that makes something larger than
what it is made of (products, sums, formats, joins, fills, replacements, filters, output) pays for its result from an
allowance, in characters and items, before it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import wraps
from types import BuiltinMethodType
from typing import Any, Final

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

ALLOWANCE = 1 << 26          # characters and items that one rendering may make: 64 times the longest prompt
ITEMS_MAX = 1 << 18          # of one value, its lists opened up: they can hold each other many times over
REPEATED_MAX = 1 << 16       # copies or characters by `*`, fills and widths: no template draws longer lines
INDENT_MAX = 64
BITS_MAX = 4096              # of a product of whole numbers: its cost grows with their square
#: Filters that no chat template uses and whose results cannot be foreseen cheaply.
_WITHOUT: Final = ("wordwrap", "urlize", "xmlattr", "pprint", "format")
_INDENTS: Final = ("indent", "tojson")
_WIDE: Final = re.compile(r"\d{5,}|\*")      # a width or precision that is long, or taken from an argument
_FILLS: Final = ("ljust", "rjust", "center", "zfill", "expandtabs", "to_bytes")
_UNFORESEEN: Final = ("format", "format_map", "translate")


class Refused(SecurityError):
    """A limit of ours."""


class _Generator(CodeGenerator):
    """`a ~ b` pays like everything else."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Writes a call of the environment in the place of Jinja's own joining."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one template; `begin` before every rendering. Nothing is computed while it is compiled."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    code_generator_class = _Generator

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=self.weighed, **options)
        self._left = ALLOWANCE
        self.filters = {name: self._paid(name, filter) for name, filter in self.filters.items() if name not in _WITHOUT}
        del self.globals["lipsum"]

    def begin(self) -> None:
        """A new allowance."""
        self._left = ALLOWANCE

    def add_filter(self, name: str, filter: Callable[..., Any]) -> None:
        """One more filter, which pays for its results."""
        self.filters[name] = self._paid(name, filter)

    def spend(self, size: int) -> None:
        """Pay for something that is about to be made; raises Refused."""
        self._left -= size
        if self._left < 0:
            raise Refused(f"it makes more than {ALLOWANCE} characters and items")

    def weigh(self, value: object) -> int:
        """Characters and items in a value, lists and maps at any depth, as often as they would be written."""
        total, items, todo = 0, 0, [value]
        while todo:
            one = todo.pop()
            total += len(one) if isinstance(one, str | bytes) else one.bit_length() if isinstance(one, int) else 1
            if isinstance(one, dict):
                todo += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple | set | frozenset):
                todo += one
            items += 1
            if items > ITEMS_MAX or total + len(todo) > self._left:
                raise Refused(f"it makes more than {ALLOWANCE} characters and items")
        return total

    def weighed(self, value: Any) -> Any:
        """The value itself, paid for."""
        self.spend(self.weigh(value))
        return value

    def joined(self, parts: Iterable[Any]) -> str:
        """Texts one behind another: what `~` means."""
        return "".join(str(self.weighed(part)) for part in parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Products, sums and formats, as long as they stay short."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**":
            raise Refused("it computes a power")
        if operator == "*":
            self._check_product(left, right, numbers=numbers)
        elif operator == "+" and not numbers:
            self.spend(self.weigh(left) + self.weigh(right))
        elif operator == "%" and not numbers:
            if not isinstance(left, str) or _WIDE.search(left):
                raise Refused("it formats with a width")
            self.spend(len(left) + left.count("%") * self.weigh(right))
        return super().call_binop(context, operator, left, right)

    def _check_product(self, left: Any, right: Any, *, numbers: bool) -> None:
        if numbers:
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > BITS_MAX:
                raise Refused("it multiplies what is too large")
            return
        size, thing = (left, right) if isinstance(left, int) else (right, left)
        if not isinstance(size, int) or size * max(1, len(thing)) > REPEATED_MAX:
            raise Refused(f"it multiplies what it must not: {type(left).__name__} * {type(right).__name__}")
        self.spend(max(0, size) * self.weigh(thing))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` is refused: its widths come from anywhere."""
        if getattr(value, "__name__", "") in _UNFORESEEN and isinstance(getattr(value, "__self__", None), str):
            raise Refused("it uses str.format")
        return None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A function or method; those of texts and numbers pay for what they return."""
        if isinstance(__obj, BuiltinMethodType):
            args = __self._checked(__obj.__self__, __obj.__name__, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _checked(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments of a built-in method, once its result is paid for."""
        if name in _UNFORESEEN and isinstance(owner, str | bytes):
            raise Refused(f"it uses {name}")
        size = self.weigh(owner)
        if name in _FILLS:
            widths = [one for one in (*args, *kwargs.values()) if isinstance(one, int)]
            if any(width > REPEATED_MAX for width in widths):
                raise Refused(f"{name} of more than {REPEATED_MAX}")
            size += sum(max(0, width) for width in widths) * (1 + size if name == "expandtabs" else 1)
        elif name == "replace" and len(args) > 1 and isinstance(args[0], type(owner)):
            size += owner.count(args[0]) * self.weigh(args[1])
        elif name == "join" and args:
            args = (list(args[0]), *args[1:])
            size = self.weigh(args[0]) + len(args[0]) * size
        self.spend(size)
        return args

    def _paid(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, with arguments that cannot make it explode, and with its result paid for."""
        @wraps(filter)      # and Jinja's marks for what it is passed
        def paid(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            self._check_filter(name, [one for one in given if isinstance(one, int | str | bytes | list | tuple | dict)])
            return self.weighed(filter(*args, **kwargs))
        return paid

    def _check_filter(self, name: str, values: list[Any]) -> None:
        most = INDENT_MAX if name in _INDENTS else REPEATED_MAX
        if name not in _NUMERIC and any(isinstance(one, int) and one > most for one in values[1:]):
            raise Refused(f"the filter {name} with a number above {most}")
        if name == "sum" and any(not isinstance(one, int | str) for one in values[1:]):
            raise Refused("a sum of lists")
        if name == "replace" and len(values) > 2 and all(isinstance(one, str) for one in values[:3]):
            self.spend(len(values[0]) + values[0].count(values[1]) * len(values[2]))
        elif name == "join" and values and isinstance(values[0], list | tuple):
            between = values[1] if len(values) > 1 and isinstance(values[1], str) else ""
            self.spend(self.weigh(values[0]) + len(values[0]) * len(between))
        elif name == "indent" and values and isinstance(values[0], str):
            widest = max([INDENT_MAX, *(len(one) for one in values[1:] if isinstance(one, str))])
            self.spend(len(values[0]) + values[0].count("\n") * widest)
        elif name in ("tojson", "string", "list") and values:
            self.spend(self.weigh(values[0]) * (1 + INDENT_MAX * (name == "tojson" and len(values) > 1)))


#: Filters whose numbers are values, not sizes.
_NUMERIC: Final = ("default", "d", "int", "float", "round", "abs", "min", "max", "sum", "select", "reject",
                   "selectattr", "rejectattr", "map", "filesizeformat")
