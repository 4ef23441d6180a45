"""What attention remembers: keys and values of tokens seen before, and how new queries meet them.

`attend` is the one place where queries meet keys. `KeyValueCache` holds rows of one length. `RunningCache` holds
sequences of different lengths that come and go, and `PackedStep` is one forward over one new token of each of them
and over pieces of prompts, all in one row of tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from aios.model.config import TransformerConfig

CAPACITY_MIN = 128  # tokens of the smallest shelf: shorter ones would be moved before they paid


Store = tuple[Any, Any, int, int]  # keys and values as arrays, slots, tokens there is room for in each
Place = tuple[int, int, int, int, int]  # store, slot, tokens before, tokens now, how many of these see each other


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMask:
    """Which keys each query may see: nothing hidden, plain causal order, or an explicit table."""

    causal: bool = False
    allowed: Bool[Tensor, "b 1 s k"] | None = None

    @classmethod
    def open_end(cls, before: int, count: int, opened: int) -> AttentionMask:
        """Return causal order for `count` tokens behind `before`, of which the last `opened` see each other."""
        if opened == count:
            return cls()
        index = torch.arange(before + count)
        last = index[before:, None]
        allowed = (index <= last) | (last >= before + count - opened)
        return cls(allowed=allowed[None, None])


@runtime_checkable
class Cache(Protocol):
    """What a layer's attention asks of a cache."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "b h s hd"],
        key: Float[Tensor, "b kv s hd"],
        value: Float[Tensor, "b kv s hd"],
        mask: AttentionMask,
    ) -> Float[Tensor, "b h s hd"]:
        """Remember the new keys and values of a layer; return what the queries see of all of them."""
        ...


def attend(
    query: Float[Tensor, "b h s hd"],
    key: Float[Tensor, "b kv k hd"],
    value: Float[Tensor, "b kv k hd"],
    mask: AttentionMask,
) -> Float[Tensor, "b h s hd"]:
    """Scaled dot-product attention in which groups of query heads share a key-value head.

    A group's heads become further queries of its one key-value head, so that keys and values are not copied.
    """
    batch, heads, count, width = query.shape
    groups = heads // key.shape[1]
    if groups == 1 or mask.causal:
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.allowed, is_causal=mask.causal
        )
    allowed = mask.allowed
    if allowed is not None and count > 1:
        allowed = allowed.repeat(1, 1, groups, 1)
    grouped = query.reshape(batch, key.shape[1], groups * count, width)
    mixed = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=allowed)
    return mixed.reshape(batch, heads, count, width)


class KeyValueCache:
    """Keys and values of the tokens seen so far, in memory taken once; `length` tokens are valid."""

    def __init__(self, config: TransformerConfig, *, batch: int, length_max: int) -> None:
        shape = (config.num_layers, batch, config.num_kv_heads, length_max, config.head_dim)
        self.keys = torch.zeros(shape)
        self.values = torch.zeros(shape)
        self.length = 0

    @property
    def length_max(self) -> int:
        return self.keys.shape[3]

    def extend(
        self, layer: int, key: Float[Tensor, "b kv s hd"], value: Float[Tensor, "b kv s hd"]
    ) -> tuple[Float[Tensor, "b kv k hd"], Float[Tensor, "b kv k hd"]]:
        """Write new keys and values of one layer behind the valid ones; return all of that layer's."""
        end = self.length + key.shape[2]
        if end > self.length_max:
            raise ValueError(f"the cache holds {self.length_max} tokens, {end} are needed")
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "b h s hd"],
        key: Float[Tensor, "b kv s hd"],
        value: Float[Tensor, "b kv s hd"],
        mask: AttentionMask,
    ) -> Float[Tensor, "b h s hd"]:
        """Extend the layer and attend to all of it."""
        return attend(query, *self.extend(layer, key, value), mask)

    def advance(self, count: int) -> None:
        """Declare the `count` tokens written to every layer valid."""
        self.length += count

    def memory(self, count: int, opened: int) -> tuple[list[Store], list[Place]]:
        """Return the one store, and the `count` tokens now of every row, the last `opened` of which see each other."""
        if self.length + count > self.length_max:
            raise ValueError(f"the cache holds {self.length_max} tokens, {self.length + count} are needed")
        rows = self.keys.shape[1]
        store = self.keys.numpy(), self.values.numpy(), rows, self.length_max
        return [store], [(0, row, self.length, count, opened) for row in range(rows)]


