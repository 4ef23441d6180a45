"""Requests that bring passages from memory: what a language model reads of them, and what a denoiser attends to."""

from __future__ import annotations

from dataclasses import replace

import torch

from aios.contracts import Condition
from aios.errors import BadInput
from aios.messages import ChatMessage, Diffuse, Generate, Generation, Infill
from aios.model.memory_attention import SOURCE
from aios.text.passages import context


def remembered(request: Generate, *, chat: bool) -> Generate:
    """The request as it is read: passages become a system text, or stand before a prompt that is continued.

    chat: whether the model has a template for conversations.
    """
    passages = request.passages
    if not passages:
        return request
    if request.raw or not chat:
        return replace(request, prompt=f"{context(passages, None)}\n\n{request.prompt}", passages=())
    if request.messages and request.messages[0].role == "system":
        first = ChatMessage(role="system", content=context(passages, request.messages[0].content))
        return replace(request, messages=(first, *request.messages[1:]), passages=())
    return replace(request, system=context(passages, request.system), passages=())


def conditioned(condition: Condition, request: Generation) -> Condition:
    """The condition with the patterns of a request's passages: the state they add up to, then each by its share.

    BadInput for patterns that are no numbers.
    """
    passages = request.passages if isinstance(request, Diffuse) else ()
    if not passages or any(passage.vector is None for passage in passages):
        return condition
    patterns = torch.stack([torch.frombuffer(bytearray(passage.vector or b""), dtype=torch.float32)
                            for passage in passages])
    if not bool(patterns.isfinite().all()):
        raise BadInput("the vector of a passage holds a number that is not finite", remedy="look at the encoder")
    scores = torch.tensor([max(0.0, passage.score or 0.0) for passage in passages])
    shares = scores / scores.sum() if bool(scores.sum() > 0) else torch.full((len(passages),), 1.0 / len(passages))
    tokens = torch.cat((shares[None] @ patterns, patterns * (shares * len(passages))[:, None]))
    return Condition(tokens={**condition.tokens, SOURCE: tokens[None]})


def memories(request: Generation | Generate) -> tuple[int, ...]:
    """The ids of the memories that a request has in sight, for the verdict."""
    return () if isinstance(request, Infill) else tuple(passage.id for passage in request.passages if passage.id)
