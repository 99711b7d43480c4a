"""Free-running decoding with caches: the tokens and IDs of running the whole prefix again, under every mechanism."""

import pytest
import torch
from kernels.closeness import assert_close
from kernels.conditions import KERNELS
from torch import Tensor

from sparsity_lab.kernels import LSSAR, AdaptiveSparse, Kernel, NormAwareLinear, Softmax
from sparsity_lab.kernels.adaptive import kernel as kernel_file
from sparsity_lab.kernels.parts.compiler import COMPILER, NEEDED
from sparsity_lab.models import Decoder, DecoderModel, NoPE, Oracle, Predicted, RoPE
from sparsity_lab.models.generation import free_run
from sparsity_lab.settings import SettingError

PROMPTS = torch.randint(0, 16, (3, 5), generator=torch.Generator().manual_seed(0))
IDS = torch.randint(0, 10, (3, 2, 5), generator=torch.Generator().manual_seed(1))


def model_of(*kernels: Kernel) -> DecoderModel:
    """Two layers that predict IDs of two kinds, in float64 and in use; with rotary positions where they are taken."""
    rotates = all("rotate" in kernel.positions for kernel in kernels)
    config = Decoder(
        num_heads=2,
        d_model=16,
        kernel=kernels if len(kernels) == 2 else kernels[0],
        position=RoPE() if rotates else NoPE(),
        coupling=Predicted(max_id=9, num_kinds=2),
    )
    return config.build(0).double().eval()


def run_again(model: DecoderModel, count: int) -> tuple[Tensor, Tensor]:
    """The prompts and ``count`` tokens with their IDs, by running the prefix again for each."""
    tokens, ids = PROMPTS, IDS
    for _ in range(count):
        token, following = (x[:, -1] for x in model.predict(tokens, ids))
        tokens, ids = torch.cat([tokens, token[:, None]], 1), torch.cat([ids, following[:, :, None]], 2)
    return tokens, ids


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_mechanism_decodes_as_it_runs_the_prefix_again(kernel: Kernel) -> None:
    """Tokens and IDs of two kinds, in float64."""
    model = model_of(kernel)
    tokens, ids = run_again(model, 7)
    sequence, all_ids = free_run(model, PROMPTS, 7, IDS)
    assert torch.equal(sequence, tokens)
    assert torch.equal(all_ids, ids)
    assert min(len(tokens[:, 5:].unique()), len(ids[:, :, 5:].unique())) > 2, "it repeats itself: little is shown"


def generated(model: DecoderModel, implementation: str | list[str]) -> tuple[Tensor, Tensor]:
    """Twelve tokens after the prompts, and the logits of each."""
    logits: list[Tensor] = []
    hook = model.head.register_forward_hook(lambda _, __, out: logits.append(out))
    try:
        return model.generate(PROMPTS, 12, IDS, implementation=implementation), torch.stack(logits)
    finally:
        hook.remove()


def decodes_natively(kernel: Kernel) -> bool:
    selects = isinstance(kernel, AdaptiveSparse) and (kernel.mode == "topp" or kernel.rho_min or kernel.rank)
    return "native" in (*kernel.implementations, *kernel.decoders) and not selects


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_form_generates_the_same(kernel: Kernel) -> None:
    """Tokens, and logits to within rounding, in float32; what has no native form says so."""
    model = model_of(kernel).float()
    tokens, logits = generated(model, "auto")
    forms = [form for form in (*kernel.implementations, *kernel.decoders) if form != "native"]
    if decodes_natively(kernel):
        forms.append("native")
    else:
        with pytest.raises(SettingError, match="^implementation: expected .*'native'") as refused:
            model.generate(PROMPTS, 12, IDS, implementation="native")
        assert not COMPILER or kernel.kind in str(refused.value)
        assert "\n" not in str(refused.value)
    for form in forms:
        found, of_form = generated(model, form)
        assert torch.equal(found, tokens), form
        assert_close(form, of_form, logits, 1e-5 * kernel.rounding)


