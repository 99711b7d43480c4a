"""Exact transfer: the counts against plain enumeration, the guaranteed zeros, and the fitted kernels."""

from dataclasses import replace
from itertools import combinations, product

import polars as pl
import pytest
import torch
from torch.nn.functional import one_hot

from sparsity_lab.analysis import exact_transfer, transfer_check
from sparsity_lab.analysis.exact_transfer import Hypotheses
from sparsity_lab.models import FunctionalAttention
from sparsity_lab.settings import SettingError


def errs(one, length):
    """Whether hypothesis 0 of ``one`` errs at this length, by the definition: for all X and planted sets."""
    k, V = one.k, one.background.shape[1]
    kernel = one.kernel[0].float().reshape((one.kernel_width,) * (k - 1) + (V,) * k)
    labels = one.labels[0].reshape((V,) * k)
    model = FunctionalAttention.from_tables(kernel, one_hot(labels, 2).float())
    patterns = one.patterns[0].reshape((one.width,) * (k - 1))
    contents = one.contents[0].reshape((V,) * k)
    background = one.background[0].tolist()
    cases = []
    for X in product(range(V), repeat=length):
        for S in combinations(range(length), k):
            content, offsets = tuple(X[i] for i in S), tuple(i - S[0] for i in S[1:])
            fits = S[-1] - S[0] < one.width and patterns[offsets] and contents[content]
            if fits and all(background[X[i]] for i in range(length) if i not in S):
                cases.append((X, int(labels[content])))
    sequences, expected = torch.tensor([X for X, _ in cases]), torch.tensor([label for _, label in cases])
    return not torch.equal(model(sequences), one_hot(expected, 2).float())


@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        ({"k": 2, "width": 3, "kernel_width": 3, "vocab_size": 3}, 4),
        ({"k": 2, "width": 2, "kernel_width": 4, "vocab_size": 3}, 5),
        ({"k": 3, "width": 4, "kernel_width": 4, "vocab_size": 2}, 5),
        ({"k": 1, "width": 1, "kernel_width": 1, "vocab_size": 3}, 3),
    ],
)
def test_errors_of_hypotheses_are_those_of_the_definition(sizes, length):
    drawn = Hypotheses.draw(400, seed=3, **sizes)
    right = drawn.without_error(length)
    chosen = [*right.nonzero()[:8, 0].tolist(), *(~right).nonzero()[:8, 0].tolist()]
    assert len(chosen) == 16
    for index in chosen:
        assert errs(drawn.chosen(torch.tensor([index])), length) == (not right[index])


def test_a_task_can_be_made_without_error_and_with_each_kind_of_error():
    """Planted 0 1 at distance 2, label 1, background 2."""
    kernel = torch.zeros(1, 3, 9, dtype=torch.bool)
    kernel[0, 2, 1] = True
    labels = torch.zeros(1, 9, dtype=torch.int64)
    labels[0, 1] = 1
    right = Hypotheses(
        k=2, width=3, kernel_width=3, kernel=kernel, labels=labels,
        patterns=torch.tensor([[False, False, True]]), contents=labels.bool(),
        background=torch.tensor([[False, False, True]]),
    )  # fmt: skip
    assert right.without_error(4).all()
    wrong = kernel.clone()
    wrong[0, 1, 8] = True  # 2 2 next to each other votes for 0, and is first seen at length 5
    assert replace(right, kernel=wrong).without_error(4).all()
    assert not replace(right, kernel=wrong).without_error(5).any()
    assert not replace(right, kernel=torch.zeros_like(kernel)).without_error(4).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_table_of_exact_transfer(seed):
    rows = exact_transfer(seed=seed).rows_by_key("train_length", named=True, unique=True)
    assert {length: row["guaranteed"] for length, row in rows.items()} == {3: False, 4: False, 6: True}
    assert rows[6]["failing"] == 0
    # What the zero is worth: as many hypotheses could have failed, and shorter training lets many through.
    assert rows[6]["fitting"] > 300
    assert rows[3]["failing"] > 200
    assert rows[4]["failing"] > 20
    assert rows[3]["fitting"] > rows[4]["fitting"]


