"""Time of a whole ``swap_report``."""

import time
from collections.abc import Sequence

import polars as pl
import torch

from sparsity_lab.interop import swap_report
from sparsity_lab.interop.extra import required
from sparsity_lab.kernels import LSSA, LSSAR, LogNSoftmax

_KERNELS = LSSA(), LSSAR(), LogNSoftmax()
_DOCUMENTS, _VOCABULARY = 16, 256


def swap(lengths: Sequence[int] = (128, 256, 512, 1024)) -> pl.DataFrame:
    """A ``swap_report`` of a Llama of ten million parameters with three kernels and re-weighting, on sixteen
    documents of random bytes.

    - ``seconds in all`` is the time of the whole report.
    - ``ms per 1000 tokens`` is a forward pass at the largest length, and ``over as it is`` its quotient by that with
    the model's own attention.
    - ``peak MiB`` is of such a pass, beyond the weights.

    Args:
        lengths: of context.
    """
    transformers = required("transformers")
    config = transformers.LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=320, intermediate_size=864, num_hidden_layers=8, num_attention_heads=5
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        documents = torch.randint(0, _VOCABULARY, (_DOCUMENTS, max(lengths) + 1))
    start = time.perf_counter()
    found = swap_report(model, list(documents), _KERNELS, lengths, documents=_DOCUMENTS)
    seconds = time.perf_counter() - start
    cost = found.cost()
    return cost.select(
        pl.col("arm").alias("case"),
        (1e3 * pl.col("seconds_per_1000_tokens")).alias("ms per 1000 tokens"),
        pl.col("time_ratio").alias("over as it is"),
        pl.col("peak_MiB").alias("peak MiB"),
        pl.lit(max(lengths)).alias("T"),
        pl.lit(model.num_parameters()).alias("parameters"),
        pl.lit(torch.get_num_threads()).alias("threads"),
        pl.lit(seconds).alias("seconds in all"),
    )
