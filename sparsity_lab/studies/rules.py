"""Rules that are fixed before the runs. The store of a study keeps a hash of each rule from the first run on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_lab.settings import SettingError
from sparsity_lab.training.files import write_file
from sparsity_lab.training.store import FINISHED, prepare_folder, read_object

if TYPE_CHECKING:
    from sparsity_lab.studies.study import Study

_RULES = "rules.json"

Rules = Mapping[str, str]
"""From the name of each claim to a hash of its rule, and from "primary" to the names of the primary claims."""


def fix_rules(study: "Study", out: Path) -> None:
    """Record the study's rules in the store of its runs, unless it has rules. Also records whether it already had
    runs.

    >>> fix_rules(load_study("tiny_study"), Path("fixed"))
    """
    if fixed_rules(out) is None:
        prepare_folder(out)
        late = any(True for _ in out.glob(f"*/{FINISHED}"))
        record = {"study": study.name, "rules": study.rules(), **({"after_runs": True} if late else {})}
        write_file(out / _RULES, json.dumps(record, indent=1).encode())


def came_after_runs(out: Path) -> bool:
    """Whether a store had finished runs when rules were recorded in it."""
    return bool(_record(out).get("after_runs"))


def fixed_rules(out: Path) -> dict[str, str] | None:
    """The rules recorded in a store; None if there are none."""
    rules = _record(out).get("rules")
    return {str(name): str(rule) for name, rule in rules.items()} if isinstance(rules, dict) else None


def _record(out: Path) -> dict[str, Any]:
    """The record in a store. The path of the store can be a link."""
    return read_object(out.resolve() / _RULES) or {}


def changed_rules(study: "Study", fixed: Rules | None) -> list[str]:
    """Names of the claims whose rules differ from the fixed ones, including claims that were added later. If the set
    of primary claims changed, all primary claims are included: the evidence that decides one depends on their
    number."""
    if fixed is None:
        return [claim.name for claim in study.claims]
    others = fixed.get("primary") != study.rules()["primary"]
    return [
        claim.name
        for claim in study.claims
        if fixed.get(claim.name) != claim.rule_id or (others and claim.name in study.primary)
    ]


def check_rules(study: "Study", fixed: Rules | None, place: Path) -> None:
    """Check that the primary claims and their rules are those that were fixed in ``place``.

    Raises:
        SettingError: they have changed.
    """
    if fixed is None:
        return
    own = study.rules()
    if fixed.get("primary") != own["primary"]:
        raise SettingError(
            str(place), f"the primary claims fixed at the start, {fixed.get('primary')}", own["primary"]
        )
    for name in changed_rules(study, fixed):
        if name in study.primary:
            raise SettingError(str(place), f"the rule of {name!r} has changed since the study started")
