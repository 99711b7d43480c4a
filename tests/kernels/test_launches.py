"""On an accelerator an operation is a launch, and a look at a number waits for all before it.

What kernels do there is counted here: on the CPU in the accelerator's profile, and on the meta device, whose profile
that is.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernels.closeness import assert_close, random_rows
from kernels.conditions import KERNELS, make_position, padding
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsity_lab.generators import Planted, Stream
from sparsity_lab.kernels import AdaptiveSparse, AuxiliaryOutputs, Kernel, NormAwareLinear, Reweighted, Softmax
from sparsity_lab.kernels.context import Context
from sparsity_lab.kernels.parts.profile import PROFILES
from sparsity_lab.models import ALiBi, Coupling, Decoder, FunctionalAttention, Oracle, Predicted, RoPE
from sparsity_lab.settings import kinds
from sparsity_lab.training.free_running import _answers

H, D = 2, 8
BENCHMARKED = [
    kernel for kind in kinds("kernel").values() if issubclass(kind, Kernel) for kernel in kind.benchmarked()
]
BUDGET = PROFILES["accelerator"].budget
LOOKS = {
    f"aten::{name}"
    for name in (
        *(
            "_local_scalar_dense",
            "is_nonzero",
            "equal",
            "allclose",
            "one_hot",
            "nonzero",
            "nonzero_numpy",
            "argwhere",
        ),
        *("masked_select", "bincount", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
        *("_unique", "_unique2"),
    )
}
"""Operations whose result is a number of the host, or has a size that only the device knows."""
NO_LAUNCH = {
    "aten::_unsafe_view",
    "aten::empty_like",
    "aten::new_empty",
    "aten::promote_types",
    "aten::scalar_tensor",
}


WAITS = "waits for the device"


def _sizes_of_numbers(name: str, args: Any, kwargs: Any) -> bool:
    """Whether the size of the result hangs on numbers on the device, though it is another with other arguments."""
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        return bool(masks) and (len(args) < 3 or args[2].numel() > 1)  # one number is filled in under a mask
    return name == "aten::repeat_interleave" and isinstance(args[-1], Tensor) and kwargs.get("output_size") is None


class _Reads(TorchFunctionMode):
    """What reads numbers on the device without an operation fails. On a CPU nothing else would show it."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = func in (Tensor.tolist, Tensor.numpy, Tensor.__array__) and args[0].device.type == self.device
        assert not reads, f"{func.__name__} {WAITS}"
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that are no views, and the bytes of tensors made inside that are there at a time. Whatever
    would wait for ``device`` fails.

    Attributes:
        launches: by name.
        peak: bytes.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.launches = device, Counter[str]()
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._reads = _Reads(device)

    def __enter__(self) -> "Watch":
        self._reads.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func._schema.name
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(x.device.type == self.device for x in tensors)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        assert not (there and (name in LOOKS or _sizes_of_numbers(name, args, kwargs or {}))), f"{name} {WAITS}"
        assert not there or all(x.device.type == self.device for x in made), f"{name} copies from the device"
        view = any(x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns)
        if not view and name not in NO_LAUNCH:
            self.launches[name] += 1
        for x in made:
            self._remember(x.untyped_storage())
        return result

    def _remember(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone() -> None:
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU cuts work as an accelerator does."""
    monkeypatch.setitem(PROFILES, "cpu", PROFILES["accelerator"])


def params_of(kernel: Kernel, head_dim: int = D, num_heads: int = H, device: str = "cpu") -> nn.Module | None:
    params = kernel.build(kernel.own_heads(num_heads, num_heads), head_dim, 0)
    return None if params is None else params.to(device)


def watched_attend(kernel: Kernel, batch_size: int, length: int, **options: Any) -> Watch:
    """Forward and backward on the CPU."""
    q, k, v = random_rows(batch_size, H, length, D, dtype=torch.float32)
    watch, params = Watch(), params_of(kernel)
    with watch:
        out = kernel.attend(q, k, v, params=params, generator=torch.Generator(), **options)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    return watch


def most_launches(kernel: Kernel) -> int:
    return 300 if isinstance(kernel, NormAwareLinear | AdaptiveSparse) else 150


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("batch_size", [1, 4, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", BENCHMARKED, ids=str)
def test_few_launches_however_many_sequences(kernel: Kernel, batch_size: int) -> None:
    """T = 1024, where the scores of all heads fit the budget; nothing waits for the device. Sixteen times as many
    sequences that are as much shorter are as many launches."""
    launches = watched_attend(kernel, batch_size, 1024).launches
    assert launches.total() <= most_launches(kernel)
    if batch_size == 4:
        assert launches.total() == watched_attend(kernel, 16 * batch_size, 256).launches.total()


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("kernel", BENCHMARKED, ids=str)
def test_few_launches_under_a_mask(kernel: Kernel) -> None:
    mask = torch.ones(2, 256, dtype=torch.bool)
    mask[0, :5] = False
    assert watched_attend(kernel, 2, 256, key_mask=mask).launches.total() <= most_launches(kernel)


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("kernel", BENCHMARKED, ids=str)
def test_launches_and_memory_of_long_sequences(kernel: Kernel, batch_size: int) -> None:
    """T = 4096, H = 4, D = 64 on the meta device: as many launches for each budget of scores, and six budgets of
    memory beside tensors as large as the rows."""
    num_heads, length, head_dim = 4, 4096, 64
    q, k, v = (torch.empty(batch_size, num_heads, length, head_dim, device="meta", requires_grad=True) for _ in "qkv")
    params = params_of(kernel, head_dim, num_heads, "meta")
    watch = Watch("meta")
    with watch:
        context = Context(implementation=kernel.implementation(q), params=params)
        out = kernel._attend(q, k, v, context)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out), allow_unused=True)
    budgets = -(-batch_size * num_heads * length**2 * 4 // BUDGET)
    assert watch.launches.total() <= most_launches(kernel) * budgets
    # On the meta device PyTorch's own attention makes all scores, which its fused kernels do not.
    if "aten::_safe_softmax" not in watch.launches:
        assert watch.peak <= 6 * BUDGET + 12 * q.numel() * 4


@pytest.mark.parametrize("budget", [2**30, 4096], ids=["one-tile", "tiles"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_large_tiles_are_the_reference(kernel: Kernel, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients in the accelerator's profile, without and with positions, padding and documents, and
    nothing that would wait."""
    length = 40
    profile = replace(PROFILES["accelerator"], budget=budget, window_rows=30)
    documents = torch.tensor([[0] * 15 + [1] * 25, [0] * 40])
    cases: list[dict[str, Any]] = [{}, {"key_mask": padding(length)}]
    if not isinstance(kernel, AdaptiveSparse) and kernel.implementations[-1] != "chunked":
        cases.append({"document_ids": documents})
    kind = "rotate" if "rotate" in kernel.positions else None
    for options in cases:
        narrow = random_rows(2, H, length, D, dtype=torch.float32)
        wide = tuple(x.detach().double().requires_grad_() for x in narrow)
        grad = random_rows(2, H, length, D, count=1, seed=1, dtype=torch.float32)[0].detach()
        expected = kernel.attend(
            *wide, position=make_position(kind, length, num_heads=H), params=_wide(kernel), **options
        )
        of_wide = torch.autograd.grad(expected, wide, grad.double())
        position, params = make_position(kind, length, num_heads=H, dtype=torch.float32), params_of(kernel)
        with monkeypatch.context() as patch:
            patch.setitem(PROFILES, "cpu", profile)
            with Watch():
                got = kernel.attend(*narrow, position=position, params=params, **options)
                of_narrow = torch.autograd.grad(got, narrow, grad)
        assert_close(f"output, {list(options)}", got, expected, 2e-5 * kernel.rounding)
        for name, x, y in zip("qkv", of_narrow, of_wide, strict=True):
            assert_close(f"gradient of {name}, {list(options)}", x, y, 2e-4 * kernel.rounding)


def _wide(kernel: Kernel) -> nn.Module | None:
    params = params_of(kernel)
    return None if params is None else params.double()


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_decoding_waits_for_nothing(kernel: Kernel) -> None:
    """A prompt and ten tokens, without and with padding: what ``attend`` gives."""
    length, prompt = 40, 30
    q, k, v = (x.detach() for x in random_rows(2, H, length, D, dtype=torch.float32))
    for mask in (None, padding(length)):
        if mask is not None:
            mask[:, prompt:] = True
        params = params_of(kernel)
        expected = kernel.attend(q, k, v, training=False, key_mask=mask, params=params)
        state = kernel.init_state(2, kernel.own_heads(H, H), D, length)
        with Watch():
            given = None if mask is None else mask[:, :prompt]
            outs = [
                kernel.prefill(*(x[:, :, :prompt] for x in (q, k, v)), state=state, key_mask=given, params=params)
            ]
            for t in range(prompt, length):
                outs.append(kernel.decode(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state, params=params))
        assert_close("decoding", torch.cat(outs, dim=2), expected, 2e-5 * kernel.rounding)


@pytest.mark.usefixtures("accelerator")
def test_losses_and_audits_wait_for_nothing() -> None:
    kernel, auxiliary = AdaptiveSparse(block_size=4, rank=2), AuxiliaryOutputs()
    q, k, v = random_rows(2, H, 40, D, dtype=torch.float32)
    params = params_of(kernel)
    assert params is not None
    with Watch():
        kernel.attend(q, k, v, params=params, auxiliary=auxiliary, generator=torch.Generator())
        torch.autograd.grad(auxiliary.losses[0], list(params.parameters()), allow_unused=True)


def test_a_look_is_seen() -> None:
    """The CPU's own profile looks at numbers, and the watch finds it."""
    with pytest.raises(AssertionError, match=WAITS):
        watched_attend(Reweighted(), 1, 16)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: x.clone().index_put_((x > 0,), x),
        lambda x: x.masked_select(x > 0),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: x.unique_consecutive(),
        lambda x: torch.unique(x[None], dim=0),
        lambda x: x.repeat_interleave(x),
        lambda x: x.bincount(),
        lambda x: x.equal(x),
        lambda x: x.allclose(x),
        nn.functional.one_hot,
        lambda x: range(x[0]),
    ],
)
def test_every_look_is_seen(look: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match=WAITS), Watch():
        look(torch.ones(3, dtype=torch.int64))


