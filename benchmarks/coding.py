"""Entropy coding of a pruned, weight-shared LeNet-300-100: bytes against Shannon's entropy, and speed of every coder.

The net is trained on MNIST for three epochs and pruned by magnitude to a few percent of each layer. After one more epoch the
kept weights of each layer share 32 centroids (k-means). Its planes are what a file must store: a mask and a plane of centroid
indices for each layer. Speed is measured on ten million symbols drawn independently from the histogram of the first layer's
indices: a plane as large as those of large nets and as skewed as real ones, with no structure but its histogram. The slow
coders (zstd -19, adaptive, context mixing) get its first million symbols. All runs use one core; the coders run in turn, round
by round, and the median over the rounds is reported.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Row, run
from kogata.coding import CODERS, Budget, Plane, decode, encode
from kogata.coding.adaptive import Adaptive
from kogata.coding.coder import Coder
from kogata.coding.context import Context
from kogata.coding.huffman import Huffman
from kogata.coding.rans import StaticRans
from kogata.tasks.data import load
from kogata.tasks.networks import lenet300

MINUTES = 1
SEED = 0
DENSITIES = (0.05, 0.08, 0.26)
CENTROIDS = 32
N_SYMBOLS = 10_000_000
N_SLOW_SYMBOLS = 1_000_000
ROUNDS = 7


def pruned_layers(data: Path | None) -> list[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
    """Mask and weight [out, in] of every layer of a LeNet-300-100 that was pruned by magnitude and retrained."""
    images = load("mnist", data)
    x_NI = torch.tensor(images.train_images_NHW).flatten(1).float() / 255
    y_N = torch.tensor(images.train_labels_N).long()
    torch.manual_seed(SEED)
    net = lenet300()
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    keeps = [torch.ones_like(layer.weight) for layer in layers]
    for _ in range(3):
        _epoch(net, optimizer, x_NI, y_N, layers, keeps)
    for i, (layer, density) in enumerate(zip(layers, DENSITIES, strict=True)):
        magnitudes = layer.weight.detach().abs()
        threshold = magnitudes.flatten().kthvalue(round(magnitudes.numel() * (1 - density))).values
        keeps[i] = (magnitudes > threshold).float()
    _epoch(net, optimizer, x_NI, y_N, layers, keeps)
    return [(keep.bool().numpy(), layer.weight.detach().numpy()) for keep, layer in zip(keeps, layers, strict=True)]


def _epoch(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_NI: Tensor,
    y_N: Tensor,
    layers: list[nn.Linear],
    keeps: list[Tensor],
) -> None:
    for batch in torch.randperm(len(x_NI)).split(100):
        with torch.no_grad():
            for layer, keep in zip(layers, keeps, strict=True):
                layer.weight *= keep
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x_NI[batch].unflatten(1, (1, 28, 28))), y_N[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        for layer, keep in zip(layers, keeps, strict=True):
            layer.weight *= keep


def shared_indices(values_N: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The index of each value's centroid, in ascending order, by Lloyd's algorithm from evenly spaced centroids."""
    centroids = np.linspace(values_N.min(), values_N.max(), CENTROIDS)
    for _ in range(50):
        indices = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values_N)
        counts = np.bincount(indices, minlength=CENTROIDS)
        sums = np.bincount(indices, values_N, minlength=CENTROIDS)
        centroids = np.where(counts, sums / np.maximum(counts, 1), centroids)
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values_N).astype(np.uint8)


def plane_rows(case: str, plane: Plane, saved_bar: float | None = None) -> list[Row]:
    """Bytes of a plane by every coder, and what the chosen one saves on the entropy."""
    entropy = plane.entropy_bits() / 8
    rows = [Row(case, "zero-order entropy", entropy, "B")]
    for coder in CODERS:
        data = coder.encode(plane) if coder.accepts(plane.spec) else None
        if data is not None:
            rows.append(Row(case, coder.name, len(data), "B", note=f"{len(data) / entropy:.4f} of the entropy"))
    coded = encode(plane)
    if not np.array_equal(decode(coded.data, plane.spec), plane.array):
        raise AssertionError(f"{case}: {coded.coder} does not read back what it wrote")
    saved = 100 * (1 - len(coded.data) / entropy)
    direction = None if saved_bar is None else ">="
    return [*rows, Row(case, "chosen: under the entropy", saved, "%", saved_bar, direction, note=coded.coder)]


@dataclass(frozen=True)
class Contender:
    """One coder to be timed: ``encode()`` returns what ``decode`` reads and ``n_bytes`` measures."""

    name: str
    plane: Plane
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    n_bytes: Callable[[Any], int] = len


def _ours(coder: Coder, plane: Plane) -> Contender:
    """One of our coders, timed with everything it does: histogram, table, checks."""
    return Contender(coder.name, plane, lambda: coder.encode(plane), lambda data: coder.decode(data, plane.spec, Budget()))


