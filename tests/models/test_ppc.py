"""Coupled position IDs in a decoder."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from kernels.closeness import assert_close

from sparsity_lab.generators import Stream
from sparsity_lab.models import Decoder, Ignored, NoPE, Oracle, Predicted, Shuffled
from sparsity_lab.models.ppc import clipped, moved, next_position_ids
from sparsity_lab.settings import SettingError

TOKENS = torch.tensor([[1, 5, 2, 7], [3, 3, 0, 4]])


def test_no_id_adds_nothing() -> None:
    """With ID 0 everywhere the model is the one without a coupling, and its table gets no gradient."""
    coupled = Decoder(coupling=Oracle(max_id=6)).build(0)
    none = torch.zeros(2, 1, 4, dtype=torch.int64)
    logits = coupled(TOKENS, none).logits
    assert torch.equal(logits, Decoder().build(0)(TOKENS).logits)
    logits.sum().backward()
    assert not coupled.coupling_embedding.weight.grad.any()


def test_kinds_have_their_own_tables_and_add_up() -> None:
    embedding = Decoder(coupling=Oracle(max_id=3, num_kinds=2)).build(0).coupling_embedding
    ids = torch.tensor([[[0, 1, 3], [2, 1, 0]]])
    table = embedding.weight
    expected = torch.stack([table[1, 1], table[0, 0] + table[1, 0], table[0, 2]])
    assert_close("sum", embedding(ids)[0], expected, 1e-7)


def test_ids_say_which_tokens_belong_together() -> None:
    """Equal IDs, equal rows: without positions, moving an ID moves its effect."""
    model = Decoder(position=NoPE(), coupling=Oracle(max_id=3), num_layers=1).build(0).double()
    tokens = torch.full((1, 5), 2)
    early, late = torch.tensor([[[1, 0, 0, 0, 2]]]), torch.tensor([[[0, 0, 1, 0, 2]]])
    assert_close("last row", model(tokens, early).logits[0, -1], model(tokens, late).logits[0, -1], 1e-12)
    assert (model(tokens, early).logits[0, -1] - model(tokens, 3 * (early > 0)).logits[0, -1]).abs().max() > 1e-5


def test_ignored_ids_change_nothing() -> None:
    model = Decoder(coupling=Ignored()).build(0)
    ids = torch.ones(2, 1, 4, dtype=torch.int64)
    assert torch.equal(model(TOKENS, ids).logits, Decoder().build(0)(TOKENS).logits)
    assert torch.equal(model.generate(TOKENS, 3), Decoder().build(0).generate(TOKENS, 3))


def test_refusals() -> None:
    config = Decoder(coupling=Oracle(max_id=6))
    with pytest.raises(SettingError, match=r"position_ids: missing; Oracle\(max_id=6\) needs position IDs"):
        config.build(0)(TOKENS)
    with pytest.raises(SettingError, match=r"position_ids: expected 1 kinds of position ID, got 2"):
        config.build(0)(TOKENS, torch.zeros(2, 2, 4, dtype=torch.int64))
    config.check_position_ids(6, 1)
    with pytest.raises(SettingError, match=r"coupling.max_id: expected at least 7, .*got 6"):
        config.check_position_ids(7, 1)
    with pytest.raises(SettingError, match=r"coupling.num_kinds: expected 2, the task's kinds .*got 1"):
        config.check_position_ids(6, 2)
    Decoder().check_position_ids(100, 1)
    Decoder(coupling=Ignored()).check_position_ids(100, 3)
    for coupling in (Oracle(max_id=6), Ignored()):
        with pytest.raises(SettingError, match=r"coupling: expected None for a task without .* IDs"):
            Decoder(coupling=coupling).check_position_ids(0, 0)
    with pytest.raises(SettingError, match=r"max_id: expected at least 1, got 0"):
        Oracle(max_id=0)


IDS = np.array([[[0, 3, 0, 1, 2, 5], [1, 1, 2, 0, 0, 0]], [[0, 0, 1, 0, 2, 0], [0, 4, 0, 4, 0, 4]]])


def words(count: int, num_words: int) -> np.ndarray:
    return Stream(seed=7).words("coupling", 6, 0, count, num_words)


@pytest.mark.parametrize("coupling", [Oracle(max_id=8, num_kinds=2), Predicted(max_id=8, num_kinds=2)], ids=str)
def test_offsets_move_every_id_of_a_kind_alike_and_reach_every_row(coupling: Oracle | Predicted) -> None:
    """In training only; uniform among the offsets that leave the largest ID in the table."""
    count = 4000
    ids = np.tile(IDS[:1], (count, 1, 1))
    assert coupling.num_words(6, training=False) == 0
    assert np.array_equal(coupling.arrange(words(count, 0), ids, training=False), ids)
    arranged = coupling.arrange(words(count, coupling.num_words(6, training=True)), ids, training=True)
    assert np.array_equal(arranged == 0, ids == 0), "an ID 0 has moved"
    shift = np.where(ids > 0, arranged - ids, -1)
    for kind, largest in enumerate((5, 2)):
        shifts = shift[:, kind].max(axis=1)
        assert ((shift[:, kind] == shifts[:, None]) | (shift[:, kind] == -1)).all(), "IDs of one kind moved apart"
        counts = np.bincount(shifts, minlength=9)
        room = 8 - largest + 1
        # Five standard deviations of a binomial count: a false alarm at about 6e-7 for each of the 11 counts.
        assert np.abs(counts[:room] - count / room).max() < 5 * math.sqrt(count / room)
        assert not counts[room:].any()
    assert (shift[:, 0].max(axis=1) != shift[:, 1].max(axis=1)).any(), "kinds move together"


def test_without_random_offset_ids_stay() -> None:
    coupling = Predicted(max_id=8, num_kinds=2, random_offset=False)
    assert coupling.num_words(6, training=True) == 0
    assert np.array_equal(coupling.arrange(words(2, 0), IDS, training=True), IDS)


def test_clipped_offsets_leave_no_id_rare() -> None:
    """Exactly, over all values of u: 0 and the most that fits come n times, the others once. A uniform offset shows
    the ends of the table n times less often than its middle."""
    ids, max_id, n = np.array([[[0, 3, 0, 1, 2, 3]]]), 8, 3
    values = max_id + n - 1
    all_words = np.arange(values, dtype=np.uint64)[:, None] * np.uint64(2**64 // values) + np.uint64(2**40)
    coupling = Oracle(max_id=max_id, random_offset="clipped")
    assert (coupling.num_words(6, training=True), coupling.num_words(6, training=False)) == (1, 0)
    found = coupling.arrange(all_words, np.tile(ids, (values, 1, 1)), training=True)[:, 0]
    assert np.array_equal(found[:, [3, 4, 5]], found[:, [3]] + [0, 1, 2]), "one offset for all"
    assert np.array_equal(found[:, 1], found[:, 5])
    assert not found[:, [0, 2]].any()
    assert np.bincount(found[:, 3] - 1).tolist() == [n, 1, 1, 1, 1, n]
    assert np.bincount(found[:, [3, 4, 5]].ravel())[1:].min() == n
    uniform = moved(all_words, np.tile(ids, (values, 1, 1)), max_id)[:, 0]
    shown = np.bincount(uniform[:, [3, 4, 5]].ravel())[1:]
    assert shown[[0, -1]].max() < n <= shown[2:-2].min()
    # IDs that fill the table, none, and a single one, whose offset is uniform.
    for fixed in (np.arange(1, 9)[None, None], np.zeros((1, 1, 4), dtype=np.int64)):
        assert np.array_equal(clipped(all_words[-1:], fixed, max_id), fixed)
    single = clipped(all_words, np.ones((values, 1, 1), dtype=np.int64), values)
    assert single.ravel().tolist() == list(range(1, values + 1))


def test_spread_ids_keep_their_order_and_follow_their_law() -> None:
    """IDs 1 .. 3 become a 3-subset of a window of 1 .. 5; equal IDs stay equal, 0 stays, kinds are independent."""
    coupling = Predicted(max_id=5, num_kinds=2, random_offset="spread")
    count = 6000
    ids = np.tile(np.array([[[0, 2, 1, 3, 2, 0], [1, 1, 0, 2, 0, 3]]]), (count, 1, 1))
    assert coupling.num_words(6, training=False) == 0
    arranged = coupling.arrange(words(count, coupling.num_words(6, training=True)), ids, training=True)
    assert np.array_equal(arranged == 0, ids == 0)
    assert np.array_equal(arranged[:, 0, 1], arranged[:, 0, 4])
    # Windows of 3, 4 and 5 and where they start: size + 4 values of u, of which size are clipped to either end.
    starts = {3: [3 / 7, 1 / 7, 3 / 7], 4: [4 / 8, 4 / 8], 5: [1.0]}
    law, unclipped = (dict.fromkeys(itertools.combinations(range(1, 6), 3), 0.0) for _ in range(2))
    for size, probabilities in starts.items():
        for start, probability in enumerate(probabilities):
            subsets = list(itertools.combinations(range(start + 1, start + size + 1), 3))
            for subset in subsets:
                law[subset] += probability / 3 / len(subsets)
                unclipped[subset] += 1 / len(probabilities) / 3 / len(subsets)
    for chosen in (arranged[:, 0][:, [2, 1, 3]], arranged[:, 1][:, [0, 3, 5]]):
        assert off_law(chosen, law) < 5
        assert off_law(chosen, unclipped) > 5
    # An offset alone gives neighbors alone.
    assert off_law(moved(words(count, 2), ids, 5)[:, 0][:, [2, 1, 3]], law) > 5
    assert len(np.unique(arranged.reshape(count, -1), axis=0)) == 100, "kinds move together"


def off_law(chosen: np.ndarray, law: dict[tuple[int, ...], float]) -> float:
    """The largest distance of a subset's count from its law, in standard deviations."""
    counts = collections.Counter(map(tuple, chosen.tolist()))
    assert set(counts) <= set(law)
    n = len(chosen)
    return max(abs(counts[subset] - n * p) / math.sqrt(n * p * (1 - p)) for subset, p in law.items())


