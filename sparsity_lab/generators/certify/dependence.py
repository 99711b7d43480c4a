"""Checks of independence: of the random choices behind a sequence, and of its targets.

All checks use one method. Under independence, a product of columns (see ``draws``), summed over sequences, is close
to normal. Bernstein's inequality bounds the probability of a large sum for any columns. The least likely product of
each kind is one finding, with its bound multiplied by the number of products. One matrix product computes the sums of
all pairs, and one for each column computes the sums of all triples.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparsity_lab.generators.certify.draws import Choices, Columns, choices_of, columns, draws_of, number_of_columns
from sparsity_lab.generators.certify.findings import Finding, certain, chi_square, largest, spread
from sparsity_lab.generators.certify.predictions import Predictions
from sparsity_lab.generators.certify.sequences import DrawnSequences
from sparsity_lab.generators.stream import Ints

Floats = NDArray[np.float32]
Real = NDArray[np.float64]
Complex = NDArray[np.complex64]

_MOST_TERMS = 10_000_000
_OVERHEAD = 1000  # sequences; their products take as long as the other work on a term
_FEWEST = 10_000  # sequences for a product of three: one that decides a target is off by 100 standard errors
_MOST_COMPLETE = 700  # columns; with more, pairs are compared by bits instead of all functions
_FEWEST_DIFFERENT = 1000  # targets that differ from the redrawn ones
_MOST_SLOTS = 8
_MOST_ANCHORS = 8
_NEAR = (-2, -1, 1, 2)
_MOST_VALUES = 8

CORRELATION = "correlation of two, or with a product"


def drawn_law(sample: DrawnSequences) -> Iterator[Finding]:
    """Choices with a declared law follow it, in training as well."""
    with_law = {name: draw for name, draw in (sample.draws or {}).items() if draw.law is not None}
    parts = {"": sample.draws}
    if with_law:
        count = len(sample.tokens)
        train = DrawnSequences.draw(sample.task, sample.seed, count, sample.length, name="train")
        parts["the training part: "] = train.draws
    for part, draws in parts.items():
        if draws != {}:
            yield certain("drawn_law", f"{part}sequences that the task can read", draws is not None)
        for name in with_law if draws else ():
            values, _, law = (draws or {})[name]
            assert law is not None
            counts = np.bincount(values[values >= 0], minlength=len(law))
            expected = np.append(law, np.zeros(len(counts) - len(law))) * counts.sum()
            yield from chi_square("drawn_law", f"{part}{name}", counts, expected)


def products(sample: DrawnSequences) -> Iterator[Finding]:
    """All choices of a sequence are independent: pairs in all their functions, triples in their bits."""
    choices = choices_of(sample)
    complete = number_of_columns(choices, True) <= _MOST_COMPLETE
    every = columns(choices, complete)
    what = "all functions" if complete else "bits"
    kinds = ", ".join(choices.names)
    if every.x.shape[1] > 1:
        pairs = _pairs(every)
        yield from _largest("products", f"two of {kinds}: {what}", pairs, _apart(every))
        yield from _lags(every, pairs[0], pairs[2])
    bits = columns(choices) if complete else every
    yield from _triples(sample.budget, "products", f"three of {kinds}: bits", bits)


def targets(sample: DrawnSequences) -> Iterator[Finding]:
    """A target is independent of up to three of the choices that it does not depend on. So is its noise."""
    if sample.truth.labels is None:
        return
    looked_at = spread(len(sample.slots), _MOST_SLOTS)
    budget = sample.budget / len(looked_at)
    of_all: Columns | None = None
    for slot in [sample.slots[j] for j in looked_at]:
        free = choices_of(sample).free
        label = columns(_one_choice(slot.label_index), complete=True)
        if not free.any() or label.x.shape[1] == 0:
            continue
        kinds = f"{slot.name}the target and %s of {', '.join(choices_of(sample).names)}: bits"
        if len(slot.rows) < len(sample.tokens):
            bits = columns(choices_of(sample).only(free, slot.rows))
        else:
            bits = of_all = of_all or columns(choices_of(sample).only(free))
        yield from _largest("targets", kinds % "one", _crossed(label, bits))
        yield from _anywhere("targets", f"{slot.name}the target and a token anywhere: bits", label, bits)
        # Single bits of the label, the lowest first. The budget limits the number of bits and of sequences.
        powers = [c for c in range(label.x.shape[1]) if label.function[c] & (label.function[c] - 1) == 0]
        each = 2.0 * bits.x.shape[1] ** 2
        looked = min(len(bits.x), max(_FEWEST, int(budget / each) - _OVERHEAD))
        some = bits if looked == len(bits.x) else bits.first(looked)
        for c in powers[: max(1, int(budget / (each * (looked + _OVERHEAD))))]:
            weight = label.x[:, c]
            about = f"{kinds}, bit {int(label.function[c]).bit_length() - 1} of the target"
            pairs = _pairs(some, weight[:looked], float(label.bound[c]))
            yield from _largest("targets", about % "two", pairs, _apart(bits))
            if c == powers[0]:
                yield from _triples(budget, "targets", about % "three", bits, weight, float(label.bound[c]))

    if sample.one_target and sample.noise.size:
        replaced = columns(_one_choice((sample.noise[:, 0] > 0).astype(np.int64)))
        bits = columns(choices_of(sample).only(choices_of(sample).free))
        subject = f"noise and three of {', '.join(choices_of(sample).names)}: bits"
        for weight, most in zip(replaced.x.T, replaced.bound.tolist(), strict=True):
            yield from _triples(budget, "targets", subject, bits, weight, most)


def bystanders(sample: DrawnSequences) -> Iterator[Finding]:
    """Where the task declares it, a target is independent of each token up to its position that is not its source. A
    target without sources is also independent of each pair. Whether a target is noise is independent of all tokens
    before it."""
    for slot in [sample.slots[j] for j in spread(len(sample.slots), _MOST_SLOTS)]:
        seen = np.arange(int(slot.positions.max()) + 1) <= slot.positions[:, None]
        tokens, unruled = slot.tokens[:, : seen.shape[1]], sample.has_sources and not slot.sizes.any()
        about: list[tuple[str, Ints, NDArray[np.bool_]]] = []
        if sample.truth.labels is not None and (sample.truth.label_free_bystanders or unruled):
            about.append(("the target", slot.label_index, seen & ~slot.is_source[:, : seen.shape[1]]))
        noise = sample.noise[slot.rows, slot.index] if sample.noise.size else np.empty(0, np.int64)
        if noise.size and (noise >= 0).all():
            about.append(("noise", (noise > 0).astype(np.int64), seen))
        for name, told, here in about:
            alike = np.arange(seen.shape[1])
            choices = Choices(np.where(here, tokens, -1), alike, alike >= 0, alike, ("tokens",))
            label, bits = columns(_one_choice(told), complete=True), columns(choices)
            if label.x.shape[1] == 0 or bits.x.shape[1] == 0:
                continue
            yield from _largest("bystanders", f"{slot.name}{name} and a token before", _crossed(label, bits))
            yield from _anywhere("bystanders", f"{slot.name}{name} and a token anywhere before: bits", label, bits)
            if unruled:
                pairs = _pairs(bits, label.x[:, 0], float(label.bound[0]))
                yield from _largest("bystanders", f"{slot.name}{name} and two tokens before", pairs, _apart(bits))


def near_sources(sample: DrawnSequences) -> Iterator[Finding]:
    """Tokens within two places of a source or a target are independent of each other, of all choices other than
    tokens, and of the target."""
    choices = choices_of(sample)
    tokens = choices.only(choices.free & (choices.position >= 0))
    if tokens.values.shape[1] == 0:
        return
    N, T = sample.tokens.shape
    aligned = np.full((N, T), -1)
    aligned[:, tokens.position] = tokens.values
    others = choices.only((choices.position < 0) & ~np.isin(choices.family, choices.family[choices.position >= 0]))
    of_all: Columns | None = None
    for slot in [sample.slots[j] for j in spread(len(sample.slots), _MOST_SLOTS)]:
        if len(slot.rows) < N:
            rest = columns(others.only(np.ones(len(others.family), bool), slot.rows), complete=True)
        else:
            rest = of_all = of_all or columns(others, complete=True)
        label = columns(_one_choice(slot.label_index), complete=True) if sample.truth.labels is not None else None
        anchors = [slot.sources[:, j] for j in spread(slot.sources.shape[1], _MOST_ANCHORS)] + [slot.positions]
        for a, anchor in enumerate(anchors):
            if np.ptp(anchor) == 0:
                continue  # the tokens near it are at fixed positions, which other checks cover
            places = np.where(anchor[:, None] >= 0, anchor[:, None] + np.array(_NEAR), -1)
            inside = (places >= 0) & (places < T)
            near = np.where(inside, aligned[slot.rows[:, None], places.clip(0, T - 1)], -1)
            varies = near.max(axis=0, initial=-1) > 0
            if not varies.any():
                continue
            own = columns(Choices.of(near[:, varies], "tokens near it"), complete=True)
            where = "the target" if a == len(anchors) - 1 else f"source {a + 1}"
            subject = f"{slot.name}two, one of them near {where}"
            among, across = (one[_apart(own)] for one in _pairs(own)), (one.reshape(-1) for one in _across(own, rest))
            z, bound, n = (np.concatenate(both) for both in zip(among, across, strict=True))
            yield from _largest("near_sources", subject, (z, bound, n))
            if label is not None:
                subject = f"{slot.name}the target and one near {where}"
                yield from _largest("near_sources", subject, _crossed(label, own))


def values(sample: DrawnSequences) -> Iterator[Finding]:
    """All sums of values, with signs, are uniformly distributed, for any number of values.

    With w = exp(2 pi i / q), or -1, a product of w^(+-x) over some of the values has mean zero. The check
    computes all products of six values in a row (of eight, if there are no more). It also computes the products of
    each value with all others and with all before it.
    """
    drawn = draws_of(sample)
    if "values" not in drawn or (P := drawn["values"].values.shape[1]) < 3:
        return
    of = drawn["values"].values
    width = P if P <= _MOST_VALUES else _MOST_VALUES - 2
    for turn in ("all residues", "parity"):
        found: list[tuple[Complex, Real, float]] = []
        for i in range(0, P - width + 1, width // 2):
            waves, bounds = _waves(of[:, i : i + width], turn)
            half = width // 2
            left, right = _signed(waves[:half], bounds[:half]), _signed(waves[half:], bounds[half:])
            products_of = left[0].T @ right[0]
            kept = left[2][:, None] + right[2] >= 2
            found.append((products_of[kept], np.outer(left[1], right[1])[kept], float(len(left[0]))))
        if width < P:
            waves, bounds = _waves(of, turn)
            found.append(_with_many(waves, bounds))
        bound = np.concatenate([most for _, most, _ in found])
        n = np.concatenate([np.full(len(most), cases) for _, most, cases in found])
        sums = np.concatenate([one for one, _, _ in found])
        # The real or the imaginary part of a complex sum of size z is at least z / sqrt 2.
        z = np.abs(sums) / np.sqrt(2 * np.maximum(n, 1))
        used = (bound > 0) & (n > 1)
        yield from largest("values", f"sums of values, {turn}", z[used], bound[used], n[used], CORRELATION, 2)


def _waves(values: Ints, turn: str) -> tuple[Complex, Real]:
    """(D, n) a function of each of D values with mean 0 and variance 1, for sequences that have all; (D,) bounds."""
    whole = values[(values >= 0).all(axis=1)].T
    waves = np.zeros(whole.shape, dtype=np.complex64)
    for j, column in enumerate(whole):
        q = 2 if turn == "parity" else max(2, int(column.max(initial=0)) + 1)
        wave = np.exp(2j * np.pi / q * np.arange(int(column.max(initial=0)) + 1))[column]
        if len(wave) and (size := float(wave.std())) > 1e-3:
            waves[j] = (wave - wave.mean()) / size
    return waves, np.abs(waves).max(axis=1, initial=0.0)


def _signed(waves: Complex, bounds: Real) -> tuple[Complex, Real, Ints]:
    """(n, 3^D) products of waves, conjugated or not; their bounds; their numbers of factors."""
    made, bound, size = [np.ones(waves.shape[1], dtype=np.complex64)], [1.0], [0]
    for wave, most in zip(waves, bounds.tolist(), strict=True):
        made += [one * factor for factor in (wave, wave.conj()) for one in made]
        bound += [one * most for one in bound] * 2
        size += [one + 1 for one in size] * 2
    return np.stack(made, axis=1), np.array(bound), np.array(size)


def _with_many(waves: Complex, bounds: Real) -> tuple[Complex, Real, float]:
    """Sums of products: of each wave or its conjugate with all waves before it, and with all others."""
    ones = np.ones((1, waves.shape[1]), np.complex64)
    before = np.cumprod(np.concatenate([ones, waves[:-1]]), axis=0)
    after = np.cumprod(np.concatenate([ones, waves[:0:-1]]), axis=0)[::-1]
    below = np.cumprod(np.append(1.0, bounds[:-1]))
    sums = [(factor * rest).sum(axis=1) for factor in (waves, waves.conj()) for rest in (before, before * after)]
    most = np.append(np.full(1, 0.0), (bounds * below)[1:])
    whole = np.full(len(bounds), np.prod(bounds))
    return np.concatenate(sums), np.concatenate([most, whole] * 2), float(waves.shape[1])


def noise(sample: DrawnSequences) -> Iterator[Finding]:
    """Noise replaces a label by each other label with equal probability."""
    shifts = sample.noise
    if shifts.size == 0:
        return
    L, rate = len(sample.truth.labels or ()), sample.truth.label_noise
    counts = np.bincount(shifts[shifts >= 0], minlength=L)
    expected = np.append(1 - rate, np.full(L - 1, rate / (L - 1))) * counts.sum()
    yield from chi_square("noise", "steps from the rule's label to the one put instead", counts, expected)


def redrawn(sample: DrawnSequences) -> Iterator[Finding]:
    """A target cannot be told from one redrawn from the exact predictor by one or two of the tokens before it.

    Given both labels and all tokens before, each of the two is the target with probability one half. So the sign of
    their difference is a fair coin. A sum of such signs has exactly Hoeffding's tail exp(-z^2 / 2), if the predictor
    is right.
    """
    seen = sample.predictions
    if not isinstance(seen, Predictions) or sample.truth.labels is None:
        return
    looked_at = spread(len(sample.slots), _MOST_SLOTS)
    for slot in [sample.slots[j] for j in looked_at]:
        other = slot.index_of(seen.redrawn[slot.where])
        rows = np.flatnonzero(other != slot.label_index)
        if len(rows) < _FEWEST_DIFFERENT:
            continue
        places = np.arange(int(slot.positions.max()) + 1)
        tokens = np.where(places <= slot.positions[rows, None], slot.tokens[rows, : len(places)], -1)
        signs = np.sign(columns(Choices(tokens, places, places >= 0, places, ("tokens",))).x)
        if signs.shape[1] == 0:
            continue
        each = 2.0 * signs.shape[1] ** 2
        allowed = max(_FEWEST, int(sample.budget / len(looked_at) / each) - _OVERHEAD)
        for bit in range(int(max(other.max(), slot.label_index.max())).bit_length()):
            change = ((slot.label_index[rows] >> bit) & 1) - ((other[rows] >> bit) & 1)
            told = np.flatnonzero(change)[:allowed]
            if len(told) < _FEWEST_DIFFERENT:
                continue
            some, sign = signs[told], change[told].astype(np.float32)
            sums = np.concatenate([(sign @ some)[None], (some * sign[:, None]).T @ some])
            present = np.abs(some)
            cases = np.concatenate([present.sum(axis=0)[None], present.T @ present]).astype(np.float64)
            kept = np.triu(np.ones(sums.shape, bool), 0) & (cases > 0)
            z, n = sums[kept] / np.sqrt(cases[kept]), cases[kept]
            subject = f"{slot.name}bit {bit} of the target and one or two of the tokens before it"
            yield from _largest("redrawn", subject, (z, np.zeros(len(z)), n))


def _one_choice(values: Ints) -> Choices:
    return Choices.of(values[:, None], "target", free=False)


def _largest(
    check: str, subject: str, sums: tuple[Real, Real, Real], of: NDArray[np.bool_] | slice = slice(None)
) -> Iterator[Finding]:
    """The least likely of the given sums, in the form that ``_pairs`` returns."""
    z, bound, n = (one[of] for one in sums)
    yield from largest(check, subject, z, bound, n, CORRELATION)


def _apart(of: Columns) -> NDArray[np.bool_]:
    """(C, C) True for pairs of columns of independent choices, in the upper triangle."""
    return np.asarray(np.triu(of.family[:, None] != of.family, 1))


def _crossed(label: Columns, of: Columns) -> tuple[Real, Real, Real]:
    """As ``_pairs``, of a label with all columns. A label is never absent and decides no other column's presence."""
    n = np.broadcast_to(of.number, (label.x.shape[1], of.x.shape[1]))
    return (label.x.T @ of.x) / np.sqrt(np.maximum(n, 1)), np.outer(label.bound, of.bound), n


