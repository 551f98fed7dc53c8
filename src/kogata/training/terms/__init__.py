"""Every term of a distillation loss. To add one, write its file, extend ``TERMS``, and test it."""

from kogata.training.terms.attention import AttentionTransfer
from kogata.training.terms.base import Term
from kogata.training.terms.contrastive import Contrastive
from kogata.training.terms.hints import Hints
from kogata.training.terms.labels import Labels
from kogata.training.terms.logits import LogitRegression
from kogata.training.terms.neurons import SelectedNeurons
from kogata.training.terms.regression import Regression
from kogata.training.terms.relational import Relational
from kogata.training.terms.review import Review
from kogata.training.terms.similarity import Similarity
from kogata.training.terms.soft_targets import SoftTargets
from kogata.training.terms.sum import SumOfTerms

TERMS: tuple[type[Term], ...] = (
    Labels,
    SoftTargets,
    LogitRegression,
    Regression,
    Hints,
    AttentionTransfer,
    SelectedNeurons,
    Relational,
    Similarity,
    Contrastive,
    Review,
    SumOfTerms,
)

__all__ = [
    "TERMS",
    "AttentionTransfer",
    "Contrastive",
    "Hints",
    "Labels",
    "LogitRegression",
    "Regression",
    "Relational",
    "Review",
    "SelectedNeurons",
    "Similarity",
    "SoftTargets",
    "SumOfTerms",
    "Term",
]
