"""Which blocks adaptive sparse attention keeps: against plain Python, ties, causality, escalation, randomness."""

import math

import pytest
import torch
from kernels.closeness import assert_close
from torch import Tensor

from sparsity_lab.kernels import AdaptiveSparse
from sparsity_lab.kernels.adaptive import REASONS, audit
from sparsity_lab.settings import SettingError

B, G, M, T, D = 2, 2, 2, 45, 6


def rows(length: int = T, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(B, G * M, length, D, generator=generator, dtype=torch.float64)
    k = torch.randn(B, G, length, D, generator=generator, dtype=torch.float64)
    return q, k


def all_codes(kernel: AdaptiveSparse, q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
    length = q.shape[2]
    return kernel.audit(q, k, rows=torch.arange(length).expand(len(q), -1), key_mask=key_mask).codes


def dot(x: Tensor, y: Tensor) -> float:
    return math.fsum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))


def log_sum(values: list[float]) -> float:
    top = max(values, default=-math.inf)
    return top + math.log(math.fsum(math.exp(x - top) for x in values)) if top > -math.inf else top


class Plain:
    """The sheet's rules in plain Python, one row at a time; blocks begin at the first visible key."""

    def __init__(self, kernel: AdaptiveSparse, q: Tensor, k: Tensor, key_mask: Tensor | None) -> None:
        self.kernel, self.q, self.k = kernel, q, k
        self.size, self.scale = kernel.block_size, 1 / math.sqrt(q.shape[-1])
        self.seen = torch.ones(len(q), q.shape[2], dtype=torch.bool) if key_mask is None else key_mask
        self.start = [seen.index(True) for seen in self.seen.tolist()]

    def keys(self, b: int, j: int, t: int) -> list[int]:
        first = self.start[b] + j * self.size
        return [i for i in range(first, min(first + self.size, t + 1)) if self.seen[b, i]]

    def score(self, b: int, h: int, t: int, j: int) -> float:
        query, keys = self.q[b, h, t], self.k[b, h // M, self.keys(b, j, t)]
        mean, variance = keys.mean(0), keys.var(0, correction=0)
        m, v = self.scale * dot(query, mean), 0.5 * self.scale**2 * dot(query**2, variance)
        x = self.scale * math.fsum(torch.maximum(query * keys.amax(0), query * keys.amin(0)).tolist())
        variance_weight, box_weight = self.kernel.beta
        return math.log(len(keys)) + m + variance_weight * v + box_weight * (x - m)

    def retained(self, b: int, h: int, t: int, past: list[int], kept: set[int]) -> float:
        """The estimate of the retained mass; the block scores are at least their lower bound where β₂ >= 0."""
        of_keys = [self.scale * dot(self.q[b, h, t], self.k[b, h // M, i]) for j in kept for i in self.keys(b, j, t)]
        lost = log_sum([self.score(b, h, t, j) for j in past if j not in kept])
        return 1.0 if lost == -math.inf else 1 / (1 + math.exp(lost - log_sum(of_keys)))

    def row(self, b: int, g: int, t: int) -> dict[int, str]:
        kernel, own = self.kernel, (t - self.start[b]) // self.size
        past = [j for j in range(own) if self.keys(b, j, t)]
        share = dict.fromkeys(past, 0.0)
        for h in range(g * M, g * M + M):
            scores = {j: self.score(b, h, t, j) for j in past}
            for j in past:
                share[j] += math.exp(scores[j] - log_sum(list(scores.values()))) / M
        reasons = {j: "local" for j in (*past, own) if own - kernel.n_local < j} | {own: "local"}
        reasons |= {j: "sink" for j in past if j < kernel.n_sink}
        ranked = sorted((j for j in past if j not in reasons), key=lambda j: (-share[j], j))
        kept = dict(reasons)
        if t - self.start[b] < kernel.dense_len:
            return self.taken(kept, ranked, share, 0) | dict.fromkeys(
                ranked[kernel.k_free + kernel.k_slack :], "dense"
            )
        for level in range(3 if kernel.rho_min else 1):
            if level and min(self.retained(b, h, t, past, set(kept)) for h in range(g * M, g * M + M)) >= (
                kernel.rho_min
            ):
                break
            if level == 1 and kernel.k_esc is None:
                continue
            kept = self.taken(dict(reasons), ranked, share, level)
        return kept

    def taken(
        self, reasons: dict[int, str], ranked: list[int], share: dict[int, float], level: int
    ) -> dict[int, str]:
        kernel = self.kernel
        most = kernel.k_free if kernel.mode == "topk" else kernel.k_max
        forced = math.fsum(share[j] for j in reasons if j in share)

        def budget(most: int | None) -> int:
            most = len(ranked) if most is None else most
            if kernel.mode == "topk":
                return most
            count = 0
            while count < len(ranked):
                before = forced + math.fsum(share[j] for j in ranked[:count])
                if not ((before < kernel.p or count < kernel.k_min) and count < most):
                    break
                count += 1
            return count

        first, second = budget(most), budget(kernel.k_esc if level == 1 else most)
        for rank, j in enumerate(ranked[: second + kernel.k_slack]):
            reasons[j] = "selected" if rank < first else "escalated" if rank < second else "slack"
        if level == 2:
            reasons |= {j: "escalated" for j in ranked if j not in reasons}
        return reasons


RULES = [
    AdaptiveSparse(block_size=4, n_local=1, k_free=2),
    AdaptiveSparse(block_size=4, n_sink=0, n_local=3, k_free=1, k_slack=2, beta=(0.0, 1.0)),
    AdaptiveSparse(block_size=3, n_sink=2, mode="topp", p=0.7, k_min=0, beta=(0.3, 0.2)),
    AdaptiveSparse(block_size=3, n_sink=0, n_local=1, mode="topp", p=0.8, k_min=2, k_max=4, k_slack=1),
    AdaptiveSparse(block_size=4, n_local=1, k_free=1, rho_min=0.75, k_esc=3, k_slack=1),
    AdaptiveSparse(block_size=4, n_local=1, mode="topp", p=0.6, k_max=2, rho_min=0.6, k_esc=5),
    AdaptiveSparse(block_size=5, k_free=0, rho_min=0.8, dense_len=17),
]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "padded"])
@pytest.mark.parametrize("kernel", RULES, ids=str)
def test_rules_in_plain_python(kernel: AdaptiveSparse, masked: bool) -> None:
    q, k = rows()
    key_mask = torch.ones(B, T, dtype=torch.bool)
    if masked:
        key_mask[0, :9] = False  # whole blocks
        key_mask[1, 14:22] = False
        key_mask[1, 31:] = False
    plain = Plain(kernel, q, k, key_mask if masked else None)
    codes = all_codes(kernel, q, k, key_mask if masked else None)
    found = set()
    for b in range(B):
        for g in range(G):
            for t in range(T):
                if masked and not key_mask[b, : t + 1].any():
                    continue
                got = {j: REASONS[int(code)] for j, code in enumerate(codes[b, g, t]) if code}
                assert got == plain.row(b, g, t), f"row {b}, {g}, {t}"
                found |= set(got.values())
    expected = {"local"} | ({"sink"} if kernel.n_sink else set()) | ({"slack"} if kernel.k_slack else set())
    expected |= ({"escalated"} if kernel.rho_min else set()) | ({"dense"} if kernel.dense_len else set())
    assert found >= expected, "the case does not show what it is for"


@pytest.mark.parametrize("implementation", AdaptiveSparse.implementations)
def test_ties_go_to_the_lower_block(implementation: str) -> None:
    """Equal keys, whatever the number of blocks: the outputs are those of the lowest blocks, in all forms."""
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(0)
        q = torch.randn(1, 2, 61, 8, generator=generator, dtype=dtype)
        k = torch.randn(1, 2, 1, 8, generator=generator, dtype=dtype).expand(-1, -1, 61, -1).contiguous()
        v = torch.randn(1, 2, 61, 8, generator=generator, dtype=dtype)
        kernel = AdaptiveSparse(block_size=3, n_sink=0, n_local=1, k_free=2)
        codes = all_codes(kernel, q, k)
        out = kernel.attend(q, k, v, implementation=implementation)
        for t in range(61):
            own = t // 3
            kept = sorted({0, 1, own} if own > 1 else set(range(own + 1)))
            assert codes[0, 0, t].nonzero().flatten().tolist() == kept
            seen = [i for j in kept for i in range(3 * j, min(3 * j + 3, t + 1))]
            assert_close(f"row {t}", out[:, :, t], v[:, :, seen].mean(2), 1e-5)


def test_ties_within_the_last_digit() -> None:
    """Importances that differ by less than float32 tells are tied; others are not."""
    rule = AdaptiveSparse(block_size=1, n_sink=0, n_local=1, k_free=1)
    q, k = torch.ones(1, 1, 4, 1, dtype=torch.float64), torch.ones(1, 1, 4, 1, dtype=torch.float64)
    k[0, 0, 1] += 1e-12
    assert all_codes(rule, q, k)[0, 0, 3].tolist() == [REASONS.index("selected"), 0, 0, REASONS.index("local")]
    k[0, 0, 1] += 1e-5
    assert all_codes(rule, q, k)[0, 0, 3].tolist() == [0, REASONS.index("selected"), 0, REASONS.index("local")]


def test_small_shares_keep_their_order() -> None:
    """Logits hundreds apart: what is nothing as a probability is still ranked."""
    kernel = AdaptiveSparse(block_size=1, n_sink=0, n_local=1, k_free=2)
    k = torch.tensor([-2000.0, -3000.0, -1000.0, 0.0, -1500.0, 0.0])[None, None, :, None]
    for q in (torch.ones(1, 1, 6, 1), torch.ones(1, 2, 6, 1)):
        assert all_codes(kernel, q, k)[0, 0, 5].nonzero().flatten().tolist() == [2, 3, 5]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_short_sequences(length: int) -> None:
    """T < b, T = b, and blocks that are not full: with a large budget the mechanism is dense."""
    q, k = rows(length)
    kernel = AdaptiveSparse(block_size=4, k_free=9)
    codes = all_codes(kernel, q, k)
    assert torch.equal(
        codes > 0, (torch.arange(length) // 4)[:, None] >= torch.arange(-(-length // 4)).expand_as(codes)
    )


@pytest.mark.parametrize("implementation", AdaptiveSparse.implementations)
def test_no_pooling_of_queries(implementation: str) -> None:
    """A query alone decides its blocks: all others may change. Rounding does not decide either."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 64, 8, generator=generator) for _ in range(3))
    kernel = AdaptiveSparse(block_size=4, n_local=1, k_free=2)
    out = kernel.attend(3 * q, k, v, implementation=implementation)
    for t in (31, 40, 63):
        others = torch.randn(1, 2, 64, 8, generator=generator)
        others[:, :, t] = 3 * q[:, :, t]
        assert_close(
            f"row {t}", kernel.attend(others, k, v, implementation=implementation)[:, :, t], out[:, :, t], 1e-5
        )


def test_random_blocks() -> None:
    """In training with probability ε a row keeps k_rand more blocks, uniform among those left; the same in all forms,
    a function of the generator, and never without one."""
    kernel = AdaptiveSparse(block_size=2, n_sink=1, n_local=1, k_free=1, k_rand=2, epsilon=0.5)
    length = 16
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(64, 4, length, 4, generator=generator) for _ in range(2))
    # Values that name their block: the weight of a block is a coordinate of the output.
    v = torch.eye(length // 2).repeat_interleave(2, 0).expand(64, 4, -1, -1)
    q, k = torch.nn.functional.pad(q, (0, 4)), torch.nn.functional.pad(k, (0, 4))

    def kept(**options: object) -> Tensor:
        return kernel.attend(q, k, v.contiguous(), **options) > 0

    plain = kept(training=False)
    drawn = {
        name: kept(generator=torch.Generator().manual_seed(3), implementation=name) for name in kernel.implementations
    }
    assert all(torch.equal(x, drawn["reference"]) for x in drawn.values())
    extra = (drawn["reference"] & ~plain)[:, :, 15]
    assert not (plain & ~drawn["reference"]).any()
    counts = extra.sum(-1).flatten()
    assert set(counts.tolist()) == {0, 2}
    share = float((counts == 2).double().mean())
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(len(counts))
    # Of the 7 past blocks one is the sink and one is selected: 2 of the 5 others, each with probability 2/5.
    left = (~plain[:, :, 15, 1:7]).double().mean((0, 1)) * share * 2 / 5
    of_block = extra[:, :, 1:7].double().mean((0, 1))
    assert float((of_block - left).abs().max()) < 5 * math.sqrt(0.2 / len(counts))
    with pytest.raises(SettingError, match=r"generator: missing; k_rand = 2 draws random blocks"):
        kept()
    with pytest.raises(SettingError, match=r"training: expected False, since with k_rand = 2"):
        kernel.weights(q, k)


@pytest.mark.parametrize("beta", [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("group", [1, 2])
def test_interval_and_error_identities(beta: tuple[float, float], group: int) -> None:
    """ρ_lo <= ρ <= ρ_hi, and the error is a function of ρ, on random rows of several sizes."""
    for seed, size in enumerate((0.1, 1.0, 4.0)):
        generator = torch.Generator().manual_seed(seed)
        q = size * torch.randn(2, 2 * group, 40, 8, generator=generator, dtype=torch.float64)
        k, v = torch.randn(2, 2, 2, 40, 8, generator=generator, dtype=torch.float64)
        kernel = AdaptiveSparse(block_size=4, n_local=1, k_free=2, beta=beta)
        found = kernel.audit(q, k, rows=torch.arange(40).expand(2, -1))
        assert (found.lower <= found.retained + 1e-12).all()
        assert (found.retained <= found.upper + 1e-12).all()
        assert (found.lower < found.upper).any()
        dense, sparse = kernel.replace(k_free=40).weights(q, k), kernel.weights(q, k)
        inside = sparse > 0
        rho = found.retained
        assert_close("ρ", (dense * inside).sum(-1), rho, 1e-12)
        assert_close("total variation", (dense - sparse).abs().sum(-1) / 2, 1 - rho, 1e-9)
        assert_close("divergence", torch.xlogy(sparse, sparse / dense.clamp_min(1e-300)).sum(-1), -rho.log(), 1e-9)
        values = v.repeat_interleave(group, 1)
        error = ((dense - sparse) @ values).norm(dim=-1)
        diameter = torch.cdist(values, values).amax((-1, -2))
        assert (error <= (1 - rho) * diameter[..., None] + 1e-12).all()


def test_rows_are_looked_at_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece and row by row: the same audit."""
    q, k = rows()
    kernel, at = RULES[4], torch.arange(T).expand(B, -1)
    whole = kernel.audit(q, k, rows=at).record()
    sizes = []
    plain = audit.dense_logits
    monkeypatch.setattr(audit, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(audit, "dense_logits", lambda q, *rest: sizes.append(q.shape[3]) or plain(q, *rest))
    for name, got in kernel.audit(q, k, rows=at).record().items():
        if isinstance(got, Tensor) and got.is_floating_point():
            torch.testing.assert_close(got, whole[name], rtol=0, atol=1e-12, msg=name)
        else:
            assert torch.equal(got, whole[name]) if isinstance(got, Tensor) else got == whole[name], name
    assert sizes == [1] * T


def test_audit_measures() -> None:
    """Budget, recall and calibration by their definitions."""
    q, k = rows()
    kernel = RULES[0]
    at = torch.arange(T).expand(B, -1)
    found = kernel.audit(q, k, rows=at)
    weights = kernel.weights(q, k)
    pairs = (weights > 0).sum(-1).view(B, G, M, T)[:, :, 0]
    assert torch.equal(found.pairs, pairs)
    assert found.budget()["pairs_over_dense"] == pytest.approx(float(pairs.sum()) / (B * G * T * (T + 1) / 2))
    assert found.recall(1)[0, 0, 3] == 1.0  # no past
    everything = kernel.replace(k_free=T).audit(q, k, rows=at)
    assert (everything.recall(3) == 1).all()
    assert (everything.retained == 1).all()
    assert (everything.margin == math.inf).all()
    best = found.mass.argmax(-1, keepdim=True)
    hit = (found.codes.gather(-1, best) > 0).squeeze(-1).double().masked_fill(at[:, None] < 4, 1.0)
    assert_close("recall of the best", found.recall(1).double(), hit, 0.0)
    missed = (found.retained < 0.8) & (found.estimated >= 0.8)
    assert missed.any()
    assert found.calibration(0.8)["silent_misses"] == pytest.approx(float(missed.double().mean()))
    assert found.calibration()["mean"] == pytest.approx(float((found.estimated - found.retained).mean()))


BAD = [
    ({"block_size": 0}, r"block_size: expected at least 1, got 0"),
    ({"n_local": 0}, r"n_local: expected at least 1, got 0"),
    ({"k_free": -1}, r"k_free: expected at least 0, got -1"),
    ({"p": 0.0}, r"p: expected a share in \(0, 1\], got 0.0"),
    ({"epsilon": 1.5}, r"epsilon: expected a probability in \[0, 1\], got 1.5"),
    ({"rho_min": 1.0}, r"rho_min: expected a share in \[0, 1\), got 1.0"),
    ({"k_max": 1}, r"k_max: expected at least k_min = 2, got 1"),
    ({"k_esc": 4}, r"k_esc: expected more than k_free = 4, got 4"),
    ({"k_esc": 4, "mode": "topp"}, r"k_esc: expected more than k_max = None, got 4"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_settings_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        AdaptiveSparse(**fields)


def test_calls_refused() -> None:
    kernel = AdaptiveSparse()
    q, k = rows()
    with pytest.raises(
        SettingError, match=r"causal: expected True, since AdaptiveSparse selects only earlier blocks"
    ):
        kernel.attend(q, k, k, causal=False)
    with pytest.raises(SettingError, match=r"rows: expected positions 0 .. 44, got \(3, 45\)"):
        kernel.audit(q, k, rows=torch.tensor([[3], [45]]))
    with pytest.raises(SettingError, match=r"rows: expected int64 of shape \(2, R\)"):
        kernel.audit(q, k, rows=torch.tensor([3, 4]))
    with pytest.raises(SettingError, match=r"params: expected the module that build\(2, ...\) returns.*got 4"):
        kernel.attend(q, k, k, params=kernel.build(4, D, 0))
    with pytest.raises(
        SettingError, match=r"position: .*\('rotate' or None; block summaries contain no bias\), got 'bias'"
    ):
        kernel.check_position("bias")
