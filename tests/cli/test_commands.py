"""Every command once, on a perceptron that is trained and compressed in seconds."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file

from kogata import load
from kogata.methods import METHODS
from kogata.recipes.recipe import parse
from kogata.tasks.networks import digits_mlp

Run = Callable[..., subprocess.CompletedProcess[str]]
Finished = tuple[Path, str]


def test_methods_lists_every_method_and_fits_80_columns(kogata: Run) -> None:
    shown = kogata("methods").stdout
    assert all(method.ABOUT.name in shown for method in METHODS)
    assert max(map(len, shown.splitlines())) <= 80


def test_one_method_with_its_settings(kogata: Run) -> None:
    out = kogata("methods", "gptq").stdout
    assert max(map(len, out.splitlines())) <= 80
    assert "arXiv 2210.17323" in out
    assert "whose inputs cannot be observed stay as they are." in " ".join(out.split())
    rows = [line.split() for line in out.splitlines()]
    assert ["bits", "1", "to", "16", "required"] in rows or ["bits", "1", "to", "8", "required"] in rows
    assert ["rounds", "0", "or", "more", "1"] in rows
    assert "did you mean 'gptq'?" in kogata("methods", "gptc", code=2).stderr


def test_methods_as_json(kogata: Run) -> None:
    lines = {line["method"]: line for line in json.loads(kogata("methods", "--json").stdout)}
    assert list(lines) == [method.ABOUT.name for method in METHODS]
    assert all(lines[method.ABOUT.name]["when"] for method in METHODS)
    assert (lines["wanda"]["data"], lines["wanda"]["training"]) == (True, False)
    assert (lines["recover"]["data"], lines["recover"]["training"]) == (True, True)
    assert lines["magnitude"]["data"] is False
    assert [setting["name"] for setting in lines["half"]["settings"]] == []
    assert lines["gptq"]["settings"][:2] == [
        {"name": "bits", "type": "a whole number", "allowed": "1 to 8", "required": True, "default": None},
        {
            "name": "group",
            "type": "a whole number or null",
            "allowed": "1 or more, or null",
            "required": False,
            "default": None,
        },
    ]
    assert lines["tensor-train"]["settings"][1]["default"] == 3


def test_inspect_counts_a_model(kogata: Run) -> None:
    found = json.loads(kogata("inspect", "digits-mlp", "--json").stdout)
    layers = {layer["site"]: layer for layer in found["layers"]}
    assert [(layer["parameters"], layer["macs"], layer["bytes"]) for layer in layers.values()] == [
        (64 * 128, 64 * 128, 4 * 64 * 128), (128 * 10, 128 * 10, 4 * 128 * 10),
    ]  # fmt: skip
    assert found["bytes"] == sum(layer["bytes"] for layer in layers.values()) + sum(found["rest_bytes"].values())
    # a byte has at most 8 bits; the sign and exponent of trained weights have clearly fewer
    assert all(20 < layer["entropy_bits_per_weight"] < 30 for layer in layers.values())


def test_inspect_shows_a_file(kogata: Run, finished: Finished) -> None:
    path = finished[0] / "model.kogata"
    shown = kogata("inspect", path).stdout
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert all(word in shown for word in ("fc1.weight", "masked(codebook)", "values.index"))
    found = json.loads(kogata("inspect", path, "--json").stdout)
    report = json.loads((finished[0] / "report.json").read_text(encoding="utf-8"))
    assert found["bytes"] == path.stat().st_size
    assert found["bytes"] == sum(layer["bytes"] for layer in found["layers"]) + sum(found["rest_bytes"].values())
    assert found["rest_bytes"] == report["rest_bytes"]
    for layer, reported in zip(found["layers"], report["layers"], strict=True):
        assert [(p["plane"], p["coder"], p["bytes"]) for p in layer["planes"]] == [
            (p["name"], p["coder"], p["bytes"]) for p in reported["planes"]
        ]
        assert [p["entropy_bits"] / 8 for p in layer["planes"]] == [p["entropy_bytes"] for p in reported["planes"]]
    kept = round(0.2 * 128 * 64)
    mask = next(p for p in found["layers"][0]["planes"] if p["plane"] == "mask")
    share = kept / (128 * 64)
    entropy = -128 * 64 * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert mask["entropy_bits"] == pytest.approx(entropy, rel=1e-9)


def test_compress_prints_the_report_and_records_the_command(finished: Finished, recipe: Path) -> None:
    folder, shown = finished
    assert "all met: size 1/10" in shown  # the option won over the recipe
    assert f"Report: {folder / 'report.html'}" in shown
    assert {path.name for path in folder.iterdir()} >= {"model.kogata", "report.json", "report.html", "recipe.yaml"}
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["command"] == (
        f"kogata compress digits-mlp --recipe {recipe} -o '{folder}' --seed 0 --engine onnxruntime --size 1/10"
    )


def test_dry_run_prints_a_recipe_that_reads_back_and_writes_nothing(kogata: Run, recipe: Path, tmp_path: Path) -> None:
    shown = kogata("compress", "digits-mlp", "--recipe", recipe, "-o", tmp_path / "run", "--drop", "1pt", "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []
    resolved = parse(shown, "the dry run").resolved()
    assert resolved["targets"] == {"size": "1/5", "drop": "1pt"}
    assert [step["method"] for step in yaml.safe_load(shown)["steps"]] == ["magnitude", "recover", "k-means"]
    assert "#   1. magnitude: fc1.weight, fc2.weight\n#   2. recover: the whole model\n" in shown


def test_resume_of_a_finished_run_shows_it_again(kogata: Run, finished: Finished, recipe: Path) -> None:
    folder, shown = finished
    before = (folder / "model.kogata").stat().st_mtime_ns
    arguments = ("compress", "digits-mlp", "--recipe", recipe, "-o", folder, "--size", "1/10", "--resume")
    assert kogata(*arguments).stdout == shown
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert json.loads(kogata(*arguments, "--json").stdout) == report
    assert (folder / "model.kogata").stat().st_mtime_ns == before


def test_report_prints_the_same_again_and_writes_the_page(kogata: Run, finished: Finished, tmp_path: Path) -> None:
    folder, shown = finished
    page = tmp_path / "again.html"
    assert kogata("report", folder, "--html", page).stdout in shown
    assert page.read_text(encoding="utf-8") == (folder / "report.html").read_text(encoding="utf-8")
    found = json.loads(kogata("report", folder / "report.json", "--json").stdout)
    assert found == json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_bench_measures_the_file_again(kogata: Run, finished: Finished) -> None:
    path = finished[0] / "model.kogata"
    found = json.loads(kogata("bench", path, "--task", "digits-mlp", "--json").stdout)
    assert set(found) == {"bytes", "score", "engine", "latency_ms", "speedup", "dense"}
    assert set(found["dense"]) == {"bytes", "score", "latency_ms"}
    assert set(found["latency_ms"]) == set(found["dense"]["latency_ms"]) == {"p50", "p90", "noisy"}
    report = json.loads((finished[0] / "report.json").read_text(encoding="utf-8"))
    assert (found["bytes"], found["engine"]) == (path.stat().st_size, "onnxruntime")
    assert (found["score"], found["dense"]["score"]) == (report["compressed"]["score"], report["dense"]["score"])
    assert found["dense"]["bytes"] == report["dense"]["bytes"]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p90"]


def test_unpack_gives_the_same_model_both_ways(kogata: Run, finished: Finished, tmp_path: Path) -> None:
    path, weights, graph = finished[0] / "model.kogata", tmp_path / "out.safetensors", tmp_path / "out.onnx"
    kogata("unpack", path, "-o", weights, "-o", graph)
    plain = digits_mlp()
    plain.load_state_dict(load_file(weights))
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    expected = load(path, into=digits_mlp())(inputs).detach()
    torch.testing.assert_close(plain(inputs).detach(), expected, rtol=0, atol=0)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (ran,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(ran), expected, rtol=1e-5, atol=1e-5)
    assert "--force" in kogata("unpack", path, "-o", weights, code=2).stderr
    kogata("unpack", path, "-o", weights, "--force")


def test_a_size_or_a_drop_needs_no_recipe(kogata: Run, tmp_path: Path) -> None:
    kogata("compress", "digits-mlp", "--bytes", "1/9", "-o", tmp_path / "small")
    report = json.loads((tmp_path / "small" / "report.json").read_text(encoding="utf-8"))
    limit = report["dense"]["bytes"] / 9  # the file holds an engine graph too
    assert 0.99 * limit <= (tmp_path / "small" / "model.kogata").stat().st_size == report["compressed"]["bytes"] <= limit
    assert report["rest_bytes"]["graph"] > 0
    assert report["command"].endswith("--engine onnxruntime --bytes 1/9")
    assert all(layer["increase"] > 0 for layer in report["layers"])
    assert any("slope" in note and "predicted loss" in note for note in report["notes"])
    shown = kogata("compress", "digits-mlp", "--drop", "0.7pt", "-o", tmp_path / "exact", "--dry-run").stdout
    assert yaml.safe_load(shown)["steps"][-1]["drop"] == "0.7pt"
    assert yaml.safe_load(shown)["targets"] == {"drop": "0.7pt"}
