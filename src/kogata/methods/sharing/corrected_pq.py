"""Product quantization with error correction: it minimizes the error of the layer's *outputs*, not of its weights.

Wu, Leng, Wang, Hu, Cheng, "Quantized Convolutional Neural Networks for Mobile Devices", CVPR 2016 (1512.06473), section 3.3:
    min ‖X Wᵀ − X Ŵᵀ‖²,  Ŵ = [C¹B¹, …, CˢBˢ],
where X are the inputs produced by the already compressed layers, one sub-space after another. Only G = XᵀX is needed. With all
other sub-spaces fixed, the best sub-vector of row o without sharing is
    t_o = G_ss⁻¹ ((w_o − ŵ_o) G_·s + ŵ_os G_ss),
and a centroid c increases its error by (c − t_o)ᵀ G_ss (c − t_o). With G_ss = L Lᵀ this is ordinary k-means of Lᵀ t_o, so
assignments are exact and centroids are least-squares solutions. No step increases the error.

The paper cuts a convolution along its channels, with the same codebook at every place of the kernel. Here the flattened rows
``[channels, *kernel]`` are cut: a sub-vector holds neighbouring places of one channel, and each cut has its own codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.forms.vectors import Vectors
from kogata.job import Kind, Site
from kogata.methods.base.guards import Clusters, Count
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.sharing import subvectors

SWEEPS = 10  # most passes over all sub-spaces
ENOUGH = 1e-3  # stop when a sweep reduces the error by less than this fraction
DAMPING = 1e-3  # added to the diagonal of G, relative to its mean; where inputs are always 0, the weight error decides


@final
@dataclass(frozen=True, kw_only=True)
class CorrectedPQ(WeightMethod):
    """Product quantization that minimizes the error of the outputs on the calibration data.

    ``clusters`` (1 to 32,768) is the number of shared vectors for each position in a row, and ``length`` (at least 1) the
    number of columns in a vector. A convolution is cut along its flattened filters, not along channels alone as in the paper.
    Weights with no more rows than ``clusters``, or with inputs that cannot be seen, stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import CorrectedPQ
    >>> from kogata.testing.models import job_of
    >>> job = only(CorrectedPQ(clusters=4, length=8), "out").apply(job_of("conv"))
    >>> job.model.out.parametrizations.weight[0].describe()
    'vectors'
    """

    clusters: Clusters
    length: Count

    ABOUT = About(
        name="corrected-pq",
        family="sharing",
        summary="product quantization that preserves a layer's outputs on the calibration data",
        paper="Wu et al. 2016, arXiv 1512.06473",
        layers=(Kind.LINEAR, Kind.CONV),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.TABLE}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The number and length (2, 4 or 8) of the vectors that use most of the size."""
        found = sizes.vectors(shape, fraction)
        return None if found is None else cls(clusters=found[0], length=found[1])

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Product quantization, then sweeps over the sub-spaces."""
        points_SOD = subvectors.split(weight, self.length, self.clusters)
        gram_GII, columns = stats.gram_GII, weight[0].numel()
        if gram_GII is None:
            raise NotApplicable(stats.unseen)
        if gram_GII.shape[1] != columns:
            raise NotApplicable("its inputs could not be matched to the columns of this weight")
        if len(gram_GII) > 1:
            raise NotApplicable("its rows do not all multiply the same inputs, as in a grouped convolution")
        damping_I = (DAMPING * gram_GII[0].diagonal().mean()).clamp_min(torch.finfo(torch.float32).tiny).expand(columns)
        index_OS, table_SKD = subvectors.clustered(points_SOD, self.clusters)
        descent = _Descent(weight.flatten(1), gram_GII[0] + damping_I.diag(), index_OS, table_SKD)
        error = descent.error()
        for _ in range(SWEEPS):
            descent.sweep()
            before, error = error, descent.error()
            if not error < (1 - ENOUGH) * before:
                break
        return Vectors.of(descent.index_OS, descent.table_SKD, weight.shape)


class _Descent:
    """Index and table of one layer, with the residual ``rest`` = W − Ŵ and ``pull`` = (W − Ŵ) G, both ``[O, I]``."""

    def __init__(self, weight_OI: Tensor, gram_II: Tensor, index_OS: Tensor, table_SKD: Tensor) -> None:
        self.gram_II, self.index_OS, self.table_SKD = gram_II, index_OS.clone(), table_SKD.clone()
        with torch.no_grad():
            self.rest_OI = weight_OI - Vectors.of(index_OS, table_SKD, weight_OI.shape).dense()
        self.pull_OI = self.rest_OI @ gram_II

    def error(self) -> float:
        """tr (W − Ŵ) G (W − Ŵ)ᵀ."""
        return float((self.pull_OI.double() * self.rest_OI.double()).sum())

    def sweep(self) -> None:
        """Optimize each sub-space once."""
        length, columns = self.table_SKD.shape[2], self.gram_II.shape[0]
        for s, low in enumerate(range(0, columns, length)):
            at = slice(low, min(low + length, columns))
            width = at.stop - low
            block_DD = self.gram_II[at, at]
            root_DD = torch.linalg.cholesky(block_DD)  # damping makes the matrix positive definite
            table_KD = self.table_SKD[s, :, :width]
            old_OD = table_KD[self.index_OS[:, s]]
            target_OD = torch.cholesky_solve((self.pull_OI[:, at] + old_OD @ block_DD).T, root_DD).T
            index_SO, white_SKD = subvectors.refined((target_OD @ root_DD)[None], (table_KD @ root_DD)[None])
            new_KD = torch.linalg.solve_triangular(root_DD, white_SKD[0], upper=False, left=False)
            self.index_OS[:, s], self.table_SKD[s, :, :width] = index_SO[0], new_KD
            change_OD = new_KD[index_SO[0]] - old_OD
            self.rest_OI[:, at] -= change_OD
            self.pull_OI -= change_OD @ self.gram_II[at]
