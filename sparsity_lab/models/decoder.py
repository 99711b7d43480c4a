"""A small decoder-only transformer with a swappable attention mechanism in each layer.

- pre-norm with RMSNorm, GELU or SwiGLU, no biases, final norm, a head of its own unless it is tied;
- one projection for queries, keys and values;
- three separate choices of position: the scheme, the sampling of indices in training, the coupling;
- with ``scored``, the last layer after attention, the norm and the head run on scored rows only.

Shapes: B batch, T positions, C kinds of position ID, V vocabulary, N scored positions, H heads, D head size.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sparsity_lab.kernels import AuxiliaryOutputs, Kernel, KernelPosition, Softmax
from sparsity_lab.models.block import NORM_EPS, Block, MlpKind, dropout
from sparsity_lab.models.config import ModelConfig, ModelOutput
from sparsity_lab.models.generation import free_run
from sparsity_lab.models.index_sampling import IndexSampling, Plain
from sparsity_lab.models.initial import EMBEDDING_STD, initialize, named_seed
from sparsity_lab.models.norm import RMSNorm
from sparsity_lab.models.positions import PositionScheme, RoPE
from sparsity_lab.models.ppc import Coupling, next_position_ids
from sparsity_lab.models.record import Layer, LayerRecord, recorded
from sparsity_lab.settings import SettingError, Shown, check_least, register
from sparsity_lab.settings.words import Words

DEFAULT_VOCAB_SIZE = 16
"""The default vocabulary of the lab's first task, ``Planted``; for a decoder built on its own."""

_MOST_LAYERS = 4096
_MOST_PARAMETERS = 2**34


