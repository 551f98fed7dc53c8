"""BRECQ: learn the rounding of all weights of a block together so that the block's outputs change least.

Li, Gong, Tan, Yang, Hu, Zhang, Yu, Wang, Gu, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction",
ICLR 2021 (2102.05426), sections 3.2 and 3.3. One block after another solves
    min over V of ‖f(x̂; Ŵ(V)) − f(x; W)‖² + λ Σ 1 − |2h(V) − 1|^β,
with AdaRound's rounding Ŵ(V), the inputs x̂ produced by the already rounded blocks before it, and the inputs x in the model
before this step. The error is divided by that of rounding to nearest. A block keeps rounding to nearest if the learnt rounding
is no better.

The paper weights the outputs by their Fisher information, learns the steps of quantized activations in the same blocks, and
chooses the grid by its squared error. Here all outputs have equal weight, activations are not quantized, and the grid spans the
smallest to the largest weight of a row.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from kogata.calibration.batches import calibration_batches
from kogata.calibration.normalization import move_within, renewed
from kogata.calibration.sequential import in_turn
from kogata.errors import UsageError
from kogata.forms import Role
from kogata.job import Job, Kind, Site, Task
from kogata.methods.base.guards import Bits, Count
from kogata.methods.base.method import About, Method
from kogata.methods.base.selection import follow, notes_of, refuse_idle, rows_of
from kogata.methods.base.trained import PreciseWrapper, TrainedLeaf
from kogata.methods.quantization.adaround import Rounding
from kogata.network import surgery
from kogata.network.batch import call, evaluating, output_error
from kogata.network.sites import form_at, leaves_of, selected_sites
from kogata.training.loop import Training, fit

RATE = 3e-2


@final
@dataclass(frozen=True, kw_only=True)
class BRECQ(Method):
    """Round to ``bits`` (1 to 8) every weight in the modules whose paths match one of the globs ``blocks``.

    Each block is trained on at least ``iterations`` batches of calibration data; its inputs and outputs are kept in memory for
    this. It simplifies the paper: all outputs of a block weigh the same, and the grid is that of the weights' range. Running
    statistics stay as they are while a block learns its rounding; then they move. Raises UsageError when a glob matches no
    module or one matched module contains another.

    >>> from kogata.methods import BRECQ
    >>> from kogata.testing.models import job_of
    >>> job = BRECQ(bits=4, blocks=("hidden",), iterations=1).apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'affine'
    """

    bits: Bits
    blocks: tuple[str, ...]
    iterations: Count = 1000

    ABOUT = About(
        name="brecq",
        family="quantization",
        summary="n-bit codes, with rounding learnt to preserve the outputs of blocks",
        paper="Li et al. 2021, arXiv 2102.05426",
        layers=(Kind.LINEAR, Kind.CONV),
        data=True,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.SCALE}),
    )

    def apply(self, job: Job) -> Job:
        """Round one block after another; raises UsageError when no module matches, or one match contains another."""
        model = surgery.clone(job.model, share=False)
        names = self._blocks(model)
        notes = notes_of(self, job, _unfit(selected_sites(job), names))
        refuse_idle(self.ABOUT.name, {site.name: note for site, note in notes.items()})
        sides = (job.model, {name: list[Any]() for name in names}), (model, {name: list[Any]() for name in names})
        layers = [(name, each.get_submodule(name), partial(_catch, seen[name])) for name in names for each, seen in sides]
        with evaluating(job.model), evaluating(model):
            batches = calibration_batches(
                model, job.task
            )  # each batch also runs through the unchanged model, which gives the outputs to preserve
            forwards = [partial(call, each, inputs) for inputs, _ in batches for each, _ in sides]
            with closing(in_turn(forwards, [each for each, _ in sides], layers)) as arrived:
                for name in arrived:
                    chosen = [site for site, note in notes.items() if not note and _within(site, name)]
                    (before, unchanged), (_, changed) = sides
                    if chosen:
                        outputs = [call(before.get_submodule(name), inputs) for inputs in unchanged[name]]
                        self._round(job, model.get_submodule(name), name, _Pairs(changed[name], outputs), chosen)
                        move_within(before.get_submodule(name), model.get_submodule(name), unchanged[name], changed[name], {})
                    unchanged[name].clear()
                    changed[name].clear()
        rows = rows_of(self.ABOUT.name, job.model, model, notes)
        return renewed(job, replace(job, model=model, ledger=(*job.ledger, *rows)))

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Follow the roles; raises NotApplicable when no selected site has a matrix."""
        chosen = selected_sites(job)
        return follow(self, roles, chosen, _unfit(chosen, self._blocks(job.model)))

    def _blocks(self, model: nn.Module) -> list[str]:
        """The paths of the matching modules; raises UsageError when there are none or one contains another."""
        paths = [path for path, _ in model.named_modules() if "parametrizations" not in path.split(".")]
        names = [path for path in paths if path and any(fnmatchcase(path, glob) for glob in self.blocks)]
        if not names:
            known = ", ".join(name for name, _ in model.named_children())
            raise UsageError(f"brecq: blocks {list(self.blocks)} match no module of the model, which has {known}.")
        for name in names:
            if inner := [other for other in names if other.startswith(f"{name}.")]:
                raise UsageError(f"brecq: blocks {list(self.blocks)} match {name} and, within it, {inner[0]}; match only one.")
        return names

    def _round(self, job: Job, block: nn.Module, name: str, pairs: _Pairs, sites: Sequence[Site]) -> None:
        """Learn the rounding of all weights of one block, in place."""
        local = [replace(site, module=site.module.removeprefix(name).removeprefix(".")) for site in sites]
        latents = [
            (TrainedLeaf(site=part, path=path, leaf=leaf), Rounding(leaf, bits=self.bits, group=None))
            for site in local
            for path, leaf, part in leaves_of(form_at(block, site), site) if leaf.role is Role.MATRIX
        ]  # fmt: skip
        for target, latent in latents:
            surgery.replace(block, target.site, target.path, latent.nearest)
        base = pairs.error(block)
        wrapper = _Block(block, latents)
        with torch.enable_grad():
            training = Training(epochs=math.ceil(self.iterations / len(pairs)), learning_rate=RATE)
            objective = partial(_objective, base if base > 0 else 1.0)
            task = Task(calibration=(), train=pairs, name=job.task.name)
            fit(wrapper, task, training, objective, seed=job.seed, what=f"brecq: {name}")
        wrapper.finish()
        if not pairs.error(block) < base:
            for target, latent in latents:
                surgery.replace(block, target.site, target.path, latent.nearest)


