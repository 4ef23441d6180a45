"""onnxruntime over the weights of an installed encoder, f32 and int8, as a peer of our own.

The graph is written with onnxruntime's own fused operators (embedding and norm, attention, skip and norm, GELU), which
is what its optimiser would turn an exported one into, and made int8 by its own dynamic quantisation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aios.model.config import EncoderConfig
from aios.model.imports import bert_config, bert_state
from aios.store import models
from aios.store.record import SPEC, TOKENIZER, ModelRecord, read_spec

PEER: Final = "onnxruntime"
INSTALL: Final = "install the peer: pip install 'aios-daemon[bench]'"
BATCHES: Final = (32, 128)
OPSET, IR_VERSION = 17, 10
FUSED: Final = "com.microsoft"          # the domain of onnxruntime's own operators
NEGLIGIBLE: Final = 1e-12

Precision = Literal["f32", "int8"]


@dataclass(slots=True, kw_only=True)
class OnnxEncoder:
    """A session, and the settings it runs fastest with here."""

    start: Callable[[int], Any]             # a session on so many threads
    tokenizer: Any
    precision: Precision
    version: str
    threads: int
    batch_size: int = BATCHES[0]
    session: Any = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, d); texts of like length share a batch, as sentence-transformers has it."""
        if self.session is None:
            self.session = self.start(self.threads)
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        vectors: list[Any] = [None] * len(rows)
        for at in range(0, len(order), self.batch_size):
            chosen = order[at:at + self.batch_size]
            for row, vector in zip(chosen, self._batch([rows[row] for row in chosen]), strict=True):
                vectors[row] = vector
        return np.array(vectors, dtype=np.float32)

    def _batch(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
        mask = np.zeros_like(ids)
        for row, (line, real) in zip(rows, zip(ids, mask, strict=True), strict=True):
            line[:len(row)], real[:len(row)] = row, 1
        states: NDArray[np.float32] = self.session.run(None, {"ids": ids, "mask": mask})[0]
        mean = np.einsum("bsd,bs->bd", states, mask.astype(np.float32) / mask.sum(1, keepdims=True))
        unit: NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(NEGLIGIBLE)
        return unit

    def tune(self, texts: Sequence[str]) -> None:
        """Keep the thread count and batch size that encode `texts` fastest."""
        timings = {}
        for threads in sorted({1, self.threads}):
            self.session = self.start(threads)
            for batch in BATCHES:
                self.batch_size = batch
                self.encode(texts[:batch])
                began = time.perf_counter()
                self.encode(texts)
                timings[time.perf_counter() - began] = threads, batch
        self.threads, self.batch_size = timings[min(timings)]
        self.session = self.start(self.threads)

    @property
    def settings(self) -> str:
        """The settings, for the row."""
        return f"{PEER} {self.precision} at its fastest: threads {self.threads}, batch {self.batch_size}"


@contextmanager
def open_onnx(record: ModelRecord, threads: int) -> Iterator[dict[Precision, OnnxEncoder]]:
    """The peer over an installed f32 encoder in both precisions; nothing where it is not installed."""
    try:
        runtime: Any = import_module(PEER)
        tokenizers: Any = import_module("tokenizers")
        import_module("onnx")
    except ImportError:
        yield {}
        return
    config = bert_config(read_spec(record.path / SPEC))
    tokenizer = tokenizers.Tokenizer.from_file(str(record.path / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.positions_max)

    def starter(file: Path) -> Callable[[int], Any]:
        def start(threads: int) -> Any:
            options = runtime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 3      # errors alone
            return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return start

    with TemporaryDirectory(prefix="aios-onnx-") as scratch:
        files = _files(Path(scratch), record, config)
        yield {precision: OnnxEncoder(start=starter(file), tokenizer=tokenizer, precision=precision, threads=threads,
                                      version=metadata.version(PEER)) for precision, file in files.items()}


def _files(folder: Path, record: ModelRecord, config: EncoderConfig) -> dict[Precision, Path]:
    """The model in both precisions."""
    onnx: Any = import_module("onnx")
    quantization: Any = import_module("onnxruntime.quantization")
    files: dict[Precision, Path] = {"f32": folder / "f32.onnx", "int8": folder / "int8.onnx"}
    state = bert_state(models.open_tensors(record), config.num_layers)
    onnx.save(_model(onnx, config, {name: _array(value) for name, value in state.items()}), files["f32"])
    logging.disable(logging.WARNING)    # it recommends a preparation for graphs that were exported
    try:
        # Bytes times bytes saturate in 16 bits without VNNI unless weights keep to 7 bits: its own advice for AVX2.
        quantization.quantize_dynamic(files["f32"], files["int8"], weight_type=quantization.QuantType.QInt8,
                                      per_channel=True, reduce_range=True,
                                      extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    finally:
        logging.disable(logging.NOTSET)
    return files


def _array(value: Any) -> NDArray[np.float32]:
    assert isinstance(value, Tensor), "the peer is made of weights that were never quantised"
    return value.float().numpy()


def _model(onnx: Any, config: EncoderConfig, state: Mapping[str, NDArray[np.float32]]) -> Any:
    """The network as an ONNX model: (ids, mask) (b, s) int32 to states (b, s, d) f32."""
    graph = _Graph(onnx, state)
    places = state["positions.weight"] + state["types.weight"][0]
    # Inputs left out are named ""; the second one would be token types.
    x = graph.node("EmbedLayerNormalization", "ids", "", "words.weight", graph.constant("places", places), "",
                   "norm.weight", "norm.bias", outputs=2, epsilon=config.norm_eps)
    for layer in range(config.num_layers):
        of = f"layers.{layer}."
        mixed = graph.node("Attention", x, graph.turned(of + "qkv.weight"), of + "qkv.bias", "mask",
                           num_heads=config.num_heads)
        out = graph.node("MatMul", mixed, graph.turned(of + "out.weight"), domain="")
        x = graph.node("SkipLayerNormalization", out, x, of + "attention_norm.weight", of + "attention_norm.bias",
                       of + "out.bias", epsilon=config.norm_eps)
        up = graph.node("BiasGelu", graph.node("MatMul", x, graph.turned(of + "up.weight"), domain=""), of + "up.bias")
        down = graph.node("MatMul", up, graph.turned(of + "down.weight"), domain="")
        x = graph.node("SkipLayerNormalization", down, x, of + "ffn_norm.weight", of + "ffn_norm.bias",
                       of + "down.bias", epsilon=config.norm_eps)
    helper, integers = onnx.helper, onnx.TensorProto.INT32
    inputs = [helper.make_tensor_value_info(name, integers, ["b", "s"]) for name in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, ["b", "s", config.hidden_dim])]
    used = {name for node in graph.nodes for name in node.input}
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
               for name, array in graph.arrays.items() if name in used]
    made = helper.make_graph(graph.nodes, "encoder", inputs, outputs, tensors)
    return helper.make_model(made, ir_version=IR_VERSION,
                             opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)])


class _Graph:
    """Nodes in order, and the arrays that they name."""

    def __init__(self, onnx: Any, state: Mapping[str, NDArray[np.float32]]) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.arrays = dict(state)

    def node(self, kind: str, *inputs: str, domain: str = FUSED, outputs: int = 1, **attributes: Any) -> str:
        """Append a node; the name of its first output."""
        names = [f"{kind}.{len(self.nodes)}.{index}" for index in range(outputs)]
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def constant(self, name: str, array: NDArray[np.float32]) -> str:
        """An array by a name of its own."""
        self.arrays[name] = array
        return name

    def turned(self, name: str) -> str:
        """A weight matrix as (inputs, outputs)."""
        return self.constant(name + ".turned", self.arrays[name].T)
