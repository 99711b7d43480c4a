"""The study ``recall``: its sizes, and verdicts of made-up evidence."""

from collections.abc import Mapping

import polars as pl
import pytest
from recall.study import BESIDE, KERNELS, LENGTH, PAIRS, SHORTEST, SOFTMAX, SOLVED
from recall.study import study as recall

from sparsity_lab.kernels import SlidingWindow
from sparsity_lab.studies import Evidence


def evidence(accuracy: Mapping[str, float], seeds: int = 12) -> Evidence:
    rows = [
        {"arm": arm, "seed": seed, "length": length, "condition": "", "accuracy": own, "learned": True}
        for arm, own in accuracy.items()
        for seed in range(seeds)
        for length in (SHORTEST, 32, LENGTH)
    ]
    return Evidence(pl.DataFrame(rows), pl.DataFrame())


def verdicts(accuracy: Mapping[str, float]) -> dict[str, str]:
    return {name: one.verdict for name, one in recall.judge(evidence(accuracy)).items()}


def test_the_full_size_is_the_one_that_was_asked_for() -> None:
    arms = recall.arms("full")
    assert set(arms) == set(KERNELS)
    for name, arm in arms.items():
        run = arm.run(0)
        assert (run.task.num_pairs, run.task.vocab_size) == (PAIRS, 8192) == (4, 8192)  # type: ignore[attr-defined]
        assert run.model.num_layers == 2  # type: ignore[attr-defined]
        assert run.model.kernel == KERNELS[name]  # type: ignore[attr-defined]
        assert max(run.evaluation.lengths) == LENGTH == 64
    # Two layers of this window do not see from the last query back to the pairs.
    window = KERNELS["window of 16"]
    assert isinstance(window, SlidingWindow)
    assert 2 * (window.width - 1) < LENGTH - 2 * PAIRS


@pytest.mark.parametrize(("own", "verdict"), [(SOLVED, "held"), (1.0, "held"), (SOLVED - 0.01, "did not hold")])
def test_solved_is_an_accuracy_in_most_seeds(own: float, verdict: str) -> None:
    assert verdicts(dict.fromkeys(KERNELS, own))["solved"] == verdict


def test_the_others_are_judged_by_the_same_bound() -> None:
    found = verdicts({SOFTMAX: 1.0, "linear": 0.5, "window of 16": 0.7})
    assert found == {"solved": "held"} | {f"solved by {name}": "did not hold" for name in BESIDE}