class Shelf:
    """Running sequences that need about as much memory each: one slot of `capacity` tokens a sequence."""

    def __init__(self, config: TransformerConfig, capacity: int) -> None:
        self.capacity = capacity
        self.names: list[Hashable] = []
        self.lengths: list[int] = []
        shape = (config.num_layers, 0, config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self._places = torch.zeros(0, dtype=torch.long)  # of this step's tokens, ready for scatter_
        self._key_count = 0
        self._mask = AttentionMask()

    def put(
        self, name: Hashable, keys: Float[Tensor, "n kv s hd"], values: Float[Tensor, "n kv s hd"]
    ) -> None:
        """Take in a sequence with its keys and values of all layers n."""
        slot, length = len(self.names), keys.shape[2]
        if slot == self.keys.shape[1]:
            # What a shorter neighbour has not written yet is read under a mask: it must be finite.
            layers, _, *rest = self.keys.shape
            more = self.keys.new_zeros(layers, max(1, slot), *rest)
            self.keys, self.values = torch.cat((self.keys, more), 1), torch.cat((self.values, more), 1)
        self.keys[:, slot, :, :length] = keys
        self.values[:, slot, :, :length] = values
        self.names.append(name)
        self.lengths.append(length)

    def drop(self, name: Hashable) -> None:
        """Let go of a sequence; the last one takes its slot, so that slots in use stay together."""
        slot, last = self.names.index(name), len(self.names) - 1
        if slot != last:
            length = self.lengths[last]
            self.keys[:, slot, :, :length] = self.keys[:, last, :, :length]
            self.values[:, slot, :, :length] = self.values[:, last, :, :length]
            self.names[slot], self.lengths[slot] = self.names[last], length
        del self.names[last], self.lengths[last]

    def begin(self) -> None:
        """Make ready for one more token of every sequence."""
        kv_heads, head_dim = self.keys.shape[2], self.keys.shape[4]
        lengths = torch.tensor(self.lengths)
        self._places = lengths.view(-1, 1, 1, 1).expand(-1, kv_heads, 1, head_dim)
        self._key_count = max(self.lengths) + 1
        self._mask = AttentionMask()
        if min(self.lengths) + 1 < self._key_count:
            seen = torch.arange(self._key_count) <= lengths.unsqueeze(1)
            self._mask = AttentionMask(allowed=seen[:, None, None])

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "b h 1 hd"],
        key: Float[Tensor, "b kv 1 hd"],
        value: Float[Tensor, "b kv 1 hd"],
    ) -> Float[Tensor, "b h 1 hd"]:
        """Remember one token of every sequence in a layer and let it see what came before it."""
        keys, values = self.keys[layer, : len(self.names)], self.values[layer, : len(self.names)]
        keys.scatter_(2, self._places, key)
        values.scatter_(2, self._places, value)
        return attend(query, keys[:, :, : self._key_count], values[:, :, : self._key_count], self._mask)

    def advance(self) -> None:
        """Declare the token written to every layer valid."""
        self.lengths = [length + 1 for length in self.lengths]


