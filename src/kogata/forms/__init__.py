"""Forms: the small programs that regenerate a weight."""

from kogata.forms.affine import Affine
from kogata.forms.base import Dense, Form, Role
from kogata.forms.binary import Binary
from kogata.forms.codebook import Codebook
from kogata.forms.combined import Sum
from kogata.forms.latent import Latent
from kogata.forms.masked import Masked
from kogata.forms.product import Product
from kogata.forms.tied import Tied
from kogata.forms.vectors import Vectors

FORMS: tuple[type[Form], ...] = (Dense, Masked, Affine, Codebook, Vectors, Binary, Product, Tied, Sum)

__all__ = [
    "FORMS", "Affine", "Binary", "Codebook", "Dense", "Form", "Latent", "Masked", "Product", "Role", "Sum", "Tied", "Vectors",
]  # fmt: skip
