"""Forms: compressed representations of a weight, each a trainable module that regenerates the full tensor.

A form of your own extends :class:`Form`; see docs/adding_a_method.md.
"""

from kogata.coding.plane import Plane
from kogata.forms.affine import Affine
from kogata.forms.base import Dense, Form
from kogata.forms.binary import Binary
from kogata.forms.codebook import Codebook
from kogata.forms.combined import Sum
from kogata.forms.displacement import Displacement
from kogata.forms.fastfood import Fastfood
from kogata.forms.latent import Latent
from kogata.forms.masked import Masked
from kogata.forms.permuted import Permuted
from kogata.forms.product import Product
from kogata.forms.stacked import Stacked
from kogata.forms.stored import Separate, Transposed
from kogata.forms.tied import Tied
from kogata.forms.vectors import Vectors
from kogata.forms.zero_row import ZeroRow
from kogata.job import Role

FORMS: tuple[type[Form], ...] = (
    Dense, Masked, Affine, Codebook, Vectors, Binary, Product, Tied, Permuted, Sum, Stacked, Displacement, Fastfood,
    Transposed, Separate, ZeroRow,
)  # fmt: skip

__all__ = [
    "FORMS", "Affine", "Binary", "Codebook", "Dense", "Displacement", "Fastfood", "Form", "Latent", "Masked", "Permuted",
    "Plane", "Product", "Role", "Separate", "Stacked", "Sum", "Tied", "Transposed", "Vectors", "ZeroRow",
]  # fmt: skip
