"""Products with circulant blocks of size b = 2^k, by circular convolution of real vectors, one row of inputs at a time.

Polynomials modulo x^b − 1 are split recursively until each factor is linear. This is the fast Fourier transform as ring maps
(Bernstein, "Multidigit multiplication for mathematicians", 2001):
    R[x]/(x^b − 1)  →  R[x]/(x^(b/2) − 1)  ×  R[x]/(x^(b/2) + 1)
    R[x]/(x^(2m) + 1)  =  C[x]/(x^m − i)
    C[x]/(x^(2m) − s²)  →  C[x]/(x^m − s)  ×  C[x]/(x^m + s)
A product therefore consists of two splits, a multiplication factor by factor, and a join. The order of the factors does not
matter, so no reordering is needed. Real input costs half as much as complex input. Each polynomial has a single constant s, so
the inner loops access contiguous memory. PyTorch's FFT has a large overhead for each call, which dominates for a single row.

A split vector holds, for each m = 1, 2, 4 … b/2, the factors of x^m + 1 at [m, 2m): real parts, then imaginary parts. Several
vectors can be split at once; they are interleaved, with ``width`` numbers, one of each vector, at each position.
"""

# numba's decorators are untyped
# pyright: reportUntypedFunctionDecorator=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
import math

import numpy as np
from numpy.typing import NDArray

from kogata.system.compiled import cached_njit

Floats = NDArray[np.floating]


