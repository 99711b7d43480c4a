"""The study ``kernel_face_off``: no registered kernel is left out, and its rules decide by hand what they decide."""

import polars as pl
import pytest
from kernel_face_off.arms import CHOSEN, FAR, RATE, RATES, TRAINED, competitors
from kernel_face_off.claims import LENGTH_SCALED
from kernel_face_off.measure import LONG
from kernel_face_off.page import ranking
from kernel_face_off.study import study as kernel_face_off
from made_up_evidence import JITTER, MOST_SEEDS, SEEDS, decided

from sparsity_lab.kernels import LSSAR, Kernel, Linear, Softmax
from sparsity_lab.settings import kinds
from sparsity_lab.studies import Evidence


def evidence(runs: dict[str, list[dict[str, object]]]) -> Evidence:
    """Of runs by kernel and seed: ``at_far``, ``reach``, ``learned`` and ``speed``, each with a default. Of fewer
    than ``SEEDS`` the numbers come again."""
    rows, measures = [], []
    for arm, seeds in runs.items():
        for seed in range(SEEDS):
            run = seeds[seed % len(seeds)]
            known = {"learned": True, "reach": 96, "censored": False} | {
                name: run[name] for name in ("learned", "reach", "censored") if name in run
            }
            for length, value in ((TRAINED, 1.0), (FAR, run.get("at_far", 0.5))):
                place = {"condition": "k=3", "length": length, "trained": length <= TRAINED}
                rows.append({"arm": arm, "seed": seed, **place, "normalized_accuracy": value, **known})
            measures += [
                {"arm": arm, "seed": seed, "length": length, "speed": run.get("speed", 1.0), "memory": 1.0}
                for length in (256, LONG)
            ]
    return Evidence(pl.DataFrame(rows), pl.DataFrame(measures))


def verdict(name: str, found: Evidence) -> str:
    return decided(kernel_face_off, name, found).verdict


def test_no_registered_kernel_is_left_out() -> None:
    found = competitors()
    assert set(found) == {kind for kind, cls in kinds("kernel").items() if issubclass(cls, Kernel)}
    assert all(kernel.kind == kind for kind, kernel in found.items())
    assert found["Linear"] == Linear()
    assert found["LSSAR"] == CHOSEN["LSSAR"] != LSSAR()
    # Other tests in this process register kernels of their own.
    assert not any(kernel.leaks for kernel in found.values() if type(kernel).__module__.startswith("sparsity_lab."))
    arms = kernel_face_off.arms("small")
    assert [arm.run(0).model.kernel for arm in arms.values()] == list(found.values())
    assert set(LENGTH_SCALED) <= set(arms)
    # Kernels that others register change no rule of a primary claim, and no first seed.
    assert {arm.first for arm in arms.values()} == {3}


def test_arms_differ_in_their_kernels_and_rates_alone() -> None:
    same = set()
    for kind, arm in kernel_face_off.arms("small").items():
        run = arm.run(arm.first)
        assert run.training.learning_rate == RATES.get(kind, RATE)
        training = run.training.replace(learning_rate=RATE)
        same.add(run.replace(model=run.model.replace(kernel=Softmax()), training=training).id)
    assert len(same) == 1


def test_every_claim_is_shown_here() -> None:
    names = {claim.name for claim in kernel_face_off.claims}
    assert names == {"length scaling", "faster", "most learn", "reach differs"}


@pytest.mark.parametrize(
    ("learned", "expected"),
    [([8, 10, 10], "held"), ([5, 6, 7], "did not hold"), ([5, 10], "not decided")],
)
def test_most_learn(learned: list[int], expected: str) -> None:
    """Of ten kernels so many learn, by seed."""
    runs = {f"kernel {i}": [{"learned": i < number} for number in learned] for i in range(10)}
    assert verdict("most learn", evidence(runs)) == expected


@pytest.mark.parametrize(
    ("longest", "expected"),
    [((384, 96, 192), "held"), ((48, 95, 48), "did not hold"), ((384, 24), "not decided")],
)
def test_reach_differs(longest: tuple[int, ...], expected: str) -> None:
    runs: dict[str, list[dict[str, object]]] = {
        "one": [{"reach": 24}],
        "other": [{"reach": reach} for reach in longest],
        # What was not learned has no reach, and does not count.
        "third": [{"learned": False, "reach": None}],
    }
    assert verdict("reach differs", evidence(runs)) == expected


@pytest.mark.parametrize(("by", "expected"), MOST_SEEDS)
def test_length_scaling(by: tuple[float, ...], expected: str) -> None:
    """LSSA learned with some seeds alone, and LSSAR never."""
    scaled: dict[str, list[dict[str, object]]] = {
        kind: [{"at_far": 0.5 + one} for one in by] for kind in LENGTH_SCALED
    }
    scaled["LSSA"] = [{"at_far": 0.5 + one, "learned": seed < 2} for seed, one in enumerate(by)]
    scaled["LSSAR"] = [{"at_far": float(one < 0), "learned": False} for one in by]
    runs = {"Softmax": [{"at_far": 0.5}], "Linear": [{"at_far": 0.1}], **scaled}
    decision = decided(kernel_face_off, "length scaling", evidence(runs))
    assert decision.verdict == expected
    assert decision.outcomes.numbers == pytest.approx({seed: by[seed % len(by)] for seed in range(SEEDS)})
    assert "LSSAR not learned (0 of 24 seeds learned)" in decision.outcomes.detail


@pytest.mark.parametrize(
    ("slower", "expected"), [((1.2, 1.3), "held"), ((1.0, 1.05), "did not hold"), ((1.3, 0.9), "not decided")]
)
@pytest.mark.parametrize("kinds", [("Linear", "SlidingWindow"), ("SlidingWindow", "Linear")])
def test_faster(kinds: tuple[str, str], slower: tuple[float, ...], expected: str) -> None:
    """The slower of the two counts."""
    one, other = kinds
    assert verdict("faster", evidence({one: [{"speed": by} for by in slower], other: [{"speed": 2.0}]})) == expected


def test_page_shows_what_the_frames_hold() -> None:
    """A kernel that the registry no longer knows stays on the page, the best first."""
    found = evidence({"Forgotten": [{"at_far": 0.2 + one} for one in JITTER], "Softmax": [{"at_far": 0.9}]})
    assert ranking(found) == ["Softmax", "Forgotten"]
