"""Is length generalization to be expected on this data? First a look at the data without a model (``look``), up to
the longest sequence; then three steps inside a horizon, the trained length.

1. How many earlier tokens does a target need (k), and how far away are they (locality)? With labels they are counted;
   without, ``dependency_sparsity`` asks the model of step 2.
2. A small model is trained on short windows and tested on long ones.
3. The same with one other position scheme, all else equal.

Its limits: without labels, it misses a dependency that the small model did not learn, or that is longer than the
trained length. A larger model may also learn and extrapolate more than this one.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64
from matplotlib.axes import Axes
from torch import Tensor, nn

from sparsity_lab.analysis.dependencies.sparsity import DependencySparsity, dependency_sparsity
from sparsity_lab.analysis.diagnosis.look import Beyond, DataLook, look_at
from sparsity_lab.analysis.diagnosis.token_data import Ints, TokenData
from sparsity_lab.analysis.diagnosis.verdict import (
    Answer,
    Thresholds,
    at_least,
    few_answer,
    gain_answer,
    reach_answer,
    scheme_answers,
    verdict_of,
)
from sparsity_lab.analysis.diagnosis.windows import (
    LengthComparison,
    TokenWindows,
    Trained,
    compare_lengths,
    near_share,
    train_short,
)
from sparsity_lab.analysis.length_axis import TrainedRange, length_axis
from sparsity_lab.analysis.lines import draw_curve, draw_level, name_lines, note_below
from sparsity_lab.analysis.measurement import Measurement, rows_frame
from sparsity_lab.analysis.output import write_whole
from sparsity_lab.analysis.report.page import Section, page
from sparsity_lab.analysis.statistics import Interval, quantile_over_groups
from sparsity_lab.analysis.style import figure_svg, new_axes, styled
from sparsity_lab.analysis.style import look as style_of
from sparsity_lab.models import ALiBi, Decoder, PositionScheme, RoPE
from sparsity_lab.settings import SettingError, check_least
from sparsity_lab.settings.markup import Markup, details, element, join, table
from sparsity_lab.training import Progress, Training, UniformLength

_POSITION, _OTHER, _MODEL, _THRESHOLDS = RoPE(), ALiBi(), Decoder(), Thresholds()
_LEAST_GAIN = 0.5
"""Nats from context of a target that is searched."""

StepProgress = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it is done, and how much there is; None if that is not known."""


