"""What a kernel remembers between decoding steps."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.kernels.context import Keys, Values
from sparsity_lab.kernels.parts.arguments import RowKind
from sparsity_lab.settings import Setting, SettingError, Shown

_SPARE = 16
"""A buffer that grows gets room for a sixteenth more tokens than it needs, but for 16 at least."""


class KernelState:
    """Base of all decoding states. A mechanism adds what it must remember.

    ``copy.deepcopy`` gives an independent state, as needed for two continuations of one prompt. A shallow copy need
    not: it counts its own tokens, but shares the buffers that a mechanism writes them into.

    >>> state = Softmax().init_state(1, 2, 8, capacity=16)
    >>> isinstance(state, KernelState)
    True

    Attributes:
        length: number of tokens seen so far; the next token has this position.
        capacity: number of tokens there is room for; None for a state whose size does not depend on it.
        maker: the kernel that made it.
        takes: what kind of keys and values it was made for.
        implementation: what decodes; ``"auto"`` is the kernel's choice at each call.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.length = 0
        self.capacity = capacity
        self.maker: Setting | None = None
        self.takes: RowKind | None = None
        self.implementation = "auto"

    def advance(self, count: int) -> slice:
        """Take the next ``count`` positions; returns them.

        Raises:
            SettingError: more tokens than there is room for.
        """
        self.check_room(count)
        taken = slice(self.length, self.length + count)
        self.length += count
        return taken

    def check_room(self, count: int) -> None:
        """Refuse ``count`` more tokens if there is no room for them.

        Raises:
            SettingError: at ``state.capacity``.
        """
        if self.capacity is not None and self.length + count > self.capacity:
            raise SettingError("state.capacity", f"enough room for {self.length + count} tokens", self.capacity)


class KeyValueCache(KernelState):
    """Keys and values of all tokens seen, in buffers that grow with them.

    A step reads all keys and all values, head by head. Unfilled room of one head lies before the next, and processors
    fetch ahead into it: buffers of the whole capacity make a step of a half-filled cache a third slower.

    >>> state = Softmax().init_state(1, 2, 8, capacity=16)
    >>> isinstance(state, KeyValueCache)
    True

    Attributes:
        keys, values: (B, H, length, D) views of what is filled; keys as the kernel stored them (rotated, say).
        key_mask: (B, length), or None where every key counts.
        gates: (B, H, length) by name, of kernels that have any.
    """

    capacity: int

    def __init__(self, rows: RowKind, capacity: int) -> None:
        super().__init__(capacity)
        self._keys, self._values = rows.empty(0)
        self._key_mask: Tensor | None = None
        self.gates: Mapping[str, Float[Tensor, "B H length"]] = {}

    def append(
        self,
        k: Keys,
        v: Values,
        key_mask: Bool[Tensor, "B K"] | None = None,
        gates: Mapping[str, Float[Tensor, "B G K"]] | None = None,
    ) -> None:
        """Add R tokens; all of them count where there is no ``key_mask``.

        Raises:
            SettingError: rows of another batch, heads, sizes, dtype or device than the buffers, or no room.
        """
        held = RowKind.of(self._keys, self._values)
        for rows, wanted in (
            (RowKind.of(k, v), held),
            (RowKind.of(v, v), held._replace(head_dim=held.value_dim)),
        ):
            if rows != wanted:
                raise SettingError("state", f"rows of {wanted}", Shown(rows))
        self.check_room(k.shape[2])
        stop = self.length + k.shape[2]
        # Buffers made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            if stop > self._keys.shape[2]:
                # One after the other, so that only one is there twice.
                self._keys = self._with_room(self._keys, stop)
                self._values = self._with_room(self._values, stop)
            if key_mask is not None and self._key_mask is None:
                self._key_mask = torch.ones(len(k), self.capacity, dtype=torch.bool, device=k.device)
        taken = self.advance(k.shape[2])
        self._keys[:, :, taken] = k
        self._values[:, :, taken] = v
        if key_mask is not None and self._key_mask is not None:
            self._key_mask[:, taken] = key_mask
        if gates:
            old = self.gates
            self.gates = {name: torch.cat([old[name], x], dim=2) if name in old else x for name, x in gates.items()}

    def _with_room(self, rows: Float[Tensor, "B H held width"], stop: int) -> Float[Tensor, "B H room width"]:
        """A buffer for ``stop`` tokens with the rows so far, and larger by so much that copying does not matter."""
        room = min(stop + max(stop // _SPARE, _SPARE), self.capacity)
        larger = rows.new_empty(*rows.shape[:2], room, rows.shape[3])
        larger[:, :, : self.length] = rows[:, :, : self.length]
        return larger

    @property
    def keys(self) -> Float[Tensor, "B H length D"]:
        return self._keys[:, :, : self.length]

    @property
    def values(self) -> Float[Tensor, "B H length E"]:
        return self._values[:, :, : self.length]

    @property
    def key_mask(self) -> Bool[Tensor, "B length"] | None:
        return None if self._key_mask is None else self._key_mask[:, : self.length]
