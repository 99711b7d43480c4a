"""An attention mechanism with gates, for tests."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from sparsity_lab.kernels import Context, Softmax, softmax_weights


class Forgetting(Softmax):
    """softmax_j(<q_i, k_j> / sqrt(D) + bias_ij + s Σ_{j < t <= i} log σ(f_t)), where s is the logistic of the gate
    ``strength`` of row i; not registered, made for these tests."""

    kind = "ForgettingForTests"
    implementations = ("reference",)
    gates = ("forget", "strength")

    def _weights(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        visible, bias = context.visible_and_bias(q, k)
        rows = slice(context.query_start, context.query_start + q.shape[2])
        kept = logsigmoid(context.gates["forget"]).cumsum(-1)
        forgotten = (kept[..., rows, None] - kept[..., None, :]) * context.gates["strength"][
            ..., rows, None
        ].sigmoid()
        return softmax_weights(q, k, visible, forgotten if bias is None else forgotten + bias)
