"""How a text diffusion model learns to use memory: its backbone stays as it is, pointer and cross-attention learn.

Examples are passages, a question about one of them and the words that answer it. Half of them come from
`aios.training.fact_sources`, half from templates of random words, so that no phrase can be learned by heart;
`aios eval memory` asks with templates of its own. The network reads every example once; what is learned stands behind
its last layer and sees the same states over and over.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aios.contracts import Condition, Tokenizer
from aios.engine.remembering import conditioned
from aios.lab.relevance_training import Encode
from aios.messages import ChatMessage, Diffuse, Passage
from aios.model.cache import AttentionMask
from aios.model.memory_attention import SOURCE, MemoryOptions
from aios.model.score_network import TextScoreNetwork
from aios.text.passages import ROLE, SHARE_MAX, sighted
from aios.text.turns import Roles, turn_ids
from aios.training.fact_sources import KINDS, Fact, word

HELD_OUT: Final = 150            # examples that are not learned from
EPOCHS: Final = 8
LEARNING_RATE, WEIGHT_DECAY = 4e-3, 0.05
GATE_RATE: Final = 12.0          # times that, for the gate of attention: it has the farthest way to go
BATCH: Final = 16
PASSAGES: Final = 5
MIXED_SHARE: Final = 0.3         # of the examples whose passages are of several templates
BLIND_SHARE: Final = 0.2         # of the examples that the network is conditioned on without reading the passages
UNSURE_SHARE: Final = 0.15       # of the examples whose passages all weigh the same
_FILLERS: Final = tuple(re.findall(r"\S+", """
    again all along also always around away back before behind beside both carefully clearly down during early easily
    either else even ever everywhere exactly far finally first forward further gladly half hardly here indeed instead
    just last later least less likely long maybe mostly much nearly never next nobody none now often once only other
    over perhaps plainly quite rather really same seems several should since slowly some somehow soon still such
    surely then though through together tomorrow too toward under until up usually very well while within without
    yesterday yet"""))
_THINGS: Final = tuple(re.findall(r"\S+", """
    parcel garden chair order window uncle river ticket bridge meal coat lamp sailor paper engine field cabin song"""))
_PAIRS: Final = tuple(re.findall(r"\S+", """
    red round cold narrow quick heavy young clean stone apple copper wool table bread horse bottle cotton basket"""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question behind passages, best first, and the answer as it stands in one of them."""

    passages: tuple[Passage, ...]
    question: str
    answer: str
    blind: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """An example as the network has read it: the states of its answer before the last norm.

    ids: the prompt's and the answer's. prompt: how many of them are the prompt's. traits: of the passages' tokens.
    """

    ids: Int[Tensor, " n"]
    prompt: int
    asked: Float[Tensor, "m d"]
    traits: Float[Tensor, "q a"] | None
    memory: Float[Tensor, "1 k e"]


def examples(seed: int, count: int) -> Iterator[Example]:
    """`count` of them, the same for the same seed."""
    for number in range(count):
        rng = random.Random(f"memory {seed} {number}")
        yield (_random_words if rng.random() < 0.5 else _made_facts)(rng)


def _made_facts(rng: random.Random) -> Example:
    """Facts of the training sources; often of one kind."""
    kind = rng.choice(KINDS)
    while True:
        found: dict[str, Fact] = {}
        for _ in range(4 * PASSAGES):
            fact = (rng.choice(KINDS) if rng.random() < MIXED_SHARE else kind)(rng)
            found.setdefault(fact.key, fact)
        asked, *others = list(found.values())[:PASSAGES]
        value = asked.answered[:-1]
        short = not set(asked.key.split()) & set(value.split())
        if short and f" {value}" in asked.told and not any(value in other.told for other in others):
            return _example(rng, [asked.told, *(other.told for other in others)], asked.asked, f" {value}.")


def _random_words(rng: random.Random) -> Example:
    """A template of random words about one thing of several owners, and a question of random words."""
    forms = [_form(rng) for _ in range(PASSAGES)] if rng.random() < MIXED_SHARE else [_form(rng)] * PASSAGES
    thing, kind, some = rng.choice(_THINGS), rng.choice((0, 1, 2, 2)), rng.sample(_PAIRS, 8)
    of = rng.choice(("'s", ""))
    owners, values = [word(rng) + of for _ in range(PASSAGES)], [_value(rng, kind, some) for _ in range(PASSAGES)]
    told = [" ".join({"o": owner, "w": thing, "v": value}.get(part, part) for part in form)
            for form, owner, value in zip(forms, owners, values, strict=True)]
    echoed = [part for part in forms[0] if len(part) > 1 and rng.random() < 0.5]
    asking = [*rng.sample(_FILLERS, rng.randint(1, 4)), *echoed]
    rng.shuffle(asking)
    place = rng.randint(0, len(asking))
    asking[place:place] = [owners[0], thing] if of else [thing, *rng.sample(_FILLERS, rng.randint(0, 2)), owners[0]]
    question = " ".join(asking) + "?"
    return _example(rng, [_sentence(one) for one in told], _sentence(question), f" {values[0]}.")


