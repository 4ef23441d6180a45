"""The Rust extension, built from rust/aios_native."""

from typing_extensions import Buffer

def cpu_features() -> list[str]:
    """The instruction sets that kernels may use here, by their customary names."""

def crc32c(data: Buffer, seed: int = 0) -> int:
    """The CRC32C of a contiguous bytes-like object, continued from `seed`, that of what came before."""

class FrameScanner:
    """Finds where MessagePack frames end in a stream fed in any pieces; builds no object."""

    def __new__(cls, bytes_max: int, depth_max: int, elements_max: int) -> FrameScanner: ...
    def feed(self, piece: Buffer) -> tuple[list[int], str | None]:
        """The offsets in `piece` behind every frame that became complete, and why the rest is refused."""

    @property
    def partial(self) -> bool:
        """True when the last byte fed was not the last of a frame."""
