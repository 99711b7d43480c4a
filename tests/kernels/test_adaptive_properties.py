"""What must hold of adaptive sparse attention for every setting, shape and mask."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.closeness import assert_close
from kernels.trained import trained
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse, Softmax
from sparsity_lab.kernels.adaptive.formula import SELECTED

B, G, D = 2, 2, 3

# Shares that no number of equal blocks has: at one of them rounding would decide.
KERNELS = st.builds(
    AdaptiveSparse,
    block_size=st.integers(1, 7),
    n_sink=st.integers(0, 3),
    n_local=st.integers(1, 3),
    mode=st.sampled_from(["topk", "topp"]),
    k_free=st.integers(0, 3),
    p=st.sampled_from([0.053, 0.313, 0.617, 0.873, 1.0]),
    k_min=st.integers(0, 2),
    k_slack=st.integers(0, 1),
    rho_min=st.sampled_from([0.0, 0.0, 0.47, 0.91]),
    dense_len=st.sampled_from([0, 0, 5]),
    beta=st.tuples(st.floats(-1.0, 2.0), st.floats(-1.0, 2.0)),
    rank=st.integers(0, 2),
)


@settings(max_examples=20)
@given(
    kernel=KERNELS,
    length=st.integers(1, 26),
    group=st.integers(1, 2),
    size=st.sampled_from([0.0, 0.3, 3.0]),
    padded=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_properties(kernel: AdaptiveSparse, length: int, group: int, size: float, padded: float, seed: int) -> None:
    """The forms agree. Kept are the own block, what is forced and at most the budget, of complete earlier blocks with
    a key. The interval holds, the error is bounded by what is lost, and with all blocks there is none. Later tokens
    change nothing, and token by token gives the same."""
    generator = torch.Generator().manual_seed(seed)
    q = size * torch.randn(B, G * group, length, D, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, B, G, length, D, generator=generator, dtype=torch.float64)
    key_mask = torch.rand(B, length, generator=generator) >= padded
    params = trained(kernel, G, D, torch.float64)

    def attend(length: int, implementation: str = "reference") -> Tensor:
        parts = (x[:, :, :length] for x in (q, k, v))
        options = {"key_mask": key_mask[:, :length], "params": params, "training": False}
        with torch.no_grad():
            return kernel.attend(*parts, implementation=implementation, **options)

    out = attend(length)
    for form in kernel.implementations[1:]:
        assert_close(form, attend(length, form), out, 1e-9)
    cut = 1 + seed % length
    assert_close("a shorter sequence", attend(cut), out[:, :, :cut], 1e-12)
    state = kernel.init_state(B, G, D, length, dtype=torch.float64)
    steps = []
    for t in range(length):
        step = (x[:, :, t : t + 1] for x in (q, k, v))
        steps.append(kernel.prefill(*step, state=state, key_mask=key_mask[:, t : t + 1], params=params))
    assert_close("token by token", torch.cat(steps, 2), out, 1e-9)

    found = kernel.audit(q, k, rows=torch.arange(length).expand(B, -1), key_mask=key_mask, params=params)
    num_blocks = -(-length // kernel.block_size)
    starts = torch.tensor([seen.index(True) if True in seen else 0 for seen in key_mask.tolist()])
    place, block = (torch.arange(length) - starts[:, None])[:, None, :, None], torch.arange(num_blocks)
    own = (place // kernel.block_size).clamp_min(0)  # rows before the first key see nothing
    seen = torch.stack([row.roll(-int(start)) for row, start in zip(key_mask, starts, strict=True)])
    filled = torch.nn.functional.pad(seen, (0, -length % kernel.block_size)).view(B, num_blocks, -1).any(-1)
    past = (block < own) & filled[:, None, None]
    forced = (past & ((block < kernel.n_sink) | (block > own - kernel.n_local))) | (block == own)
    kept = found.codes > 0
    assert (kept <= (past | (block == own))).all()
    assert (kept >= forced).all()
    candidates = (kept & (found.codes >= SELECTED)).sum(-1)
    if kernel.mode == "topk" and not kernel.rho_min:
        late = (place >= kernel.dense_len).squeeze(-1)
        assert (candidates * late <= kernel.k_free + kernel.k_slack).all()
    assert (found.lower <= found.retained + 1e-12).all()
    assert (found.retained <= found.upper + 1e-12).all()
    assert (found.retained <= found.oracle + 1e-12).all()
    assert ((found.estimated >= 0) & (found.estimated <= 1)).all()
    if kernel.rho_min:
        assert (found.upper >= kernel.rho_min - 1e-12).all()

    dense = Softmax().attend(q, k, v, key_mask=key_mask, implementation="reference")
    values = v.repeat_interleave(group, 1)
    diameter = torch.cdist(values, values).amax((-1, -2))
    assert ((dense - out).norm(dim=-1) <= (1 - found.retained) * diameter[..., None] + 1e-9).all()
    everything = kernel.replace(mode="topk", k_free=num_blocks, rho_min=0.0)
    whole = everything.attend(q, k, v, key_mask=key_mask, params=params, implementation="reference")
    assert_close("all blocks", whole.detach(), dense, 1e-12)
