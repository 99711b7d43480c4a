"""Distractors: against a forward pass written out by hand, and what strength does."""

import polars as pl
import pytest
import torch
from analysis.attention_cases import TASK, batch_of, decoder_with_gap
from models.forgetting import Forgetting
from polars.testing import assert_frame_equal
from torch.nn import functional

from sparsity_lab.analysis import distractor_robustness
from sparsity_lab.analysis.attention.distractors import _Targets
from sparsity_lab.analysis.attention.subjects import sequences_of, subjects_of
from sparsity_lab.generators import Batch, Planted, Stream
from sparsity_lab.kernels import LSSAR, Softmax
from sparsity_lab.models import ALiBi, Decoder, NoPE, RoPE
from sparsity_lab.settings import SettingError


def targets_of(model, batch, seed=0):
    _, pieces = next(sequences_of(subjects_of(model)[0], batch, None, 0, seed))
    return [_Targets.of(piece) for piece in pieces]


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0, 1.3])
def test_one_layer_by_hand(strength):
    """The loss of a layer without positions whose one row is computed here, head by head."""
    model = Decoder(num_layers=1, num_heads=2, d_model=16, position=NoPE()).build(3).eval()
    batch = TASK.sample(Stream(name="x"), 0, 6, 12)
    found = distractor_robustness(model, batch, strengths=(strength,)).frame().row(0, named=True)
    wrong = targets_of(model, batch)[0].wrong.tolist()
    block, losses, before, shares = model.blocks[0], [], [], []
    with torch.no_grad():
        x = model.token_embedding(batch.tokens)
        q, k, v = block.qkv(block.attention_norm(x)).view(6, 14, 3, 2, 8).unbind(2)
        for s in range(6):
            for altered in (False, True):
                heads = []
                for h in range(2):
                    keys, values = k[s, :, h].clone(), v[s, :, h].clone()
                    best = (keys @ q[s, -1, h]).argmax()
                    partner = s + 1 if s % 2 == 0 else s - 1
                    partner_best = (k[partner, :, h] @ q[partner, -1, h]).argmax()
                    if altered:
                        keys[wrong[s]] = (1 - strength) * keys[wrong[s]] + strength * keys[best]
                        values[wrong[s]] = v[partner, partner_best, h]
                    weights = (keys @ q[s, -1, h] / 8**0.5).softmax(0)
                    heads.append(weights @ values)
                    if altered:
                        shares.append((weights[best].item(), weights[wrong[s]].item()))
                y = x[s, -1] + block.output(torch.cat(heads))
                y = y + block.down(functional.gelu(block.up(block.mlp_norm(y))))
                loss = functional.cross_entropy(model.head(model.final_norm(y)), batch.targets[s, -1]).item()
                (losses if altered else before).append(loss)
    assert found["loss_before"] == pytest.approx(sum(before) / 6, abs=1e-6)
    assert found["loss"] == pytest.approx(sum(losses) / 6, abs=1e-6)
    changes = torch.tensor(losses) - torch.tensor(before)
    assert found["loss_change"] == pytest.approx(changes.mean().item(), abs=1e-6)
    assert found["loss_change_se"] == pytest.approx(changes.std().item() / 6**0.5, abs=1e-6)
    best, own = (sum(pair[i] for pair in shares) / 12 for i in (0, 1))
    assert (found["best_share"], found["wrong_share"]) == (
        pytest.approx(best, abs=1e-6),
        pytest.approx(own, abs=1e-6),
    )
    assert abs(found["loss_change"]) > 1e-5


@pytest.mark.parametrize("kernel", [Softmax(), LSSAR(p=3)], ids=lambda k: k.kind)
def test_a_double_has_the_weight_of_the_best_key_wherever_it_stands(kernel):
    """With rotations too, which the double undoes; a bias by distance tells them apart."""
    shares = {}
    for position in (NoPE(), RoPE(), ALiBi()):
        if position.kernel_kind is not None and position.kernel_kind not in kernel.positions:
            continue
        model = Decoder(num_layers=2, num_heads=2, d_model=16, kernel=kernel, position=position).build(0)
        frame = distractor_robustness(model, TASK, (20,), sequences=8, strengths=(1.0,)).frame()
        shares[position.kind] = frame.select("best_share", "wrong_share").rows()
    for kind in ("NoPE", "RoPE"):
        for best, wrong in shares[kind]:
            assert best == pytest.approx(wrong, abs=1e-5)
            assert best > 0.05
    assert "ALiBi" not in shares or all(best > 1.1 * wrong for best, wrong in shares["ALiBi"])


def test_the_wrong_place_is_before_the_target_and_neither_a_source_nor_the_first_token():
    batch = batch_of({(i, 9): [3, 5, 6] for i in range(400)}, 400, 12)
    wrong = torch.cat([targets.wrong for targets in targets_of(decoder_with_gap(1.0), batch)])
    assert set(wrong.tolist()) == {1, 2, 4, 7, 8}
    assert torch.bincount(wrong).max() < 120  # 80 expected each, standard deviation 8


def test_the_last_scored_target_of_a_sequence_is_taken():
    batch = batch_of({(0, 4): [1], (0, 8): [1], (1, 5): [2]}, 2, 12)
    (targets,) = targets_of(decoder_with_gap(1.0), batch)
    assert targets.row.tolist() == [8, 5]
    assert targets.scored.nonzero().tolist() == [[0, 8], [1, 5]]


