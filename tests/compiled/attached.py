"""``torch.compile`` of models of ``transformers`` with a kernel attached."""

import pytest
import torch
from interop.tiny_models import build, left_padding, tokens

from sparsity_lab.interop import attach
from sparsity_lab.kernels import LSSA, AdaptiveSparse, Kernel, Softmax


@pytest.mark.parametrize("kernel", [Softmax(), LSSA(), AdaptiveSparse(block_size=4)], ids=str)
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@torch.no_grad()
def test_a_model_is_one_graph(name: str, kernel: Kernel) -> None:
    torch.compiler.reset()
    model, ids = attach(build(name), kernel), tokens(12)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for mask in (None, left_padding(12, 3)["attention_mask"]):
        options = {"attention_mask": mask, "use_cache": False}
        assert torch.equal(compiled(ids, **options).logits, model(ids, **options).logits)
    places = torch.cat([torch.arange(4), torch.arange(8)])[None].expand(2, -1)
    with pytest.raises(RuntimeError, match="attention_mask: only padding is served under torch.compile"):
        compiled(ids, position_ids=places, use_cache=False)
