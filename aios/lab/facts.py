"""Facts to remember and to ask for, drawn at run time from templates and values that no training source has.

A world is what somebody might have told about one thing of many people: facts of one template, each with another
owner and another value, so that only the owner's name tells them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["name", "number", "preference"]

WORLD_FACTS: Final = 100
OTHER_WORDS_MAX: Final = 8       # of an answer, beside the value
_ONSETS: Final = ("b", "bl", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pr", "r", "s",
                  "sh", "t", "th", "v", "w", "y", "z")
_VOWELS: Final = ("a", "e", "i", "o", "u", "ia", "oo", "au", "ei")
_CODAS: Final = ("", "", "l", "n", "r", "x", "t", "rn", "ck", "ld")
_HOW: Final = {
    "colour": ("pale", "deep", "light", "bright", "soft", "dusty", "warm", "neon", "smoky", "faded", "royal", "pastel"),
    "drink": ("iced", "hot", "warm", "sweet", "plain", "fizzy", "spiced", "creamy", "bitter", "frozen", "watery",
              "herbal"),
    "dessert": ("lemon", "walnut", "honey", "vanilla", "cherry", "ginger", "almond", "banana", "caramel", "coconut",
                "rhubarb", "mint"),
    "instrument": ("old", "small", "electric", "wooden", "loud", "baroque", "toy", "silver", "tuned", "muted", "bass",
                   "antique"),
}
_WHICH: Final = {
    "colour": ("turquoise", "crimson", "violet", "silver", "brown", "pink", "gold", "black", "olive", "magenta"),
    "drink": ("ginger ale", "tomato juice", "mint tea", "milk", "cider", "espresso", "buttermilk", "cream soda",
              "tonic", "malt"),
    "dessert": ("cake", "pie", "ice cream", "pudding", "tart", "biscuits", "jelly", "waffles", "mousse", "sorbet"),
    "instrument": ("violin", "drum", "flute", "guitar", "harp", "trumpet", "organ", "cello", "banjo", "oboe"),
}
_CALLED: Final = ("sister", "parrot", "teacher", "boat", "village", "neighbour", "dentist", "club")
_COUNTED: Final = ("locker number", "door code", "room number", "parking space", "customer number", "seat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a fact is told and asked for, with {o}wner, {w}hat and {v}alue."""

    kind: Kind
    told: str
    asked: str


#: Each told with more than eight other words, so that a passage as it stands is no answer.
TEMPLATES: Final[Sequence[Template]] = (
    Template(kind="name", told="As far as I know, people call {o} {w} {v} these days.",
             asked="By what name do people call {o} {w}?"),
    Template(kind="name", told="{o} {w} goes by the name of {v}, as everybody around here knows.",
             asked="Which name does {o} {w} go by?"),
    Template(kind="name", told="There is {o} {w}, whose name is {v}, and we met again last week.",
             asked="Do you know the name that {o} {w} has?"),
    Template(kind="name", told="They gave {o} {w} the name {v} after a long evening of talking.",
             asked="What name did they give {o} {w}?"),
    Template(kind="number", told="For {o} {w} they wrote down {v} in the large list near the entrance.",
             asked="What did they write down for {o} {w}?"),
    Template(kind="number", told="Note {v} as {o} {w}, please, so that nobody has to ask again.",
             asked="Which {w} did you note as {o}?"),
    Template(kind="number", told="{o} {w} has been changed to {v} since the beginning of the month.",
             asked="Please look up {o} {w}."),
    Template(kind="number", told="It turned out that {o} {w} was {v}, although nobody had expected that.",
             asked="Remind me of {o} {w}."),
    Template(kind="preference", told="The {w} that {n} likes best is {v}, which is no secret to anybody.",
             asked="Which {w} does {n} like best?"),
    Template(kind="preference", told="When it comes to a {w}, {n} always chooses {v} without thinking for long.",
             asked="Which {w} does {n} always choose?"),
    Template(kind="preference", told="{n} would take {v} over any other {w}, whatever the others may say.",
             asked="Which {w} would {n} take over any other?"),
    Template(kind="preference", told="No {w} pleases {n} as much as {v}, and that has never changed.",
             asked="What {w} pleases {n} the most?"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that is remembered, the question for it, and the value that an answer has to hold."""

    kind: Kind
    told: str
    asked: str
    value: str


def world(template: Template, rng: random.Random, count: int = WORLD_FACTS) -> list[Fact]:
    """`count` facts of one template about one thing; owners and values are all different, the first owner is "I"."""
    what = rng.choice(list(_HOW) if template.kind == "preference" else
                      _CALLED if template.kind == "name" else _COUNTED)
    owners = distinct(lambda: name(rng), count)
    values = distinct(lambda: value(template.kind, what, rng), count, taken=owners)
    return [_fact(template, owner, what, worth) for owner, worth in zip(owners, values, strict=True)]


def name(rng: random.Random) -> str:
    """A name that nobody has."""
    syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((2, 2, 3))))
    return "".join(syllables).capitalize()


def value(kind: Kind, what: str, rng: random.Random) -> str:
    """What is remembered: a new name, a number, or something preferred."""
    if kind == "name":
        return name(rng)
    if kind == "number":
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(3, 6)))
    return f"{rng.choice(_HOW[what])} {rng.choice(_WHICH[what])}"


def distinct(draw: Callable[[], str], count: int, taken: Sequence[str] = ()) -> list[str]:
    """`count` draws, none of which stands within another one or within what is taken, nor the other way round."""
    found: list[str] = []
    while len(found) < count:
        one = draw()
        if not any(one in other or other in one for other in (*found, *taken)):
            found.append(one)
    return found


def _fact(template: Template, owner: str, what: str, worth: str) -> Fact:
    told = template.told.format(o=f"{owner}'s", n=owner, w=what, v=worth)
    asked = template.asked.format(o=f"{owner}'s", n=owner, w=what)
    return Fact(kind=template.kind, told=told[:1].upper() + told[1:], asked=asked[:1].upper() + asked[1:], value=worth)


def used(answer: str, fact: Fact, others: Sequence[Fact]) -> bool:
    """Whether an answer holds the fact's value exactly, no other passage's, and at most 8 other words."""
    if not _holds(answer, fact.value):
        return False
    rest = answer.replace(fact.value, " ", 1)
    foreign = {other.value for other in others} - {fact.value}
    return not any(_holds(rest, one) for one in foreign) and len(rest.split()) <= OTHER_WORDS_MAX


def _holds(text: str, worth: str) -> bool:
    """Whether the value stands in a text as a whole: 93 does not stand in 4931."""
    at = text.find(worth)
    while at >= 0:
        before, behind = text[at - 1:at], text[at + len(worth):at + len(worth) + 1]
        if not before.isalnum() and not behind.isalnum():
            return True
        at = text.find(worth, at + 1)
    return False
