"""Dependency sparsity: planted dependencies of known number and place are found, and what cannot be found is not."""

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor

from sparsity_lab.analysis import Predictor, dependency_sparsity
from sparsity_lab.analysis.statistics import quantile_over_groups, ratio_over_groups
from sparsity_lab.generators import IGNORE, Batch, SparseMarkov
from sparsity_lab.models import Decoder, Oracle
from sparsity_lab.settings import SettingError
from sparsity_lab.training import Evaluation, RunConfig, Training, train

NEVER = Decoder().build(0)


def exact(task: SparseMarkov) -> Predictor:
    """The Bayes predictor of a SparseMarkov that may see some tokens: it knows the noisy sum or nothing, as any
    proper subset of the lags is independent of the target (noise and all)."""

    def predict(tokens: Tensor, key_mask: Tensor) -> Tensor:
        places = tokens.shape[1] - torch.tensor(task.lags)
        V = task.vocab_size
        out = torch.full((len(tokens), V), task.noise / (V - 1), dtype=torch.float64)
        out[torch.arange(len(tokens)), tokens[:, places].sum(1) % V] = 1 - task.noise
        out[~key_mask[:, places].all(1)] = 1 / V
        return out.log()

    return predict


def copies(places: list[int], doubt: float = 0.1) -> Predictor:
    """A target is the token at any one of these distances, with some doubt, over four tokens."""

    def predict(tokens: Tensor, key_mask: Tensor) -> Tensor:
        n = tokens.shape[1]
        out = torch.full((len(tokens), 4), math.log(doubt / 3), dtype=torch.float64)
        out[torch.arange(len(tokens)), tokens[:, n - places[0]]] = math.log(1 - doubt)
        seen = torch.stack([key_mask[:, n - place] for place in places]).any(0)
        return out.masked_fill(~seen[:, None], math.log(1 / 4))

    return predict