def _constriction(plane: Plane) -> Contender:
    """constriction's vectorised ANS coder; its array and model are prepared before timing starts."""
    stream = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
    symbols_N = plane.array.astype(np.int32)
    model = stream.model.Categorical(plane.counts() / plane.spec.size, perfect=False)

    def encoded() -> NDArray[np.uint32]:
        coder = stream.stack.AnsCoder()
        coder.encode_reverse(symbols_N, model)
        return coder.get_compressed()

    def decoded(words: NDArray[np.uint32]) -> NDArray[np.int32]:
        return stream.stack.AnsCoder(words).decode(model, plane.spec.size)

    return Contender("constriction", plane, encoded, decoded, lambda words: words.nbytes)


def _zstd19(plane: Plane) -> Contender:
    """zstd at level 19, on one byte per symbol."""
    raw = plane.array.tobytes()
    compress, decompress = zstandard.ZstdCompressor(level=19).compress, zstandard.ZstdDecompressor().decompress
    return Contender("zstd -19", plane, lambda: compress(raw), lambda data: np.frombuffer(decompress(data), np.uint8))


def _raced(contenders: list[Contender]) -> tuple[dict[str, int], dict[tuple[str, str], float]]:
    """Bytes by coder, and million symbols/s by coder and direction: medians over rounds in which the coders alternate."""
    n_bytes: dict[str, int] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for contender in contenders * ROUNDS:
        start = time.perf_counter()
        data = contender.encode()
        middle = time.perf_counter()
        decoded = contender.decode(data)
        end = time.perf_counter()
        if not np.array_equal(decoded, contender.plane.array):
            raise AssertionError(f"{contender.name} does not read back what it wrote")
        n_bytes[contender.name] = contender.n_bytes(data)
        seconds.setdefault((contender.name, "encode"), []).append(middle - start)
        seconds.setdefault((contender.name, "decode"), []).append(end - middle)
    sizes = {contender.name: contender.plane.spec.size for contender in contenders}
    return n_bytes, {key: sizes[key[0]] / statistics.median(times) / 1e6 for key, times in seconds.items()}


def speed_rows(plane: Plane) -> list[Row]:
    """Bytes and speed of every coder on one large plane, and static rANS compared with constriction."""
    part = Plane.symbols(plane.array[:N_SLOW_SYMBOLS], plane.spec.alphabet)
    contenders = [
        _ours(StaticRans(), plane),
        _constriction(plane),
        _ours(Huffman(), plane),
        _zstd19(part),
        _ours(Adaptive(), part),
        _ours(Context(), part),
    ]
    n_bytes, speeds = _raced(contenders)
    out: list[Row] = []
    for contender in contenders:
        name, case = contender.name, f"{contender.plane.spec.size:,} symbols"
        over = 100 * (n_bytes[name] / (contender.plane.entropy_bits() / 8) - 1)
        bar, direction = (0.1, "<=") if name == StaticRans.name else (None, None)
        out.append(Row(case, f"{name}: over the entropy", over, "%", bar, direction, note=f"{n_bytes[name]:,} bytes"))
        out += [Row(case, f"{name}: {way}", speeds[name, way], "M symbols/s") for way in ("encode", "decode")]
    for way, bar in (("encode", 0.7), ("decode", 7.0)):
        ratio = speeds[StaticRans.name, way] / speeds["constriction", way]
        out.append(Row(f"{N_SYMBOLS:,} symbols", f"static rANS: {way}", ratio, "x constriction", bar, ">="))
    return out


def rows(data: Path | None) -> list[Row]:
    """All rows: every plane of the pruned net, then the large plane."""
    out: list[Row] = []
    first_indices_N = np.empty(0, np.uint8)
    for number, (mask_OI, weight_OI) in enumerate(pruned_layers(data), start=1):
        density = f"fc{number} mask {mask_OI.shape}, {100 * mask_OI.mean():.1f} %"
        out += plane_rows(density, Plane.mask(mask_OI), saved_bar=8.0 if number == 1 else None)
        indices_N = shared_indices(weight_OI[mask_OI])
        out += plane_rows(f"fc{number} indices ({indices_N.size})", Plane.symbols(indices_N, CENTROIDS))
        first_indices_N = indices_N if number == 1 else first_indices_N
    histogram = np.bincount(first_indices_N, minlength=CENTROIDS) / first_indices_N.size
    large_N = np.random.default_rng(SEED).choice(CENTROIDS, N_SYMBOLS, p=histogram).astype(np.uint8)
    return out + speed_rows(Plane.symbols(large_N, CENTROIDS))


def main() -> None:
    """Print and store all rows; the exit status is 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coding", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with a sub-folder mnist (default: $KOGATA_DATA, or download)")
    raise SystemExit(run("coding", rows(parser.parse_args().data), [SEED]))


if __name__ == "__main__":
    main()
