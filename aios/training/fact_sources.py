"""Facts to look up, made by the build: what was remembered, a question about one of it, and the answer out of it.

A small model learns from these to copy what stands before it and to tell like things apart; it learns no fact, for
every name, number and place is drawn anew. A document is `<|memory|>PASSAGE ...<|user|>QUESTION<|assistant|>ANSWER`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aios.training.sources import Document

DOCUMENTS: Final = 20_000
PASSAGES_MAX: Final = 5
UNKNOWN_SHARE: Final = 0.1      # of the questions that no passage answers
UNKNOWN: Final = ("I do not know.", "I do not remember that.", "You have not told me.")

_ONSETS: Final = ("b", "br", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z")
_VOWELS: Final = ("a", "e", "i", "o", "u", "ai", "ea", "o", "a", "e")
_CODAS: Final = ("", "", "n", "l", "r", "s", "m", "k", "nd", "th")
_FIRST: Final = ("Anna", "Ben", "Clara", "David", "Ella", "Frank", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo",
                 "Maria", "Nora", "Oscar", "Paula", "Rosa", "Sam", "Tom", "Vera", "Walter", "Alice", "Peter",
                 "Lucy", "Martin")
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
                  "November", "December")
_LIKED: Final = {
    "colour": ("blue", "green", "dark red", "yellow", "grey", "orange", "purple", "white"),
    "drink": ("black tea", "coffee", "cold milk", "apple juice", "water", "cocoa", "lemonade"),
    "fruit": ("pears", "cherries", "plums", "grapes", "figs", "apples", "peaches"),
    "season": ("spring", "summer", "autumn", "winter"),
    "dish": ("soup", "rice with fish", "pancakes", "roast chicken", "noodles", "bean stew", "salad"),
    "game": ("chess", "cards", "football", "tennis", "hide and seek", "dominoes"),
    "animal": ("horses", "cats", "owls", "dogs", "whales", "rabbits", "foxes"),
}
_PLACES: Final = ("in the kitchen drawer", "under the bed", "on the top shelf", "in the blue bag", "behind the door",
                  "in the car", "at the office", "in the garden shed", "on the desk", "next to the lamp", "in the hall",
                  "at the neighbour's house", "in the left pocket", "inside the piano", "on the window sill")
_NAMED: Final = ("sister", "brother", "neighbour", "boss", "cousin", "teacher", "doctor", "cat", "dog", "horse", "boat",
                 "street", "school", "village", "team", "band", "hotel", "ship", "baker", "aunt")
_NUMBERED: Final = ("locker number", "room number", "door code", "house number", "bus line", "ticket number", "seat",
                    "account number", "table number", "phone extension")
_KEPT: Final = ("passport", "spare key", "umbrella", "camera", "letter", "red book", "charger", "wallet",
                "map", "ladder")
_DATED: Final = ("appointment", "exam", "flight", "party", "meeting", "concert", "interview", "holiday")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that may be remembered: how it is told, asked for and answered."""

    key: str                    # whose what: two facts with one key would contradict each other
    told: str
    asked: str
    answered: str


def word(rng: random.Random) -> str:
    """A name that nobody has."""
    count = rng.choice((1, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)).capitalize()


def _owner(rng: random.Random) -> tuple[str, str]:
    """Whose it is, as the user says it and as the assistant does."""
    if rng.random() < 0.5:
        return "my", "your"
    name = rng.choice(_FIRST) if rng.random() < 0.6 else word(rng)
    return f"{name}'s", f"{name}'s"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _filled(rng: random.Random, forms: tuple[Sequence[str], Sequence[str], Sequence[str]], what: str,
            value: str) -> Fact:
    """A fact in one of the forms (told, asked, answered), each with {o}wner, {w}hat and {v}alue."""
    mine, yours = _owner(rng)
    told, asked, answered = (rng.choice(one) for one in forms)
    return Fact(key=f"{mine} {what}", told=_upper(told.format(o=mine, w=what, v=value)),
                asked=_upper(asked.format(o=mine, w=what)), answered=_upper(answered.format(o=yours, w=what, v=value)))