def tokens_of(count: int, width: int, vocab: int = 4) -> Tensor:
    return torch.randint(0, vocab, (count, width), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("near", [0, 2])
def test_planted_lags_are_found(k: int, near: int) -> None:
    task = SparseMarkov(k=k, lag_seed=7, max_lag=12, vocab_size=5)
    far = [lag for lag in task.lags if lag > near]
    found = dependency_sparsity(exact(task), task, 30, near=near, sequences=32)
    assert found.k == type(found.k)(len(far), len(far), len(far), found.k.count)
    assert found.k.count > 20
    assert found.distances()["distance"].to_list() == far
    assert found.distances()["tokens"].n_unique() == 1
    assert found.reach(1.0).estimate == far[-1]
    best = found.summary()["best"].to_list()
    assert best[: len(far)] == pytest.approx([0.0] * len(far), abs=1e-12)
    assert best[len(far) :] == pytest.approx([1.0] * (5 - len(far)))
    # A few of thirty random tokens are the right ones less often than one time in three.
    assert found.summary()["random"].max() < 0.35


def test_greedy_alone_misses_a_sum() -> None:
    """No single token of a sum says anything, so that greedy steps have nothing to go by."""
    task = SparseMarkov(k=2, lag_seed=3, max_lag=20, vocab_size=5)
    found = dependency_sparsity(exact(task), task, 60, near=0, sequences=32).summary()
    assert found["greedy"][2] == 0.0
    assert found["elimination"][2] == pytest.approx(1.0)


def test_elimination_alone_misses_copies() -> None:
    """Neither of two copies is missed alone, so that both go in the first half."""
    found = dependency_sparsity(copies([30, 29]), tokens_of(16, 32), near=0, least_gain=0.1, largest=2, targets=1)
    assert found.summary()["elimination"][1] <= 0.0
    assert found.summary()["greedy"][1] == pytest.approx(1.0)
    assert found.k.estimate == 1.0


def test_closed_form_of_one_source() -> None:
    """Uniform without the source, right with probability 0.9 with it: the losses are ln 4 and -ln 0.9, and of the F
    far tokens a random one is the source one time in F."""
    tokens = tokens_of(200, 9)
    tokens[:, 8] = tokens[:, 3]  # the target is the token five before it
    found = dependency_sparsity(copies([5]), tokens, near=2, largest=2, draws=8)
    targets = found.targets()
    np.testing.assert_allclose(targets["loss_near"], math.log(4))
    np.testing.assert_allclose(targets["loss_full"], -math.log(0.9))
    assert targets["distances"].to_list() == [[5]] * 200
    assert targets["position"].to_list() == [8] * 200
    assert found.needed().rows() == [(1, 200, 1.0)]
    random = found.summary()["random"]
    for k, six in ((1, 1 / 6), (2, 2 / 6)):
        error = math.sqrt(six * (1 - six) / 1600)
        assert abs(random[k] - six) < 5 * error


def test_which_targets_are_searched() -> None:
    """The last scored ones of each sequence that have enough tokens before them, each seeing no later token."""
    tokens = torch.arange(20).reshape(2, 10) % 4
    targets = torch.full((2, 10), IGNORE)
    targets[0, [1, 4, 7]], targets[1, 9] = 1, 2
    seen: list[tuple[int, int]] = []

    def predict(own: Tensor, key_mask: Tensor) -> Tensor:
        assert torch.equal(own[0], tokens[0, : own.shape[1]]) or torch.equal(own[0], tokens[1, : own.shape[1]])
        assert key_mask[:, -2:].all()
        seen.append(tuple(own.shape))
        return torch.zeros(len(own), 4)

    found = dependency_sparsity(predict, Batch(tokens, targets), near=2, largest=1, targets=2)
    assert found.targets().select("sequence", "position").rows() == [(0, 5), (0, 8), (1, 10)]
    assert not found.targets()["counted"].any()
    assert {n for _, n in seen} == {5, 8, 10}


def test_blocks_do_not_matter() -> None:
    model, tokens = Decoder(num_layers=1).build(3, vocab_size=4).double(), tokens_of(4, 10)
    large, small = (dependency_sparsity(model, tokens, least_gain=1e-3, batch_tokens=size) for size in (2**15, 50))
    np.testing.assert_allclose(large.frame()["recovered"], small.frame()["recovered"], rtol=1e-9)
    assert large.targets()["distances"].to_list() == small.targets()["distances"].to_list()
    # The searches may end elsewhere than at all tokens, and better; random tokens know nothing of the target.
    summary = large.summary()
    assert (summary["best"] >= summary["random"] - 1e-12).all()


def test_decoder_losses_are_those_of_masked_attention() -> None:
    model, tokens = Decoder().build(1, vocab_size=4).double(), tokens_of(3, 13)
    found = dependency_sparsity(model, tokens, near=3, least_gain=1e-6, draws=1).targets()
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, -3:] = True
    for name, key_mask in (("loss_near", mask), ("loss_full", None)):
        logits = model(tokens[:, :-1], key_mask=key_mask).logits[:, -1].log_softmax(-1)
        expected = -logits.gather(1, tokens[:, -1:])[:, 0].detach().numpy()
        np.testing.assert_allclose(found[name], expected, rtol=1e-9)


def test_a_run_brings_its_task(tmp_path: Path) -> None:
    task = SparseMarkov(k=1, lag_seed=3)
    config = RunConfig(
        task=task,
        model=Decoder(num_layers=1, d_model=16),
        training=Training(steps=2, batch_size=4),
        evaluation=Evaluation(lengths=(24,), sequences=2),
    )
    run = train(config, tmp_path)
    options = {"least_gain": 1e-4, "sequences": 3, "largest": 1}
    own = dependency_sparsity(run, length=10, **options)  # type: ignore[arg-type]
    given = dependency_sparsity(run.model(), task, 10, **options)  # type: ignore[arg-type]
    assert own.targets().equals(given.targets())
    assert own.targets()["position"].to_list() == [10] * 3


