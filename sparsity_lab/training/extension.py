"""``extended``: from a run to one that fine-tunes it at a longer context."""

from sparsity_lab.kernels import Kernel
from sparsity_lab.models import Adapter, Decoder, NoPE, PositionScheme, RoPE
from sparsity_lab.settings import SettingError, check_that
from sparsity_lab.training.config import Evaluation, RunConfig, Training
from sparsity_lab.training.curriculum import FixedLength


def extended(
    parent: RunConfig,
    length: int,
    *,
    kernel: Kernel | tuple[Kernel, ...] | None = None,
    adapter: Adapter | None = None,
    interpolate: bool = True,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
) -> RunConfig:
    """The run that goes on from ``parent`` at a longer context: its child, with its task and seeds.

    >>> child = extended(run.config, 32)
    >>> child.parent == run.config, child.training.curriculum.range()[1]
    (True, 32)

    Args:
        length: every training sequence has it; above the longest that the parent was trained on.
        kernel: what attends; None keeps the parent's. ``ShiftedSparse`` is sparse in training and dense in use.
        adapter: what of the weights is trained; None trains all.
        interpolate: widen the positions by the quotient of the longest sequences, in tokens: RoPE's, in all layers
            that have it. A parent that was widened itself is widened once more: scales multiply.
        training: how it is trained; its curriculum is replaced. None takes the parent's.
        evaluation: what is measured; None takes the parent's, with ``length`` among its lengths.

    Raises:
        SettingError: a length that is not longer, positions that cannot be interpolated, or as ``RunConfig``.
    """
    trained = parent.training.curriculum.range()[1]
    check_that(length > trained, "length", f"more than {trained}, the parent's longest training length", length)
    if not isinstance(parent.model, Decoder):
        raise SettingError("parent.model", "a Decoder", parent.model)
    position = parent.model.position
    if interpolate:
        position = _widened(position, parent.task.sequence_length(length) / parent.task.sequence_length(trained))
    evaluated = parent.evaluation
    return parent.replace(
        model=parent.model.replace(position=position, kernel=parent.model.kernel if kernel is None else kernel),
        training=(training or parent.training).replace(curriculum=FixedLength(length=length)),
        evaluation=evaluation or evaluated.replace(lengths=tuple(sorted({*evaluated.lengths, length}))),
        parent=parent,
        adapter=adapter,
    )


def _widened(
    position: PositionScheme | tuple[PositionScheme, ...], factor: float
) -> PositionScheme | tuple[PositionScheme, ...]:
    """The same with every RoPE widened; layers without positions stay so."""
    schemes = position if isinstance(position, tuple) else (position,)
    kinds = {type(scheme) for scheme in schemes}
    if RoPE not in kinds or kinds - {RoPE, NoPE}:
        shown = ", ".join(str(scheme) for scheme in schemes)
        raise SettingError("parent.model.position", "RoPE, or interpolate=False", shown)
    widened = tuple(scheme.widened(factor) if isinstance(scheme, RoPE) else scheme for scheme in schemes)
    return widened if isinstance(position, tuple) else widened[0]