def test_what_is_no_look_is_served() -> None:
    x = torch.ones(3, dtype=torch.int64)
    with Watch():
        x[x > 0] = 2
        torch.repeat_interleave(x, x, output_size=6)
        assert x[torch.tensor([0, 1])].shape == (2,)


@pytest.mark.parametrize("position", [RoPE(), ALiBi()], ids=str)
def test_a_training_step_waits_for_nothing(position: RoPE | ALiBi) -> None:
    """A decoder on the meta device, told on the CPU which positions are scored."""
    model = Decoder(position=position, kernel=Softmax()).build(0, vocab_size=11).to("meta").train()
    tokens, scored = torch.zeros(3, 20, dtype=torch.int64, device="meta"), torch.arange(60).view(3, 20) % 7 == 0
    with Watch("meta"):
        logits = model(tokens, scored=scored).logits
        logits.sum().backward()
    assert logits.shape == (int(scored.sum()), 11)


@pytest.mark.parametrize("given", [True, False], ids=["position IDs", "places"])
def test_functional_attention_waits_for_nothing(given: bool) -> None:
    model = FunctionalAttention.uniform(k=2, width=4, vocab_size=5, num_labels=2).to("meta")
    tokens = torch.zeros(3, 9, dtype=torch.int64, device="meta")
    with Watch("meta"):
        out = model(tokens, tokens if given else None)
        out.sum().backward()
    assert out.shape == (3, 2)


@pytest.mark.parametrize("coupling", [Oracle(max_id=12), Predicted(max_id=12)], ids=str)
def test_free_running_waits_for_nothing(coupling: Coupling) -> None:
    """Answers stay on the device until all of them are there."""
    task = Planted(k=2, coupled=True)
    model = Decoder(coupling=coupling).build(0, vocab_size=task.vocabulary.size).to("meta").eval()
    batch = task.sample(Stream(seed=0), 0, 4, 8)
    with Watch("meta"):
        answers = _answers(model, batch, batch.position_ids)
    assert answers.is_meta
    assert answers.shape == batch.tokens.shape