def test_without_sources_any_place_may_be_wrong():
    batch = batch_of({(0, 4): [1], (1, 4): [1]}, 2, 6)
    batch = Batch(batch.tokens, batch.targets)
    (targets,) = targets_of(decoder_with_gap(1.0), batch)
    assert all(1 <= place < 4 for place in targets.wrong.tolist())


def test_models_and_seeds():
    """All models see the same wrong places; another seed has others."""
    one = distractor_robustness({"a": decoder_with_gap(3.0), "b": decoder_with_gap(3.0)}, TASK, (16,), sequences=8)
    columns = pl.exclude("arm")
    assert_frame_equal(one.frame().filter(arm="a").select(columns), one.frame().filter(arm="b").select(columns))
    model, batch = decoder_with_gap(3.0), TASK.sample(Stream(name="x"), 0, 8, 16)
    assert targets_of(model, batch, 0)[0].wrong.tolist() != targets_of(model, batch, 1)[0].wrong.tolist()


def test_strength_moves_weight_from_the_sources_to_the_wrong_key():
    """One source of gap 4 among n keys: weights are known. A doubled key takes as much as the source."""
    task = Planted(k=1)
    frame = distractor_robustness(decoder_with_gap(4.0, task), task, (30,), strengths=(0.0, 0.5, 1.0)).frame()
    source, half = 2.718281828**4, 2.718281828**2
    for row, own in zip(frame.iter_rows(named=True), (1.0, half, source), strict=True):
        total = source + own + 30
        assert row["best_share"] == pytest.approx(source / total, rel=1e-4)
        assert row["wrong_share"] == pytest.approx(own / total, rel=1e-4)


def test_a_sharper_mechanism_clips_weak_distractors_and_shares_with_a_double():
    task = Planted(k=1)
    model = decoder_with_gap(4.0, task)
    frame = distractor_robustness(
        {"softmax": model, "sharp": model.with_kernel(LSSAR(p=15))}, task, (30,), strengths=(0.25, 1.0)
    ).frame()
    weak, double = (frame.filter(strength=strength)["wrong_share"].to_list() for strength in (0.25, 1.0))
    assert weak[1] < weak[0]
    assert double[1] > double[0]
    assert double[1] == pytest.approx(0.5, abs=1e-3)


def test_heads_that_share_keys_share_their_double():
    config = Decoder(num_layers=1, num_heads=4, num_kv_heads=2, d_model=16)
    frame = distractor_robustness(config.build(0), TASK, (16,), sequences=4, strengths=(1.0,)).frame()
    assert frame["best_share"][0] == pytest.approx(frame["wrong_share"][0], abs=1e-5)


def test_gates_reach_the_row_that_is_computed_again():
    """At strength 0 the keys are as they were, so the best key's share is its weight in the records."""
    model = Decoder(num_layers=1, num_heads=2, d_model=16, kernel=Forgetting()).build(0).eval()
    model.blocks[0].gate_projection.weight.data.mul_(3.0)
    batch = TASK.sample(Stream(name="x"), 0, 6, 12)
    found = distractor_robustness(model, batch, strengths=(0.0,)).frame().row(0, named=True)
    size = batch.tokens.shape[1]
    weights = model.record(batch.tokens)[0].weights(size - 1, size)
    assert found["best_share"] == pytest.approx(weights.amax(-1).mean().item(), abs=1e-6)
    logits = model(batch.tokens, scored=batch.scored).logits
    assert found["loss_before"] == pytest.approx(
        functional.cross_entropy(logits, batch.targets[:, -1]).item(), abs=1e-6
    )


def test_what_cannot_be_is_refused():
    model = decoder_with_gap(1.0)
    with pytest.raises(SettingError, match="sequences: expected a positive multiple of 2"):
        distractor_robustness(model, TASK, (8,), sequences=3)
    with pytest.raises(SettingError, match="layers: expected layers 0 .. 0"):
        distractor_robustness(model, TASK, (8,), layers=(1,))
    with pytest.raises(SettingError, match="data: expected a multiple of 2 sequences"):
        distractor_robustness(model, batch_of({(0, 4): [1]}, 1, 6))
    with pytest.raises(SettingError, match="data: every sequence needs a scored target"):
        distractor_robustness(model, batch_of({(0, 4): [1]}, 2, 6))
    with pytest.raises(SettingError, match="a target has no wrong position before it"):
        distractor_robustness(model, batch_of({(0, 2): [1], (1, 2): [1]}, 2, 6))


def test_the_figure_shows_strength():
    found = distractor_robustness({"a": decoder_with_gap(4.0)}, TASK, (16, 32), sequences=4, strengths=(0.0, 1.0))
    ax = found.plot(measure="wrong_share", length=32)
    assert ax.get_xlabel().startswith("strength of the wrong key at length 32")
    expected = found.frame().filter(length=32)["wrong_share"].to_list()
    assert expected in [list(line.get_ydata()) for line in ax.lines]
    for options in ({"length": 8}, {"measure": "loss"}, {"layer": 3}):
        with pytest.raises(SettingError):
            found.plot(**options)