class RunningCache:
    """Keys and values of sequences of different lengths that join and leave between steps.

    Sequences of like length share a shelf, so that none pays for one more than twice its size.
    """

    def __init__(self, config: TransformerConfig, *, length_max: int) -> None:
        self.config = config
        self.length_max = length_max
        self._shelves: dict[int, Shelf] = {}

    @property
    def names(self) -> list[Hashable]:
        """The sequences in the order in which a step wants their tokens."""
        return [name for shelf in self.shelves() for name in shelf.names]

    def shelves(self) -> Iterator[Shelf]:
        """Those in use, small ones first."""
        for capacity in sorted(self._shelves):
            yield self._shelves[capacity]

    def bytes_of(self, length: int) -> int:
        """Memory that a sequence takes while it is at most `length` tokens long."""
        config = self.config
        token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * torch.float32.itemsize
        return token * self._capacity(length)

    def join(self, name: Hashable, cache: KeyValueCache) -> None:
        """Go on with a sequence whose first tokens are in a cache of one row; the cache is copied."""
        valid = cache.length
        self._put(name, cache.keys[:, 0, :, :valid], cache.values[:, 0, :, :valid])

    @torch.inference_mode()  # slots were filled in it: outside it they could not be moved
    def leave(self, name: Hashable) -> None:
        """Let go of a sequence."""
        for shelf in list(self.shelves()):
            if name in shelf.names:
                shelf.drop(name)
                if not shelf.names:
                    del self._shelves[shelf.capacity]
                return
        raise KeyError(name)

    def begin(self) -> None:
        """Make ready for one more token of every sequence; full slots are exchanged for larger ones."""
        for shelf in list(self.shelves()):
            full = [(slot, name) for slot, name in enumerate(shelf.names) if shelf.lengths[slot] >= shelf.capacity]
            for slot, name in full:
                self._put(name, shelf.keys[:, slot], shelf.values[:, slot])
            for _, name in full:
                shelf.drop(name)
            if not shelf.names:
                del self._shelves[shelf.capacity]
        for shelf in self.shelves():
            shelf.begin()

    def _put(
        self, name: Hashable, keys: Float[Tensor, "n kv s hd"], values: Float[Tensor, "n kv s hd"]
    ) -> None:
        length = keys.shape[2]
        if length >= self.length_max:
            raise ValueError(f"a sequence has {length} tokens, the cache holds {self.length_max}")
        capacity = self._capacity(length + 1)
        shelf = self._shelves.setdefault(capacity, Shelf(self.config, capacity))
        shelf.put(name, keys, values)

    def _capacity(self, length: int) -> int:
        capacity = CAPACITY_MIN
        while capacity < length:
            capacity *= 2
        return min(capacity, self.length_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The next `count` tokens of a prompt that is read piece by piece into its own cache of one row."""

    cache: KeyValueCache
    count: int


class PackedStep:
    """One forward over a row of tokens: one of each running sequence, then pieces of prompts."""

    def __init__(self, running: RunningCache, pieces: Sequence[Piece] = ()) -> None:
        if running.config.attention != "causal":
            raise ValueError("only causal attention can be computed token by token")
        running.begin()
        self.names = running.names
        self._shelves = list(running.shelves())
        self._pieces = [(piece, _piece_mask(piece)) for piece in pieces]
        positions = [length for shelf in self._shelves for length in shelf.lengths]
        self.lasts = list(range(len(positions)))
        for piece in pieces:
            positions += range(piece.cache.length, piece.cache.length + piece.count)
            self.lasts.append(len(positions) - 1)
        self.counts = [1] * len(self.names) + [piece.count for piece in pieces]  # tokens of every sequence
        self.positions = torch.tensor([positions])  # (1, s)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 h s hd"],
        key: Float[Tensor, "1 kv s hd"],
        value: Float[Tensor, "1 kv s hd"],
        mask: AttentionMask,
    ) -> Float[Tensor, "1 h s hd"]:
        """Every token sees the earlier tokens of its own sequence; `mask` is not used."""
        parts: list[Tensor] = []
        start = 0
        for shelf in self._shelves:
            stop = start + len(shelf.names)
            rows = [x[:, :, start:stop].transpose(0, 2) for x in (query, key, value)]
            parts.append(shelf.attend(layer, *rows).transpose(0, 2))
            start = stop
        for piece, allowed in self._pieces:
            stop = start + piece.count
            new_query, new_key, new_value = (x[:, :, start:stop] for x in (query, key, value))
            parts.append(piece.cache.attend(layer, new_query, new_key, new_value, allowed))
            start = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def memory(self) -> tuple[list[Store], list[Place]]:
        """Return every store that the step touches, and its pieces in the order of the tokens."""
        stores = [(shelf.keys.numpy(), shelf.values.numpy(), shelf.keys.shape[1], shelf.capacity)
                  for shelf in self._shelves]  # fmt: skip
        pieces = [(store, slot, length, 1, 0) for store, shelf in enumerate(self._shelves)
                  for slot, length in enumerate(shelf.lengths)]  # fmt: skip
        for piece, _ in self._pieces:
            cache = piece.cache
            if cache.length + piece.count > cache.length_max:
                raise ValueError(f"the cache holds {cache.length_max} tokens, {cache.length + piece.count} are needed")
            pieces.append((len(stores), 0, cache.length, piece.count, 0))
            stores.append((cache.keys.numpy(), cache.values.numpy(), 1, cache.length_max))
        return stores, pieces

    def advance(self) -> None:
        """Declare this step's tokens valid."""
        for shelf in self._shelves:
            shelf.advance()
        for piece, _ in self._pieces:
            piece.cache.advance(piece.count)


def _piece_mask(piece: Piece) -> AttentionMask:
    count, before = piece.count, piece.cache.length
    if count == 1:
        return AttentionMask()
    if not before:
        return AttentionMask(causal=True)
    return AttentionMask(allowed=torch.ones(1, 1, count, before + count, dtype=torch.bool).tril(before))
