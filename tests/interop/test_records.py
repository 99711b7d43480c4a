"""The lab's analysis on models of ``transformers``: the same numbers as on an equal decoder of the lab."""

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch
from interop.tiny_models import build, tokens
from kernels.conditions import KERNELS
from polars.testing import assert_frame_equal

from sparsity_lab.analysis import (
    attention_entropy,
    attention_map,
    attention_sink,
    dependency_sparsity,
    norm_sensitivity,
    retained_mass,
)
from sparsity_lab.interop import as_predictor, attach, from_transformers, record
from sparsity_lab.kernels import LSSAR, AdaptiveSparse, Kernel, Softmax, SSMax
from sparsity_lab.settings import SettingError


@pytest.mark.parametrize(
    "kernel", [kernel for kernel in KERNELS if getattr(kernel, "rotation", "input") == "input"], ids=str
)
def test_weights_are_those_of_an_equal_decoder(kernel: Kernel) -> None:
    model, ids = attach(build("Llama", initializer_range=0.1), kernel), tokens(24)
    ours = from_transformers(model).record(ids)
    theirs = record(model, ids)
    assert len(theirs) == len(ours) == 2
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one.weights(0, 24), other.weights(0, 24), rtol=0, atol=2e-5 * kernel.rounding)


MEASURES: dict[str, Callable[[Any], pl.DataFrame]] = {
    "entropy": lambda records: attention_entropy(records).frame(),
    "norms": lambda records: norm_sensitivity(records).frame(),
    "sink": lambda records: attention_sink(records, first=2).frame(),
    "map": lambda records: attention_map(records).frame(),
    "mass": lambda records: retained_mass(records, block_size=4, rows=4).frame(),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kernel", [Softmax(), SSMax(), AdaptiveSparse(block_size=4, n_local=1, k_free=1)], ids=str)
def test_measures_are_those_of_an_equal_decoder(measure: str, kernel: Kernel) -> None:
    model, ids = build("Llama", initializer_range=0.1), tokens(24)
    if kernel != Softmax():
        attach(model, kernel)
    theirs, ours = (MEASURES[measure](one) for one in (record(model, ids), from_transformers(model).record(ids)))
    assert set(theirs["layer"]) == {0, 1}
    assert set(theirs["head"]) == {0, 1, 2, 3}
    # Ranks may turn over between values that are equal up to rounding.
    kept = [name for name in theirs.columns if "spearman" not in name and name != "module"]
    assert_frame_equal(theirs.select(kept), ours.select(kept), abs_tol=1e-3, rel_tol=1e-3)


@pytest.mark.parametrize("name", ["Llama", pytest.param("GPT2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize(
    "kernel", [Softmax(), LSSAR(p=3), AdaptiveSparse(block_size=4, n_local=1, k_free=1)], ids=str
)
def test_padding_is_left_out(name: str, side: str, kernel: Kernel) -> None:
    """Weights and measures of padded sequences are those of each sequence by itself."""
    model, ids, lengths = attach(build(name, initializer_range=0.1), kernel), tokens(20, batch_size=3), (14, 20, 9)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        free = 20 - length
        place = {"left": range(free, 20), "right": range(length), "both": range(free // 2, free // 2 + length)}[side]
        mask[row, list(place)] = 1
    together = record(model, ids, mask)
    alone = [record(model, ids[row][mask[row] == 1][None]) for row in range(3)]
    for layer, padded in enumerate(together):
        for row, length in enumerate(lengths):
            own = alone[row][layer].weights(0, length)[0]
            found = padded.weights(0, 20)[row, :, :length, :length]
            torch.testing.assert_close(found, own, rtol=0, atol=2e-5 * kernel.rounding)
    frame = attention_entropy(together).frame().filter(pl.col("layer") == 1, pl.col("head") == 2)
    assert frame["sequences"].to_list() == [sum(length > row for length in lengths) for row in range(20)]
    each = [attention_entropy(one).frame().filter(pl.col("layer") == 1, pl.col("head") == 2) for one in alone]
    for row in (3, 12, 18):
        own = [one["entropy"][row] for one in each if one.height > row]
        assert frame["entropy"][row] == pytest.approx(sum(own) / len(own), abs=1e-4)
    masses = [retained_mass(one, block_size=4, rows=4).frame() for one in (together, alone[1])]
    assert masses[0].height == masses[1].height
    assert masses[0]["mass"].is_finite().all()


def test_what_is_no_model_or_tokens_is_refused_in_one_line() -> None:
    model, ids = build("Llama"), tokens(8)
    for call, words in [
        (lambda: record(3, ids), "model: expected a model of transformers, got int"),  # type: ignore[arg-type]
        (lambda: as_predictor(3), "model: expected a model of transformers, got int"),  # type: ignore[arg-type]
        (lambda: record(model, [[1]]), "tokens: expected whole numbers of shape (B, T), got list"),  # type: ignore[arg-type]
        (lambda: record(model, ids[:, :0]), "tokens: expected whole numbers of shape (B, T), got torch.int64 (2, 0)"),
        (lambda: record(model, ids + 64), "tokens: expected tokens 0 .. 63 of the model, got "),
    ]:
        with pytest.raises(SettingError) as error:
            call()
        assert str(error.value).startswith(words)


def test_a_mask_of_another_form_is_refused() -> None:
    model, ids = build("Llama"), tokens(8)
    gap = torch.ones(2, 8)
    gap[0, 3] = 0
    for mask in (torch.ones(2, 9), torch.full((2, 8), 2), torch.zeros(2, 8), torch.ones(2, 1, 8, 8), gap):
        with pytest.raises(
            SettingError, match=r"^attention_mask: expected 1 for the tokens of each sequence, which fol"
        ):
            record(model, ids, mask)


NAMES = {
    "Llama": "model.layers.{}.self_attn",
    "GPT2": "transformer.h.{}.attn",
    "Qwen2": "model.layers.{}.self_attn",
    "Mistral": "model.layers.{}.self_attn",
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", NAMES)
def test_layers_have_the_names_of_the_model(kind: str, measure: str) -> None:
    """A column that the frames of the lab's own decoders have not; each name leads to the layer's own module."""
    model = build(kind)
    frame = MEASURES[measure](record(model, tokens(24)))
    assert frame.columns[frame.columns.index("layer") + 1] == "module"
    pairs = frame.select("layer", "module").unique(maintain_order=True).rows()
    assert pairs == [(layer, NAMES[kind].format(layer)) for layer in (0, 1)]
    for layer, name in pairs:
        assert model.get_submodule(name).layer_idx == layer
    assert frame["head"].n_unique() == model.config.num_attention_heads


def test_models_with_and_without_names_together() -> None:
    model, ids = build("Llama"), tokens(24)
    frame = attention_entropy({"theirs": record(model, ids), "ours": from_transformers(model).record(ids)}).frame()
    names = frame.group_by("arm", maintain_order=True).agg(pl.col("module").drop_nulls().n_unique())["module"]
    assert names.to_list() == [2, 0]
    assert "module" not in attention_entropy(from_transformers(model).record(ids)).frame().columns


def test_several_models_on_the_same_sequences() -> None:
    """Records come in a mapping by name, as models do."""
    model, ids = build("GPT2"), tokens(24)
    own = record(model, ids)
    sharp = record(attach(model, LSSAR()), ids)
    frame = attention_entropy({"as it is": own, "LSSAR": sharp}).summary()
    assert frame["arm"].unique(maintain_order=True).to_list() == ["as it is", "LSSAR"]
    means = frame.group_by("arm", maintain_order=True).agg(pl.col("entropy").mean())["entropy"]
    assert means[1] < means[0]
    with pytest.raises(SettingError, match=r"models: expected at least one model or record"):
        attention_entropy({"as it is": own, "LSSAR": []})


def test_the_model_leaves_as_it_came() -> None:
    model, ids = build("Llama"), tokens(16)
    before = model(ids).logits
    model.train()
    record(model, ids)
    as_predictor(model)(ids, torch.ones_like(ids, dtype=torch.bool))
    assert model.training
    assert torch.equal(model.eval()(ids).logits, before)
    with pytest.raises(
        SettingError, match=r"tokens: expected whole numbers of shape \(B, T\), got torch.int64 \(16,\)"
    ):
        record(model, ids[0])


@pytest.mark.parametrize("kernel", [Softmax(), LSSAR(p=3)], ids=str)
def test_dependencies_are_those_of_an_equal_decoder(kernel: Kernel) -> None:
    model, ids = attach(build("Llama", initializer_range=0.1), kernel), tokens(13, batch_size=3)
    decoder = from_transformers(model)
    mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0] = False  # nothing may be seen, not even the last token
    theirs = as_predictor(model)(ids[:, :-1], mask)
    scored = torch.zeros_like(mask)
    scored[:, -1] = True
    torch.testing.assert_close(theirs, decoder(ids[:, :-1], scored=scored, key_mask=mask).logits, rtol=0, atol=1e-4)
    found = [dependency_sparsity(one, ids, targets=2).frame() for one in (as_predictor(model), decoder)]
    assert found[0].height > 0
    columns = [name for name, dtype in found[0].schema.items() if dtype in (pl.Int64, pl.Boolean)]
    assert_frame_equal(found[0].select(columns), found[1].select(columns))
