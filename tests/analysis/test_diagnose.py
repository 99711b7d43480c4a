"""Diagnosis: what is read, what is asked, and verdicts on data whose answer is known."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from figure_rules import broken_rules
from torch import Tensor, nn

from sparsity_lab.analysis import Thresholds, TokenData, diagnose, read_tokens
from sparsity_lab.analysis.diagnosis.diagnose import _check_room, _from_labels
from sparsity_lab.analysis.diagnosis.verdict import few_answer, gain_answer, reach_answer, scheme_answers, verdict_of
from sparsity_lab.analysis.diagnosis.windows import TokenWindows, Trained, compare_lengths
from sparsity_lab.analysis.statistics import Interval
from sparsity_lab.generators import Planted, Recent, SparseMarkov, Stream
from sparsity_lab.models import Decoder, ModelOutput, RoPE
from sparsity_lab.settings import SettingError

SMALL = Decoder(num_layers=1, d_model=32)
CHEAP = {"length": 16, "model": SMALL, "batch_size": 32, "targets": 24, "windows": 64}


# --- what is read


def test_forms_of_files(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([[7, 9, 9], [300, 7, 7]], dtype=np.uint16))
    (tmp_path / "lines.txt").write_text("9 7\n\n300 300 300 9\n")
    (tmp_path / "words.txt").write_text("to be 9")
    rows = read_tokens([tmp_path / "rows.npy", tmp_path / "lines.txt"])
    assert [own.tolist() for own in rows.sequences] == [[0, 1, 1], [2, 0, 0], [1, 0], [2, 2, 2, 1]]
    assert rows.vocab_size == 3
    assert rows.forms == ("rows.npy: array, 6 tokens", "lines.txt: 2 lines of whole numbers, 6 tokens")
    words = read_tokens([tmp_path / "words.txt"])
    assert words.forms == ("words.txt: ASCII text, a token a byte, 7 tokens",)
    assert words.sequences[0].tolist() == [sorted(set(b"to be 9")).index(byte) for byte in b"to be 9"]


def test_labels_of_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abca")
    (tmp_path / "marks.txt").write_text("1 0\n0 1\n")
    labels = read_tokens([tmp_path / "text"], [tmp_path / "marks.txt"]).labels
    assert labels is not None
    assert [own.tolist() for own in labels] == [[True, False, False, True]]


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (None, None, "{}/data.txt: No such file"),
        (b"", None, "{}/data.txt: the file is empty"),
        (b"aaaa", None, "tokens: expected 2 to 65536 different tokens, got 1"),
        (b"1 2 3", b"1 0", "{}/marks.txt: expected 3 labels, one a token, got 2"),
        (b"1 2\n3 4 5", b"1 0\n0 1", "{}/marks.txt, sequence 2: expected 3 labels, one a token, got 2"),
        (b"1 2\n3 4 5", b"1 0", "{}/marks.txt: expected labels of 2 sequences, got 1"),
        (b"1 2 3", b"1 0 2", "{}/marks.txt: expected labels 0 and 1, got 2"),
        (
            b"1 2 3",
            b"yes no",
            "{}/marks.txt: expected labels 0 and 1: whole numbers in a text, or an .npy array, got ASCII text",
        ),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes | None, labels: bytes | None, message: str) -> None:
    for name, content in (("data.txt", data), ("marks.txt", labels)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError) as error:
        read_tokens([tmp_path / "data.txt"], [tmp_path / "marks.txt"] if labels is not None else [])
    assert str(error.value).startswith(message.format(tmp_path))


def test_bad_arrays(tmp_path: Path) -> None:
    for name, array in (("real", np.zeros(3)), ("deep", np.zeros((2, 2, 2), dtype=int))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(SettingError, match=r"integers of shape \(n,\) or \(N, n\), got"):
            read_tokens([tmp_path / f"{name}.npy"])
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(SettingError, match=r"bad.npy: expected an .npy array"):
        read_tokens([tmp_path / "bad.npy"])
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    with pytest.raises(SettingError, match=r"object.npy: expected an .npy array"):
        read_tokens([tmp_path / "object.npy"])


def test_split() -> None:
    """No token is in both parts, and none is in neither."""
    few = TokenData.of([np.arange(10), np.arange(10, 25)])
    train, test = few.split()
    assert [len(own) for own in train] == [8, 12]
    assert np.array_equal(np.sort(np.concatenate([*train, *test])), np.arange(25))
    many = TokenData.of([np.array([i, i]) for i in range(12)])
    train, test = many.split()
    assert [int(own[0]) for own in test] == [4, 9]
    assert len(train) == 10


def test_labels_of_any_target(tmp_path: Path) -> None:
    """Positions of targets and of what they need, moved with the padding that is taken away."""
    rows = np.array([[0, 0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7]])
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "needs.jsonl").write_text("[[5, 3], [6, 3, 4]]\n[[1, 0], [6, 0, 2, 3]]\n")
    data = read_tokens([tmp_path / "rows.npy"], [tmp_path / "needs.jsonl"], pad=0)
    assert data.needs() == [((2, 0), (3, 0, 1)), ((1, 0), (6, 0, 2, 3))]
    k, reach = _from_labels(data, Thresholds(local_share=0.5))
    assert k.estimate == 1.0  # of 1, 2, 1, 3
    assert reach.estimate == 3.0  # of 2, 3, 2, 1, 6, 4, 3
    for text, message in (
        ("[[5, 3]]\n", "expected labels of 2 sequences, got 1"),
        ("[[5, 6]]\n[]\n", "sequence 1: expected positions before target 5, got 6"),
        ("[[7, 6]]\n[]\n", "sequence 1: expected targets from 0 to 6, got 7"),
        ("[5, 6]\n[]\n", r"sequence 1: expected a list of targets, each \[position, needed, needed, ..\]"),
    ):
        (tmp_path / "needs.jsonl").write_text(text)
        with pytest.raises(SettingError, match=message):
            read_tokens([tmp_path / "rows.npy"], [tmp_path / "needs.jsonl"])


# --- windows


def test_windows_are_all_windows() -> None:
    sequences = [np.arange(10), np.arange(20, 23), np.arange(30, 36)]
    task, length = TokenWindows(sequences, 40), 3
    expected = [own[i : i + length + 1] for own in sequences for i in range(len(own) - length)]
    assert task.num_windows(length) == len(expected)
    assert np.array_equal(task.spread(99, length)[0], expected)
    assert np.array_equal(task.spread(2, length)[0][:, 0], [expected[2][0], expected[7][0]])
    drawn = task.sample(Stream(0, "train"), 0, 4000, length)
    counts = np.bincount(drawn.targets[:, 0] - 1, minlength=34)[[own[0] for own in expected]]
    # Poisson-like counts of 400 each: five standard deviations.
    assert len(expected) == 10
    assert np.abs(counts - 400).max() < 5 * 20


def test_windows_that_belong_together() -> None:
    """Those of one sequence, if there are six; else those that begin in one stretch of a window's length."""
    many = TokenWindows([np.arange(30)] * 6, 40)
    assert np.bincount(many.spread(18, 5)[1]).tolist() == [3] * 6
    few = TokenWindows([np.arange(30), np.arange(22)], 40)
    windows, groups = few.spread(99, 9)
    starts, sequence = windows[:, 0].numpy(), np.repeat([0, 1], [21, 13])
    assert len(windows) == 34
    for own in np.unique(groups):
        assert len(np.unique(sequence[groups == own])) == 1
        assert len(np.unique(starts[groups == own] // 10)) == 1
    assert len(np.unique(groups)) == 3 + 2


def test_hidden_tokens() -> None:
    """Half of the windows hide tokens, at rates uniform on (0, 1): a quarter of all tokens. Targets stay."""
    task = TokenWindows([np.arange(300) % 7], 7)
    batch = task.sample(Stream(0, "train"), 0, 2000, 20)
    hidden = batch.tokens == 7
    assert abs(float(hidden.double().mean()) - 0.25) < 5 * 0.32 / np.sqrt(2000)
    assert int(batch.targets.max()) == 6
    shares = hidden.double().mean(1)
    assert abs(float((shares == 0).double().mean()) - (0.5 + 0.5 / 21)) < 0.06
    later = task.sample(Stream(0, "train"), 1000, 5, 20)
    assert torch.equal(later.tokens, batch.tokens[1000:1005])


# --- the test on long windows


class Forgetful(nn.Module):
    """Knows the next token of 0 1 2 0 1 2 ... in inputs of up to so many tokens; longer ones it takes for noise."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, tokens: Tensor, scored: Tensor) -> ModelOutput:
        if tokens.shape[1] > self.most:
            return ModelOutput(torch.zeros(int(scored.sum()), 4), {})
        logits = torch.full((*tokens.shape, 4), -20.0).scatter_(2, ((tokens + 1) % 3)[..., None], 0.0)
        return ModelOutput(logits[scored], {})


def test_kept_of_models_that_know_all_or_nothing() -> None:
    cycle = TokenWindows([np.arange(600) % 3], 3)
    for most, kept in ((100, 1.0), (16, 1 - np.log(4) / np.log(3))):
        trained = Trained(Forgetful(most), 0.0, 0, 3)
        short, long = compare_lengths(trained, cycle, cycle, 16, [16, 32], 50)
        assert short.kept.estimate == pytest.approx(1.0)
        assert long.kept.estimate == pytest.approx(kept, abs=1e-6)
        assert long.loss_single == pytest.approx(np.log(3), rel=1e-3)
        assert long.learned.estimate == pytest.approx(1.0, abs=1e-6)
    nothing = compare_lengths(Trained(Forgetful(0), 0.0, 0, 3), cycle, cycle, 16, [32], 50)[0]
    assert nothing.kept.estimate is None


# --- the verdict


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 9)


ONE_SEQUENCE = Interval(1.0, None, None, 1)
KEEPS, LOSES, OPEN = interval(0.95, 1.0), interval(0.2, 0.5), interval(0.8, 0.95)
LEARNED, UNLEARNED = interval(0.3, 0.4), interval(0.0, 0.01)


@pytest.mark.parametrize(
    ("k", "reach", "tests", "verdict"),
    [
        (interval(2, 3), interval(5, 8), [(LEARNED, KEEPS), (LEARNED, LOSES)], "expected"),
        (interval(2, 3), interval(5, 8), [(LEARNED, LOSES), (UNLEARNED, KEEPS)], "not expected"),
        (interval(2, 3), interval(5, 8), [(LEARNED, LOSES), (LEARNED, LOSES)], "not expected"),
        (interval(2, 3), interval(5, 8), [(LEARNED, LOSES), (LEARNED, OPEN)], "not decided"),
        (interval(2, 3), interval(5, 8), [(LEARNED, LOSES), (interval(0.0, 0.2), KEEPS)], "not decided"),
        (interval(2, 3), interval(5, 8), [(UNLEARNED, KEEPS), (UNLEARNED, KEEPS)], "not decided"),
        (interval(2, 5), interval(5, 8), [(LEARNED, KEEPS), (LEARNED, KEEPS)], "not decided"),
        (interval(5, 5), interval(5, 8), [(LEARNED, KEEPS), (LEARNED, KEEPS)], "not decided"),
        (interval(2, 3), interval(5, 30), [(LEARNED, KEEPS), (LEARNED, KEEPS)], "not decided"),
        (ONE_SEQUENCE, interval(5, 8), [(LEARNED, KEEPS), (LEARNED, KEEPS)], "not decided"),
    ],
)
def test_verdicts(k: Interval, reach: Interval, tests: list[tuple[Interval, Interval]], verdict: str) -> None:
    thresholds = Thresholds()
    few, local = few_answer(k, thresholds), reach_answer(reach, 32, thresholds)
    pairs = [scheme_answers("P", own, kept, thresholds) for own, kept in tests]
    assert verdict_of(few, local, pairs) == verdict


def test_answers_at_their_thresholds() -> None:
    """Four tokens are few, five are not; sixteen of thirty-two is near, seventeen is not."""
    for k, reach, answer in ((4, 16, True), (5, 17, False)):
        few, local = few_answer(interval(k, k), Thresholds()), reach_answer(interval(reach, reach), 32, Thresholds())
        assert (few.answer, local.answer) == (answer, answer)
    assert "more than 4" in few.found
    for low, high, near in ((0.8, 0.9, True), (0.7, 0.79, False), (0.7, 0.9, None)):
        asked = gain_answer(interval(low, high), 32, Thresholds())
        assert (asked.answer, "the last 16 tokens give 80%" in asked.question) == (near, True)


def test_labels_are_counted() -> None:
    task = Planted(k=3, locality=Recent(width=9))
    batch = task.sample(Stream(0, "user"), 0, 400, 30)
    # The answer stands after the sequence; a mark on it is no dependency.
    rows = torch.cat([batch.tokens, batch.targets[:, -1:]], 1).numpy()
    marks = np.zeros_like(rows)
    np.put_along_axis(marks, batch.sources[:, -1].numpy(), 1, axis=1)  # type: ignore[index]
    marks[:, -1] = 1
    k, reach = _from_labels(TokenData.of(list(rows), list(marks)), Thresholds(local_share=1.0))
    assert (k.estimate, k.low, k.high) == (3.0, 3.0, 3.0)
    # Distances from the query are 1 .. 9, and the answer is one further.
    assert reach.estimate == 10.0


# --- the whole


@pytest.fixture(scope="module")
def markov() -> list[np.ndarray]:
    task = SparseMarkov(k=1, lag_seed=3, vocab_size=4)
    assert task.lags == (2,)
    return list(task.sample(Stream(0, "user"), 0, 30, 200).tokens.numpy())


def test_planted_data_are_recognized(markov: list[np.ndarray]) -> None:
    """A rule of one token two back: found, near, learned, and carried by a scheme that forgets what is far."""
    told: list[str] = []
    found = diagnose(
        markov,
        steps=250,
        thresholds=Thresholds(kept=0.75),
        progress=lambda words, done, total: told.append(words),
        **CHEAP,
    )
    assert (found.k.estimate, found.k.low, found.k.high) == (1.0, 1.0, 1.0)
    assert found.dependencies is not None
    nearest = found.dependencies.distances().sort("tokens").tail(1)
    assert nearest["distance"].item() == 2
    assert nearest["share"].item() > 0.8
    kept = {row["position"]: row for row in found.frame().filter(length=64).to_dicts()}
    assert kept["ALiBi()"]["kept"] > 0.8 > 0.6 > kept["RoPE()"]["kept"]
    assert found.verdict == "expected"
    assert found.cost()["tokens"].to_list()[2:] == [found._models["RoPE()"].tokens] * 2
    assert any(words.startswith("training with ALiBi()") for words in told)
    assert "searching dependencies" in told
    lines = {line.get_label() for line in found.plot().lines}
    assert {"RoPE()", "ALiBi()"} <= lines
    assert broken_rules(found.figure()) == []
    bottom, top = found.plot().get_ylim()
    assert bottom < found.frame()["kept_low"].min() < found.frame()["kept_high"].max() < top  # type: ignore[operator]
    assert found.to_data()["verdict"] in repr(found)
    first, second, *schemes, advice = found.horizon()
    assert first.startswith("Horizon: trained on up to 16 tokens, tested on up to 64; needs were asked inside 16")
    assert second == f"Without a model, pairs of tokens up to 150 apart and repeats up to 200: {found.beyond}."
    assert "nothing found beyond 16 tokens" in second
    assert [line.partition(" keeps ")[0] for line in schemes] == ["RoPE()", "ALiBi()"]
    assert "at 4x" in schemes[0]
    assert advice == "Advice: of these schemes ALiBi(), which keeps what it learned at the lowest loss."


class Exact(nn.Module):
    """The Bayes predictor of a ``SparseMarkov`` with hidden tokens; in inputs beyond ``most`` it knows nothing."""

    def __init__(self, task: SparseMarkov, most: int) -> None:
        super().__init__()
        self.task, self.most = task, most

    def forward(self, tokens: Tensor, scored: Tensor) -> ModelOutput:
        V, far = self.task.vocab_size, max(self.task.lags)
        before = torch.nn.functional.pad(tokens, (far, 0), value=V)
        sources = torch.stack([before[:, 1 + far - lag :][:, : tokens.shape[1]] for lag in self.task.lags])
        out = torch.full((*tokens.shape, V + 1), self.task.noise / (V - 1))
        out.scatter_(2, (sources.sum(0) % V)[..., None], 1 - self.task.noise)
        unknown = (sources == V).any(0) | (tokens.shape[1] > self.most)
        out = out.masked_fill(unknown[..., None], 1 / V)
        out[..., V] = 1e-12  # a hidden token is never a target
        return ModelOutput(out.log()[scored], {})


def test_two_planted_tokens_are_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With models that know the rule in place of trained ones, one of which forgets it in long inputs: k, places,
    what is kept and the verdict are known, and every interval is over the eight test sequences."""
    task = SparseMarkov(k=2, lag_seed=26, max_lag=6, vocab_size=5)
    assert task.lags == (1, 3)

    def known(train: TokenWindows, config: Decoder, *_: object) -> Trained:
        assert train.hidden == 5
        return Trained(Exact(task, 16 if config.position == RoPE() else 64), 0.0, 0, train.hidden)

    monkeypatch.setattr(sys.modules[_from_labels.__module__], "train_short", known)
    data = list(task.sample(Stream(0, "user"), 0, 40, 200).tokens.numpy())
    found = diagnose(data, **CHEAP)
    assert (found.k.estimate, found.k.low, found.k.high) == (2.0, 2.0, 2.0)
    assert found.k.count == 8
    assert found.dependencies is not None
    distances = found.dependencies.distances()
    assert distances["distance"].to_list() == [1, 3]
    assert distances["share"].to_list() == [0.5, 0.5]
    assert (found.reach.estimate, found.reach.high) == (3.0, 3.0)
    assert found.near.estimate == found.near.low == found.near.high == 1.0
    kept = {row["position"]: row["kept"] for row in found.frame().filter(length=64).to_dicts()}
    assert kept["ALiBi()"] == pytest.approx(1.0)
    assert kept["RoPE()"] == pytest.approx(0.0, abs=0.02)
    assert [answer.answer for answer in found.answers] == [True, True, True, False, True, True]
    assert found.verdict == "expected"


@pytest.mark.parametrize(
    ("lag", "share", "answer"), [(2, 1.0, True), (8, 1.0, True), (9, 0.0, False), (14, 0.0, False)]
)
def test_near_is_what_the_nearer_half_of_the_window_tells(
    lag: int, share: float, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows the one token that tells, where it is shown."""
    seed = next(seed for seed in range(999) if SparseMarkov(k=1, lag_seed=seed, max_lag=16).lags == (lag,))
    task = SparseMarkov(k=1, lag_seed=seed, max_lag=16, vocab_size=5)
    known = Trained(Exact(task, 64), 0.0, 0, 5)
    monkeypatch.setattr(sys.modules[_from_labels.__module__], "train_short", lambda *_: known)
    found = diagnose(list(task.sample(Stream(0, "user"), 0, 40, 200).tokens.numpy()), **CHEAP)
    assert found.k.estimate == 1.0
    assert found.near.estimate == pytest.approx(share, abs=0.02)
    assert found.answers[1].answer is answer


def test_targets_that_gain_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four sequences are noise: all of 24 targets are of the fourth ones, and count."""
    task = SparseMarkov(k=1, lag_seed=3, vocab_size=5)
    rows = task.sample(Stream(0, "user"), 0, 160, 60).tokens.numpy()
    noise = np.random.default_rng(0).permuted(rows, axis=1)
    data = [row if i // 5 % 4 == 0 else other for i, (row, other) in enumerate(zip(rows, noise, strict=True))]
    known = Trained(Exact(task, 64), 0.0, 0, 5)
    monkeypatch.setattr(sys.modules[_from_labels.__module__], "train_short", lambda *_: known)
    found = diagnose(data, longest=2, **{**CHEAP, "windows": 256})
    assert found.dependencies is not None
    assert found.dependencies.targets()["counted"].to_list() == [True] * 24


@pytest.mark.parametrize(
    ("size", "advice"), [(2000, "train on longer windows, --length 499, to"), (6000, "--length 512, to")]
)
def test_advice_is_one_that_the_data_allow(size: int, advice: str) -> None:
    """What repeats lies 320 tokens before."""
    draws = np.random.default_rng(0)
    rows = draws.integers(0, 8, (12, size))
    for t in range(320, size):
        rows[:, t] = np.where(draws.random(12) < 0.7, rows[:, t - 320], rows[:, t])
    tiny = {
        "length": 16,
        "model": Decoder(num_layers=1, num_heads=1, d_model=8),
        "steps": 1,
        "targets": 2,
        "windows": 8,
    }
    found = diagnose(list(rows), **tiny)  # type: ignore[arg-type]
    assert found.beyond.matters
    assert advice in found.horizon()[-1]
    if size == 2000:
        data = TokenData.of(list(rows))
        train, test = (TokenWindows(part, data.vocab_size) for part in data.split())
        _check_room(data, train, test, 499, 4 * 499)
        with pytest.raises(SettingError, match="the test part needs a sequence of more than 2000 tokens"):
            _check_room(data, train, test, 500, 4 * 500)
        said = diagnose(list(rows[:, :700]), **tiny).horizon()[-1]  # type: ignore[arg-type]
        assert "takes --length 320 or more, and these allow 174 at most with --longest 4" in said


def test_a_model_that_knows_nothing_is_not_believed(markov: list[np.ndarray]) -> None:
    found = diagnose(markov, steps=1, **CHEAP)
    assert found.k.estimate is None
    assert [answer.answer for answer in found.answers[:2]] == [None, None]
    assert found.verdict == "not decided"


def test_noise_decides_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 4, (30, 200))
    found = diagnose(list(noise), steps=20, **CHEAP)
    assert found.verdict == "not decided"
    assert [answer.answer for answer in found.answers] == [None, None, False, None, False, None]
    assert found.frame()["kept"].null_count() == 6
    assert "nothing learned" in found.plot().texts[-1].get_text()
    assert broken_rules(found.figure()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 5}, "length: expected at least 10, got 5"),
        ({"longest": 1}, "longest: expected at least 2, got 1"),
        ({"other": RoPE()}, "other: expected a position scheme other than RoPE()"),
        ({"length": 60}, "data: the test part needs a sequence of more than 240 tokens"),
    ],
)
def test_refusals(markov: list[np.ndarray], options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError) as error:
        diagnose(markov, **options)
    assert str(error.value).startswith(message)