class _Block(PreciseWrapper):
    """One block in training. Everything but the rounding is fixed, and normalization layers stay in evaluation mode."""

    def __init__(self, block: nn.Module, latents: Sequence[tuple[TrainedLeaf, Rounding]]) -> None:
        super().__init__(block, latents)
        self._roundings, self._progress = [latent for _, latent in latents], 0.0
        trained = {id(rounding.values.values) for rounding in self._roundings}
        self._fixed = [p for p in block.parameters() if p.requires_grad and id(p) not in trained]
        for parameter in self._fixed:
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def penalty(self) -> Tensor:
        """The mean of the rounding penalty over all rows."""
        rows = sum(len(rounding.down) for rounding in self._roundings)
        return torch.stack([rounding.penalty(self._progress) for rounding in self._roundings]).sum() / rows

    def step(self, progress: float) -> None:
        """Record the progress, which determines β."""
        self._progress = progress

    def finish(self) -> nn.Module:
        """The block with rounded weights; all other parameters are trainable as before."""
        for parameter in self._fixed:
            parameter.requires_grad_(True)
        return super().finish()


class _Pairs:
    """Inputs of a block with the outputs to reproduce, one pair for each call.

    Iteration yields copies, because a block may modify its inputs in place.
    """

    def __init__(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.pairs = list(zip(inputs, outputs, strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Any]:
        return map(copy.deepcopy, self.pairs)

    def error(self, block: nn.Module) -> float:
        """The mean relative squared error of the block's outputs."""
        return sum(float(output_error(call(block, inputs), output)) for inputs, output in self) / len(self)


def _objective(base: float, output: Any, inputs: Any, targets: Any) -> Tensor:
    return output_error(output, targets) / base


def _unfit(sites: Sequence[Site], blocks: Sequence[str]) -> dict[Site, str]:
    """The sites that no block rounds, each with the reason."""
    outside = {site: "it is in none of the blocks" for site in sites if not any(_within(site, name) for name in blocks)}
    return {site: "it is tied to another layer" for site in sites if site.aliases} | outside


def _within(site: Site, name: str) -> bool:
    return site.module == name or site.module.startswith(f"{name}.")


def _catch(seen: list[Any], block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Record a copy of the inputs of one call."""
    bound = dict(inspect.signature(block.forward).bind(*args, **kwargs).arguments) if kwargs else args
    seen.append(copy.deepcopy(bound))