class CircularProduct:
    """The matrix ``C D`` with circulant blocks C, given by their first columns ``base [P, Q, b]``, and signs D ``[I]``.

    b is a power of two, I is above (Q − 1) b and at most Q b, and both arrays have the same float dtype.
    """

    def __init__(self, base_PQB: Floats, sign_I: Floats) -> None:
        dtype, b = base_PQB.dtype, base_PQB.shape[2]
        self.sign, self.roots = sign_I.copy(), _roots(b, dtype)
        self.factors_BQP = base_PQB.transpose(2, 1, 0).copy()
        _split(self.factors_BQP.reshape(-1), *self.roots, base_PQB[..., 0].size)
        place = np.arange(b)
        m = 1 << np.frexp(np.maximum(place, 1))[1] - 1  # the factor that each position belongs to
        self.factors_BQP /= (b // m * np.maximum(m // 2, 1)).astype(dtype)[:, None, None]  # undoes the scaling of ``_join``

    def __call__(self, x_NI: Floats) -> Floats:
        """The product with each row: ``[N, P b]``."""
        b, _, down = self.factors_BQP.shape
        y_NJ = np.empty((len(x_NI), down * b), self.factors_BQP.dtype)
        if self.factors_BQP.size == b:
            _products(x_NI, self.sign, self.factors_BQP.reshape(-1), *self.roots, y_NJ)
        else:
            _block_products(x_NI, self.sign, self.factors_BQP, *self.roots, y_NJ)
        return y_NJ


def _roots(n: int, dtype: np.dtype[np.floating]) -> tuple[Floats, Floats]:
    """Cosines and sines of the angles of s for all blocks of all levels; the level with c blocks is at [c, 2c)."""
    level = np.array([math.pi / 4])
    levels = [np.zeros(1), level]
    while 4 * len(level) < n:
        level = np.stack([level / 2, level / 2 + math.pi / 2], 1).ravel()
        levels.append(level)
    angles = np.concatenate(levels)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


@cached_njit(fastmath={"contract"})
def _products(x_NI: Floats, sign_I: Floats, spectrum_J: Floats, cosine: Floats, sine: Floats, y_NJ: Floats) -> None:
    """See :meth:`CircularProduct.__call__`."""
    inputs = x_NI.shape[1]
    for row in range(len(x_NI)):
        y_J = y_NJ[row]
        for j in range(inputs):
            y_J[j] = x_NI[row, j] * sign_I[j]
        y_J[inputs:] = 0
        _split(y_J, cosine, sine, 1)
        _multiply(y_J, spectrum_J)
        _join(y_J, cosine, sine, 1)


@cached_njit(fastmath={"contract"})
def _block_products(x_NI: Floats, sign_I: Floats, factors_BQP: Floats, cosine: Floats, sine: Floats, y_NJ: Floats) -> None:
    """See :meth:`CircularProduct.__call__`; all blocks are processed together, interleaved."""
    b, across, down = factors_BQP.shape
    x_BQ, y_BP = np.empty((b, across), y_NJ.dtype), np.empty((b, down), y_NJ.dtype)
    for row in range(len(x_NI)):
        x_BQ[:, across - 1] = 0
        for i in range(len(sign_I)):
            x_BQ[i % b, i // b] = x_NI[row, i] * sign_I[i]
        _split(x_BQ.reshape(-1), cosine, sine, across)
        y_BP[:] = 0
        for j in range(min(b, 2)):
            for q in range(across):
                y_BP[j] += factors_BQP[j, q] * x_BQ[j, q]
        m = 2
        while m < b:
            half = m // 2
            for j in range(m, m + half):
                _add_products(factors_BQP[j], factors_BQP[j + half], x_BQ[j], x_BQ[j + half], y_BP[j], y_BP[j + half])
            m *= 2
        _join(y_BP.reshape(-1), cosine, sine, down)
        for p in range(down):
            for i in range(b):
                y_NJ[row, p * b + i] = y_BP[i, p]


@cached_njit(fastmath={"contract"})
def _add_products(re_QP: Floats, im_QP: Floats, re_Q: Floats, im_Q: Floats, re_P: Floats, im_P: Floats) -> None:
    """Add complex vector times complex matrix. Two rows at a time halve the reads and writes of the sums."""
    across = len(re_Q)
    for q in range(0, across - 1, 2):
        a, b, c, d = re_Q[q], im_Q[q], re_Q[q + 1], im_Q[q + 1]
        left_re, left_im, right_re, right_im = re_QP[q], im_QP[q], re_QP[q + 1], im_QP[q + 1]
        for p in range(len(re_P)):
            re_P[p] += a * left_re[p] - b * left_im[p] + c * right_re[p] - d * right_im[p]
            im_P[p] += a * left_im[p] + b * left_re[p] + c * right_im[p] + d * right_re[p]
    if across % 2:
        a, b = re_Q[across - 1], im_Q[across - 1]
        for p in range(len(re_P)):
            re_P[p] += a * re_QP[across - 1, p] - b * im_QP[across - 1, p]
            im_P[p] += a * im_QP[across - 1, p] + b * re_QP[across - 1, p]


@cached_njit(fastmath={"contract"})
def _split(y: Floats, cosine: Floats, sine: Floats, width: int) -> None:
    """Split polynomials modulo x^b − 1 into b numbers, in place."""
    m = len(y) // 2
    while m >= width:
        _butterfly(y[:m], y[m : 2 * m])
        if m >= 4 * width:
            _split_complex(y[m : m + m // 2], y[m + m // 2 : 2 * m], cosine, sine, width)
        m //= 2


@cached_njit(fastmath={"contract"})
def _multiply(y: Floats, by: Floats) -> None:
    """Multiply factor by factor, in place. The factors of x − 1 and x + 1 are real, the others complex."""
    y[:2] *= by[:2]
    m = 2
    while m < len(y):
        half = m // 2
        for j in range(m, m + half):
            a, b, c, d = y[j], y[j + half], by[j], by[j + half]
            y[j], y[j + half] = a * c - b * d, a * d + b * c
        m *= 2


@cached_njit(fastmath={"contract"})
def _join(y: Floats, cosine: Floats, sine: Floats, width: int) -> None:
    """The inverse of :func:`_split`, up to a scale of b / m · max(m / 2, 1) for the factor at m."""
    m = width
    while m < len(y):
        if m >= 4 * width:
            _join_complex(y[m : m + m // 2], y[m + m // 2 : 2 * m], cosine, sine, width)
        _butterfly(y[:m], y[m : 2 * m])
        m *= 2


@cached_njit(fastmath={"contract"})
def _butterfly(left: Floats, right: Floats) -> None:
    """Split into the parts modulo x^m − 1 and x^m + 1; its own inverse up to a factor of 2."""
    for j in range(len(left)):
        u, v = left[j], right[j]
        left[j], right[j] = u + v, u - v


@cached_njit(fastmath={"contract"})
def _split_complex(re: Floats, im: Floats, cosine: Floats, sine: Floats, width: int) -> None:
    """Split polynomials modulo x^m − i into m numbers, in place. For a single vector the last two levels are fused."""
    count, m = 1, len(re) // 2
    fused = width == 1 and m >= 2
    while m >= (4 if fused else width):
        for block in range(count):
            c, s, at = cosine[count + block], sine[count + block], 2 * block * m
            re0, im0, re1, im1 = re[at : at + m], im[at : at + m], re[at + m : at + 2 * m], im[at + m : at + 2 * m]
            for j in range(m):
                a, b = re0[j], im0[j]
                u, v = _turned(re1[j], im1[j], c, s)
                re0[j], im0[j], re1[j], im1[j] = a + u, b + v, a - u, b - v
        count, m = 2 * count, m // 2
    for block in range(count if fused else 0):
        c, s, at = cosine[count + block], sine[count + block], 4 * block
        a0, b0 = _turned(re[at + 2], im[at + 2], c, s)
        a1, b1 = _turned(re[at + 3], im[at + 3], c, s)
        c, s = cosine[2 * (count + block)], sine[2 * (count + block)]  # the other block's root is this one times i
        u0, v0 = _turned(re[at + 1] + a1, im[at + 1] + b1, c, s)
        u1, v1 = _turned(re[at + 1] - a1, im[at + 1] - b1, -s, c)
        p0, q0, p1, q1 = re[at] + a0, im[at] + b0, re[at] - a0, im[at] - b0
        re[at], im[at], re[at + 1], im[at + 1] = p0 + u0, q0 + v0, p0 - u0, q0 - v0
        re[at + 2], im[at + 2], re[at + 3], im[at + 3] = p1 + u1, q1 + v1, p1 - u1, q1 - v1


@cached_njit(fastmath={"contract"})
def _join_complex(re: Floats, im: Floats, cosine: Floats, sine: Floats, width: int) -> None:
    """The inverse of :func:`_split_complex`, times m."""
    fused = width == 1 and len(re) >= 4
    count, m = (len(re) // 4, 1) if fused else (len(re) // (2 * width), width)
    for block in range(count if fused else 0):
        at = 4 * block
        c, s = cosine[2 * (count + block)], sine[2 * (count + block)]
        p0, q0, p1, q1 = re[at] + re[at + 1], im[at] + im[at + 1], re[at + 2] + re[at + 3], im[at + 2] + im[at + 3]
        u0, v0 = _turned(re[at] - re[at + 1], im[at] - im[at + 1], c, -s)
        u1, v1 = _turned(re[at + 2] - re[at + 3], im[at + 2] - im[at + 3], -s, -c)
        c, s = cosine[count + block], sine[count + block]
        re[at], im[at], re[at + 1], im[at + 1] = p0 + p1, q0 + q1, u0 + u1, v0 + v1
        re[at + 2], im[at + 2] = _turned(p0 - p1, q0 - q1, c, -s)
        re[at + 3], im[at + 3] = _turned(u0 - u1, v0 - v1, c, -s)
    if fused:
        count, m = count // 2, 4
    while count >= 1:
        for block in range(count):
            c, s, at = cosine[count + block], sine[count + block], 2 * block * m
            re0, im0, re1, im1 = re[at : at + m], im[at : at + m], re[at + m : at + 2 * m], im[at + m : at + 2 * m]
            for j in range(m):
                u, v = re0[j] - re1[j], im0[j] - im1[j]
                re0[j], im0[j] = re0[j] + re1[j], im0[j] + im1[j]
                re1[j], im1[j] = _turned(u, v, c, -s)
        count, m = count // 2, 2 * m


@cached_njit(fastmath={"contract"}, inline="always")
def _turned(re: float, im: float, cosine: float, sine: float) -> tuple[float, float]:
    """The complex product (re + i im)(cosine + i sine)."""
    return re * cosine - im * sine, re * sine + im * cosine