def _named(rng: random.Random) -> Fact:
    value = word(rng) if rng.random() < 0.7 else rng.choice(_FIRST)
    if rng.random() < 0.3:
        value += " " + word(rng)
    return _filled(rng, (
        ("{o} {w} is called {v}.", "the name of {o} {w} is {v}.", "{v} is {o} {w}."),
        ("what is {o} {w} called?", "what is the name of {o} {w}?", "who or what is {o} {w}?"),
        ("{v}.", "{o} {w} is called {v}.", "it is {v}.")), rng.choice(_NAMED), value)


def _numbered(rng: random.Random) -> Fact:
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 5)))
    value = digits if rng.random() < 0.7 else rng.choice("ABCDEFGH") + digits
    return _filled(rng, (
        ("{o} {w} is {v}.", "remember that {o} {w} is {v}.", "{v} is {o} {w}."),
        ("what is {o} {w}?", "can you tell me {o} {w}?", "do you remember {o} {w}?"),
        ("{v}.", "{o} {w} is {v}.", "it is {v}.")), rng.choice(_NUMBERED), value)


def _liked(rng: random.Random) -> Fact:
    what = rng.choice(list(_LIKED))
    return _filled(rng, (
        ("{o} favourite {w} is {v}.", "of all things, {o} favourite {w} is {v}.", "{v}: that is {o} favourite {w}."),
        ("what is {o} favourite {w}?", "do you know {o} favourite {w}?"),
        ("{v}.", "{o} favourite {w} is {v}.", "it is {v}.")), what, rng.choice(_LIKED[what]))


def _kept(rng: random.Random) -> Fact:
    return _filled(rng, (
        ("{o} {w} is {v}.", "I put {o} {w} {v}.", "I saw {o} {w} {v}."),
        ("where is {o} {w}?", "where can I find {o} {w}?", "do you know where {o} {w} is?"),
        ("{v}.", "{o} {w} is {v}.", "it is {v}.")), rng.choice(_KEPT), rng.choice(_PLACES))


def _dated(rng: random.Random) -> Fact:
    value = rng.choice((
        f"on {rng.choice(_DAYS)}", f"on {rng.randint(1, 28)} {rng.choice(_MONTHS)}",
        f"at {rng.randint(1, 12)}:{rng.choice(('00', '15', '30', '45'))}", f"in {rng.choice(_MONTHS)}"))
    return _filled(rng, (
        ("{o} {w} is {v}.", "{v} is {o} {w}.", "do not forget: {o} {w} is {v}."),
        ("when is {o} {w}?", "can you tell me when {o} {w} is?"),
        ("{v}.", "{o} {w} is {v}.", "it is {v}.")), rng.choice(_DATED), value)


KINDS: Final[Sequence[Callable[[random.Random], Fact]]] = (_named, _numbered, _liked, _kept, _dated)


def _passages(rng: random.Random) -> list[Fact]:
    """Facts that do not contradict each other; often of one kind, so that they are easily mistaken."""
    kind = rng.choice(KINDS) if rng.random() < 0.6 else None
    found: dict[str, Fact] = {}
    for _ in range(rng.randint(1, PASSAGES_MAX) + 1):
        fact = (kind or rng.choice(KINDS))(rng)
        found.setdefault(fact.key, fact)
    return list(found.values())


def fact_document(number: int) -> Document:
    """The document of that number: the same one every time."""
    rng = random.Random(f"facts {number}")
    asked, *others = _passages(rng)
    known = not others or rng.random() >= UNKNOWN_SHARE
    passages = [asked.told, *(other.told for other in others)] if known else [other.told for other in others]
    passages = passages[:PASSAGES_MAX]
    rng.shuffle(passages)
    answer = asked.answered if known else rng.choice(UNKNOWN)
    line = "".join(f"<|memory|>{passage}" for passage in passages) + f"<|user|>{asked.asked}<|assistant|>{answer}"
    return Document(name=f"facts/{number}", lines=(line,))


def read_facts(_: Path) -> Iterator[Document]:
    """Yield every document; the file is this one, whose hash the manifest keeps."""
    for number in range(DOCUMENTS):
        yield fact_document(number)


def here() -> Path:
    """Where this source lies."""
    return Path(__file__)
