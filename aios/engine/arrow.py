"""`ArrowEngine`: the one entrance for requests, in a library or inside the daemon's model worker."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aios import config as configuration
from aios import messages as checks
from aios.config import Config, Places
from aios.engine import encoding, pipeline, router
from aios.engine.assembly import Assembly, LoadedModel
from aios.engine.decoding import Decoding, Outcome
from aios.engine.encoding import SentenceEncoder
from aios.errors import AiosError, BadInput, Cancelled, PluginError
from aios.messages import (
    ChatMessage,
    Diffuse,
    Encode,
    Generate,
    Generation,
    Infill,
    Passage,
    Recollection,
    Request,
    Response,
    State,
    from_wire,
    to_wire,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aios.registry.registry import Registry

Asking = TypeVar("Asking", bound=Diffuse | Generate)


class ArrowEngine:
    """Answers requests with the models and plugins of this machine; one thread at a time."""

    def __init__(self, assembly: Assembly, registry: Registry) -> None:
        self._assembly = assembly
        self._registry = registry

    @classmethod
    def open(cls, config: Config | None = None, *, places: Places | None = None,
             registry: Registry | None = None) -> ArrowEngine:
        """Open the engine; models are opened at first use.

        Without `config` daemon.toml is read, without `registry` the plugins that the owner allows are loaded.
        """
        places = places or Places.find()
        config = config or configuration.load(places.config_file)
        return cls(Assembly(config, places), registry or _allowed_plugins(config, places))

    def encode(self, texts: Sequence[str], *, model: str | None = None) -> NDArray[np.float32]:
        """Unit vectors of texts, float32 (n, d); each text is cut at the encoder's length. ModelMissing without it."""
        import numpy as np

        if isinstance(texts, str):
            raise BadInput("encode takes a list of texts", remedy="put the text into a list")
        [part] = _finish(self.ask(Encode(texts=tuple(texts), model=model))).parts
        shape = [int(axis) for axis in part.mime.rpartition("shape=")[2].split(",")]
        # A bytearray, because numpy arrays over bytes are read-only.
        return np.frombuffer(bytearray(part.data or b""), dtype="<f4").reshape(shape)

    def diffuse(self, prompt: str = "", modality: str = "text", size: tuple[int, int] = (512, 512),
                voice_id: str = "default", *, messages: Sequence[ChatMessage | Mapping[str, str]] | None = None,
                system: str | None = None, length: int | None = None, steps: int | None = None,
                sampler: str | None = None, temperature: float | None = None, seed: int | None = None,
                model: str | None = None, memory: Recollection = "off",
                passages: Sequence[Passage | Mapping[str, Any]] | None = None,
                on_state: Callable[[State], object] | None = None,
                cancel: Callable[[], bool] | None = None) -> Response:
        """Continue a prompt, or write the assistant's next turn of a conversation, by diffusion.

        memory="auto": with the memories of this home that matter in sight; passages: with these texts. `on_state`
        sees the canvas after every denoising step; `cancel` is asked at the same moments and, once it says True,
        Cancelled is raised.
        """
        request = Diffuse(prompt=prompt, messages=_turns(messages), system=system, modality=modality, size=size,
                          voice_id=voice_id, length=length, steps=steps, sampler=sampler, temperature=temperature,
                          seed=seed, model=model, memory=memory, passages=_passages(passages))
        return _finish(self.ask(request), on_state, cancel)

    def infill(self, prefix: str, suffix: str, *, modality: str = "text", length: int | None = None,
               steps: int | None = None, sampler: str | None = None, temperature: float | None = None,
               seed: int | None = None, repairs: int | None = None, model: str | None = None,
               on_state: Callable[[State], object] | None = None,
               cancel: Callable[[], bool] | None = None) -> Response:
        """Write `length` tokens between a head and a tail; `on_state` and `cancel` as in `diffuse`.

        Code that breaks its grammar is written anew up to `repairs` times; the verdict says how often.
        """
        request = Infill(prefix=prefix, suffix=suffix, modality=modality, length=length, steps=steps, sampler=sampler,
                         temperature=temperature, seed=seed, repairs=repairs, model=model)
        return _finish(self.ask(request), on_state, cancel)

    def generate(self, prompt: str = "", *, messages: Sequence[ChatMessage | Mapping[str, str]] | None = None,
                 system: str | None = None, max_tokens: int = 256, temperature: float | None = None,
                 top_p: float | None = None, top_k: int | None = None, min_p: float | None = None,
                 repetition_penalty: float | None = None, stop: Sequence[str] = (), seed: int | None = None,
                 raw: bool = False, model: str | None = None, memory: Recollection = "off",
                 passages: Sequence[Passage | Mapping[str, Any]] | None = None,
                 on_text: Callable[[str], object] | None = None,
                 cancel: Callable[[], bool] | None = None) -> Response:
        """Continue a prompt or a conversation token by token with an autoregressive model.

        What is None is the model's own default. memory and passages as in `diffuse`. `on_text` sees the text as it
        becomes certain; `cancel` is asked after every step and, once it says True, Cancelled is raised.
        """
        request = Generate(
            prompt=prompt, messages=_turns(messages), system=system, max_tokens=max_tokens, temperature=temperature,
            top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty,
            stop=(stop,) if isinstance(stop, str) else tuple(stop), seed=seed, raw=raw, model=model, memory=memory,
            passages=_passages(passages))
        return _finish(self.ask(request), on_text and partial(_tell, on_text), cancel)

    def ask(self, request: Request) -> Generator[State, None, Response]:
        """Answer one request in quanta: yields after each, returns the answer; closing it cancels.

        A diffusion yields its empty canvas and then once after every denoiser call, an autoregressive model after
        every forward. Nothing happens before the first `next`, which raises what is wrong with the request.
        """
        if isinstance(request, Generate):
            return (yield from self._ask_generate(self.route(request)))
        checks.check(request)
        if isinstance(request, Encode):
            return (yield from self._ask_encode(request))
        return (yield from self._ask_generation(request))

    def encode_many(self, requests: Sequence[Encode]) -> Iterator[dict[int, Response | AiosError]]:
        """Answer several requests as one batch, in quanta of at most 64 texts.

        After every quantum yields the requests it finished, by their index; a request that cannot be answered
        gets its error and holds up no other.
        """
        for model in dict.fromkeys(request.model for request in requests):
            group = {index: request for index, request in enumerate(requests) if request.model == model}
            try:
                encoder = self._assembly.encoder(model)
                accepted, refused = _sift(group)
            except AiosError as error:
                yield dict.fromkeys(group, error)
                continue
            if refused:
                yield refused
            yield from self._encoded(encoder, accepted)

    def generate_many(self, requests: Sequence[Generate]) -> Iterator[dict[int, Outcome]]:
        """Answer several requests together, in quanta of one forward: a token of each.

        After every quantum yields what came of it, by the index of the request; a request that cannot be answered
        gets its error and holds up no other.
        """
        routed, refused = self._routed(requests)
        if refused:
            yield refused
        for model in dict.fromkeys(request.model for request in routed.values()):
            group = {index: request for index, request in routed.items() if request.model == model}
            try:
                decoding = self.decoding(model)
            except AiosError as error:
                yield dict.fromkeys(group, error)
                continue
            for index, request in group.items():
                decoding.join(index, request)
            while decoding.open:
                yield {index: outcome for index, outcome in decoding.advance().items() if isinstance(index, int)}

    def route(self, request: Generate) -> Generate:
        """The request to serve in place of this one, as plugins decide; BadInput when it breaks a limit."""
        checks.check(request)
        routed = self._registry.route(self._with_memories(request))
        assert isinstance(routed, Generate)   # a route cannot change the kind of request
        return routed

    def decoding(self, model: str | None = None) -> Decoding:
        """A new group of texts that an autoregressive model shall write together; ModelMissing or ModelCorrupt."""
        return Decoding(self._assembly.language(model), self._answered)

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models that are open now."""
        return self._assembly.loaded()

    def adopt(self, registry: Registry) -> None:
        """Serve the next requests with these plugins; running ones finish with those they began with."""
        self._registry = registry
        self._assembly.keep_heads(head for _, head in registry.heads())

    def _ask_encode(self, request: Encode) -> Generator[State, None, Response]:
        quanta_min = -(-len(request.texts) // encoding.TEXTS_PER_QUANTUM_MAX)
        for quantum, finished in enumerate(self.encode_many([request]), start=1):
            for answer in finished.values():
                if isinstance(answer, AiosError):
                    raise answer
                return answer
            yield State(step=quantum, steps=max(quantum + 1, quanta_min))
        raise AssertionError("every request of a batch is answered")

    def _encoded(self, encoder: SentenceEncoder,
                 requests: dict[int, Encode]) -> Iterator[dict[int, Response | AiosError]]:
        """The answers of one encoder; once its file proves bad, the error of all that are open."""
        unanswered = set(requests)
        try:
            for finished in encoding.encode(encoder, requests):
                encoder.intact(bool(finished))    # no answer from weights that were not checked
                unanswered -= finished.keys()
                yield {index: done.response(encoder) for index, done in finished.items()}
        except AiosError as error:
            yield dict.fromkeys(unanswered, error)

    def _routed(self, requests: Sequence[Generate]) -> tuple[dict[int, Generate], dict[int, Outcome]]:
        """Requests to serve, and the errors of the others."""
        routed: dict[int, Generate] = {}
        refused: dict[int, Outcome] = {}
        for index, request in enumerate(requests):
            try:
                routed[index] = self.route(request)
            except AiosError as error:
                refused[index] = error
        return routed, refused

    def _with_memories(self, request: Asking) -> Asking:
        """The request with the memories it wishes for; the daemon has seen to that before a request comes here."""
        if request.memory == "off":
            return request
        asked, lent = checks.question(request), tuple[Passage, ...]()
        if asked.strip() and (conditioner := self._assembly.conditioner()) is not None:
            lent = conditioner.passages(asked, vector=self.encode([asked])[0], k=self._assembly.passages_max)
        return replace(request, memory="off", passages=lent)

    def _answered(self, request: Generate, response: Response) -> None:
        self._registry.response_ready(request, response)

    def _ask_generate(self, request: Generate) -> Generator[State, None, Response]:
        decoding = self.decoding(request.model)
        decoding.join(0, request)
        while decoding.open:
            outcome = decoding.advance().get(0)
            if isinstance(outcome, AiosError):
                raise outcome
            if isinstance(outcome, Response):
                return outcome
            if outcome is not None:
                yield outcome
        raise AssertionError("every request that joined is answered")

    def _ask_generation(self, request: Generation) -> Generator[State, None, Response]:
        registry = self._registry
        routed = registry.route(self._with_memories(request) if isinstance(request, Diffuse) else request)
        assert isinstance(routed, Generation)   # a route cannot change the kind of request
        plugin, head = router.choose_head(routed, registry)
        if isinstance(routed, Diffuse) and routed.messages and not getattr(head, "converses", False):
            raise BadInput(f"the {routed.modality} of {plugin} reads no conversations", remedy="give a prompt")
        try:
            opened = self._assembly.head(plugin, head, routed.model, routed.modality)
            response = yield from pipeline.generate(router.plan(routed, plugin, opened))
        except PluginError as error:
            registry.quarantine(plugin, str(error.details.get("reason", error.message)))
            raise
        registry.response_ready(routed, response)
        return response


def _turns(messages: Sequence[ChatMessage | Mapping[str, str]] | None) -> tuple[ChatMessage, ...]:
    return tuple(from_wire(to_wire(one), ChatMessage) for one in messages or ())


def _passages(passages: Sequence[Passage | Mapping[str, Any]] | None) -> tuple[Passage, ...]:
    return tuple(from_wire(to_wire(one), Passage) for one in passages or ())


def _sift(group: dict[int, Encode]) -> tuple[dict[int, Encode], dict[int, Response | AiosError]]:
    """Requests within the limits, and the errors of the others."""
    accepted: dict[int, Encode] = {}
    refused: dict[int, Response | AiosError] = {}
    for index, request in group.items():
        try:
            checks.check(request)
            accepted[index] = request
        except BadInput as error:
            refused[index] = error
    return accepted, refused


def _finish(quanta: Generator[State, None, Response], on_state: Callable[[State], object] | None = None,
            cancel: Callable[[], bool] | None = None) -> Response:
    """Run a request to its end, showing states and asking whether to go on."""
    while True:
        try:
            state = next(quanta)
        except StopIteration as done:
            response: Response = done.value
            return response
        if on_state is not None:
            on_state(state)
        if cancel is not None and cancel():
            quanta.close()
            raise Cancelled("the request was cancelled", remedy="ask again")


def _tell(on_text: Callable[[str], object], state: State) -> None:
    if state.delta:
        on_text(state.delta)


def _allowed_plugins(config: Config, places: Places) -> Registry:
    from aios.registry.registry import Registry

    return Registry.allowed(config, places)
