"""The symbol coders that coders of other kinds of planes use internally."""

from kogata.coding.adaptive import Adaptive
from kogata.coding.coder import Coder
from kogata.coding.huffman import Huffman
from kogata.coding.packed import Packed
from kogata.coding.rans import StaticRans

SYMBOL_CODERS: tuple[Coder, ...] = (Packed(), StaticRans(), Huffman(), Adaptive())
