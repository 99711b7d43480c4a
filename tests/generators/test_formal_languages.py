"""Languages by enumeration of all short words: automata beside definitions, exact laws of what is drawn, mutants."""

import itertools

import numpy as np
import pytest
from generators.mutants import catches, mutant

from sparsity_lab.generators import Dyck, Language, Membership, Stream, Tomita
from sparsity_lab.generators.formal_languages import _laws, _log2_sizes
from sparsity_lab.settings import SettingError

LANGUAGES: list[Language] = [
    *(Tomita(number=number) for number in range(1, 8)),
    Dyck(),
    Dyck(depth=1),
    Dyck(kinds=2, depth=2),
    Dyck(kinds=3, depth=2),
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
        sizes = np.array([2**size for size in _log2_sizes(language, length)])
        assert np.allclose(sizes, [len(defined) - sum(defined), sum(defined)])


def test_numbers_of_words() -> None:
    """No 000: tribonacci numbers. Balanced brackets: Catalan numbers, times 2^n for two kinds."""
    no_000 = [round(2 ** _log2_sizes(Tomita(number=4), n)[1]) for n in range(1, 8)]
    assert no_000 == [2, 4, 7, 13, 24, 44, 81]
    assert [round(2 ** _log2_sizes(Dyck(depth=9), n)[1]) for n in (2, 4, 6, 8, 10)] == [1, 2, 5, 14, 42]
    assert [round(2 ** _log2_sizes(Dyck(kinds=2, depth=4), n)[1]) for n in (2, 4, 6)] == [2, 8, 40]


@pytest.mark.parametrize("language", LANGUAGES, ids=str)
def test_every_word_is_as_likely_as_every_other_of_its_kind(language: Language) -> None:
    """The chances of the symbols multiply to one over the number of words, of either kind."""
    for length in (2, 4, 6):
        of, automaton = _laws(language, length), language.automaton
        every = words(language, length)
        for kind in (0, 1):
            chance, state = np.ones(len(every)), np.zeros(len(every), dtype=int)
            for t, symbol in enumerate(every.T):
                edges = np.pad(of.cumulative[t][kind, state], ((0, 0), (1, 1)), constant_values=(0.0, 1.0))
                chance *= edges[np.arange(len(every)), symbol + 1] - edges[np.arange(len(every)), symbol]
                state = automaton.transitions[state, symbol]
            inside = automaton.accepting[state] == kind
            if inside.any() and np.isfinite(_log2_sizes(language, length)[kind]):
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


def test_lengths_without_words_are_refused_with_the_nearest_that_has_some() -> None:
    for language, length, nearest in [(Dyck(), 7, 6), (Tomita(number=2), 9, 8), (Tomita(number=5), 5, 4)]:
        with pytest.raises(SettingError, match=f"length: .*such as {nearest}, got {length}"):
            Membership(language=language).check_length(length)
    for make, message in [
        (lambda: Tomita(number=8), "number: expected one of Tomita's languages, 1 to 7, got 8"),
        (lambda: Dyck(kinds=5), "kinds: expected at most 4, got 5"),
        (lambda: Dyck(kinds=4, depth=9), "depth: expected at most 5 for 4 kinds, got 9"),
        (lambda: Membership(language=Dyck(depth=900)).truth(20_000), "length: expected at most 5543 for Membership"),
        (lambda: Dyck(depth=0), "depth: expected a whole number of at least 1, got 0"),
    ]:
        with pytest.raises(SettingError, match=message):
            make()


def uniform_steps(self: Membership, stream: Stream, start: int, out: np.ndarray, length: int) -> None:
    """A symbol is drawn among those that can still lead to a word, each as likely: not uniform over words."""
    of = _laws(self.language, length)
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
