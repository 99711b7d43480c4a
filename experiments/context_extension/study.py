"""``context_extension``: trained short, fine-tuned long with sparse attention and light adapters, tested dense.

LongLoRA (arXiv 2309.12307) at a scale of two cores: what shifted groups, low-rank maps, whole embeddings and norms,
and interpolated positions are each worth. A run of an arm has one learning rate; which rate stands for the arm is
chosen on sequences that no claim looks at.
"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS
from .measure import measure
from .page import figure, tables

__all__ = ["study"]

study = Study(
    name="context_extension",
    title="Context extension: fine-tuned sparse, tested dense",
    question="A decoder trained with dense attention at a short context is fine-tuned at one four times as long, "
    "and at one eight times as long, with positions interpolated: dense or with shifted sparse attention, all "
    "weights or low-rank maps with and without whole embeddings and norms. All are tested with dense attention. "
    "Real text, a synthetic task whose floor is known, and the retrieval of a passkey.",
    arms=arms,
    claims=CLAIMS,
    figure=figure,
    columns=(),
    measure=measure,
    tables=tables,
)
