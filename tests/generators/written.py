"""Sequences of the response tasks as people write them: ``653+049=2070``."""

import numpy as np

from sparsity_lab.generators import Batch, ResponseTask


def tokens_of(task: ResponseTask, text: str) -> np.ndarray:
    """(1, P) tokens of a prompt whose names are single letters."""
    return np.array([[task.vocabulary.token(letter) for letter in text]])


def text_of(task: ResponseTask, tokens: np.ndarray) -> str:
    return "".join(task.vocabulary.names[token] for token in tokens.tolist())


def answered(task: ResponseTask, prompt: str, length: int) -> str:
    """The prompt with ``=`` and the task's response."""
    prompts = tokens_of(task, prompt)
    assert task.are_prompts(prompts, length)
    return f"{prompt}={text_of(task, task.respond(prompts, length)[0])}"


def written(task: ResponseTask, batch: Batch) -> list[str]:
    """Each sequence without BOS and EOS."""
    return [text_of(task, row[1:-1]) for row in batch.tokens.numpy()]


def ids_between(task: ResponseTask, length: int, start: int) -> list[list[int]]:
    """The coupled IDs without those of BOS and EOS, which are 0."""
    ids = task.coupled_ids(length, start)  # type: ignore[attr-defined]
    assert (ids[:, [0, -1]] == 0).all()
    return ids[:, 1:-1].tolist()  # type: ignore[no-any-return]