def test_shuffled_ids_are_dealt_out_anew() -> None:
    """The same IDs on the same tokens of each sequence, every order equally often, in use too."""
    coupling = Shuffled(max_id=8, num_kinds=2)
    count = 6000
    ids = np.tile(IDS[:1], (count, 1, 1))
    arranged = coupling.arrange(words(count, coupling.num_words(6, training=False)), ids, training=False)
    assert np.array_equal(arranged == 0, ids == 0)
    assert np.array_equal(np.sort(arranged, axis=2), np.sort(ids, axis=2))
    orders, counts = np.unique(arranged[:, 0], axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts - count / 24).max() < 5 * math.sqrt(count / 24)
    offset = coupling.arrange(words(count, coupling.num_words(6, training=True)), ids, training=True)
    assert offset.max() == 8
    assert np.array_equal(offset == 0, ids == 0)


def test_next_ids_and_their_loss() -> None:
    """The loss on IDs is the weighted sum over kinds of the mean cross-entropy at scored positions."""
    config = Decoder(coupling=Predicted(max_id=5, num_kinds=2, loss_weight=0.5))
    model = config.build(0).double()
    ids, tokens = torch.from_numpy(IDS), torch.arange(12).reshape(2, 6)
    following = next_position_ids(ids)
    assert following[0, :, 0].tolist() == [3, 0, 1, 2, 5, 0]
    assert following[1, :, 1].tolist() == [4, 0, 4, 0, 4, 0]
    scored = torch.tensor([[False, False, True, True, False, True], [False, True, False, False, False, False]])
    loss = model(tokens, ids, scored=scored).auxiliary_losses["position_ids"]
    hidden: list[torch.Tensor] = []
    model.final_norm.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    model(tokens, ids)
    expected = 0.0
    for row, t in scored.nonzero().tolist():
        for kind in range(2):
            logits = (model.id_heads.weight[kind] @ hidden[0][row, t]).detach()
            expected -= 0.5 * float(logits.log_softmax(-1)[following[row, t, kind]]) / 4
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    model.eval()
    assert not model(tokens, ids, scored=scored).auxiliary_losses, "a loss on IDs in use"


def test_free_running_feeds_back_predicted_ids() -> None:
    """Decoding with caches is running the prefix again with the tokens and IDs predicted so far."""
    config = Decoder(coupling=Predicted(max_id=9, num_kinds=2), position=NoPE())
    model = config.build(3).double().eval()
    tokens, ids = torch.arange(10).reshape(2, 5), torch.randint(0, 10, (2, 2, 5), generator=torch.manual_seed(0))
    sequence = model.generate(tokens, 6, ids)
    for _ in range(6):
        next_token = model(tokens, ids).logits[:, -1].argmax(-1)
        predicted, next_ids = (x[:, -1] for x in model.predict(tokens, ids))
        assert torch.equal(predicted, next_token)
        tokens, ids = torch.cat([tokens, next_token[:, None]], 1), torch.cat([ids, next_ids[:, :, None]], 2)
    assert torch.equal(sequence, tokens)
    assert ids[:, :, 5:].unique().numel() > 2, "the predicted IDs are all alike, which tests little"
    with pytest.raises(SettingError, match="position_ids: expected IDs of the prompt's 5 positions, got 11"):
        model.generate(tokens[:, :5], 6, ids)
    assert Decoder().build(0).predict(tokens)[1] is None
