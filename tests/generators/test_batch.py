"""How sequences are shown: the part of each token, and pages that need nothing from outside."""

import re

from sparsity_lab.generators import Batch, ParityScratchpad, Planted, SelectiveCopy, SparseMarkov, Stream, TextBytes


def test_answers_inside_the_sequence_and_after_it() -> None:
    task = SelectiveCopy(num_tokens=3, noise_vocab=2)
    batch = task.sample(Stream(), 0, 20, 9)
    assert batch.sources is not None
    for row in range(20):
        view = batch.view(row)
        assert [token.part for token in view[10:]] == ["query", "answer", "answer", "answer"]
        places = [token.position for token in view if token.part == "planted"]
        assert places == batch.sources[row, -3:, 0].tolist()
        assert [view[place].name for place in places] == [token.name for token in view[-3:]]


def test_where_all_is_scored_only_the_last_sources_are_marked() -> None:
    task = SparseMarkov()
    view = task.sample(Stream(), 0, 1, 20).view(0)
    assert [token.position for token in view if token.part == "planted"] == [20 - lag for lag in task.lags[::-1]]
    assert [token.part for token in view].count("answer") == 1
    text = TextBytes().sample(Stream(), 0, 1, 20).view(0)
    assert {token.part for token in text[:-1]} <= {"data", "special"}


def test_a_page_holds_every_token_and_nothing_from_outside() -> None:
    batch = ParityScratchpad().sample(Stream(), 0, 40, 8)
    page = batch._repr_html_()
    assert not re.search(r"<script|<link|src=|href=|url\(", page)
    assert page.count('class="sequence"') == 6
    assert "34 more sequences" in page
    assert batch.position_ids is not None
    first = page.split('class="sequence"')[1]
    shown = re.findall(r"<sub[^>]*>([^<]*)</sub>", first)
    assert shown == [str(number or "·") for number in batch.position_ids[0, 0].tolist()]


def test_names_are_escaped_and_long_sequences_cut() -> None:
    text = TextBytes().sample(Stream(), 0, 50, 60)._repr_html_()
    assert not re.search(r'">[^<]*<(?!/span|sub|span|div|p)', text)
    assert "more …" in Planted().sample(Stream(), 0, 1, 400)._repr_html_()


def test_without_a_vocabulary_tokens_are_numbers() -> None:
    batch = Planted().sample(Stream(), 0, 1, 5)
    bare = Batch(batch.tokens, batch.targets)
    assert [token.name for token in bare.view(0)[:-1]] == [str(token) for token in batch.tokens[0].tolist()]
