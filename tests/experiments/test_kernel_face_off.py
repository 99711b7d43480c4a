"""The study ``kernel_face_off``: no registered kernel is left out, and its rules decide by hand what they decide."""

import polars as pl
import pytest
from kernel_face_off.arms import CHOSEN, FAR, RATE, RATES, TRAINED, competitors
from kernel_face_off.measure import LONG
from kernel_face_off.page import ranking
from kernel_face_off.study import study as kernel_face_off
from made_up_evidence import JITTER, TORN, claim_of, shifted

from sparsity_lab.kernels import LSSAR, Kernel, Linear, Softmax
from sparsity_lab.settings import kinds
from sparsity_lab.studies import Evidence

SEEDS = range(3)


def evidence(runs: dict[str, list[dict[str, object]]]) -> Evidence:
    """Of runs by kernel and seed: ``at_far``, ``reach``, ``learned`` and ``speed``, each with a default."""
    rows, measures = [], []
    for arm, seeds in runs.items():
        for seed, run in enumerate(seeds):
            known = {"learned": True, "reach": 96, "censored": False} | {
                name: run[name] for name in ("learned", "reach", "censored") if name in run
            }
            for length, value in ((TRAINED, 1.0), (FAR, run.get("at_far", 0.5))):
                rows.append({"arm": arm, "seed": seed, "length": length, "normalized_accuracy": value, **known})
            measures += [
                {"arm": arm, "seed": seed, "length": length, "speed": run.get("speed", 1.0), "memory": 1.0}
                for length in (256, LONG)
            ]
    return Evidence(pl.DataFrame(rows), pl.DataFrame(measures))


def verdict(name: str, found: Evidence) -> str:
    return claim_of(kernel_face_off, name).decide(found).verdict


def test_no_registered_kernel_is_left_out() -> None:
    found = competitors()
    assert set(found) == {kind for kind, cls in kinds("kernel").items() if issubclass(cls, Kernel)}
    assert all(kernel.kind == kind for kind, kernel in found.items())
    assert found["Linear"] == Linear()
    assert found["LSSAR"] == CHOSEN["LSSAR"] != LSSAR()
    # Other tests in this process register kernels of their own.
    assert not any(kernel.leaks for kernel in found.values() if type(kernel).__module__.startswith("sparsity_lab."))
    arms = kernel_face_off.arms("small")
    assert [run[0].model.kernel for run in arms.values()] == list(found.values())


def test_arms_differ_in_their_kernels_and_rates_alone() -> None:
    same = set()
    for kind, (run, *_) in kernel_face_off.arms("small").items():
        assert run.training.learning_rate == RATES.get(kind, RATE)
        training = run.training.replace(learning_rate=RATE)
        same.add(run.replace(model=run.model.replace(kernel=Softmax()), training=training).id)
    assert len(same) == 1


def test_every_claim_is_shown_here() -> None:
    assert {claim.name for claim in kernel_face_off.claims} == {
        "most learn",
        "reach differs",
        "length scaling",
        "speed costs reach",
        "linear attention is faster",
        "a window of 64 is faster",
    }


@pytest.mark.parametrize(
    ("learned", "expected"),
    [([9, 10, 10], "held"), ([5, 6, 5], "did not hold"), ([5, 10, 9], "not decided")],
)
def test_most_learn(learned: list[int], expected: str) -> None:
    """Of ten kernels so many learn, by seed."""
    runs = {f"kernel {i}": [{"learned": i < learned[seed]} for seed in SEEDS] for i in range(10)}
    assert verdict("most learn", evidence(runs)) == expected


@pytest.mark.parametrize(
    ("longest", "expected"),
    [((384, 384, 192), "held"), ((48, 48, 48), "did not hold"), ((24, 384, 24), "not decided")],
)
def test_reach_differs(longest: tuple[int, ...], expected: str) -> None:
    runs: dict[str, list[dict[str, object]]] = {
        "one": [{"reach": 24} for _ in SEEDS],
        "other": [{"reach": longest[seed]} for seed in SEEDS],
        # What was not learned has no reach, and does not count.
        "third": [{"learned": False, "reach": None} for _ in SEEDS],
    }
    assert verdict("reach differs", evidence(runs)) == expected


CASES = [(shifted(0.3), "held"), (shifted(-0.3), "did not hold"), (TORN, "not decided")]


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_length_scaling(by: tuple[float, ...], expected: str) -> None:
    """SSMax alone learned with the last seed, and LSSAR never."""
    runs = {
        "Softmax": [{"at_far": 0.5} for _ in SEEDS],
        "SSMax": [{"at_far": 0.5 + by[seed]} for seed in SEEDS],
        "LSSA": [{"at_far": 0.5 + by[seed], "learned": seed < 2} for seed in SEEDS],
        "LSSAR": [{"at_far": 9.0 * (1 - 2 * (by[seed] > 0)), "learned": False} for seed in SEEDS],
        "Linear": [{"at_far": 0.1} for _ in SEEDS],
    }
    assert verdict("length scaling", evidence(runs)) == expected


@pytest.mark.parametrize(
    ("signs", "expected"), [((1, 1, 1), "held"), ((-1, -1, -1), "did not hold"), ((1, -1, 1), "not decided")]
)
def test_speed_costs_reach(signs: tuple[int, ...], expected: str) -> None:
    """The accuracy falls with the speed in the seeds of sign 1; two neighbors change places in one of them."""
    runs: dict[str, list[dict[str, object]]] = {}
    for i in range(6):
        places = [i, {0: 1, 1: 0}.get(i, i), i]
        runs[f"kernel {i}"] = [
            {"speed": 1.0 + i, "at_far": 0.5 - 0.05 * signs[seed] * places[seed]} for seed in SEEDS
        ]
    assert verdict("speed costs reach", evidence(runs)) == expected
    few = {name: runs[name] for name in list(runs)[:4]}
    assert verdict("speed costs reach", evidence(few)) == "not decided"


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_faster(by: tuple[float, ...], expected: str) -> None:
    for kind, name in (("Linear", "linear attention is faster"), ("SlidingWindow", "a window of 64 is faster")):
        assert verdict(name, evidence({kind: [{"speed": 1.0 + by[seed]} for seed in SEEDS]})) == expected


def test_page_shows_what_the_frames_hold() -> None:
    """A kernel that the registry no longer knows stays on the page, the best first."""
    found = evidence({"Forgotten": [{"at_far": 0.2 + one} for one in JITTER[:3]], "Softmax": [{"at_far": 0.9}] * 3})
    assert ranking(found) == ["Softmax", "Forgotten"]