def test_nothing_to_gain() -> None:
    def blind(tokens: Tensor, key_mask: Tensor) -> Tensor:
        return torch.zeros(len(tokens), 4)

    found = dependency_sparsity(blind, tokens_of(4, 10), near=0)
    assert found.frame()["recovered"].null_count() == len(found.frame())
    assert found.k.estimate is None
    assert found.reach().estimate is None
    assert len(found.distances()) == len(found.needed()) == 0
    assert "no target gains" in found.plot().texts[-1].get_text()
    assert found.plot_distances().texts


def test_figures_draw_the_frame() -> None:
    task = SparseMarkov(k=2, lag_seed=7, max_lag=12)
    found = dependency_sparsity(exact(task), task, 20, near=0, sequences=16)
    lines = {line.get_label(): line for line in found.plot().lines}
    np.testing.assert_allclose(lines["elimination"].get_ydata(), found.summary()["elimination"])
    np.testing.assert_allclose(lines["random far tokens"].get_ydata(), found.summary()["random"])
    bars = found.plot_distances().patches
    drawn = [bar.get_x() + bar.get_width() / 2 for bar in bars if isinstance(bar, mpl.patches.Rectangle)]
    assert drawn == pytest.approx(task.lags)
    assert "<img" in found._repr_html_()


def test_intervals_over_groups() -> None:
    groups = np.repeat(np.arange(40), 5)
    above = np.repeat(np.random.default_rng(0).normal(1.0, 1.0, 40), 5)
    one = ratio_over_groups(above, np.ones(200), groups)
    alone = ratio_over_groups(above[::5], np.ones(40), np.arange(40))
    # Five equal targets of a sequence are worth one: the mean of 40 has a standard error of 0.16.
    assert one.low is not None
    assert one.high is not None
    assert (one.estimate, one.low, one.high) == pytest.approx((alone.estimate, alone.low, alone.high))
    # Student's t with 39 degrees of freedom is 2.0227.
    assert one.high - one.low == pytest.approx(2 * 2.0227 * above[::5].std(ddof=1) / math.sqrt(40), rel=1e-4)
    twice = ratio_over_groups(2 * np.arange(1.0, 7.0), np.arange(1.0, 7.0), np.arange(6))
    assert twice.low == pytest.approx(2.0)
    few = ratio_over_groups(2 * np.arange(1.0, 6.0), np.arange(1.0, 6.0), np.arange(5))
    assert (few.estimate, few.low, few.high, few.count) == (pytest.approx(2.0), None, None, 5)
    values = np.random.default_rng(1).integers(0, 9, 31)
    for level in (0.5, 0.9, 1.0):
        expected = np.quantile(values, level, method="inverted_cdf")
        assert quantile_over_groups(values, np.arange(31), level).estimate == expected
    assert ratio_over_groups(np.ones(3), np.ones(3), np.zeros(3, dtype=int)).low is None