def test_twice_the_width_is_needed():
    """k = W = 3: planted set and wrong set lie side by side, so one token less than 2W does not show them all."""
    frame = exact_transfer(k=3, width=3, vocab_size=2, train_lengths=(5, 6), test_length=10, hypotheses=3000)
    assert frame["failing"][0] > 5
    assert frame["failing"][1] == 0
    assert frame["fitting"][1] > 200


def test_without_locality_hypotheses_fail_at_twice_the_width():
    row = exact_transfer(kernel_width=9, train_lengths=(6,)).row(0, named=True)
    assert row["failing"] > 10
    assert not row["guaranteed"]


@pytest.fixture(scope="module")
def check():
    return transfer_check(k=2, width=4, length=32, hypotheses=500, steps=200, sequences=128)


def errors(check, arm):
    part = check.frame().filter(pl.col("arm") == arm).sort("length")
    return dict(zip(part["length"], part["error"], strict=True))


def test_all_arms_learn_at_the_trained_length(check):
    trained = check.frame().filter(pl.col("length") == pl.col("train_length"))
    assert trained.height == 4
    assert trained["error"].max() < 0.02
    assert trained["wrong"].max() == 0


def test_locality_carries_and_its_lack_does_not(check):
    assert max(errors(check, "local, W-local kernel").values()) < 0.02
    any_span = errors(check, "local, kernel of any span")
    assert any_span[32] > 0.2
    assert any_span[32] > 20 * any_span[8]


def test_coupled_ids_repair_what_scattering_breaks(check):
    by_position, by_id = (errors(check, f"scattered, by {name}") for name in ("position", "coupled ID"))
    assert by_position[32] > 0.3
    assert max(by_id.values()) < 0.02
    # In the order of its IDs the scattered task is the local one.
    assert by_id == pytest.approx(errors(check, "local, W-local kernel"), rel=1e-3)


def test_untrained_kernels_are_at_chance():
    """What the fit has to beat: every line starts near one half."""
    frame = transfer_check(k=2, width=4, length=16, lengths=(8, 16), hypotheses=10, steps=1, sequences=32).frame()
    assert frame["error"].min() > 0.4


def test_the_result_shows_itself(check):
    assert check.violations == 0
    spoilt = replace(check, exact=check.exact.with_columns(guaranteed=pl.lit(True)))
    assert spoilt.violations > 0
    assert "kernel of span <= 3, L = 6: 0 of" in repr(check)
    assert "none may" in repr(check)
    page = check._repr_html_()
    assert page.count("<img") == 1
    assert page.count("<table") == 2
    ax = check.plot()
    drawn = [line.get_ydata().tolist() for line in ax.lines[1:]]
    assert drawn == [list(errors(check, arm).values()) for arm in check.models]
    names = [f"{arm} (W = {model.width})" for arm, model in check.models.items()]
    assert [line.get_label() for line in ax.lines] == ["chance", *names]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 4}, "rule|k: expected"),
        ({"width": 8, "train_length": 6}, "train_length: expected at least the width 8, got 6"),
        ({"length": 16}, "length: expected above the training length 16, got 16"),
        ({"lengths": (4, 20)}, "lengths: expected lengths from 8 to 50"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"sequences": 1}, "sequences: expected at least 2"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        transfer_check(**{"hypotheses": 5, "sequences": 8, "steps": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_lengths": (2, 6)}, "train_lengths: expected lengths of at least 3"),
        ({"train_lengths": ()}, "train_lengths: expected"),
        ({"test_length": 6}, "test_length: expected above the training length 6"),
        ({"vocab_size": 5}, "test_length: expected at most 131072 sequences"),
        ({"hypotheses": 0}, "hypotheses: expected at least 1"),
    ],
)
def test_counts_that_cannot_be_made_are_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        exact_transfer(**arguments)
