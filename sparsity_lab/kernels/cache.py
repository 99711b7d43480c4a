"""What a kernel remembers between decoding steps."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsity_lab.settings import Setting, SettingError

__all__ = ["KernelState", "KeyValueCache"]


class KernelState:
    """Base of all decoding states. A mechanism adds what it must remember.

    Attributes:
        length: number of tokens seen so far; the next token has this position.
        capacity: number of tokens there is room for; None for a state whose size does not depend on it.
        maker: the kernel that made it.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.length = 0
        self.capacity = capacity
        self.maker: Setting | None = None

    def advance(self, count: int) -> slice:
        """Take the next ``count`` positions; returns them.

        Raises:
            SettingError: more tokens than there is room for.
        """
        stop = self.length + count
        if self.capacity is not None and stop > self.capacity:
            raise SettingError("state.capacity", f"room for {stop} tokens", self.capacity)
        taken = slice(self.length, stop)
        self.length = stop
        return taken


class KeyValueCache(KernelState):
    """Keys and values of all tokens seen, in buffers made once: (B, H, capacity, D).

    Attributes:
        keys, values: (B, H, length, D) views of what is filled; keys as the kernel stored them (rotated, say).
        key_mask: (B, length), or None where every key counts.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(capacity)
        self._keys = torch.zeros(batch_size, num_heads, capacity, head_dim, dtype=dtype, device=device)
        self._values = torch.zeros_like(self._keys)
        self._key_mask: Tensor | None = None

    def append(
        self,
        k: Float[Tensor, "B H R D"],
        v: Float[Tensor, "B H R D"],
        key_mask: Bool[Tensor, "B R"] | None = None,
    ) -> None:
        """Add R tokens; all of them count where there is no ``key_mask``.

        Raises:
            SettingError: rows of another batch, heads, head size or dtype than the buffers, or no room.
        """
        for rows in (k, v):
            like = rows.dtype, (*rows.shape[:2], rows.shape[3])
            room = self._keys.dtype, (*self._keys.shape[:2], self._keys.shape[3])
            if like != room:
                raise SettingError("state", f"rows of dtype {room[0]} and (B, H, D) = {room[1]}", like)
        taken = self.advance(k.shape[2])
        self._keys[:, :, taken] = k
        self._values[:, :, taken] = v
        if key_mask is not None and self._key_mask is None:
            batch_size, _, capacity, _ = self._keys.shape
            self._key_mask = torch.ones(batch_size, capacity, dtype=torch.bool, device=k.device)
        if key_mask is not None and self._key_mask is not None:
            self._key_mask[:, taken] = key_mask

    @property
    def keys(self) -> Float[Tensor, "B H length D"]:
        return self._keys[:, :, : self.length]

    @property
    def values(self) -> Float[Tensor, "B H length D"]:
        return self._values[:, :, : self.length]

    @property
    def key_mask(self) -> Bool[Tensor, "B length"] | None:
        return None if self._key_mask is None else self._key_mask[:, : self.length]