def test_targets_that_need_more_than_can_be_searched_are_not_dropped() -> None:
    """Of twelve sequences three need the tokens at 1, 2 and 3, of which at most two are searched for; the others
    that at 5. Dropping the three, the reach is 5 for sure, though they might need the first token of 12."""
    tokens = tokens_of(12, 13)
    deep = torch.arange(12) < 3

    def predict(own: Tensor, key_mask: Tensor) -> Tensor:
        which = (own[:, None] == tokens[:, :-1]).all(-1).int().argmax(1)
        seen = torch.where(deep[which], key_mask[:, [-1, -2, -3]].all(1), key_mask[:, -5])
        out = torch.full((len(own), 4), math.log(0.1 / 3), dtype=torch.float64)
        out[torch.arange(len(own)), tokens[which, -1]] = math.log(0.9)
        return out.masked_fill(~seen[:, None], math.log(1 / 4))

    found = dependency_sparsity(predict, tokens, near=0, largest=2)
    assert found.needed().rows() == [(1, 9, 0.75), (None, 3, 0.25)]
    # Of each of the three two tokens are found, and a third may be at 1 or at 12.
    assert found.targets()["distances"].to_list() == [[1, 2]] * 3 + [[5]] * 9
    for share, *expected in ((0.2, 1, 1, 5), (0.5, 5, 1, 5), (0.8, 5, 5, 12)):
        reach = found.reach(share)
        assert [reach.estimate, reach.low, reach.high] == expected
    assert "not shown: 3 of 12 targets, which need more than 2" in found.plot_distances().get_xlabel()
    # All within reach of the search: no bounds but those of sampling.
    wide = dependency_sparsity(predict, tokens, near=0, largest=3)
    assert wide.needed()["k"].to_list() == [1, 3]
    assert wide.distances().select("distance", "tokens").rows() == [(1, 3), (2, 3), (3, 3), (5, 9)]
    assert wide.reach(1.0).low == wide.reach(1.0).high == 5


def test_sequences_of_one_group_count_as_one() -> None:
    tokens = tokens_of(24, 9)
    tokens[:, 8] = tokens[:, 3]
    pairs = [i // 4 for i in range(24)]
    apart, together = (dependency_sparsity(copies([5]), tokens, near=2, groups=own) for own in (None, pairs))
    assert (apart.k.count, together.k.count) == (24, 6)
    assert together.targets()["group"].to_list() == pairs
    assert_frame_equal(together.summary(), apart.summary())


def windows_of_noise(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Means over 64 windows of 33 tokens of one sequence of 400, evenly spread, and where each begins."""
    tokens, start = random.normal(1.0, 1.0, 400), np.linspace(0, 400 - 33, 64).astype(int)
    return np.array([tokens[first : first + 33].mean() for first in start]), start


@pytest.mark.parametrize(
    ("grouped", "least", "most"), [(True, 0.88, 0.99), (False, 0.0, 0.75)], ids=["grouped", "mutant"]
)
def test_intervals_over_windows_that_overlap(grouped: bool, least: float, most: float) -> None:
    """The mean of the tokens is 1. Stretches of 33 tokens as groups cover it nearly as often as they say, in 400
    draws known to 1.5 %; windows that pass for independent ones do not."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values, start = windows_of_noise(random)
        found = ratio_over_groups(values, np.ones(64), start // 33 if grouped else np.arange(64))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1.0 <= found.high
    assert least <= covered / 400 <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [1, 2]}, "groups: expected a number for each of 3 sequences, got 2"),
        ({"near": 0}, "near: expected at least 1, got 0"),
        ({"largest": 0}, "largest: expected at least 1, got 0"),
        ({"share": 0.0}, "share: expected a share above 0"),
        ({"least_gain": 0.0}, "least_gain: expected a positive number of nats"),
        ({"length": 9}, "length: expected None"),
        ({"data": None}, "data: missing; a model that is not a run needs a task"),
        ({"data": SparseMarkov()}, "length: missing; a task needs a length"),
        ({"data": torch.zeros(3, 8)}, "data: expected a task, a batch, or integers"),
        ({"data": tokens_of(3, 5)}, "data: no scored target has 5 tokens before it"),
        ({"model": 3}, "model: expected a run of a Decoder"),
        ({"model": Decoder(coupling=Oracle(max_id=9)).build(0)}, "model: expected a model without coupled"),
        ({"model": lambda tokens, key_mask: torch.zeros(len(tokens), 3, 4)}, "model: expected logits of shape"),
        ({"model": lambda tokens, key_mask: torch.full((len(tokens), 4), torch.nan)}, "model: expected a predictor"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    arguments = {"model": NEVER, "data": tokens_of(3, 20), "largest": 4} | options
    with pytest.raises(SettingError) as error:
        dependency_sparsity(arguments.pop("model"), arguments.pop("data"), **arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
