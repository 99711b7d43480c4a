"""``decide``: add seeds until the primary claims of a study are decided.

The e-values stay valid even if the claims are judged after every seed. So ``decide`` judges after every seed, or
after every core-minute if a seed takes less. The frames of the result hold all results so far, and are written at
each look. A seed that has rows is never run again, even if its folder is gone.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sparsity_lab.settings import SettingError, check_least
from sparsity_lab.studies.arms import Arm
from sparsity_lab.studies.claim import Claim, Decision
from sparsity_lab.studies.files import FoundResult, extended, read_found, write_found
from sparsity_lab.studies.outlook import Outlook, core_minutes_of_a_seed, outlook
from sparsity_lab.studies.rules import check_rules, fix_rules, fixed_rules
from sparsity_lab.studies.study import Size, Study
from sparsity_lab.sweeps import Results, Sweep
from sparsity_lab.sweeps.sweep import waves
from sparsity_lab.training import RunConfig, store
from sparsity_lab.training.folder import RunFolder

_SHORTEST = 1.0
"""The fewest core-minutes between two looks, because workers start again for each look."""
_ENOUGH = 3
"""The number of seeds after which arms are given up if all are at the ceiling or floor, none learned, they give no
number, or most of them fail."""


@dataclass(frozen=True)
class Review:
    """The state of a study at one look.

    >>> Review(decisions={}, open={}, minutes={"one": 0.5}, spent=1.0, failed={}).spent
    1.0

    Attributes:
        decisions: the decision on each primary claim, by name.
        open: the outlook of each claim that more seeds can decide, by name; the cheapest first.
        minutes: core-minutes per seed, by arm; None if no seed has finished.
        spent: core-minutes that the study's runs in the folder have taken.
        failed: the reasons why runs have no result, by id.
    """

    decisions: Mapping[str, Decision]
    open: Mapping[str, Outlook]
    minutes: Mapping[str, float | None]
    spent: float
    failed: Mapping[str, str]


def decide(
    study: Study,
    out: Path | str,
    folder: Path | str,
    run: Callable[[Sweep], Results],
    *,
    budget: float,
    size: Size = "small",
    at_once: int | None = None,
    command: str = "not recorded",
) -> Iterator[Review]:
    """Run seeds of the arms that open primary claims need, and judge the claims after each seed.

    It ends when every primary claim is decided, when the arms cannot decide them, or when the next seed would exceed
    the budget. A seed that has finished, in ``out`` or in the frames in ``folder``, is not run again. A seed that
    diverged has no number. A seed that failed is not run again in this call. After an interruption, the same call
    resumes.

    >>> def run_in_turn(sweep: Sweep) -> Results:
    ...     return run_sweep(sweep, "runs_of_tiny", Serial())
    >>> *_, last = decide(load_study("tiny_study"), "runs_of_tiny", "decided", run_in_turn, budget=0.01)
    >>> list(last.decisions)
    ['easier']

    Args:
        out: the store of the runs.
        folder: the folder of the result. Its frames are read first and written at each look; the page is written at
            the end.
        run: executes the runs of a sweep in ``out``, as ``run_sweep`` does.
        budget: core-minutes that the study's runs in ``out`` may take, existing runs included.
        at_once: seeds of each arm between two looks, if there are more workers than arms. None is one, or as many as
            take a core-minute.
        command: the command to show on the page.

    Raises:
        SettingError: there are no primary claims, the budget is not above 0, or the study lacks an arm. Or the frames
            have another size or other runs. Or the store or the frames were begun under other rules. In these cases
            nothing is run.
    """
    if not study.primary:
        raise SettingError("primary", "one to five names of the study's claims", study.primary)
    if not 0 < budget < math.inf:
        raise SettingError("budget", "a positive number of core-minutes", budget)
    check_least(1, at_once=at_once)
    arms = study.arms(size)
    claims = [claim for claim in study.claims if claim.name in study.primary]
    for claim in claims:
        for name in claim.arms:
            if name not in arms:
                raise SettingError(f"claim {claim.name!r}", "arms of the study", name, list(arms))
    found = read_found(study, Path(folder))
    if found.evidence is not None:
        _check_frames(found, arms, size, Path(folder))
    check_rules(study, found.facts.get("rules"), Path(folder))
    check_rules(study, fixed_rules(Path(out)), Path(out))
    fix_rules(study, Path(out))

    def looks() -> Iterator[Review]:
        known, failed = found, dict[str, str]()
        while True:
            known = _grown(study, Path(out), size, known, command)
            if known.evidence is not None:
                write_found(study, known, Path(folder), pages=False)
            look = _look(study, claims, arms, known, Path(out), size, failed)
            yield look
            chosen = _chosen(claims, arms, known, look, budget - look.spent, at_once)
            if not chosen:
                break
            results = run(Sweep(name=study.name, runs=tuple(chosen.values())))
            failed |= {one.run.id: one.reason for one in results.failures}
        if known.evidence is not None:
            write_found(study, known, Path(folder))

    return looks()


def _check_frames(found: FoundResult, arms: Mapping[str, Arm], size: Size, folder: Path) -> None:
    assert found.evidence is not None
    if (other := found.facts.get("size", size)) != size:
        raise SettingError(str(folder), f"a result of size {size}", other)
    for arm, seed, run in found.evidence.rows.select("arm", "seed", "run").unique(maintain_order=True).iter_rows():
        if arm not in arms or arms[arm].run(seed).id != run:
            raise SettingError(str(folder), "only rows of the study's own runs", f"{arm}, seed {seed}")


def _grown(study: Study, out: Path, size: Size, known: FoundResult, command: str) -> FoundResult:
    """The known results, extended by the runs that have finished since."""
    finished = {file.parent.name for file in out.glob(f"*/{store.FINISHED}")}
    own = study.runs(size, out)
    if known.evidence is None and not finished & own.keys():
        return known
    every = Sweep(name=study.name, runs=tuple(run for _, run in own.values()))
    return extended(study, Results(out, every), size, known, command)


def _look(
    study: Study,
    claims: Sequence[Claim],
    arms: Mapping[str, Arm],
    known: FoundResult,
    out: Path,
    size: Size,
    failed: Mapping[str, str],
) -> Review:
    spent = sum(
        float(RunFolder(out / run.id, run).timing["seconds"].sum()) / 60
        for wave in waves([run for _, run in study.runs(size, out).values()])
        for run in wave
    )
    names = dict.fromkeys(arm for claim in claims for arm in claim.arms)
    if known.evidence is None:
        nothing = dict.fromkeys((claim.name for claim in claims), Outlook(None, None))
        return Review({}, nothing, dict.fromkeys(names), spent, failed)
    rows = known.evidence.rows
    decisions = study.judge(known.evidence)
    still = {
        claim.name: outlook(claim, decisions[claim.name], len(study.primary), rows)
        for claim in claims
        if decisions[claim.name].verdict == "not decided" and not _given_up(claim, decisions[claim.name], rows)
    }
    cheapest = sorted(still, key=lambda name: math.inf if (one := still[name].core_minutes) is None else one)
    return Review(
        {claim.name: decisions[claim.name] for claim in claims},
        {name: still[name] for name in cheapest},
        {arm: core_minutes_of_a_seed(rows, (arm,)) for arm in names},
        spent,
        failed,
    )


def _given_up(claim: Claim, decision: Decision, rows: pl.DataFrame) -> bool:
    """Whether more seeds of these arms would decide nothing: the arms cannot decide the claim, or give no number."""
    seeds = [rows.filter(pl.col("arm") == arm)["seed"].n_unique() for arm in claim.arms]
    return min(seeds) >= _ENOUGH and (decision.cannot_tell is not None or decision.count == 0)


def _chosen(
    claims: Sequence[Claim],
    arms: Mapping[str, Arm],
    known: FoundResult,
    look: Review,
    left: float,
    at_once: int | None,
) -> dict[str, RunConfig]:
    """The runs before the next look, by id: the next seeds of the arms of open claims that fit in the budget."""
    have = set() if known.evidence is None else set(known.evidence.rows["run"])
    over = have | look.failed.keys()
    chosen: dict[str, RunConfig] = {}
    named = {claim.name: claim for claim in claims}
    for claim in (named[name] for name in look.open):
        own = [arms[name] for name in claim.arms]
        # Until the cost of a seed is known, only one seed is run: more seeds could far exceed the budget.
        known_cost = None not in [look.minutes[name] for name in claim.arms]
        wanted = (at_once if known_cost else 1) or _seeds_at_once(look, claim)
        added = failures = 0
        for seed in itertools.count(max(arm.first for arm in own)):
            runs = {name: arm.run(seed) for name, arm in zip(claim.arms, own, strict=True)}
            # A seed without a number in one arm is useless in the other arms.
            if any(run.id in look.failed for run in runs.values()):
                failures += 1
                if failures >= max(_ENOUGH, look.decisions[claim.name].count if look.decisions else 0):
                    break
                continue
            missing = {name: run for name, run in runs.items() if run.id not in over and run.id not in chosen}
            if not missing:
                added += any(run.id in chosen for run in runs.values())
                if added >= wanted:
                    break
                continue
            cost = 0.0 if known.evidence is None else core_minutes_of_a_seed(known.evidence.rows, missing) or 0.0
            if cost > left or left <= 0:
                break
            left -= cost
            chosen |= {run.id: run for run in missing.values()}
            added += 1
            if added >= wanted:
                break
    return chosen


def _seeds_at_once(look: Review, claim: Claim) -> int:
    """The number of seeds that take a core-minute, but not more than the claim needs."""
    minutes = [look.minutes[name] for name in claim.arms]
    each = sum(one or 0.0 for one in minutes)
    if None in minutes or each == 0:
        return 1
    needed = look.open[claim.name].seeds or _ENOUGH
    return max(1, min(math.ceil(_SHORTEST / each), needed))
