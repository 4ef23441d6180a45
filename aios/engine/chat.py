"""An opened autoregressive model: network, tokenizer, chat template, and where its texts end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aios.contracts import OpenModel
from aios.engine.remembering import remembered
from aios.engine.sampling import Choice
from aios.errors import BadInput, ModelCorrupt
from aios.messages import ChatMessage, Generate
from aios.model.language import LanguageModel
from aios.text.chat import CONFIG, ChatTemplate, read_config, specials
from aios.text.tokenizer import TOKEN_CHARS_MAX, TextTokenizer

GENERATION_CONFIG = "generation_config.json"
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")   # as chat templates write them


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLanguage:
    """A language model with everything between messages and token ids."""

    name: str
    release: str
    network: LanguageModel
    tokenizer: TextTokenizer
    template: ChatTemplate | None
    ends: frozenset[int]              # token ids after which nothing is written
    choice: Choice                    # where the request says nothing
    intact: Callable[[bool], None]

    @classmethod
    def open(cls, model: OpenModel, activation_bits: int) -> OpenLanguage:
        """Build the network over the model's tensors; raises UnknownArchitecture or ModelCorrupt."""
        tokenizer = model.tokenizer
        if not isinstance(tokenizer, TextTokenizer):
            raise ModelCorrupt(f"{model.name} has no tokenizer.json", remedy="pull or import the model again")
        template = ChatTemplate.open(model.path)
        generation = read_config(model.path / GENERATION_CONFIG)
        ends = _ends(tokenizer, template, read_config(model.path / CONFIG), generation, model.spec)
        network = LanguageModel.open(model.spec, model.tensors, activation_bits)
        return cls(name=model.name, release=model.release, network=network, tokenizer=tokenizer, template=template,
                   ends=ends, choice=Choice.of_model(generation), intact=model.intact)

    def prompt(self, request: Generate) -> list[int]:
        """The token ids to continue; raises BadInput for what the model cannot be asked or cannot read."""
        request = remembered(request, chat=self.template is not None)
        chat = request.messages or request.system is not None
        if chat and self.template is None:
            raise BadInput(f"{self.name} has no chat template: it reads neither messages nor a system text",
                           remedy="give a plain prompt, or choose a model made for chat")
        length_max = self.network.length_max
        if len(request.prompt) > length_max * TOKEN_CHARS_MAX:
            raise BadInput(f"a prompt of {len(request.prompt)} characters; {self.name} reads {length_max} tokens",
                           remedy="shorten it")
        if self.template is None or request.raw:
            ids = self.tokenizer.encode_prompt(request.prompt)
        else:
            ids = self.tokenizer.encode_rendered(self.template.render(_conversation(request), self.tokenizer))
        if not ids:
            raise BadInput("there is nothing to continue", remedy="give a prompt")
        if len(ids) >= length_max:
            raise BadInput(f"the prompt has {len(ids)} tokens; {self.name} reads {length_max}, the new ones included",
                           remedy="shorten it")
        if max(ids) >= self.network.vocab_size:
            raise ModelCorrupt(f"the tokenizer of {self.name} knows more tokens than its network",
                               remedy="pull or import the model again")
        return ids


def _conversation(request: Generate) -> list[ChatMessage]:
    system = [] if request.system is None else [ChatMessage(role="system", content=request.system)]
    return [*system, *(request.messages or [ChatMessage(role="user", content=request.prompt)])]


def _ends(tokenizer: TextTokenizer, template: ChatTemplate | None, config: Mapping[str, Any],
          generation: Mapping[str, Any], spec: Mapping[str, Any]) -> frozenset[int]:
    """Every id that a file of the model calls an end, and the ends of turns that its template writes."""
    ends: set[int] = set()
    for said in (spec.get("eos_token_id"), generation.get("eos_token_id")):
        ends.update(one for one in (said if isinstance(said, list) else [said])
                    if isinstance(one, int) and not isinstance(one, bool))
    names = [name for name in TURN_ENDS if template is not None and name in template.source]
    if eos := specials(config).get("eos_token"):
        names.append(eos)
    for name in names:
        if name in tokenizer.reserved:
            ends.add(tokenizer.special(name))
    return frozenset(ends)
