import re

import pytest

from sparsity_lab.generators import Batch, Planted, SparseParity, Stream, sequence_html, sequence_text

TASKS = [Planted(), Planted(marking="position", k=2, reference_length=8), SparseParity()]


def parts(page):
    """(class of mark, name) of each chip."""
    return re.findall(r'title="(?:position \d+, |)(\w+)[^"]*">([^<]*)<', page)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_token_is_shown_and_the_sources_are_marked(task):
    batch = task.sample(Stream(seed=0, name="sample"), 0, 4, 12)
    for row in range(4):
        names = [task.vocabulary.names[token] for token in batch.tokens[row].tolist()]
        sources = {position for position in batch.sources[row].flatten().tolist() if position >= 0}
        answer = task.vocabulary.names[batch.targets[row, -1]]
        chips = parts(sequence_html(batch.view(row)))
        assert [name for _, name in chips] == [*names, answer]
        assert {i for i, (part, _) in enumerate(chips) if part == "planted"} == sources
        assert chips[-1][0] == "answer"
        assert chips[-2][0] == "query"
        words = [f"[{name}]" if i in sources else name for i, name in enumerate(names)]
        assert sequence_text(batch.view(row)).plain == f"{' '.join(words)} → {answer}"


def test_position_ids_stand_beside_their_tokens():
    task = Planted(k=2, coupled=True)
    batch = task.sample(Stream(seed=0, name="sample"), 0, 1, 6)
    page = sequence_html(batch.view(0))
    assert re.findall(r"<sub[^>]*>(\d+)</sub>", page) == ["1", "2", "3"]
    names, ids = sequence_text(batch.view(0)).plain.split("\n")
    expected = {at: str(number) for at, number in enumerate(batch.position_ids[0, 0].tolist()) if number}
    starts = [match.start() for match in re.finditer(r"\S+", names)]
    assert {starts.index(match.start()): match.group() for match in re.finditer(r"\S+", ids)} == expected


def test_a_batch_without_sources_marks_nothing():
    task = Planted()
    batch = task.sample(Stream(seed=0, name="sample"), 0, 1, 6)
    bare = Batch(batch.tokens, batch.targets)
    assert "[" not in sequence_text(bare.view(0, task.vocabulary)).plain
    assert 'title="position 0, special"' in sequence_html(bare.view(0, task.vocabulary))
