"""A model of a kernel's time on three GPUs from what can be counted; nothing here was measured.

For one pass over a weight matrix the time is at least each of

* memory: bytes of weights, activations and results over the device's bandwidth;
* integer pipe: instructions an item (from the hot loop) times items over 64 lanes a multiprocessor
  and clock, *every* instruction counted as if it needed that pipe, which is pessimistic;
* load pipe: bytes the threads load, activations again for every row, over the L1 cache's bandwidth;
* matrix units: multiply-adds of the matrix instructions over their rate.

The longest is the modelled time. Left out: launch (3 to 7 us), latency, start and end of each
program, caches that hold a whole small model. A GEMM pass is one block of tokens against all
weights.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU of the model.

    Attributes:
        name: As the vendor calls it.
        target: Name from ``targets.TARGETS``.
        multiprocessors: SMs.
        clock_hz: Boost clock.
        bytes_per_second: Bandwidth of device memory.
        integer_lanes: 32-bit integer operations of an SM and clock.
        load_bytes: Bytes an SM loads from its L1 cache in a clock.
        matrix_multiplications: int8 multiply-adds of an SM and clock; 0 without matrix units.
        source: Where the figures are from.
    """

    name: str
    target: str
    multiprocessors: int
    clock_hz: float
    bytes_per_second: float
    integer_lanes: int
    load_bytes: int
    matrix_multiplications: int
    source: str


DEVICES = (
    Device(
        name="GTX 1660",
        target="sm_75",
        multiprocessors=22,
        clock_hz=1785e6,
        bytes_per_second=192e9,
        integer_lanes=64,
        load_bytes=64,
        matrix_multiplications=0,
        source="TU116 with 22 of 24 SMs, 1785 MHz boost, 8 Gb/s GDDR5 on 192 bits "
        "(techpowerup.com, review "
        "of the GTX 1660); 64 integer lanes: NVIDIA Turing GPU Architecture white paper; loads: "
        "arXiv 1903.07486, of its kin T4",
    ),
    Device(
        name="A100 40 GB",
        target="sm_80",
        multiprocessors=108,
        clock_hz=1410e6,
        bytes_per_second=1555e9,
        integer_lanes=64,
        load_bytes=128,
        matrix_multiplications=2048,
        source="NVIDIA A100 Tensor Core GPU Architecture white paper; its 624 int8 TOPS are 2048 "
        "multiply-adds a clock and SM",
    ),
    Device(
        name="H100 SXM",
        target="sm_90",
        multiprocessors=132,
        clock_hz=1830e6,
        bytes_per_second=3350e9,
        integer_lanes=64,
        load_bytes=128,
        # 1979 int8 TOPS dense need wgmma; mma.sync reaches about 62 % of that (arXiv 2402.13499).
        matrix_multiplications=2540,
        source="NVIDIA H100 Tensor Core GPU Architecture white paper; the clock is the lower of "
        "its two, "
        "under matrix load",
    ),
)

PRODUCT_SHAPES = (
    (512, 512),
    (1792, 512),
    (512, 896),
    (2560, 2560),
    (6912, 2560),
    (2560, 6912),
    (4096, 4096),
)
"""Rows and columns: attention, gate with up, and down projection of our 25M model (width 512,
feed-forward 896), those of BitNet b1.58 2B4T (2560, 6912), and a square of 7B models."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a thread block does for one item, from the machine code.

    Attributes:
        instructions: Issued, of all threads together.
        memory_bytes: Of device memory.
        loaded_bytes: Loaded by threads, from caches or memory.
        multiplications: Of the matrix units.
    """

    instructions: float
    memory_bytes: float
    loaded_bytes: float
    multiplications: float


@dataclass(frozen=True, slots=True)
class ModelledTime:
    """Lower bounds of a pass in microseconds; a model, never a measurement."""

    device: str
    rows: int
    columns: int
    memory_us: float
    integer_us: float
    load_us: float
    matrix_us: float

    @property
    def us(self) -> float:
        """The longest of the four."""
        return max(self.memory_us, self.integer_us, self.load_us, self.matrix_us)

    @property
    def roofline_share(self) -> float:
        """Memory time over modelled time: 1.0 where memory is the limit."""
        return self.memory_us / self.us


def modelled_time(device: Device, counts: Counts, rows: int, columns: int) -> ModelledTime:
    """Model one pass over a weight matrix.

    Args:
        device: Where.
        counts: What one weight costs.
        rows: Of the matrix.
        columns: Of the matrix.

    Raises:
        ValueError: Counts without instructions or bytes: there is nothing to model.
    """
    if counts.instructions <= 0 or counts.memory_bytes <= 0:
        raise ValueError(f"counts: {counts}; allowed: instructions and memory bytes above zero")
    items = rows * columns
    # int8 activations once, and two bytes a result.
    memory_bytes = items * counts.memory_bytes + columns + 2 * rows
    clocks = device.multiprocessors * device.clock_hz
    matrix = counts.multiplications * items
    if matrix and not device.matrix_multiplications:
        raise ValueError(
            f"{device.name} has no matrix units, the code has {matrix} multiplications"
        )
    return ModelledTime(
        device=device.name,
        rows=rows,
        columns=columns,
        memory_us=1e6 * memory_bytes / device.bytes_per_second,
        integer_us=1e6 * items * counts.instructions / (clocks * device.integer_lanes),
        load_us=1e6 * items * counts.loaded_bytes / (clocks * device.load_bytes),
        matrix_us=1e6 * matrix / (clocks * device.matrix_multiplications) if matrix else 0.0,
    )
