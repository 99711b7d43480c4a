"""Models of others: the lab's attention mechanisms in models of ``transformers``.

The packages of the extra ``transformers`` (``pip install "sparsity-lab[transformers]"``) are imported on first use.
"""

from typing import TYPE_CHECKING

from sparsity_lab.settings import lazy

if TYPE_CHECKING:
    from sparsity_lab.interop.attach import attach as attach
    from sparsity_lab.interop.attach import attached_kernels as attached_kernels
    from sparsity_lab.interop.attach import detach as detach
    from sparsity_lab.interop.attach import load_attached as load_attached
    from sparsity_lab.interop.attention import AttachedKernel as AttachedKernel
    from sparsity_lab.interop.convert import from_transformers as from_transformers
    from sparsity_lab.interop.convert import to_transformers as to_transformers
    from sparsity_lab.interop.extend import ExtendedContext as ExtendedContext
    from sparsity_lab.interop.extend import extend as extend
    from sparsity_lab.interop.extend import interpolate_positions as interpolate_positions
    from sparsity_lab.interop.records import as_predictor as as_predictor
    from sparsity_lab.interop.records import record as record
    from sparsity_lab.interop.swap import SwapReport as SwapReport
    from sparsity_lab.interop.swap import swap_report as swap_report

lazy.load_on_first_use(__name__)