def _across(one: Columns, other: Columns) -> tuple[Real, Real, Real]:
    """As ``_pairs``, of the columns of two sets of choices of the same sequences."""
    n = one.variances_with(other)
    z = (one.x.T @ other.x).astype(np.float64) / np.sqrt(np.maximum(n, 1))
    return z, np.outer(one.bound, other.bound), n


def _pairs(of: Columns, weight: Floats | None = None, most: float = 1.0) -> tuple[Real, Real, Real]:
    """(C, C) sums in standard errors, bounds of the terms, and numbers of terms. A weight has mean 0 and variance 1,
    and is independent of which choices are absent."""
    left = of.x if weight is None else of.x * weight[:, None]
    n = of.variances()
    z = (left.T @ of.x).astype(np.float64) / np.sqrt(np.maximum(n, 1))
    return z, most * np.outer(of.bound, of.bound), n


def _triples(
    budget: float, check: str, subject: str, of: Columns, weight: Floats | None = None, most: float = 1.0
) -> Iterator[Finding]:
    """The least likely product of three columns and the weight, over as many sequences as the budget allows. Needs
    ten thousand sequences (or all, if there are fewer), and at most ten million products."""
    N, C = of.x.shape
    if C < 3 or C**3 / 6 > _MOST_TERMS:
        return
    allowed = int(budget / (2 * C**3 / 3)) - _OVERHEAD
    if allowed < min(N, _FEWEST):
        return
    if allowed < N:
        of, weight = of.first(allowed), None if weight is None else weight[:allowed]
    worst, at = -1.0, (0.0, 1.0)
    terms, width = 0, max(16, C // 6)
    # Choices that decide whether others are made come first.
    of = of.ordered(np.argsort(~of.deciding, kind="stable"))
    bounds, apart = np.outer(of.bound, of.bound * most * 2 / 3).astype(np.float32), _apart(of)
    for c in range(C - 2):
        first = of.x[:, c] if weight is None else of.x[:, c] * weight
        if c == 0 or of.deciding[c] or of.choice[c] != of.choice[c - 1]:
            # The square of a column has mean 1, unless it decides whether others are present.
            start = c + 1
            square = of.x[:, c] if of.deciding[c] or of.present is None else of.present[:, of.choice[c]]
            n = np.maximum(of.variances(square, start), 1)
            twice = (2 * n).astype(np.float32)
        other = of.family != of.family[c]
        # Each pair of later columns is needed once, so the products are computed in strips above the diagonal.
        for a in range(c + 1, C, width):
            strip, rest = slice(a, min(a + width, C)), slice(a, C)
            kept = apart[strip, rest] & other[strip, None] & other[rest]
            if not kept.any():
                continue
            sums = (of.x[:, strip] * first[:, None]).T @ of.x[:, rest]
            # As ``bernstein``, for sums that are not divided by their standard errors.
            below = bounds[strip, rest] * np.abs(sums)
            below *= np.float32(of.bound[c])
            below += twice[a - start : strip.stop - start, a - start :]
            surprise = sums * sums
            surprise /= below
            surprise *= kept
            i, j = divmod(int(surprise.argmax()), C - a)
            terms += int(np.count_nonzero(kept))
            if surprise[i, j] > worst:
                worst = float(surprise[i, j])
                at = float(sums[i, j]), float(n[a - start + i, a - start + j])
    if terms:
        size, cases = at
        p_value = float(min(1.0, 2 * terms * np.exp(-worst)))
        yield Finding(check, subject, abs(size) / cases**0.5, p_value, CORRELATION, cases**-0.5, terms)


def _lags(of: Columns, z: Real, n: Real) -> Iterator[Finding]:
    """Pairs of tokens at one distance: for each two functions, the sum over all such pairs of a sequence."""
    aligned = np.flatnonzero(of.position >= 0)
    if len(aligned) == 0:
        return
    functions, f = np.unique(of.function[aligned], return_inverse=True)
    apart = of.position[aligned][None, :] - of.position[aligned][:, None]
    kept = apart > 0
    code = ((apart * len(functions) + f[:, None]) * len(functions) + f)[kept]
    cases = n[np.ix_(aligned, aligned)][kept]
    sums = z[np.ix_(aligned, aligned)][kept] * np.sqrt(cases)
    total, variance = np.bincount(code, weights=sums), np.bincount(code, weights=cases)
    members = np.bincount(code)
    bounds = np.zeros(len(total))
    np.maximum.at(bounds, code, np.outer(of.bound[aligned], of.bound[aligned])[kept])
    used = variance > 0
    N = float(len(of.x))
    # Each sequence contributes the sum of its pairs, whose variance is the mean over sequences.
    sizes = np.sqrt(variance[used] / N)
    bound = members[used] * bounds[used] / sizes
    together = total[used] / np.sqrt(variance[used])
    cases = np.full(together.shape, N)
    yield from largest(
        "products", "two tokens so many positions apart, anywhere", together, bound, cases, CORRELATION
    )


def _anywhere(check: str, subject: str, label: Columns, of: Columns) -> Iterator[Finding]:
    """The target and one function of a token, summed over all positions."""
    aligned = of.position >= 0
    for function in np.unique(of.function[aligned]).tolist():
        mine = np.flatnonzero(aligned & (of.function == function))
        sums = of.x[:, mine].sum(axis=1, dtype=np.float64)
        square = float((sums**2).mean())
        if square < 1e-9:
            continue
        # Tokens of a sequence are independent, so the variance of their sum is their number.
        present = float(of.number[mine].sum()) / len(of.x)
        z = (label.x.T @ sums) / np.sqrt(present * len(sums))
        bound = label.bound * float(of.bound[mine].max()) * len(mine) / np.sqrt(present)
        yield from largest(check, f"{subject} {function}", z, bound, np.full(z.shape, float(len(sums))), CORRELATION)