@pytest.mark.skipif(not COMPILER, reason=f"the native form is NOT TESTED without {NEEDED}")
def test_the_form_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen layer decodes natively, and no other does."""
    calls = []
    step = kernel_file.native_row
    monkeypatch.setattr(kernel_file, "native_row", lambda *rest: calls.append(1) or step(*rest))
    model = model_of(Softmax(), AdaptiveSparse(block_size=2, n_local=1, k_free=1)).float()
    tokens, logits = generated(model, "auto")
    assert not calls
    found, of_form = generated(model, ["fused", "native"])
    assert torch.equal(found, tokens)
    assert_close("logits", of_form, logits, 1e-5)
    assert len(calls) == 11, "the prompt goes in one piece, each further token but the last in a step"
    with pytest.raises(SettingError, match="^implementation: expected an implementation of Softmax .*, got 'native'"):
        model.generate(PROMPTS, 2, IDS, implementation="native")
    with pytest.raises(SettingError, match="^implementation: expected one implementation, or num_layers = 2, got 3"):
        model.generate(PROMPTS, 2, IDS, implementation=["auto"] * 3)


def test_a_mechanism_for_each_layer_and_another_for_the_same_weights() -> None:
    mixed = model_of(LSSAR(p=3), NormAwareLinear())
    tokens, _ = run_again(mixed, 8)
    assert torch.equal(mixed.generate(PROMPTS, 8, IDS), tokens)
    dense = mixed.with_kernel(Softmax()).generate(PROMPTS, 8, IDS)
    assert torch.equal(dense, model_of(Softmax()).generate(PROMPTS, 8, IDS))
    assert not torch.equal(dense, tokens)


def test_only_the_end_follows_the_end() -> None:
    """Each row as without an end up to its own; then nothing but it, with no IDs."""
    model = model_of(Softmax())
    free, ids = free_run(model, PROMPTS, 12, IDS)
    assert ids is not None
    end = int(free[0, 7])
    ended, ended_ids = free_run(model, PROMPTS, 12, IDS, end=end)
    assert ended_ids is not None
    stops = []
    for row in range(3):
        found = (free[row, 5:] == end).nonzero().flatten().tolist()
        stop = 5 + found[0] + 1 if found else 17
        assert torch.equal(ended[row, :stop], free[row, :stop])
        assert torch.equal(ended_ids[row, :, :stop], ids[row, :, :stop])
        assert (ended[row, stop:] == end).all()
        assert not ended_ids[row, :, stop:].any()
        stops.append(stop)
    assert len(set(stops)) > 1, "all rows end at once, which shows little"
    assert torch.equal(model.generate(PROMPTS, 12, IDS, end=end), ended)


def test_decoding_stops_when_all_have_ended() -> None:
    model = model_of(Softmax())
    end = int(model.generate(PROMPTS[:1], 1, IDS[:1])[0, -1])
    calls = []
    model.final_norm.register_forward_hook(lambda *_: calls.append(1))
    assert model.generate(PROMPTS[:1], 50, IDS[:1], end=end)[0, 5:].tolist() == [end] * 50
    assert len(calls) == 1


def test_refusals() -> None:
    model = model_of(Softmax())
    with pytest.raises(SettingError, match="tokens: expected a prompt of at least one token, got 0"):
        model.generate(PROMPTS[:, :0], 2, IDS[:, :, :0])
    with pytest.raises(SettingError, match="num_tokens: expected at least 1, got 0"):
        model.generate(PROMPTS, 0, IDS)
    with pytest.raises(SettingError, match=r"position_ids: expected position IDs 0 \.\. 9, got 10"):
        model.generate(PROMPTS, 2, IDS.clamp(min=10))
    with pytest.raises(SettingError, match=r"position_ids: expected position IDs 0 \.\. 9, got -1"):
        model.generate(PROMPTS, 2, -IDS.clamp(max=1))
    with pytest.raises(SettingError, match=r"position_ids: expected position IDs 0 \.\. 9, got 10"):
        model(PROMPTS, IDS.clamp(min=10))
    assert model.generate(PROMPTS[:0], 2, IDS[:0]).shape == (0, 7)


def test_given_ids_of_two_kinds() -> None:
    """An oracle reads the IDs of what it writes; those of the last token matter to nobody."""
    config = Decoder(position=NoPE(), coupling=Oracle(max_id=9, num_kinds=2))
    model = config.build(2).double().eval()
    ids = torch.randint(0, 10, (3, 2, 12), generator=torch.Generator().manual_seed(3))
    tokens = PROMPTS
    for stop in range(5, 12):
        tokens = torch.cat([tokens, model(tokens, ids[:, :, :stop]).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(PROMPTS, 7, ids), tokens)
    other = ids.clone()
    other[:, :, -1] = (other[:, :, -1] + 1) % 10
    assert torch.equal(model.generate(PROMPTS, 7, other), tokens)
    other[:, 1, 3:5] = (other[:, 1, 3:5] + 4) % 10
    assert not torch.equal(model.generate(PROMPTS, 7, other), tokens)
