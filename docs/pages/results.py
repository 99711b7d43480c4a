"""Result pages and figures of the studies in ``experiments/``, the page of all claims, and the headlines of the front
page. Verdicts, numbers and thresholds come from the records of the studies."""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from pages.markdown import page, raw
from sparsity_lab.settings import counted
from sparsity_lab.studies import load_study
from sparsity_lab.studies.loading import results_folder

__all__ = ["pages"]

HEADLINES = {
    "Sparsity": ("Accuracy falls more with length if k, the number of needed tokens, is larger.", "sparse_parity"),
    "Predicted position coupling": ("Predicted position IDs extrapolate as far as given ones.", "coupling"),
    "Softplus attention": ("Re-weighted, the loss is stable beyond the trained length.", "softplus_extrapolation"),
    "Norm-aware linear attention": ("Longer queries attend to fewer keys, as in softmax attention.", "norm_aware"),
    "Longer contexts": ("Fine-tuning with shifted sparse attention, tested dense.", "context_extension"),
    "Adaptive sparse attention": ("A quarter of the pairs is enough for recall at 2048 tokens.", "adaptive_budget"),
}  # fmt: skip
"""What each line of work claims, and the study whose claims named ``headline_`` test it."""

EXACT = {
    "Reach, predicted at the trained length": (
        "Background tokens of short sequences get the weight that they have in a longer sequence. Any further error "
        "at the longer length comes from positions.", "predict_reach", None,
    ),
    "Attention to the tokens that decide": (
        "The true sources are known, so the mass on them can be measured as sequences grow.",
        "attention_anatomy", "mass kept",
    ),
    "The effect of one wrong key": (
        "A key that is known not to be a source gets the score of the best key. The weights stay the same.",
        "swap_attention", "distractors, passkey",
    ),
}  # fmt: skip
"""Results that need data whose truth is known."""

Claim = dict[str, Any]


def pages(source: Path) -> dict[str, str]:
    experiments = source.parent / "experiments"
    table = (experiments / "README.md").read_text(encoding="utf-8").replace("/result.md)", ".md)")
    made = {
        "results/README.md": table,
        "headlines.md": _headlines(experiments),
        "claims.md": _claims_page(experiments),
    }
    for result in sorted(experiments.glob("*/result.md")):
        name = result.parent.name
        made[f"results/{name}.md"] = result.read_text(encoding="utf-8").replace("](result.svg)", f"]({name}.svg)")
        made[f"results/{name}.svg"] = result.with_suffix(".svg").read_text(encoding="utf-8")
    return made


def _headlines(experiments: Path) -> str:
    """A card for each line of work, and for each result that needs exact truth."""
    first = "".join(
        _card(title, words, study, _headline_claims(experiments, study))
        for title, (words, study) in HEADLINES.items()
    )
    second = "".join(
        _card(
            title, words, study, [one for one in _claims(experiments, study) if name is None or one["id"] == name][:1]
        )
        for title, (words, study, name) in EXACT.items()
    )
    return page(
        raw(f'<div class="cards">{first}</div>'),
        "## Results that need a known truth",
        raw(f'<div class="cards">{second}</div>'),
    )


def _headline_claims(experiments: Path, study: str) -> list[Claim]:
    return [one for one in _claims(experiments, study) if one["id"].startswith("headline_")]


def _claims(experiments: Path, name: str) -> list[Claim]:
    """The claims of a study, as its record has them; without a verdict where there is no result."""
    record = results_folder(experiments / name) / "result.json"
    if record.is_file():
        claims: list[Claim] = json.loads(record.read_text(encoding="utf-8"))["claims"]
        return claims
    study = load_study(experiments / name)
    return [
        {
            "id": one.name, "statement": one.statement, "rule": one.rule, "primary": one.name in study.primary,
            "verdict": "not run", "estimate": None, "low": None, "high": None, "seeds": 0, "unit": "",
            "source": one.source, "cannot_tell": None, "more_seeds": 0, "e_values": [],
        }
        for one in study.claims
    ]  # fmt: skip


def _card(title: str, words: str, study: str, claims: list[Claim]) -> str:
    run = any(one["verdict"] != "not run" for one in claims)
    name = f'<a href="generated/results/{study}.html">{escape(title)}</a>' if run else escape(title)
    rows = "".join(
        f"<li>{_badge(one['verdict'])} {escape(one['statement'])}{_interval_picture(one)}</li>" for one in claims
    )
    return f'<section class="card"><h3>{name}</h3><p>{escape(words)}</p><ul>{rows}</ul></section>'


def _badge(verdict: str) -> str:
    return f'<strong class="verdict {verdict.replace(" ", "-")}">{escape(verdict)}</strong>'


def threshold(claim: Claim) -> str:
    """What is asked of the numbers, in words: the last part of the rule."""
    found = re.search(
        r"(In more than half of all seeds the number is [^;]*?|The mean over all seeds[^;]*?)\.(\s|$)", claim["rule"]
    )
    return found[1] if found else claim["rule"]


def _bound(claim: Claim) -> float | None:
    if claim["unit"] == "of the seeds":
        return 0.5
    found = re.search(r"is (?:above|below) (-?[\d.]+\d|-?\d)", threshold(claim))
    return float(found[1]) if found else None


