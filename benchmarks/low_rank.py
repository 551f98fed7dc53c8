"""Low rank without training: how far sentence embeddings of R8 move when MiniLM-L6 keeps half its encoder's parameters.

Model, documents and figures are those of ``one_shot``. Each linear layer of the encoder becomes two factors, by plain or
whitened SVD. Either every layer keeps the same fraction of its parameters, or the ranks are allocated from one common budget,
without and with the correction for errors of earlier layers. Figures are those of the model reloaded from its file.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.one_shot import Sentences
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.forms import Form
from kogata.job import Site, Where
from kogata.methods import SVD
from kogata.methods.base.method import Method
from kogata.methods.base.weight import WeightMethod
from kogata.methods.lowrank.rank_allocation import RankAllocation
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.network.sites import form_at, selected_sites
from kogata.tasks.data import named_folder

MINUTES = 10
SEED = 0


@final
@dataclass(frozen=True, kw_only=True)
class Uniform(WeightMethod):
    """A method that keeps the same fraction of the parameters of each layer."""

    fraction: float
    by: Literal["svd", "whitened"]

    ABOUT = WhitenedSVD.ABOUT

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The weight as a product of two factors."""
        rank = int(self.fraction * weight.numel() / sum(weight.shape))
        return (SVD(rank=rank) if self.by == "svd" else WhitenedSVD(rank=rank)).encode(weight, site, stats)


@dataclass(frozen=True)
class Figures:
    """Cosine, accuracy in percent, bytes of the file, and kept parameters in percent."""

    cosine: float
    accuracy: float
    size: int
    left: float


def measured(sentences: Sentences, method: Method) -> Figures:
    """The figures of a method, of the model reloaded from its file."""
    job = prepare(sentences.model, sentences.task).within(Where(layers=("encoder.*",)))
    model = method.apply(job).model
    kept = sum(form_at(model, site).kept() for site in selected_sites(job))
    whole = sum(torch.Size(site.shape).numel() for site in selected_sites(job))
    return Figures(*sentences.reloaded(model), 100 * kept / whole)


def rows(sentences: Sentences) -> list[Row]:
    """The rows of four methods at half the parameters, and of three at 35 %."""
    found: list[Row] = []
    for name, fraction in (("half", 0.5), ("35 %", 0.35)):
        budget = RankAllocation(fraction=fraction), RankAllocation(fraction=fraction, correct=True)
        whitened = measured(sentences, Uniform(fraction=fraction, by="whitened"))
        half = fraction == 0.5
        if half:
            found += _rows("half, plain", measured(sentences, Uniform(fraction=0.5, by="svd")), fraction, None, None)
        found += _rows(f"{name}, whitened", whitened, fraction, *((0.84, 94.6) if half else (None, None)))
        found += _rows(f"{name}, one budget", measured(sentences, budget[0]), fraction, None, None)
        least = whitened.cosine if half else 0.80
        found += _rows(f"{name}, one budget, corrected", measured(sentences, budget[1]), fraction, least, None)
    return found


def _rows(case: str, figures: Figures, fraction: float, cosine: float | None, accuracy: float | None) -> list[Row]:
    return [
        _row(case, "cosine to the original", figures.cosine, "", cosine),
        _row(case, "accuracy of the original's head", figures.accuracy, "%", accuracy),
        Row(case, "file", figures.size, "bytes"),
        Row(case, "parameters left", figures.left, "%", 100 * fraction, "<="),
    ]


def _row(case: str, metric: str, value: float, unit: str, bar: float | None) -> Row:
    return Row(case, metric, value, unit, bar, None if bar is None else ">=")


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds r8/; default: $KOGATA_DATA")
    folder = named_folder(parser.parse_args().data)
    if folder is None or not (folder / "r8" / "train.tsv.gz").exists():
        raise SystemExit("low_rank needs r8/train.tsv.gz and r8/test.tsv.gz: name their folder with --data or KOGATA_DATA.")
    return harness.run("low_rank", rows(Sentences(folder / "r8")), [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
