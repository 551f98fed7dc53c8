"""Stochastic depth: residual branches are skipped at random during training, so that the model depends less on each of them.

Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016 (1603.09382), equations 2, 4 and 5. With
the branch f_l of block l of L and b_l ~ Bernoulli(p_l), drawn for each batch,
    x_l = relu(b_l f_l(x_{l−1}) + x_{l−1}) in training,   relu(p_l f_l(x_{l−1}) + x_{l−1}) in use,   p_l = 1 − l/L (1 − p_L).
At the end each p_l is multiplied into the last layer of its branch. The result is an ordinary model of the same class, from
which ``Shallower`` may remove blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from kogata.errors import NotApplicable
from kogata.job import Job
from kogata.methods.base.method import About, Method
from kogata.methods.recover import Recover
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.sites import sites_of
from kogata.settings import Range
from kogata.training.wrapper import TrainingWrapper

_SCALABLE = (
    nn.Linear,
    nn.modules.conv._ConvNd,  # pyright: ignore[reportPrivateUsage] - the only common base
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]
    nn.LayerNorm,
)


class Branch(nn.Module):
    """A branch that is kept with probability ``survival`` in training; in evaluation its output is scaled by it."""

    def __init__(self, branch: nn.Module, survival: float) -> None:
        super().__init__()
        self.branch, self.survival = branch, survival
        self._dtype: torch.dtype | None = None  # dtype of the output; None until its shape is known to be that of the input

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the branch, or zeros of the same shape."""
        if not self.training:
            return self.survival * self.branch(x, *args, **kwargs)
        if bool(torch.rand(()) < self.survival):
            return self.branch(x, *args, **kwargs)
        if self._dtype is not None:
            return torch.zeros_like(x, dtype=self._dtype)
        with evaluating(self.branch):  # in evaluation mode, so that finding the shape updates no running statistics
            zeros = torch.zeros_like(self.branch(x, *args, **kwargs))
        self._dtype = zeros.dtype if zeros.shape == x.shape else None
        return zeros


class StochasticDepthRegime(TrainingWrapper):
    """A model with branches that are skipped at random during training."""

    def __init__(self, model: nn.Module, paths: Sequence[str], survival: float) -> None:
        super().__init__(model)
        self._paths = list(paths)
        for number, path in enumerate(paths, 1):
            branch = model.get_submodule(path)
            _put(model, path, Branch(branch, 1 - number / len(paths) * (1 - survival)))

    def finish(self) -> nn.Module:
        """The model with its original branches, where the last layer of each is scaled by the survival probability."""
        for path in self._paths:
            held = self.model.get_submodule(path)
            assert isinstance(held, Branch)
            with torch.no_grad():
                for parameter in _last(path, held.branch)[1].parameters(recurse=False):
                    parameter *= held.survival
            _put(self.model, path, held.branch)
        return self.model


@final
@dataclass(frozen=True, kw_only=True)
class StochasticDepth(Method):
    """Train with residual branches that are skipped at random. The model keeps its size, and blocks can be removed afterwards.

    ``branches`` is a glob on the paths of the branches, modules whose output is added to their input; they are numbered in the
    model's order. ``survival`` is p_L, that of the last one, in (0, 1].

    >>> from kogata.methods import Recover, StochasticDepth
    >>> method = StochasticDepth(branches="blocks.*.branch", recover=Recover(epochs=10))
    >>> method.survival
    0.5
    """

    branches: str
    recover: Recover
    survival: Annotated[float, Range(gt=0, le=1, example=0.5)] = 0.5

    ABOUT = About(
        name="stochastic-depth",
        family="distillation",
        summary="skip residual branches at random during training",
        paper="Huang et al. 2016, arXiv 1603.09382",
        training=True,
    )

    def begin(self, model: nn.Module) -> StochasticDepthRegime:
        """A copy of ``model`` wrapped for training by this method in a training loop of your own.

        Raises NotApplicable when no module matches, or when a branch does not end in a plain layer that can be scaled.
        """
        twin = surgery.clone(model, share=False)
        paths = [path for path, _ in twin.named_modules() if path and fnmatchcase(path, self.branches)]
        if not paths:
            raise NotApplicable(f"stochastic-depth: no module of this model matches {self.branches!r}; name its branches.")
        tied = {name for site in sites_of(twin) if site.aliases for name in (site.name, *site.aliases)}
        for path in paths:
            name, last = _last(path, twin.get_submodule(path))
            own = dict(last.named_parameters(recurse=False))
            plain = isinstance(last, _SCALABLE) and "weight" in own and not any(f"{name}.{key}" in tied for key in own)
            if not plain or any(other.startswith(f"{path}.") for other in paths):
                raise NotApplicable(
                    f"stochastic-depth: {path} ends in {type(last).__name__}; a branch must end in a linear, convolutional or "
                    "normalization layer with plain weights that are not tied, and hold no other branch."
                )
        return StochasticDepthRegime(twin, paths, self.survival)

    def apply(self, job: Job) -> Job:
        """Train under the wrapper and finish it; raises DataError without training data."""
        wrapper = self.begin(job.model)
        epochs = self.recover.train(wrapper, job, self.ABOUT.name)
        return replace(job, model=wrapper.finish(), epochs=epochs)


def _last(path: str, branch: nn.Module) -> tuple[str, nn.Module]:
    """The last layer of a branch, with its path. Of nested ``nn.Sequential`` modules it is the last layer of the innermost."""
    while isinstance(branch, nn.Sequential) and len(branch):
        name, branch = list(branch.named_children())[-1]
        path = f"{path}.{name}"
    return path, branch


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
