"""Forms: the small programs that regenerate a weight."""

from kogata.forms.affine import Affine
from kogata.forms.base import Dense, Form, Role
from kogata.forms.codebook import Codebook
from kogata.forms.masked import Masked
from kogata.forms.product import Product

FORMS: tuple[type[Form], ...] = (Dense, Masked, Affine, Codebook, Product)

__all__ = ["FORMS", "Affine", "Codebook", "Dense", "Form", "Masked", "Product", "Role"]
