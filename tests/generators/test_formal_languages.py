"""Languages by enumeration of all short words: automata beside definitions, exact laws of what is drawn, mutants."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from generators.mutants import catches, mutant

from sparsity_lab.generators import Batch, Dyck, FormalLanguage, Language, Membership, Runs, Stream, Tomita
from sparsity_lab.generators.languages import log2_sizes, word_laws
from sparsity_lab.settings import SettingError

LANGUAGES: list[Language] = [
    *(Tomita(number=number) for number in range(1, 8)),
    Dyck(),
    Dyck(depth=1),
    Dyck(kinds=2, depth=2),
    Dyck(kinds=3, depth=2),
    Runs(num_symbols=2),
    Runs(num_symbols=4),
]


def words(language: Language, length: int) -> np.ndarray:
    return np.array(list(itertools.product(range(len(language.symbols)), repeat=length)))


@pytest.mark.parametrize("language", LANGUAGES, ids=str)
def test_automata_accept_what_the_definitions_say(language: Language) -> None:
    for length in range(1, 11 if len(language.symbols) == 2 else 6):
        of = language.automaton
        state = np.zeros(len(every := words(language, length)), dtype=int)
        for symbol in every.T:
            state = of.transitions[state, symbol]
        defined = [language.contains(tuple(language.symbols[s] for s in word)) for word in every.tolist()]
        assert of.accepting[state].tolist() == defined
        sizes = np.array([2**size for size in log2_sizes(language, length)])
        assert np.allclose(sizes, [len(defined) - sum(defined), sum(defined)])


def test_numbers_of_words() -> None:
    """No 000: tribonacci numbers. Balanced brackets: Catalan numbers, times 2^n for two kinds."""
    no_000 = [round(2 ** log2_sizes(Tomita(number=4), n)[1]) for n in range(1, 8)]
    assert no_000 == [2, 4, 7, 13, 24, 44, 81]
    assert [round(2 ** log2_sizes(Dyck(depth=9), n)[1]) for n in (2, 4, 6, 8, 10)] == [1, 2, 5, 14, 42]
    assert [round(2 ** log2_sizes(Dyck(kinds=2, depth=4), n)[1]) for n in (2, 4, 6)] == [2, 8, 40]


@pytest.mark.parametrize("language", LANGUAGES, ids=str)
def test_every_word_is_as_likely_as_every_other_of_its_kind(language: Language) -> None:
    """The chances of the symbols multiply to one over the number of words, of either kind."""
    for length in (2, 4, 6):
        of, automaton = word_laws(language, length), language.automaton
        every = words(language, length)
        for kind in (0, 1):
            chance, state = np.ones(len(every)), np.zeros(len(every), dtype=int)
            for t, symbol in enumerate(every.T):
                edges = np.pad(of.cumulative[t][kind, state], ((0, 0), (1, 1)), constant_values=(0.0, 1.0))
                chance *= edges[np.arange(len(every)), symbol + 1] - edges[np.arange(len(every)), symbol]
                state = automaton.transitions[state, symbol]
            inside = automaton.accepting[state] == kind
            if inside.any() and np.isfinite(log2_sizes(language, length)[kind]):
                assert np.allclose(chance[inside], 1 / inside.sum())
                assert np.allclose(chance[~inside], 0.0)


@pytest.mark.parametrize("language", LANGUAGES, ids=str)
def test_long_words_are_what_their_label_says(language: Language) -> None:
    task = Membership(language=language)
    length = task.certified_lengths[-1] + (300 if not isinstance(language, Tomita) or language.number != 1 else 0)
    batch = task.sample(Stream(seed=6), 0, 60, length)
    labels = set()
    for row in batch.tokens.tolist():
        word = tuple(language.symbols[token] for token in row[1 : length + 1])
        assert task.vocabulary.names[row[-2]] == ("yes" if language.contains(word) else "no")
        labels.add(row[-2])
    assert len(labels) == 2


def members(language: Language, length: int) -> list[tuple[int, ...]]:
    every = itertools.product(range(len(language.symbols)), repeat=length)
    return [word for word in every if language.contains(tuple(language.symbols[s] for s in word))]


@pytest.mark.parametrize("language", LANGUAGES, ids=str)
def test_the_next_symbol_is_as_likely_as_words_that_go_on_with_it(language: Language) -> None:
    """The predictor and its levels beside the list of all words."""
    task, length = FormalLanguage(language=language), 6
    words = members(language, length)
    tokens = torch.tensor([[len(language.symbols), *word[:-1]] for word in words])
    predicted = task.log_posterior(Batch(tokens, torch.tensor(words))).exp().view(len(words), length, -1)
    begun = Counter(word[:t] for word in words for t in range(length + 1))
    loss, best = 0.0, 0.0
    for word, rows in zip(words, predicted.tolist(), strict=True):
        for t, row in enumerate(rows):
            expected = [begun[(*word[:t], symbol)] / begun[word[:t]] for symbol in range(len(language.symbols))]
            assert row == pytest.approx([*expected, 0.0])
            best += max(expected) / len(words) / length
        # The chances of a word's symbols multiply to one over the number of words.
        loss += np.log(len(words)) / len(words) / length
    truth = task.truth(length)
    assert (truth.bayes_loss, truth.bayes_accuracy) == pytest.approx((loss, best))
    labels = np.array([np.bincount(column, minlength=len(row)) for column in np.array(words).T]) / len(words)
    assert truth.label_distribution == pytest.approx(labels)


def test_words_are_uniform_and_none_is_left_out() -> None:
    """Chi-square with 39 degrees of freedom exceeds 120 once in 10^9 times."""
    task = FormalLanguage(language=Dyck(kinds=2, depth=3))
    words = members(task.language, 6)
    batch = task.sample(Stream(seed=2), 0, 40_000, 6)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    seen = Counter(map(tuple, batch.targets.tolist()))
    assert set(seen) == set(words)
    assert sum((seen[word] - 1000) ** 2 / 1000 for word in words) < 120


def test_what_is_no_beginning_of_a_word_is_refused() -> None:
    task = FormalLanguage(language=Dyck())
    targets = torch.zeros((1, 6), dtype=torch.int64)
    for text in ("*()(((", "*)(())", "()()()", "*((((("):
        tokens = [{"*": 2, "(": 0, ")": 1}[letter] for letter in text]
        with pytest.raises(ValueError, match="expected|not sequences"):
            task.log_posterior(Batch(torch.tensor([tokens]), targets))
        with pytest.raises(ValueError, match="expected|not sequences"):
            task.solve(tuple(tokens))


def test_lengths_without_words_are_refused_with_the_nearest_that_has_some() -> None:
    for language, length, nearest in [(Dyck(), 7, 6), (Tomita(number=2), 9, 8), (Tomita(number=5), 5, 4)]:
        with pytest.raises(SettingError, match=f"length: .*such as {nearest}, got {length}"):
            Membership(language=language).check_length(length)
    for language, length, nearest in [(Dyck(), 7, 6), (Tomita(number=2), 9, 8), (Runs(num_symbols=5), 4, 5)]:
        with pytest.raises(SettingError, match=f"length: .*such as {nearest}, got {length}"):
            FormalLanguage(language=language).truth(length)
    for make, message in [
        (lambda: Tomita(number=8), "number: expected one of Tomita's languages, 1 to 7, got 8"),
        (lambda: Dyck(kinds=5), "kinds: expected at most 4, got 5"),
        (lambda: Dyck(kinds=4, depth=9), "depth: expected at most 5 for 4 kinds, got 9"),
        (lambda: Membership(language=Dyck(depth=900)).truth(20_000), "length: expected at most 5543 for Membership"),
        (lambda: Runs(num_symbols=27), "num_symbols: expected at most 26, got 27"),
        (lambda: FormalLanguage().check_length(0), "length: expected at least 1 for FormalLanguage"),
        (lambda: Dyck(depth=0), "depth: expected a whole number of at least 1, got 0"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def uniform_steps(self: Membership, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """A symbol is drawn among those that can still lead to a word, each as likely: not uniform over words."""
    of = word_laws(self.language, length)
    inside = (stream.words("labels", length, start, len(out), 1)[:, 0] >> np.uint64(63)).view(np.int64)
    choice = (stream.words("words", length, start, len(out), length) >> np.uint64(63)).view(np.int64)
    state = np.zeros(len(out), dtype=np.int64)
    for t in range(length):
        zero = of.cumulative[t][inside, state][:, 0]
        symbol = np.where(zero <= 0, 1, np.where(zero >= 1, 0, choice[:, t]))
        out[:, t] = symbol
        state = of.transitions[state, symbol]


def word_follows_its_index(self: Membership, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """Every other word of the language is taken from the first half of its list."""
    Membership.draw_prompts(self, stream, start, out, length)
    again = np.empty_like(out)
    Membership.draw_prompts(self, Stream(seed=stream.seed, name="again"), start, again, length)
    rows = (np.arange(start, start + len(out)) % 2 == 0) & (out[:, 0] == 1) & (again[:, 0] == 0)
    out[rows] = again[rows]


def test_mutants() -> None:
    task = Membership(language=Tomita(number=4))
    assert catches("token_marginals", mutant(task, draw_prompts=uniform_steps))
    long = {"certified_lengths": property(lambda self: (24,))}
    assert catches("products", mutant(task, draw_prompts=word_follows_its_index, **long))  # type: ignore[arg-type]


def greedy_words(task: FormalLanguage, stream: Stream, start: int, count: int, length: int) -> Batch:
    """Half of the words begin like the first sequence of all."""
    batch = task.sample(stream, start, count, length)
    rows = np.arange(start, start + count) % 2 == 0
    tokens, targets = batch.tokens.clone(), batch.targets.clone()
    tokens[rows], targets[rows] = task.sample(stream, 0, 1, length).tokens, task.sample(stream, 0, 1, length).targets
    return Batch(tokens, targets)


def flat(task: FormalLanguage) -> FormalLanguage:
    """A predictor that takes each symbol that can follow for as likely as the others."""

    def log_posterior(self: FormalLanguage, batch: Batch) -> torch.Tensor:
        possible = torch.isfinite(task.log_posterior(batch)).double()
        return (possible / possible.sum(dim=1, keepdim=True)).log()

    return mutant(task, log_posterior=log_posterior)  # type: ignore[return-value]


def test_mutants_of_words() -> None:
    task = FormalLanguage(language=Tomita(number=4))
    assert catches("token_marginals", mutant(task, greedy_words))  # type: ignore[arg-type]
    assert catches("bayes", flat(task))
