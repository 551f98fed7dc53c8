"""Learnt maps from the output of a student's layer to the shape of a teacher's layer: the regressors of hints."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from kogata.errors import UsageError


class Regressor(nn.Module):
    """A linear map along the one axis that differs, apart from the batch axis; feature maps are also resized.

    On ``[N, C, H, W]`` it is a 1×1 convolution, then a resize to the teacher's height and width. Between equal shapes it is the
    identity. Raises UsageError for shapes it cannot map.
    """

    def __init__(self, ours: Tensor, theirs: Tensor, term: str) -> None:
        super().__init__()
        self._size = tuple(theirs.shape[2:]) if theirs.ndim == 4 else None
        differ = [axis for axis in range(1, ours.ndim) if ours.shape[axis] != theirs.shape[min(axis, theirs.ndim - 1)]]
        if self._size is not None:
            differ = [axis for axis in differ if axis == 1]
        if ours.ndim != theirs.ndim or ours.ndim < 2 or len(differ) > 1:
            raise UsageError(
                f"term {term}: no regressor maps the student's shape {tuple(ours.shape)} to the teacher's "
                f"{tuple(theirs.shape)}; choose layers whose shapes differ in one axis only, or feature maps [N, C, H, W]."
            )
        self._axis = differ[0] if differ else None
        self.map = nn.Identity()
        if self._axis is not None:
            self.map = nn.Linear(ours.shape[self._axis], theirs.shape[self._axis], dtype=ours.dtype)

    def forward(self, tensor: Tensor) -> Tensor:
        """Map the student's tensor to the teacher's shape."""
        if self._axis is not None:
            tensor = self.map(tensor.movedim(self._axis, -1)).movedim(-1, self._axis)
        return tensor if self._size is None else resized(tensor, self._size)


def resized(images_NCHW: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize to ``size`` (height, width): by average pooling if neither grows, else by bilinear interpolation."""
    if tuple(images_NCHW.shape[2:]) == size:
        return images_NCHW
    if size[0] <= images_NCHW.shape[2] and size[1] <= images_NCHW.shape[3]:
        return functional.adaptive_avg_pool2d(images_NCHW, (size[0], size[1]))
    return functional.interpolate(images_NCHW, size=list(size), mode="bilinear", align_corners=False)
