"""Mechanisms that remember keys and values: they define the weights of some rows, the rest is here."""

from dataclasses import replace

from sparsity_lab.kernels.cache import KeyValueCache
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values
from sparsity_lab.kernels.kernel import Kernel
from sparsity_lab.kernels.parts.arguments import RowKind


class CachedKernel(Kernel):
    """A mechanism whose decoding state is a cache of keys, as ``_prepare`` leaves them, and of values.

    A subclass defines ``_weights``, and ``_fast`` if it has more than the reference. Both get rotated queries and
    keys, and the context has key mask and gates of all keys.

    >>> isinstance(Softmax(), CachedKernel)
    True
    """

    reweightable = True

    def _init_state(self, rows: RowKind, capacity: int) -> KeyValueCache:
        return KeyValueCache(rows, capacity)

    def _extend(self, q: Queries, k: Keys, v: Values, state: KeyValueCache, context: Context) -> Outputs:
        q, k = self._prepare(q, k, context, context.query_start)
        state.append(k, v, context.key_mask, context.gates)
        context = replace(context, key_mask=state.key_mask, gates=state.gates)
        return self._rows(q, state.keys, state.values, context)