def _form(rng: random.Random) -> list[str]:
    """Words and places of a sentence; the value does not begin it."""
    parts = rng.sample(_FILLERS, rng.randint(2, 6))
    place = rng.randint(0, len(parts))
    parts[place:place] = ["o", "w"]
    if rng.random() < 0.5:       # what it is need not stand beside its owner
        parts.remove("w")
        parts.insert(rng.randint(0, len(parts)), "w")
    parts.insert(rng.choice([index for index in range(1, len(parts) + 1) if parts[index - 1] != "o"]), "v")
    return parts


def _value(rng: random.Random, kind: int, some: Sequence[str]) -> str:
    """A name, a number, or up to three of some words, which other values may share."""
    if kind == 0:
        return word(rng)
    if kind == 1:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 6)))
    return " ".join(rng.sample(some, rng.choice((1, 2, 2, 3))))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _example(rng: random.Random, told: Sequence[str], question: str, answer: str) -> Example:
    """The first passage holds the answer; scores are as the conditioner gives them."""
    if rng.random() < UNSURE_SHARE:
        scores = [1.0] * len(told)
    else:
        rest = rng.uniform(0.002, 0.3)
        scores = [1.0 - rest, *(rest * rng.random() for _ in told[1:])]
    order = sorted(range(len(told)), key=lambda index: -scores[index])
    if scores[0] == 1.0:
        rng.shuffle(order)
    passages = tuple(Passage(text=told[index], score=scores[index]) for index in order)
    return Example(passages=passages, question=question, answer=answer, blind=rng.random() < BLIND_SHARE)


