"""One opening of one encoder in this process: what `aios bench encode` starts anew for every repetition.

    python -m aios.lab.encode_probe NAME

The model is that of the home that AIOS_HOME names. Everything is imported before the clock starts. Prints {"ms",
"rss_bytes"} of the time until the first sentence can be encoded (record, weights, network and tokenizer), and of what
the process had grown by when it had encoded some.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

from aios.lab.load_probe import rss_bytes

SENTENCES: Final = ("a man is playing a guitar on a stage in front of many people",) * 64


def main(name: str) -> dict[str, float]:
    """Open once and encode; raises ModelMissing or ModelCorrupt."""
    import torch

    from aios.config import Config, Places
    from aios.engine import encoding
    from aios.engine.assembly import Assembly
    from aios.messages import Encode

    torch.zeros(64, 64) @ torch.zeros(64, 64)      # torch's own threads and tables are no part of a model
    with torch.inference_mode():
        before, began = rss_bytes(), time.perf_counter()
        encoder = Assembly(Config(), Places.find()).encoder(name)
        opened = time.perf_counter()
        answers = [done for quantum in encoding.encode(encoder, {0: Encode(texts=SENTENCES)})
                   for done in quantum.values()]
    if len(answers) != 1 or not bool(answers[0].vectors.isfinite().all()):
        raise ValueError(f"{name}: encoding gave what is no vector")
    return {"ms": (opened - began) * 1e3, "rss_bytes": rss_bytes() - before}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
