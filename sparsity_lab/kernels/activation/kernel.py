"""Attention by an elementwise function of scores u_ij = <q_i, k_j> / sqrt(D) + bias_ij.

n_i is the number of keys that row i sees, itself included: i + 1 in a causal row without padding.
"""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from sparsity_lab.kernels.activation.fast import tiled_activation
from sparsity_lab.kernels.activation.formula import Form, Phi, activation_weights
from sparsity_lab.kernels.cached import CachedKernel
from sparsity_lab.kernels.context import Context, Keys, Outputs, Queries, Values, Weights
from sparsity_lab.settings import SettingError, register

_RELU_ROUNDING = 10.0
"""ReLU's slope jumps at 0, and a rounded score may lie on the other side; and a row's sum may be one small score."""


class ActivationKernel(CachedKernel):
    """Base: a subclass says which function, and what rows are shifted by and divided by.

    ``"tiled"`` computes tiles of query rows, and again in the backward pass, which has a closed form. A position
    rotates queries and keys, or adds its bias to the scores, before the function.
    """

    implementations = ("reference", "tiled")

    @abstractmethod
    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        """The form of rows that see ``counts`` keys, n_i."""

    def _form_of(self, q: Queries, k: Keys, context: Context) -> Form:
        return self._form(context.counts(q, k).to(torch.promote_types(q.dtype, torch.float32)).unsqueeze(-1))

    def _weights(self, q: Queries, k: Keys, context: Context) -> Weights:
        return activation_weights(q, k, *context.visible_and_bias(q, k), self._form_of(q, k, context))

    def _fast(self, q: Queries, k: Keys, v: Values, context: Context) -> Outputs:
        return tiled_activation(q, k, v, context, self._form_of(q, k, context))


@register
class Sigmoid(ActivationKernel):
    """Sigmoid attention: w_ij = sigmoid(u_ij + b), b = - log n, without normalization.

    After Ramapuram and others (arXiv 2409.04431), where n is the trained length and b is fixed. With n = n_i
    instead a row's sum stays of the same size at any length.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> bool((Sigmoid().weights(q, k) < 1).all())
    True

    Attributes:
        trained_length: the n of a fixed b, at least 1; None takes n_i of each row.
    """

    trained_length: int | None = None

    @classmethod
    def examples(cls) -> "tuple[Sigmoid, ...]":
        return cls(), cls(trained_length=20)

    def check(self) -> None:
        if self.trained_length is not None and self.trained_length < 1:
            raise SettingError("trained_length", "at least 1, or None", self.trained_length)

    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        if self.trained_length is None:
            return Form("sigmoid", shift=counts.log())
        return Form("sigmoid", shift=torch.full_like(counts, math.log(self.trained_length)))


@register
class ReLUAttention(ActivationKernel):
    """ReLU attention: w_ij = relu(u_ij) / n_i, without normalization by the row's own sum.

    After Wortsman and others (arXiv 2309.08586). A row without a positive score gives zeros.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> bool((ReLUAttention().weights(q, k) >= 0).all())
    True
    """

    @property
    def rounding(self) -> float:
        return _RELU_ROUNDING

    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        return Form("relu", divisor=counts)


@register
class NormalizedActivation(ActivationKernel):
    """Softmax taken apart: w_ij = φ(u_ij) / Σ_j' φ(u_ij'), which is softmax for exp; or without the division by the
    row's own sum, its l1 norm. The ablation behind the claim that l1 is what matters, and φ only has to be positive
    (arXiv 2501.13428).

    Without l1, a row is divided by n_i, or by nothing. Dividing by n_i removes only the dependence of the divisor on
    scores, and keeps the size of the output at any length. exp is then exp(min(u, 20)), to stay within float32.

    >>> q, k = torch.randn(2, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> NormalizedActivation(phi="exp").weights(q, k).allclose(Softmax().weights(q, k), atol=1e-6)
    True

    Attributes:
        phi: φ: ``"exp"``, ``"softplus"``, ``"sigmoid"`` or ``"relu"``. A row without a positive score gives zeros
            under ReLU.
        l1: divide by the row's own sum.
        mean: without l1, divide by n_i; without effect with l1.
    """

    former_kinds = ("NormalisedActivation",)

    phi: Phi = "softplus"
    l1: bool = True
    mean: bool = True

    @classmethod
    def examples(cls) -> "tuple[NormalizedActivation, ...]":
        return cls(phi="exp"), cls(phi="softplus"), cls(phi="relu"), cls(phi="exp", l1=False, mean=False)

    @classmethod
    def benchmarked(cls) -> "tuple[NormalizedActivation, ...]":
        return cls(phi="softplus"), cls(phi="sigmoid")

    @property
    def rounding(self) -> float:
        return _RELU_ROUNDING if self.phi == "relu" else 1.0

    def _form(self, counts: Float[Tensor, "#B 1 R 1"]) -> Form:
        return Form(self.phi, l1=self.l1, divisor=counts if self.mean and not self.l1 else None)