@dataclass(frozen=True, repr=False)
class Diagnosis(Measurement):
    """What ``diagnose`` found.

    >>> data = TokenData.of([np.arange(400) % 7 + one for one in range(6)])
    >>> small = Decoder(num_layers=1, num_heads=2, d_model=16)
    >>> found = diagnose(data, length=10, longest=2, model=small, steps=5)
    >>> found.trained, found.labeled
    (10, False)

    Attributes:
        verdict: ``expected``, ``not expected`` or ``not decided``.
        answers: the questions behind it.
        trained: L, the longest trained window.
        k: median number of important tokens of a target; nothing if the model that was asked learned nothing.
        reach: distance within which most of them lie.
        near: share of the gain over frequencies that the near tokens alone give the model; nothing with labels, or if
            it learned nothing.
        labeled: whether ``k`` and ``reach`` are counted from labels; else a model was asked.
        dependencies: what the model said; None with labels.
        beyond: what lies farther than the trained length, where no model was asked.
        look: what pairs of tokens and repeats could gain, without a model, at every distance.
        thresholds: of the answers.
    """

    verdict: str
    answers: tuple[Answer, ...]
    trained: int
    k: Interval
    reach: Interval
    near: Interval
    labeled: bool
    dependencies: DependencySparsity | None
    look: DataLook
    beyond: Beyond
    thresholds: Thresholds
    _tests: dict[str, list[LengthComparison]]
    _models: dict[str, Trained]
    _search_seconds: float
    _look_seconds: float
    _longest_trainable: int

    def horizon(self) -> list[str]:
        """What belongs under the verdict: how far was looked, what lies beyond, what each scheme keeps and what that
        costs, and what to do."""
        longest = max(test.length for tests in self._tests.values() for test in tests)
        source = "counted from labels" if self.labeled else f"asked inside {self.trained} tokens"
        lines = [
            f"Horizon: trained on up to {self.trained} tokens, tested on up to {longest}; needs were {source}.",
            f"Without a model, pairs of tokens up to {self.look.longest_lag:,} apart and repeats up to "
            f"{self.look.longest:,}: {self.beyond}.",
        ]
        last = {position: tests[-1] for position, tests in self._tests.items()}
        best = min(test.loss_short for test in last.values())
        times = longest // self.trained
        for position, test in last.items():
            if not at_least(test.learned, self.thresholds.learned):
                lines.append(f"{position} learned nothing that is sure (loss {test.loss_short:.2f} nats).")
                continue
            kept = "an unknown share" if test.kept.estimate is None else f"{test.kept.estimate:.0%}"
            price = test.loss_short - best
            cost = f"and costs {price:.2f} nats" if price > 0.005 else "with the lowest loss"
            loss = f"{test.loss_short:.2f} nats a target"
            lines.append(f"{position} keeps {kept} of its gain at {times}x, {cost} at the trained length ({loss}).")
        return [*lines, self._advice(last, times)]

    def _advice(self, last: Mapping[str, LengthComparison], times: int) -> str:
        learned = {name: test for name, test in last.items() if at_least(test.learned, self.thresholds.learned)}
        keeping = {name: test for name, test in learned.items() if (test.kept.estimate or 0) >= self.thresholds.kept}
        if self.beyond.matters:
            far = (
                self.beyond.distance if self.beyond.gain is self.beyond.repeats else self.beyond.lag
            ) or self.trained
            wanted, most = 2 ** math.ceil(math.log2(max(2, far))), self._longest_trainable
            if far <= most:
                wanted = min(wanted, most)
                return f"Advice: train on longer windows, --length {wanted}, to have what lies at {far:,} tokens."
            return (
                f"Advice: longer sequences. To have what lies at {far:,} tokens takes --length {far} or more, and "
                f"these allow {most} at most with --longest {times}."
            )
        if keeping:
            name = min(keeping, key=lambda own: keeping[own].loss_short)
            return f"Advice: of these schemes {name}, which keeps what it learned at the lowest loss."
        if learned:
            return "Advice: another position scheme (--other), or training on the lengths that will be met."
        return "Advice: more steps or a larger model (--steps, --model), or more data; nothing sure was learned."

    def frame(self) -> pl.DataFrame:
        """One row per position scheme and test length.

        Columns: ``position``, ``length``, ``windows``, and losses in nats per target: ``loss_single`` (frequencies),
        ``loss_short`` (from the last L tokens) and ``loss_long`` (from all n). ``learned`` is the gain over
        frequencies as a share of their loss. ``kept`` is the share of the gain that remains. Both have a 95 %
        interval, ``_low`` and ``_high``, over sequences, or over stretches of them if there are fewer than six.
        """
        rows = []
        for position, tests in self._tests.items():
            for test in tests:
                row: dict[str, Any] = {"position": position, "length": test.length, "windows": test.windows}
                row |= {name: getattr(test, name) for name in ("loss_single", "loss_short", "loss_long")}
                rows.append(row | test.learned.columns("learned", "learned_") | test.kept.columns("kept", "kept_"))
        return rows_frame(rows)

    def summary(self) -> pl.DataFrame:
        """Losses and what is kept, by scheme and length."""
        return self.frame().select("position", "length", "loss_short", "loss_long", "kept", "kept_low", "kept_high")

    def cost(self) -> pl.DataFrame:
        """One row per step: ``step``, ``seconds``, ``parameters``, ``tokens`` (seen in training)."""
        rows: list[tuple[str, float, int | None, int | None]] = [
            ("look at the data", self._look_seconds, None, self.look.tokens)
        ]
        if not self.labeled:
            rows.append(("search dependencies", self._search_seconds, None, None))
        for position, one in self._models.items():
            parameters = sum(parameter.numel() for parameter in one.model.parameters())
            rows.append((f"train {position}", one.seconds, parameters, one.tokens))
        return pl.DataFrame(rows, schema=["step", "seconds", "parameters", "tokens"], orient="row")

    def tables(self) -> dict[str, pl.DataFrame]:
        """The three steps and their cost, for a terminal: a frame under each title."""
        columns = ["length", "windows", "loss_short", "loss_long", "kept", "kept_low", "kept_high"]
        first, other = self._tests
        source = "labels" if self.labeled else "the trained model"
        rows = {
            "tokens that a target needs, k (median)": self.k,
            f"distance within which {self.thresholds.local_share:.0%} of them lie": self.reach,
        }
        if not self.labeled:
            near = self.thresholds.local_reach * self.trained
            rows[f"share of the gain that the last {near:g} tokens alone give"] = self.near
        title = f"1. Needs of targets, from {source} (k above {self.thresholds.most_tokens}: more than that)"
        needs = [{"": name, **value.columns("estimate")} for name, value in rows.items()]
        seen = self.look.frame()
        far = pl.col("distance") > self.trained
        most = [seen.filter(own).sort("gain", descending=True).head(4) for own in (~far, far)]
        found = {"0. Without a model: what could gain most, near and beyond (nats a token)": pl.concat(most)}
        found |= {title: rows_frame(needs)}
        if self.dependencies is not None and len(self.dependencies.distances()):
            nearest = self.dependencies.distances().sort("tokens", descending=True, maintain_order=True).head(8)
            found["   Commonest distances of needed tokens"] = nearest.drop("cumulative")
        for step, position in ((2, first), (3, other)):
            title = f"{step}. Trained on up to {self.trained} tokens with {position}, tested longer (nats a target)"
            found[title] = self.frame().filter(pl.col("position") == position).select(columns)
        return found | {"Cost": self.cost()}

    def to_data(self) -> dict[str, Any]:
        """All numbers as plain data."""
        return {
            "verdict": self.verdict,
            "horizon": self.horizon(),
            "beyond": dataclasses.asdict(self.beyond),
            "answers": [dataclasses.asdict(answer) for answer in self.answers],
            "trained_length": self.trained,
            **{
                name: own.columns("estimate") | {"count": own.count}
                for name, own in (("k", self.k), ("reach", self.reach), ("near", self.near))
            },
            "labeled": self.labeled,
            "thresholds": dataclasses.asdict(self.thresholds),
            "needed": None if self.dependencies is None else self.dependencies.needed().to_dicts(),
            "distances": None if self.dependencies is None else self.dependencies.distances().to_dicts(),
            "look": self.look.frame().to_dicts(),
            "tests": self.frame().to_dicts(),
            "cost": self.cost().to_dicts(),
        }

    def model(self, position: str) -> nn.Module:
        """The trained model of a position scheme."""
        if position not in self._models:
            raise SettingError("position", "a scheme that was tested", position, list(self._models))
        return self._models[position].model

    @property
    def finding(self) -> str:
        """The verdict."""
        return f"Length generalization on this data: {self.verdict}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what is kept against the test length for both schemes, with the threshold; returns the axes."""
        frame = self.frame()
        with styled():
            ax = new_axes(5.6, 3.4) if ax is None else ax
            for index, position in enumerate(self._tests):
                part = frame.filter(pl.col("position") == position).drop_nulls("kept")
                band: dict[str, Any] = {"low": part["kept_low"], "high": part["kept_high"]}
                draw_curve(ax, part["length"], part["kept"], style_of(index), position, **band)
            draw_level(ax, self.thresholds.kept, f"threshold, {self.thresholds.kept:g}")
            length_axis(
                ax,
                frame["length"].unique().sort().to_list(),
                TrainedRange(min(self.trained, max(1, self.trained // 2)), self.trained, True),
                "test length (tokens, log scale)",
            )
            shown = [value for name in ("kept", "kept_low", "kept_high") for value in frame[name].drop_nulls()]
            ax.set_ylim(min([0.0, *shown]) - 0.05, max([1.05, *shown]) + 0.05)
            ax.set_ylabel("share of the gain over\nfrequencies that is kept")
            name_lines(ax)
            empty = [position for position in self._tests if frame.filter(position=position)["kept"].count() == 0]
            note_below(ax, [f"{position}: nothing learned" for position in empty])
        return ax

    def __repr__(self) -> str:
        source = "labels" if self.labeled else "the trained model"
        lines = [f"Length generalization on this data: {self.verdict}", f"k and locality are from {source}."]
        return "\n".join([*lines, *(f"  {answer}" for answer in self.answers), *self.horizon()])


def diagnose(
    data: TokenData | Sequence[Ints],
    *,
    length: int = 32,
    longest: int = 4,
    position: PositionScheme = _POSITION,
    other: PositionScheme = _OTHER,
    model: Decoder = _MODEL,
    steps: int = 600,
    batch_size: int = 32,
    targets: int = 64,
    windows: int = 256,
    thresholds: Thresholds = _THRESHOLDS,
    seed: int = 0,
    progress: StepProgress | None = None,
) -> Diagnosis:
    """Estimate k and locality, train short and test long under two position schemes, and give a verdict.

    >>> data = TokenData.of([np.arange(400) % 7 + one for one in range(6)])
    >>> small = Decoder(num_layers=1, num_heads=2, d_model=16)
    >>> diagnose(data, length=10, longest=2, model=small, steps=5).trained
    10

    Args:
        data: ``read_tokens(paths, labels)``, ``TokenData.of(sequences, labels)``, or sequences alone.
        length: L, the longest trained window; windows of L / 2 .. L tokens are trained on.
        longest: the longest test window as a multiple of L; 1, 2, 4 .. times L are tested.
        position, other: the two schemes.
        model: of both; its ``position`` is not used.
        steps, batch_size: of training.
        targets: searched for their dependencies, at most, of those that gain from context.
        windows: tested at each length, at most.
        thresholds: of the verdict.
        seed: of weights, training windows and random tokens.
        progress: see ``StepProgress``.

    Raises:
        SettingError: names the argument, what was expected and what came; also for data that are too short.
        Diverged: a training run stopped being finite.
    """
    if not isinstance(data, TokenData):
        data = TokenData.of(data)
    _check_numbers(thresholds, length=length, longest=longest, targets=targets, windows=windows, steps=steps)
    if str(position) == str(other):
        raise SettingError("other", f"a position scheme other than {position}", other)
    train, test = (TokenWindows(part, data.vocab_size) for part in data.split())
    lengths = _test_lengths(length, longest)
    _check_room(data, train, test, length, lengths[-1])
    curriculum = UniformLength(low=max(1, length // 2), high=length)
    training = Training(steps=steps, batch_size=batch_size, curriculum=curriculum)
    tell = progress or (lambda *_: None)
    tell("looking at the data", 0, None)
    started = time.perf_counter()
    look = look_at(data, seed)
    beyond = look.beyond(length)
    look_seconds = time.perf_counter() - started
    models: dict[str, Trained] = {}
    tests: dict[str, list[LengthComparison]] = {}
    for scheme in (position, other):
        name = str(scheme)
        models[name] = train_short(train, model.replace(position=scheme), training, seed, _telling(tell, name))
        tell(f"testing {name} on long windows", 0, None)
        tests[name] = compare_lengths(models[name], train, test, length, lengths, windows)
    begun = time.perf_counter()
    near = Interval()
    if data.labels is None:
        tell("searching dependencies", 0, None)
        best = min(tests, key=lambda name: tests[name][0].loss_short)
        dependencies = _searched(models[best], test.spread(windows, length), targets, thresholds, seed)
        k, reach = dependencies.k, dependencies.reach(thresholds.local_share)
        near = near_share(models[best], train, test, max(1, int(thresholds.local_reach * length)), length, windows)
        if not at_least(tests[best][0].learned, thresholds.learned):
            k = reach = near = Interval()  # what a model that knows nothing needs is not what the data need
        few, local = few_answer(k, thresholds), gain_answer(near, length, thresholds)
    else:
        dependencies = None
        k, reach = _from_labels(data, thresholds)
        few, local = few_answer(k, thresholds), reach_answer(reach, length, thresholds)
    last = {name: own[-1] for name, own in tests.items()}
    pairs = [scheme_answers(name, test.learned, test.kept, thresholds) for name, test in last.items()]
    return Diagnosis(
        verdict=verdict_of(few, local, pairs),
        answers=(few, local, *(answer for pair in pairs for answer in pair)),
        trained=length,
        k=k,
        reach=reach,
        near=near,
        labeled=data.labels is not None,
        dependencies=dependencies,
        look=look,
        beyond=beyond,
        thresholds=thresholds,
        _tests=tests,
        _models=models,
        _search_seconds=time.perf_counter() - begun,
        _look_seconds=look_seconds,
        _longest_trainable=min(int(train.sizes.max()) - 1, (int(test.sizes.max()) - 1) // longest),
    )


def _check_numbers(thresholds: Thresholds, **numbers: int) -> None:
    # A window has room for more tokens than count as few, in its nearer half too.
    least = {"length": 2 * (1 + thresholds.most_tokens), "steps": 1}
    for name, value in numbers.items():
        check_least(least.get(name, 2), **{name: value})


def _test_lengths(length: int, longest: int) -> list[int]:
    """1, 2, 4 .. times the trained length, and ``longest`` times it."""
    doublings = [2**i for i in range(longest.bit_length())]
    return [length * times for times in dict.fromkeys([*doublings, longest])]


def _telling(tell: StepProgress, position: str) -> Progress:
    def show(done: int, total: int, loss: float, _accuracy: float) -> None:
        tell(f"training with {position}, loss {loss:.3f}", done, total)

    return show


@torch.no_grad()
def _searched(
    trained: Trained, windows: tuple[Int64[Tensor, "N n"], Ints], targets: int, thresholds: Thresholds, seed: int
) -> DependencySparsity:
    """What the last targets of windows need, from a model that may see them with any tokens hidden; at most so many
    targets, of those that gain from context."""
    contexts, groups = windows
    tokens = contexts[:, :-1]
    without, whole = (
        trained.predict(tokens, torch.full_like(tokens, shown, dtype=torch.bool)).double().log_softmax(-1)
        for shown in (0, 1)
    )
    gaining = np.flatnonzero((whole - without).gather(1, contexts[:, -1:])[:, 0].numpy() >= _LEAST_GAIN)
    gaining = gaining if len(gaining) else np.arange(len(tokens))
    count = min(targets, len(gaining))
    own = gaining[(2 * np.arange(count) + 1) * len(gaining) // (2 * count)]
    return dependency_sparsity(
        trained.predict,
        contexts[own],
        near=0,
        largest=thresholds.most_tokens,
        share=thresholds.enough,
        least_gain=_LEAST_GAIN,
        groups=groups[own].tolist(),
        seed=seed,
    )


def _check_room(data: TokenData, train: TokenWindows, test: TokenWindows, length: int, longest: int) -> None:
    for part, own, size in (("training", train, length), ("test", test, longest)):
        if int(own.sizes.max(initial=0)) <= size:
            split = "every fifth sequence" if len(data.sequences) >= 10 else "the last fifth of each sequence"
            most = int(own.sizes.max(initial=0))
            need = f"the {part} part needs a sequence of more than {size} tokens, but its longest has {most}"
            raise SettingError("data", f"{need} (the test part is {split})")


def _from_labels(data: TokenData, thresholds: Thresholds) -> tuple[Interval, Interval]:
    """k and reach of what the labels say that targets need."""
    needs = [(i, target, sources) for i, own in enumerate(data.needs()) for target, *sources in own]
    counts = np.array([(len(sources), i) for i, _, sources in needs]).reshape(-1, 2)
    distances = [(target - source, i) for i, target, sources in needs for source in sources]
    far = np.array(distances, dtype=np.int64).reshape(-1, 2)
    k = quantile_over_groups(counts[:, 0], counts[:, 1], 0.5)
    return k, quantile_over_groups(far[:, 0], far[:, 1], thresholds.local_share)


def write_diagnosis(found: Diagnosis, path: Path | str, *, files: tuple[str, ...] = ()) -> Path:
    """Write the verdict with its horizon, both figures and all numbers as a page that needs nothing but itself.

    >>> data = TokenData.of([np.arange(400) % 7 + one for one in range(6)])
    >>> small = Decoder(num_layers=1, num_heads=2, d_model=16)
    >>> write_diagnosis(diagnose(data, length=10, longest=2, model=small, steps=5), "diagnosis.html").name
    'diagnosis.html'

    Args:
        files: how the data were read, for people.

    Raises:
        SettingError: a file that cannot be written.
    """
    answers = [(one.question, one.word, one.found) for one in found.answers]
    verdict = join([
        element("p", element("b", found.verdict)),
        table(["question", "answer", "found"], answers),
        element("ul", *(element("li", line) for line in found.horizon())),
        element("p", "; ".join(files)),
    ])  # fmt: skip
    rows = {title.strip(): frame for title, frame in found.tables().items()}
    tables = join(details(title, table(frame.columns, frame.iter_rows())) for title, frame in rows.items())
    sections = [
        Section("verdict", "Verdict and horizon", verdict),
        Section("look", "Without a model", join([_figure(found.look), element(
            "p", f"From {found.look.tokens:,} tokens; the longest sequence has {found.look.longest:,}.")])),
        Section("kept", "What is kept on long windows", _figure(found)),
        Section("numbers", "Numbers", tables),
    ]  # fmt: skip
    return write_whole(Path(path), page("Diagnosis", sections).encode())


def _figure(measurement: Measurement) -> Markup:
    figure = Markup(figure_svg(measurement.figure(), measurement.finding))
    return element("div", figure, class_="picture")
