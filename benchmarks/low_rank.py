"""Low rank without training: how far sentence embeddings of R8 move when MiniLM-L6 keeps half its encoder's parameters.

Model, documents and figures are those of ``one_shot``. Each linear layer of the encoder keeps the same part of its parameters
as two factors, by plain or by whitened SVD, or all together keep as many, with ranks that share one budget.
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
from kogata import surgery
from kogata.adopt import adopt
from kogata.forms import Form
from kogata.job import Site, Where
from kogata.method import Method, WeightMethod
from kogata.methods import SVD
from kogata.methods.lowrank.rank_allocation import RankAllocation
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.stats import Stats
from kogata.tasks.data import named_folder

MINUTES = 6
SEED = 0


@final
@dataclass(frozen=True, kw_only=True)
class Uniform(WeightMethod):
    """The same part of the parameters of each layer."""

    fraction: float
    by: Literal["svd", "whitened"]

    ABOUT = WhitenedSVD.ABOUT
    NEEDS = WhitenedSVD.NEEDS
    ACCEPTS = WhitenedSVD.ACCEPTS
    LEAVES = WhitenedSVD.LEAVES

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Two factors."""
        rank = int(self.fraction * weight.numel() / sum(weight.shape))
        return (SVD(rank=rank) if self.by == "svd" else WhitenedSVD(rank=rank)).encode(weight, site, stats)


def measured(sentences: Sentences, method: Method) -> tuple[float, float, float]:
    """Cosine, accuracy in percent, and the part of the parameters that is left."""
    job = adopt(sentences.model, sentences.task).within(Where(layers=("encoder.*",)))
    model = method.apply(job).model
    embedded = sentences.embedded(surgery.plain(model), sentences.test)
    right = (embedded @ sentences.weight_DC).argmax(1) == sentences.targets(sentences.test)
    kept = sum(surgery.form_at(model, site).kept() for site in surgery.selected(job))
    whole = sum(torch.Size(site.shape).numel() for site in surgery.selected(job))
    return float((embedded * sentences.original).sum(1).mean()), 100 * float(right.float().mean()), 100 * kept / whole


def rows(sentences: Sentences) -> list[Row]:
    """Half the parameters three ways, and 35 % two ways."""
    found: list[Row] = []
    half = {"plain": Uniform(fraction=0.5, by="svd"), "whitened": Uniform(fraction=0.5, by="whitened")}
    figures = {name: measured(sentences, method) for name, method in half.items()}
    shared = measured(sentences, RankAllocation(fraction=0.5))
    small = {"whitened": Uniform(fraction=0.35, by="whitened"), "one budget": RankAllocation(fraction=0.35)}
    for name, (cosine, accuracy, _) in figures.items():
        bars = (0.84, 94.6) if name == "whitened" else (None, None)
        found.append(_row(f"half, {name}", "cosine to the original", cosine, "", bars[0]))
        found.append(_row(f"half, {name}", "accuracy of the original's head", accuracy, "%", bars[1]))
    found.append(_row("half, one budget", "cosine to the original", shared[0], "", figures["whitened"][0]))
    found.append(_row("half, one budget", "accuracy of the original's head", shared[1], "%", None))
    found.append(Row("half, one budget", "parameters left", shared[2], "%", 50.0, "<="))
    for name, method in small.items():
        cosine, accuracy, left = measured(sentences, method)
        found.append(_row(f"35 %, {name}", "cosine to the original", cosine, "", 0.80 if name == "one budget" else None))
        found.append(_row(f"35 %, {name}", "accuracy of the original's head", accuracy, "%", None))
        found.append(Row(f"35 %, {name}", "parameters left", left, "%", 35.0, "<="))
    return found


def _row(case: str, metric: str, value: float, unit: str, bar: float | None) -> Row:
    return Row(case, metric, value, unit, bar, None if bar is None else ">=")


def main() -> int:
    """All cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds r8/; default: $KOGATA_DATA")
    folder = named_folder(parser.parse_args().data)
    if folder is None or not (folder / "r8" / "train.tsv.gz").exists():
        raise SystemExit("low_rank needs r8/train.tsv.gz and r8/test.tsv.gz: name their folder with --data or KOGATA_DATA.")
    return harness.run("low_rank", rows(Sentences(folder / "r8")), [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
