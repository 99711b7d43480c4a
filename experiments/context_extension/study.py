"""``context_extension``: trained short, fine-tuned long with sparse attention and light adapters, tested dense.

LongLoRA (arXiv 2309.12307) at a scale of two cores. Every method has one learning rate, chosen with a seed that no
claim looks at.
"""

from sparsity_lab.studies import Study

from .arms import arms
from .claims import CLAIMS, PRIMARY
from .measure import measure
from .page import figure, finding, tables

__all__ = ["study"]

study = Study(
    name="context_extension",
    title="Context extension: fine-tuned sparse, tested dense",
    question="A decoder of bytes is trained with dense attention at a short context. It is then fine-tuned on text "
    "at a context four times as long, with interpolated positions and with dense or shifted sparse attention. All "
    "weights are trained, or low-rank maps with or without the embeddings and norms. All are tested with dense "
    "attention on the same bytes.",
    arms=arms,
    claims=CLAIMS,
    primary=PRIMARY,
    figure=figure,
    finding=finding,
    columns=(),
    measure=measure,
    tables=tables,
)