class Reader:
    """Examples as a network reads them when it writes left to right, block by block."""

    def __init__(self, network: TextScoreNetwork, spec: dict[str, Any], tokenizer: Tokenizer, encode: Encode) -> None:
        self._network, self._tokenizer, self._encode = network, tokenizer, encode
        self._roles = Roles.read(spec)
        self._block = max(1, int(spec["aios"]["sampling"].get("block", 0)))
        self._mask, self._end, self._room = spec["tokens"]["mask"], spec["tokens"]["eot"], int(spec["length_max"])

    def read(self, chosen: Sequence[Example]) -> list[Read]:
        """Every example, read once."""
        texts = [passage.text for one in chosen for passage in one.passages]
        vectors = iter(self._encode(texts))
        found = []
        for one in chosen:
            patterns = [next(vectors).astype("<f4").tobytes() for _ in one.passages]
            passages = tuple(Passage(text=passage.text, score=passage.score, vector=pattern)
                             for passage, pattern in zip(one.passages, patterns, strict=True))
            found.append(self._read(one, passages))
        return found

    @torch.no_grad()
    def _read(self, one: Example, passages: tuple[Passage, ...]) -> Read:
        room = int(self._room * SHARE_MAX)
        seen = None if one.blind else sighted(passages, one.question, self._roles.ids[ROLE], self._tokenizer, room=room)
        turns = turn_ids([ChatMessage(role="user", content=one.question)], self._roles, self._tokenizer,
                         room=self._room - room)
        prompt = [*(seen.ids if seen else ()), *turns]
        answer = [*self._tokenizer.encode(one.answer), self._end]
        ids, positions, allowed = self._laid_out(prompt, answer)
        states: list[Tensor] = []
        hook = self._network.backbone.norm.register_forward_pre_hook(lambda _, given: states.append(given[0][0]))
        try:
            self._network.hidden(ids[None], positions=positions[None], mask=AttentionMask(allowed=allowed[None, None]))
        finally:
            hook.remove()
        asked = [len(prompt) + len(answer) + index * self._block + index % self._block for index in range(len(answer))]
        memory = conditioned(Condition.none(), Diffuse(passages=passages)).tokens[SOURCE]
        return Read(ids=ids[:len(prompt) + len(answer)], prompt=len(prompt), asked=states[0][asked].clone(),
                    memory=memory, traits=torch.tensor(seen.traits) if seen else None)

    def _laid_out(self, prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """[prompt | answer | a block for each token of the answer, as it stands when that token is drawn]."""
        block, clean = self._block, len(prompt) + len(answer)
        total = clean + block * len(answer)
        ids, positions = [*prompt, *answer], list(range(clean))
        allowed = torch.zeros(total, total, dtype=torch.bool)
        allowed[:clean, :clean] = torch.ones(clean, clean, dtype=torch.bool).tril()
        for index in range(len(answer)):
            first = index // block * block
            ids += answer[first:index] + [self._mask] * (block - index % block)
            positions += range(len(prompt) + first, len(prompt) + first + block)
            rows = slice(clean + block * index, clean + block * (index + 1))
            allowed[rows, :len(prompt) + first] = True
            allowed[rows, rows] = True
        return torch.tensor(ids), torch.tensor(positions), allowed


def loss(network: TextScoreNetwork, one: Read, *, attend: bool = True, point: bool = True) -> tuple[Tensor, bool]:
    """-log p of the answer in nats a token, and whether its likeliest tokens are the answer."""
    backbone, pointer = network.backbone, network.pointer
    assert backbone.memory is not None and pointer is not None
    asked = one.asked[None]
    if attend and (pattern := backbone.memory.prepared(one.memory)) is not None:
        asked = backbone.memory(asked, pattern)
    hidden = backbone.norm(asked)[0]
    logits, targets = network.logits(hidden), one.ids[one.prompt:]
    if point and one.traits is not None:
        last = torch.stack([one.ids[one.prompt - back:-back] for back in (1, 2, 3)], dim=1)
        embedded = network.head.embed(last[None, :, 0])[0]
        seen = pointer.passages(one.ids[:len(one.traits)], one.traits)
        chances = pointer(logits, hidden, last, embedded, seen)
    else:
        chances = logits.softmax(dim=1)
    picked = chances.gather(1, targets[:, None])
    return -picked.clamp(min=1e-9).log().mean(), bool((chances.argmax(dim=1) == targets).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """Held-out loss in nats a token and share of answers whose every token is the likeliest, by what was used."""

    losses: dict[str, float]
    exact_percent: dict[str, float]
    attends: bool        # whether attention to patterns helped beside the pointer, and was kept


ARMS: Final = {"none": (False, False), "attention": (True, False), "pointer": (False, True), "together": (True, True)}


def teach(network: TextScoreNetwork, learned: Sequence[Read], held_out: Sequence[Read], options: MemoryOptions,
          seed: int, *, epochs: int = EPOCHS,
          progress: Callable[[float, str], None] = lambda share, text: None) -> Taught:
    """Give the network a memory and teach it, the rest frozen; what does not help on held-out examples is shut."""
    torch.manual_seed(seed)
    network.remember(options)
    assert network.backbone.memory is not None and network.pointer is not None
    with torch.no_grad():
        network.pointer.gate.fill_(1.0)      # its share is learned; a gate that learns would shut before that
    network.pointer.gate.requires_grad_(False)
    parts = [(name, part) for module in (network.backbone.memory, network.pointer)
             for name, part in module.named_parameters() if part.requires_grad]
    plain: dict[str, Any] = {"params": [part for name, part in parts if name != "gate"]}
    gates: dict[str, Any] = {"params": [part for name, part in parts if name == "gate"], "weight_decay": 0.0}
    optimiser = torch.optim.AdamW([plain, gates], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rng, order = random.Random(seed), list(learned)
    steps = epochs * -(-len(order) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, [LEARNING_RATE, GATE_RATE * LEARNING_RATE],
                                               total_steps=steps, pct_start=0.1)
    done = 0
    for _ in range(epochs):
        rng.shuffle(order)
        for begin in range(0, len(order), BATCH):
            batch = order[begin:begin + BATCH]
            total = torch.stack([loss(network, one, attend=one.traits is None or rng.random() < 0.5)[0]
                                 for one in batch]).mean()
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rate.step()
            done += 1
            progress(done / steps, f"{total.detach().item():.3f} nats a token")
    network.requires_grad_(False)
    return _kept(network, held_out)


@torch.no_grad()
def _kept(network: TextScoreNetwork, held_out: Sequence[Read]) -> Taught:
    """Measure every arm, and shut what makes the whole worse."""
    assert network.backbone.memory is not None and network.pointer is not None
    sighted_ones = [one for one in held_out if one.traits is not None]
    found = {arm: [loss(network, one, attend=attend, point=point) for one in sighted_ones]
             for arm, (attend, point) in ARMS.items()}
    losses = {arm: float(torch.stack([nats for nats, _ in rows]).mean()) for arm, rows in found.items()}
    if losses["pointer"] >= losses["none"]:
        network.pointer.gate.zero_()
    attends = losses["together"] < losses["pointer"]
    if not attends:
        network.backbone.memory.gate.zero_()
    exact = {arm: 100 * sum(right for _, right in rows) / len(rows) for arm, rows in found.items()}
    return Taught(losses=losses, exact_percent=exact, attends=attends)
