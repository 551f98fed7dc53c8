"""Every term of a distillation loss. Adding one touches its own file, this tuple, and its oracle test."""

from kogata.methods.distillation.terms.attention import AttentionTransfer
from kogata.methods.distillation.terms.base import Term
from kogata.methods.distillation.terms.contrastive import Contrastive
from kogata.methods.distillation.terms.hints import Hints
from kogata.methods.distillation.terms.labels import Labels
from kogata.methods.distillation.terms.logits import LogitRegression
from kogata.methods.distillation.terms.neurons import SelectedNeurons
from kogata.methods.distillation.terms.regression import Regression
from kogata.methods.distillation.terms.relational import Relational
from kogata.methods.distillation.terms.review import Review
from kogata.methods.distillation.terms.similarity import Similarity
from kogata.methods.distillation.terms.soft_targets import SoftTargets
from kogata.methods.distillation.terms.sum import Sum

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
    Sum,
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
    "Sum",
    "Term",
]