@register
class Decoder(ModelConfig):
    """A decoder-only transformer. This is the setting: ``build(seed)`` makes the ``DecoderModel``.

    Attributes:
        vocab_size: None takes the task's, given to ``build``.
        num_layers, num_heads, d_model: sizes; a head has d_model / num_heads coordinates.
        num_kv_heads: heads of keys and values, each shared by a group of query heads; None is num_heads.
        d_ff: width of the MLP; None is 4 d_model.
        kernel: the attention mechanism, or one for each layer. A layer computes the gates that its own declares.
        position: what is made of sequence indices: one scheme, or one for each layer. What is embedded at the input
            acts in all layers, so ``Sinusoidal`` and ``Learned`` come as the only one.
        index_sampling: how indices move in training.
        coupling: where coupled position IDs come from; None uses none, and ignores those of the batch.
        output_gate: multiply the attention output by a SiLU gate.
        tied_head: the head is the token embedding: one weight, two uses.
        embedding_std: standard deviation of the token embedding at the start. The larger, the slower a learning rate
            turns it, and the more of the token is left in what later layers read.
        residual_scale: factor on the initial weights of the maps that end attention and MLP. Below 1, layers at first
            add little to what they read; GPT-2 has 1 / sqrt(2 num_layers).
        mlp: ``"gelu"``, two maps; ``"swiglu"``, three, the hidden units gated by a SiLU, as in Llama.
        norm_eps: eps of all norms.
        dropout: in training, share of the numbers that are dropped of the embedded input and of what attention and
            MLP add to it; not of attention weights.
    """

    former_fields: ClassVar[Mapping[str, str]] = {"schedule": "index_sampling"}

    vocab_size: int | None = None
    num_layers: int = 2
    num_heads: int = 4
    d_model: int = 64
    d_ff: int | None = None
    num_kv_heads: int | None = None
    kernel: Kernel | tuple[Kernel, ...] = Softmax()
    position: PositionScheme | tuple[PositionScheme, ...] = RoPE()
    index_sampling: IndexSampling = Plain()
    coupling: Coupling | None = None
    output_gate: bool = False
    tied_head: bool = False
    embedding_std: float = EMBEDDING_STD
    residual_scale: float = 1.0
    mlp: MlpKind = "gelu"
    norm_eps: float = NORM_EPS
    dropout: float = 0.0

    def check(self) -> None:
        sizes = ("vocab_size", "num_layers", "num_heads", "d_model", "d_ff", "num_kv_heads")
        check_least(1, **{name: getattr(self, name) for name in sizes})
        for name in ("norm_eps", "embedding_std"):
            if not getattr(self, name) > 0:
                raise SettingError(name, "more than 0", getattr(self, name))
        check_least(0, residual_scale=self.residual_scale)
        if not 0 <= self.dropout < 1:
            raise SettingError("dropout", "a share of at least 0, below 1", self.dropout)
        if self.num_layers > _MOST_LAYERS:
            raise SettingError("num_layers", f"at most {_MOST_LAYERS}", self.num_layers)
        count = self.num_parameters(self.vocab_size or DEFAULT_VOCAB_SIZE)
        if count > _MOST_PARAMETERS:
            raise SettingError("", f"a decoder of at most {_MOST_PARAMETERS:,} parameters", Shown(f"{count:,}"))
        if self.d_model % self.num_heads:
            raise SettingError("d_model", f"a multiple of num_heads = {self.num_heads}", self.d_model)
        if self.num_heads % self.kv_heads:
            raise SettingError("num_kv_heads", f"a divisor of num_heads = {self.num_heads}", self.num_kv_heads)
        if isinstance(self.kernel, tuple) and len(self.kernel) != self.num_layers:
            raise SettingError("kernel", f"one kernel, or num_layers = {self.num_layers}", len(self.kernel))
        if isinstance(self.position, tuple):
            self._check_layer_positions(self.position)
        for path, scheme, kernel in zip(self._position_paths, self.positions, self.kernels, strict=True):
            scheme.check_heads(self.num_heads, self.head_dim)
            kernel.check_position(scheme.kernel_kind, path)
        furthest = self.index_sampling.limit()
        if furthest is not None:
            self.check_index(furthest)

    def _check_layer_positions(self, schemes: tuple[PositionScheme, ...]) -> None:
        if len(schemes) != self.num_layers:
            raise SettingError("position", f"one scheme, or num_layers = {self.num_layers}", len(schemes))
        for layer, scheme in enumerate(schemes):
            with torch.device("meta"):
                embedding = scheme.build(self.d_model)
            if embedding is not None:
                expected = "a per-layer scheme, since a scheme embedded at the input acts in every layer"
                raise SettingError(f"position[{layer}]", expected, str(scheme))

    @property
    def _position_paths(self) -> tuple[str, ...]:
        """Where the scheme of each layer comes from, for errors."""
        of_each = isinstance(self.position, tuple)
        return tuple(f"position[{layer}]" if of_each else "position" for layer in range(self.num_layers))

    @property
    def head_dim(self) -> int:
        """D, the size of a head."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G, the number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The mechanism of each layer."""
        return self.kernel if isinstance(self.kernel, tuple) else (self.kernel,) * self.num_layers

    @property
    def positions(self) -> tuple[PositionScheme, ...]:
        """The position scheme of each layer."""
        return self.position if isinstance(self.position, tuple) else (self.position,) * self.num_layers

    @property
    def projections(self) -> tuple[str, ...]:
        with torch.device("meta"):
            parts = [names for kernel in self.kernels for names in self.block(kernel).projections().values()]
        return tuple(dict.fromkeys(name for names in parts for name in names))

    def num_parameters(self, vocab_size: int) -> int:
        """How many weights, but for gates and what positions, coupling and kernels learn themselves."""
        d, d_ff = self.d_model, self.d_ff or 4 * self.d_model
        mixing = d * (2 * d + 2 * d * self.kv_heads // self.num_heads + self.output_gate * d)
        tables = vocab_size * d * (1 if self.tied_head else 2)
        return self.num_layers * (mixing + self._mlp_maps * d * d_ff + 2 * d) + tables + d

    @property
    def _mlp_maps(self) -> int:
        return 3 if self.mlp == "swiglu" else 2

    def num_bytes(self, num_tokens: int, vocab_size: int, *, training: bool) -> int:
        d, d_ff = self.d_model, self.d_ff or 4 * self.d_model
        kept = self.num_layers if training else 1
        # Weights, with gradient and two moments; of each token the input of each map, and the hidden units twice.
        numbers = self.num_parameters(vocab_size) * (4 if training else 1) + num_tokens * kept * (
            6 * d + self._mlp_maps * d_ff
        )
        return 4 * numbers

    def block(self, kernel: Kernel) -> Block:
        """A layer for this mechanism."""
        d_ff = self.d_ff or 4 * self.d_model
        sizes = self.num_heads, self.kv_heads, self.d_model, d_ff
        return Block(*sizes, self.output_gate, kernel.gates, self.mlp, self.norm_eps, self.dropout)

    def build(self, seed: int, vocab_size: int | None = None) -> "DecoderModel":
        """The decoder with initial weights, a pure function of the setting, the seed and the vocabulary.

        Args:
            vocab_size: the task's. If neither this nor the field is given, it is ``DEFAULT_VOCAB_SIZE``.

        Raises:
            SettingError: both are given and differ.
        """
        if self.vocab_size is not None and vocab_size not in (None, self.vocab_size):
            raise SettingError("vocab_size", f"None or the task's {vocab_size}", self.vocab_size)
        check_least(1, vocab_size=vocab_size)
        return DecoderModel(self, seed, self.vocab_size or vocab_size or DEFAULT_VOCAB_SIZE)

    def check_length(self, longest: int, *, trained: int | None = None) -> None:
        """Refuse lengths that positions or index sampling cannot serve, before anything is trained.

        Args:
            longest: number of tokens of the longest sequence, in training or evaluation.
            trained: number of tokens of the longest training sequence, which the index sampling must place.

        Raises:
            SettingError: with what was needed and what there is.
        """
        self.check_index(longest - 1)
        if trained is not None:
            try:
                self.index_sampling.num_words(trained)
            except SettingError as error:
                raise error.inside("index_sampling") from None

    def check_index(self, largest: int) -> None:
        """Refuse sequence indices up to ``largest`` if they pass the limit of a layer's position scheme.

        Raises:
            SettingError: with the index needed and the largest there is.
        """
        for path, scheme in zip(self._position_paths, self.positions, strict=True):
            scheme.check_index(largest, path)

    def check_position_ids(self, largest: int, num_kinds: int) -> None:
        """Refuse a task whose position IDs the coupling cannot serve; ``largest`` is 0 for a task without.

        Raises:
            SettingError: with what was needed and what there is.
        """
        if self.coupling is not None:
            self.coupling.check_ids(largest, num_kinds)

    def sampled_indices(self, words: Words, size: int) -> Int64[Tensor, "B T"] | None:
        """The indices of training sequences, from ``index_sampling``."""
        return self.index_sampling.sampled_indices(words, size)

    def arranged_ids(
        self, words: Words, position_ids: Int64[Tensor, "B C T"] | None, *, training: bool
    ) -> Int64[Tensor, "B C T"] | None:
        """The batch's position IDs as ``coupling`` arranges them."""
        if self.coupling is None or position_ids is None:
            return position_ids
        return self.coupling.arranged_ids(words, position_ids, training=training)


class DecoderModel(nn.Module):
    """The decoder; ``Decoder(...).build(seed)`` makes one.

    >>> model = Decoder(num_layers=1, num_heads=2, d_model=16, vocab_size=8).build(seed=0)
    >>> model(torch.zeros(2, 5, dtype=torch.int64)).logits.shape
    torch.Size([2, 5, 8])

    Attributes:
        config: its setting.
        vocab_size: V.
    """

    def __init__(self, config: Decoder, seed: int, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self._first_with_scheme = [config.positions.index(scheme) for scheme in config.positions]
        # On the meta device nothing is drawn, so torch's own initialization leaves the global generator alone.
        with torch.device("meta"):
            self.token_embedding = nn.Embedding(vocab_size, config.d_model)
            self.position_embedding: nn.Module | None = None
            if isinstance(config.position, PositionScheme):
                self.position_embedding = config.position.build(config.d_model)
            coupling = config.coupling
            self.coupling_embedding: nn.Module | None = None if coupling is None else coupling.build(config.d_model)
            self.id_heads = None if coupling is None else coupling.build_heads(config.d_model)
            self.blocks: Sequence[Block] = nn.ModuleList(config.block(kernel) for kernel in config.kernels)  # type: ignore[assignment]
            self.final_norm = RMSNorm(config.d_model, eps=config.norm_eps)
            self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        self.to_empty(device="cpu")
        initialize(self, seed)
        with torch.no_grad():
            self.token_embedding.weight *= config.embedding_std / EMBEDDING_STD
            for block in self.blocks:
                block.output.weight *= config.residual_scale
                block.down.weight *= config.residual_scale
        if config.tied_head:
            self.head.weight = self.token_embedding.weight
        for layer, (block, kernel) in enumerate(zip(self.blocks, config.kernels, strict=True)):
            kernel_seed = named_seed(seed, f"blocks.{layer}.kernel_params")
            own_heads = kernel.own_heads(config.num_heads, config.kv_heads)
            block.kernel_params = kernel.build(own_heads, config.head_dim, kernel_seed)

    def forward(
        self,
        tokens: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None = None,
        *,
        indices: Int64[Tensor, "#B T"] | None = None,
        scored: Bool[Tensor, "B T"] | None = None,
        key_mask: Bool[Tensor, "B T"] | None = None,
        auxiliary: AuxiliaryOutputs | None = None,
        generator: torch.Generator | None = None,
    ) -> ModelOutput:
        """(B, T, V) next-token logits; with ``scored`` (N, V), those of the scored positions in row-major order. In
        training mode also the auxiliary losses: ``position_ids``, PPC's (see ``Predicted``), and
        ``blocks.0.kernel`` and so on, that of each layer's mechanism, where there is one.

        Args:
            position_ids: coupled IDs, 0 = none; needed with a coupling, ignored without.
            indices: (B or 1, T) sequence indices from the index sampling; None is 0 .. T - 1.
            scored: where logits are wanted; best on the CPU, for a GPU would have to stop for a look at its own.
            key_mask: False for tokens that no layer's attention may see, not even from their own position; the others
                keep their indices.
            auxiliary: collects the kernels' audit records; their losses are in the output.
            generator: of dropout, and of kernels that draw at random in training.

        Raises:
            SettingError: tokens that are not (B, T) whole numbers below V; position IDs that are missing, or indices
                past the position scheme's limit.
        """
        of_layers = [AuxiliaryOutputs() for _ in self.blocks] if self.training or auxiliary is not None else None
        hidden = self._hidden(tokens, position_ids, indices, scored, key_mask, of_layers, generator)
        losses: dict[str, Tensor] = {}
        for layer, own in enumerate(of_layers or ()):
            if self.training and own.losses:
                losses[f"blocks.{layer}.kernel"] = sum(own.losses[1:], own.losses[0])
            if auxiliary is not None:
                auxiliary.records.extend(own.records)
        if self.id_heads is not None and self.training:
            next_ids = next_position_ids(_needed(position_ids, self.config))
            if scored is not None:
                next_ids = next_ids.flatten(0, 1).index_select(0, _scored_rows(scored, next_ids.device))
            losses["position_ids"] = self.id_heads.loss(hidden.flatten(0, -2), next_ids.flatten(0, -2))
        return ModelOutput(self.head(hidden), losses)

    @torch.no_grad()
    def predict(
        self,
        tokens: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None = None,
        scored: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Int64[Tensor, "*rows"], Int64[Tensor, "*rows C"] | None]:
        """The likeliest next token, (B, T), or (N,) of scored positions, and its likeliest position IDs, (B, T, C) or
        (N, C); None where the coupling predicts none."""
        hidden = self._hidden(tokens, position_ids, None, scored)
        next_tokens: Tensor = self.head(hidden).argmax(-1)
        if self.id_heads is None:
            return next_tokens, None
        ids: Tensor = self.id_heads(hidden.flatten(0, -2)).argmax(-1)
        return next_tokens, ids.view(*hidden.shape[:-1], -1)

    @torch.no_grad()
    def generate(
        self,
        tokens: Int64[Tensor, "B T"],
        num_tokens: int,
        position_ids: Int64[Tensor, "B C ids"] | None = None,
        *,
        end: int | None = None,
        key_mask: Bool[Tensor, "B T"] | None = None,
        implementation: str | Sequence[str] = "auto",
    ) -> Int64[Tensor, "B all"]:
        """(B, T + num_tokens): the prompt and its greedy continuation, each token fed back, with caches.

        Equal, up to rounding in ties, to taking the largest logit of the whole prefix at every step. A model that
        predicts position IDs feeds them back too; ``free_run`` returns them as well.

        Args:
            position_ids: coupled IDs; needed with a coupling: (B, C, T), of the prompt, where the model predicts the
                rest, else (B, C, T + num_tokens), of the whole sequence.
            end: the token that ends a sequence, and is all that follows it; None: there is none.
            key_mask: of the prompt, as in ``forward``: False for padding, which stands before a shorter prompt.
            implementation: what decodes, as in ``Kernel.init_state``: ``"native"``, say, which ``"auto"`` never
                takes. One for all layers, or one for each.

        Raises:
            SettingError: as ``forward``; IDs of another length; or an implementation that the mechanism of a layer
                does not have, or that cannot run.
        """
        options: dict[str, Any] = {"end": end, "key_mask": key_mask, "implementation": implementation}
        return free_run(self, tokens, num_tokens, position_ids, **options)[0]

    def record(
        self,
        tokens: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None = None,
        indices: Int64[Tensor, "#B T"] | None = None,
    ) -> list[LayerRecord]:
        """Queries and keys of every layer, un-rotated and rotated, at inference; never a (T, T) map."""
        return list(self.layer_records(tokens, position_ids, indices))

    def layer_records(
        self,
        tokens: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None = None,
        indices: Int64[Tensor, "#B T"] | None = None,
    ) -> Iterator[LayerRecord]:
        """``record`` layer by layer, for long sequences: what a layer did is held only while it is looked at."""
        indices = self.sequence_indices(tokens, indices)
        records: list[LayerRecord] = []
        with torch.no_grad():
            x, layers = self.embed(tokens, position_ids, indices), self.layers(indices)
        for layer in layers:
            # Not around the yield: the caller decides about gradients of its own.
            with torch.no_grad():
                x = layer.block(x, partial(recorded, layer=layer, records=records))
            yield records.pop()

    def with_kernel(self, kernel: Kernel | tuple[Kernel, ...]) -> "DecoderModel":
        """The same weights under another mechanism: a second model on the same parameter objects.

        Raises:
            SettingError: a mechanism with parameters that this model does not have, or as ``Decoder``.
        """
        config = self.config.replace(kernel=kernel)
        for layer_kernel, trained in zip(config.kernels, self.config.kernels, strict=True):
            needed, has = (
                built.build(built.own_heads(config.num_heads, config.kv_heads), config.head_dim, 0)
                for built in (layer_kernel, trained)
            )
            own = needed is None or (layer_kernel.kind == trained.kind and _shapes(needed) == _shapes(has))
            if not own or layer_kernel.gates not in ((), trained.gates):
                raise SettingError("kernel", "a kernel whose parameters this model has", str(layer_kernel))
        model = copy.deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})
        model.config = config
        for block, layer_kernel in zip(model.blocks, config.kernels, strict=True):
            block.gates = layer_kernel.gates
        return model

    # --- parts that generation and analysis use

    def sequence_indices(
        self, tokens: Int64[Tensor, "B T"], indices: Int64[Tensor, "#B T"] | None
    ) -> Int64[Tensor, "#B T"]:
        """The given indices, or 0 .. T - 1, within the limits of the position schemes.

        Raises:
            SettingError: an index past a limit, or no (B, T) of whole numbers.
        """
        _check_tokens(tokens)
        config = self.config
        if indices is None:
            config.check_index(tokens.shape[1] - 1)
            return torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        # A GPU would have to stop for a look at the indices.
        if any(scheme.limit() is not None for scheme in config.positions):
            config.check_index(int(indices.max()))
        return indices

    def layers(self, indices: Int64[Tensor, "#B T"]) -> list[Layer]:
        """The layers, each with its own position for these indices; equal schemes share one."""
        config, dtype = self.config, self.token_embedding.weight.dtype
        made: list[KernelPosition | None] = []
        for layer, (scheme, first) in enumerate(zip(config.positions, self._first_with_scheme, strict=True)):
            if first == layer:
                made.append(scheme.kernel_position(indices, config.num_heads, config.head_dim, dtype))
            else:
                made.append(made[first])
        return [Layer(*parts) for parts in zip(self.blocks, config.kernels, made, strict=True)]

    def embed(
        self,
        tokens: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None,
        indices: Int64[Tensor, "#B T"],
    ) -> Float[Tensor, "B T d"]:
        """The input of the first layer.

        Raises:
            SettingError: tokens that are not below V; on a CPU, for a GPU would have to stop for a look.
        """
        try:
            x: Tensor = self.token_embedding(tokens)
        except IndexError:
            expected = f"tokens 0 .. {self.vocab_size - 1}"
            raise SettingError("tokens", expected, Shown(f"{tokens.min()} .. {tokens.max()}")) from None
        if self.position_embedding is not None:
            x = x + self.position_embedding(indices).to(x.dtype)
        if self.coupling_embedding is not None:
            x = x + self.coupling_embedding(_needed(position_ids, self.config))
        return x

    # --- inside

    def _hidden(
        self,
        tokens: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B C T"] | None,
        indices: Int64[Tensor, "#B T"] | None,
        scored: Bool[Tensor, "B T"] | None,
        key_mask: Bool[Tensor, "B T"] | None = None,
        auxiliary: Sequence[AuxiliaryOutputs] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*rows d"]:
        """(B, T, d), or (N, d) of the scored positions: what the heads read. ``auxiliary`` has one of each
        layer."""
        indices = self.sequence_indices(tokens, indices)
        x = dropout(
            self.embed(tokens, position_ids, indices), self.config.dropout if self.training else 0.0, generator
        )
        rows = None if scored is None else _scored_rows(scored, x.device)
        last = len(self.blocks) - 1
        for layer, (block, kernel, position) in enumerate(self.layers(indices)):
            mix = partial(
                kernel.attend,
                training=self.training,
                key_mask=key_mask,
                position=position,
                params=block.kernel_params,
                generator=generator,
                auxiliary=None if auxiliary is None else auxiliary[layer],
            )
            x = block(x, mix, rows if layer == last else None, generator)
        hidden: Tensor = self.final_norm(x)
        return hidden


def _check_tokens(tokens: Tensor) -> None:
    if not isinstance(tokens, Tensor):
        shown = Shown(f"{tokens!r:.60}, of type {type(tokens).__name__}")
        raise SettingError("tokens", "a tensor (B, T) of int64", shown)
    if tokens.dtype not in (torch.int64, torch.int32):
        raise SettingError("tokens", "whole numbers, int64", tokens.dtype)
    if tokens.ndim != 2:
        raise SettingError("tokens", "shape (B, T)", tuple(tokens.shape))


def _needed(position_ids: Tensor | None, config: Decoder) -> Tensor:
    if position_ids is None:
        raise SettingError("position_ids", f"missing; {config.coupling} needs position IDs")
    return position_ids


def _scored_rows(scored: Bool[Tensor, "B T"], device: torch.device) -> Int64[Tensor, " N"]:
    """Rows of the flattened (B T, d) where ``scored`` is true, on the device of the model, which need not wait for a
    mask on the CPU."""
    rows = scored.flatten().nonzero().squeeze(1)
    if device.type == "cuda" and not rows.is_cuda:
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


def _shapes(module: nn.Module | None) -> dict[str, torch.Size]:
    return {} if module is None else {name: value.shape for name, value in module.state_dict().items()}