def _interval_picture(claim: Claim) -> str:
    """The estimate, its confidence sequence and the bound on a line, with the numbers in words."""
    bound, ends = _bound(claim), [claim["low"], claim["estimate"], claim["high"]]
    if bound is None or None in ends:
        return ""
    low, middle, high = ends
    least, most = min(low, bound, 0.0), max(high, bound, 0.0)
    pad = 0.06 * (most - least or 1.0)

    def at(value: float) -> str:
        return f"{4 + 212 * (value - least + pad) / (most - least + 2 * pad):.1f}"

    words = f"{middle:.2f} [{low:.2f}, {high:.2f}] {claim['unit']}, {claim['seeds']} seeds; bound {bound:g}"
    parts = (
        f'<line x1="{at(bound)}" x2="{at(bound)}" y1="2" y2="22" stroke="currentColor" stroke-dasharray="3 2"/>',
        f'<line x1="{at(low)}" x2="{at(high)}" y1="12" y2="12" stroke="#3d8fcc" stroke-width="4"/>',
        f'<circle cx="{at(middle)}" cy="12" r="5" fill="#3d8fcc"/>',
    )
    opening = f'<svg role="img" aria-label="{escape(words)}" viewBox="0 0 220 24" width="220" height="24">'
    picture = f"{opening}{''.join(parts)}</svg><figcaption>{escape(words)}</figcaption>"
    return f'<figure class="interval">{picture}</figure>'


# --- all claims


def _claims_page(experiments: Path) -> str:
    studies = sorted(file.parent.name for file in experiments.glob("*/study.py"))
    rows = "".join(_group(experiments, name) for name in studies)
    head = "".join(
        f'<th scope="col">{word}</th>' for word in ("claim", "verdict and its reason", "estimate and criterion")
    )
    return page(
        "# All claims",
        "Every claim of every study, with its verdict, the reason for the verdict, and the estimate with its 90 % "
        "confidence sequence. The criterion was fixed before the runs. Seeds are added for primary claims. The other "
        "claims are exploratory.",
        raw(
            f'<div class="filters">{_FILTERS}</div><div class="scroll claims" tabindex="0" role="region" '
            f'aria-label="All claims"><table><thead><tr>{head}</tr></thead>{rows}</table></div>'
            f'<p id="claims-count" role="status"></p><script>{_SCRIPT}</script>'
        ),
    )


def _group(experiments: Path, study: str) -> str:
    claims = _claims(experiments, study)
    run = any(one["verdict"] != "not run" for one in claims)
    name = f'<a href="results/{study}.html">{study}</a>' if run else study
    rows = "".join(_row(one) for one in claims)
    return f'<tbody><tr class="study"><th colspan="3" scope="rowgroup">{name}</th></tr>{rows}</tbody>'


def _row(claim: Claim) -> str:
    kind = "primary" if claim["primary"] else "exploratory"
    cells = (
        f"{escape(claim['statement'])} <small>({kind}; source: {escape(claim['source'])})</small>",
        f"{_badge(claim['verdict'])}<br>{escape(_reason(claim))}",
        f"{_estimate(claim)}<br><small>{escape(threshold(claim))}</small>",
    )
    data = f'data-verdict="{claim["verdict"]}" data-kind="{kind}"'
    return f"<tr {data}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _reason(claim: Claim) -> str:
    """Why the verdict is what it is."""
    if claim["verdict"] == "not run":
        return "no runs yet"
    if claim["cannot_tell"]:
        return str(claim["cannot_tell"])
    names = ("that it holds", "that it does not", "that the effect is too small to matter")
    values = [f"{value:.3g} {name}" for value, name in zip(claim["e_values"], names, strict=False)]
    evidence = f"e-values: {', '.join(values)}; {claim['seeds']} seeds"
    if claim["verdict"] == "not decided" and claim["more_seeds"]:
        return f"{evidence}; about {counted(claim['more_seeds'], 'more seed')} would decide it"
    return evidence


def _estimate(claim: Claim) -> str:
    if claim["estimate"] is None:
        return "–"
    ends = "" if claim["low"] is None else f" [{claim['low']:.3f}, {claim['high']:.3f}]"
    return escape(f"{claim['estimate']:.3f}{ends} {claim['unit']}")


_FILTERS = (
    '<label>verdict <select id="by-verdict"><option value="">all</option><option>held</option>'
    "<option>did not hold</option><option>smaller than matters</option><option>not decided</option>"
    '<option>not run</option></select></label> <label>kind <select id="by-kind"><option value="">all</option>'
    '<option>primary</option><option>exploratory</option></select></label> <label>words <input id="by-words" '
    'type="search"></label>'
)

_SCRIPT = """
const fields = ["by-verdict", "by-kind", "by-words"].map((id) => document.getElementById(id));
function filter() {
  const [verdict, kind, words] = fields.map((field) => field.value.toLowerCase());
  let shown = 0;
  for (const row of document.querySelectorAll(".claims tr[data-verdict]")) {
    row.hidden = (verdict && row.dataset.verdict !== verdict) || (kind && row.dataset.kind !== kind)
      || !(row.textContent + row.parentNode.rows[0].textContent).toLowerCase().includes(words);
    shown += !row.hidden;
  }
  for (const group of document.querySelectorAll(".claims tbody")) {
    group.hidden = !group.querySelector("tr[data-verdict]:not([hidden])");
  }
  document.getElementById("claims-count").textContent = `${shown} claims`;
}
for (const field of fields) field.addEventListener("input", filter);
filter();
"""
