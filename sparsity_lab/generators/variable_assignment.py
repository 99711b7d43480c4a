"""``VariableAssignment``: follow a chain of assignments from a variable to a constant, by content.

Each step jumps to an arbitrary statement, found by its name, so distances carry no information. Each step depends on
three tokens. The task and its layout are this lab's.
"""

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64

from sparsity_lab.generators.batch import Vocabulary
from sparsity_lab.generators.position_laws import ListedSets
from sparsity_lab.generators.response_layout import ResponseTask, prompt_vocabulary
from sparsity_lab.generators.stream import Floats, Ints, Stream, bounded, permutations, whole
from sparsity_lab.generators.task import Draw, ranks_of_distinct
from sparsity_lab.settings import SettingError, register


@register
class VariableAssignment(ResponseTask):
    """Chains of variables that end in a constant: ``BOS a_1 b_1 .. a_n b_n v = r_1 .. r_(h+1) EOS``. The response is
    the value of v, the value of that, and so on.

    Statement i assigns b_i to the variable a_i. The length is n. Every variable is assigned once: one to a constant,
    and each other one to a variable that leads to it. The queried v is h hops from the variable with the constant.
    The response names the variables on the way and ends with the constant. Each further variable is assigned to a
    uniform one of those before it. Names are drawn for each sequence, and the statements are shuffled.

    The sources of r_j are the token before it, which names a variable, and both tokens of the statement that assigns
    it. The source of EOS is the constant.

    Attributes:
        hops: h.
        num_names: size of the pool of names, and so the largest n. Choose it as large as n at test, so that training
            shows every name.
        num_constants: number of constants, drawn uniformly.
        look_ahead: both tokens of statement i have ID i. With look-ahead, the query, ``=`` and each variable in the
            response have the ID of the statement that assigns it, which contains the next token. The constant has
            none. Otherwise a response token has the ID of the statement it was read from, and query and ``=`` have
            none.
    """

    hops: int = 2
    num_names: int = 100
    num_constants: int = 10
    look_ahead: bool = True

    @classmethod
    def examples(cls) -> "tuple[VariableAssignment, ...]":
        return (
            cls(hops=1, num_names=20, num_constants=3),
            cls(num_names=30),
            cls(hops=4, num_names=45, look_ahead=False),
        )

    def check(self) -> None:
        whole("hops", self.hops, 0)
        if self.num_names <= self.hops:
            raise SettingError("num_names", f"at least hops + 1 = {self.hops + 1} names", self.num_names)
        whole("num_constants", self.num_constants, 1)

    def check_length(self, length: int) -> None:
        if length <= self.hops:
            raise SettingError("length", f"at least hops + 1 = {self.hops + 1} statements", length)
        if length > self.num_names:
            raise SettingError("length", f"at most num_names = {self.num_names} statements", length)

    @property
    def certified_lengths(self) -> tuple[int, ...]:
        shortest = self.hops + 1
        longest = max(shortest, self.num_names - 1)
        return min(shortest + 2, longest), longest

    @cached_property
    def vocabulary(self) -> Vocabulary:
        names = [f"v{i + 1}" for i in range(self.num_names)]
        return prompt_vocabulary([*names, *map(str, range(self.num_constants))])

    def prompt_length(self, length: int) -> int:
        return 2 * length + 1

    def response_length(self, length: int) -> int:
        return self.hops + 1

    def largest_position_id(self, length: int) -> int:
        self.check_length(length)
        return length

    def draw_prompts(self, stream: Stream, start: int, out: Int64[np.ndarray, "B P"], length: int) -> None:
        count, h = len(out), self.hops
        names = permutations(stream.words("names", length, start, count, self.num_names))[:, :length]
        order = permutations(stream.words("order", length, start, count, length))
        # Variable 0 has the constant, variable i <= h has variable i - 1, each later one a uniform earlier one.
        words = stream.words("parents", length, start, count, length) >> np.uint64(32)
        words *= np.arange(length, dtype=np.uint64)
        parents = (words >> np.uint64(32)).view(np.int64)
        parents[:, 1 : h + 1] = np.arange(h)
        values = np.take_along_axis(names, parents, axis=1)
        constants = bounded(stream.words("constants", length, start, count, 1)[:, 0], self.num_constants)
        values[:, 0] = self.num_names + constants
        out[:, 0:-1:2] = np.take_along_axis(names, order, axis=1)
        out[:, 1:-1:2] = np.take_along_axis(values, order, axis=1)
        out[:, -1] = names[:, h]

    def _statements(self, prompts: Ints) -> Ints:
        """(B, V') the statement, from 0, that assigns each name or constant; -1 if there is none."""
        where = np.full((len(prompts), self.num_names + self.num_constants), -1)
        np.put_along_axis(where, prompts[:, 0:-1:2], np.arange(prompts.shape[1] // 2)[None], axis=1)
        return where

    def _follow(self, prompts: Ints) -> tuple[Ints, Ints]:
        """(B, h + 1) the statements that are read in turn, from 0, and the values read there."""
        where, values = self._statements(prompts), prompts[:, 1:-1:2]
        rows = np.arange(len(prompts))
        statements = np.empty((len(prompts), self.hops + 1), dtype=np.int64)
        read = np.empty_like(statements)
        current = prompts[:, -1]
        for step in range(self.hops + 1):
            statements[:, step] = where[rows, current]
            current = read[:, step] = values[rows, statements[:, step]]
        return statements, read

    def respond(self, prompts: Int64[np.ndarray, "B P"], length: int) -> Int64[np.ndarray, "B R"]:
        return self._follow(prompts)[1]

    def are_prompts(self, prompts: Int64[np.ndarray, "B P"], length: int) -> bool:
        if prompts.min(initial=0) < 0 or prompts.max(initial=0) >= self.num_names + self.num_constants:
            return False
        names, values = self.num_names, prompts[:, 1:-1:2]
        where = self._statements(prompts)
        each_once = ((where >= 0).sum(axis=1) == length).all() and (where[:, names:] < 0).all()
        # The statement that each statement needs, or itself if it needs none. All lead to the constant's statement.
        needs = np.take_along_axis(where, values, axis=1)
        needs = np.where(needs < 0, np.arange(length), needs)
        for _ in range(length.bit_length()):
            needs = np.take_along_axis(needs, needs, axis=1)
        lead = (np.take_along_axis(values, needs, axis=1) >= names).all() and (needs == needs[:, :1]).all()
        read = self.respond(prompts, length)
        hops = (read[:, :-1] < names).all() and (read[:, -1] >= names).all()
        asked = (np.take_along_axis(where, prompts[:, -1:], axis=1) >= 0).all()
        return bool(each_once and lead and hops and asked)

    def find_position_ids(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... C T"]:
        ids = np.zeros((len(tokens), 1, tokens.shape[1]), dtype=np.int64)
        ids[:, 0, 1 : 2 * length + 1] = np.repeat(np.arange(1, length + 1), 2)
        statements = self._follow(tokens[:, 1 : 2 * length + 2])[0] + 1
        if self.look_ahead:
            ids[:, 0, 2 * length + 1] = statements[:, 0]
            ids[:, 0, 2 * length + 2 : -2] = statements
        else:
            ids[:, 0, 2 * length + 3 : -1] = statements
        return ids

    def find_sources(self, tokens: Int64[np.ndarray, "B T"], length: int) -> Int64[np.ndarray, "... slots K"]:
        statements = self._follow(tokens[:, 1 : 2 * length + 2])[0]
        sources = np.full((len(tokens), self.hops + 2, 3), -1, dtype=np.int64)
        sources[:, :-1, 0] = 2 * statements + 1
        sources[:, :-1, 1] = 2 * statements + 2
        sources[:, :-1, 2] = self._named(length)
        sources[:, -1, 0] = tokens.shape[1] - 2
        return sources

    def _named(self, length: int) -> Ints:
        """(h + 1,) positions of the variables whose values come next: the query, then the response."""
        return np.concatenate([[2 * length + 1], np.arange(2 * length + 3, 2 * length + 3 + self.hops)])

    def source_laws(self, length: int) -> tuple[ListedSets, ...]:
        T, assigned = self.sequence_length(length), np.arange(1, 2 * length, 2)
        laws = [
            ListedSets(np.stack([assigned, assigned + 1, np.full(length, named)], axis=1), T)
            for named in self._named(length).tolist()
        ]
        return (*laws, ListedSets(np.array([[T - 2]]), T))

    def draws(self, tokens: Int64[np.ndarray, "B T"], name: str) -> dict[str, Draw]:
        prompts, _ = self.prompts_of(tokens)
        statements, read = self._follow(prompts)
        values = [ranks_of_distinct(prompts[:, 0:-1:2]), read[:, -1:] - self.num_names]
        return {"values": Draw(np.concatenate(values, axis=1)), "order": Draw(ranks_of_distinct(statements))}

    def prompt_marginals(self, length: int) -> Float[np.ndarray, "P V"]:
        name, constant = self._uniform()
        marginals = np.tile(name, (2 * length + 1, 1))
        marginals[1:-1:2] = (constant + (length - 1) * name) / length
        return marginals

    def response_marginals(self, length: int) -> Float[np.ndarray, "R V"]:
        name, constant = self._uniform()
        return np.stack([name] * self.hops + [constant])

    def _uniform(self) -> tuple[Floats, Floats]:
        """(V,) uniform on the names, and on the constants."""
        name, constant = np.zeros((2, self.num_names + self.num_constants + 2))
        name[: self.num_names] = 1 / self.num_names
        constant[self.num_names : -2] = 1 / self.num_constants
        return name, constant

    def work_out(self, tokens: tuple[int, ...], equals: int) -> list[tuple[list[int], int]]:
        assigned_at = {tokens[place]: place for place in range(1, equals - 1, 2)}
        if len(assigned_at) != (equals - 2) // 2:
            raise ValueError(f"expected one assignment per variable, got {tokens}")
        steps, named = [], equals - 1
        variable = tokens[named]
        while variable in assigned_at:
            # Read each statement once, because tokens that are not a sequence of this task may lead in a circle.
            place = assigned_at.pop(variable)
            variable = tokens[place + 1]
            steps.append(([place, place + 1, named], variable))
            named = equals + len(steps)
        if variable < self.num_names:
            raise ValueError(f"expected a chain that ends with a constant, got {tokens}")
        return [*steps, ([named], self.end)]

    def define_position_ids(self, tokens: tuple[int, ...]) -> list[list[int]]:
        equals = tokens.index(self.equals)
        statement = {tokens[place]: (place + 1) // 2 for place in range(1, equals - 1, 2)}
        ids = [0] + [(place + 1) // 2 for place in range(1, equals - 1)]
        query, *response = (statement.get(token, 0) for token in (tokens[equals - 1], *tokens[equals + 1 : -1]))
        return [ids + ([query, query, *response, 0] if self.look_ahead else [0, 0, query, *response[:-1], 0])]
