// Softplus attention with and without powers, forward and backward: the formulas of fast.py, on small tiles that stay in
// a processor's nearest caches. Plain C++17 with the vector types of GCC and Clang; native.py compiles and calls it.
//
// All rows are float32 and contiguous: q (N, R, D), k (N, K, D), v (N, K, E), where N counts the heads of all
// sequences, and D and E are multiples of 16. Queries come scaled and times log2(e), so that scores are in units of log 2;
// so is f. Constant factors of f change no weight.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr long W = 16, VECTORS = 4, KEYS = 256;  // numbers of a vector, vectors of a line of products, keys of a tile
#elif defined(__AVX__)
constexpr long W = 8, VECTORS = 2, KEYS = 128;
#else
constexpr long W = 4, VECTORS = 4, KEYS = 128;
#endif
constexpr long LINES = 6, COLUMNS = W * VECTORS;  // the block of a product that registers hold
constexpr long ROWS = 64;                         // of a tile

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));

inline vec& at(float* x) { return *reinterpret_cast<vec*>(x); }
inline const vec& at(const float* x) { return *reinterpret_cast<const vec*>(x); }
inline vec fill(float x) { return x - vec{}; }
inline float sum(vec x) {
  float total = 0;
  for (long i = 0; i < W; i++) total += x[i];
  return total;
}
inline float largest(vec x) {
  float most = x[0];
  for (long i = 1; i < W; i++) most = std::max(most, x[i]);
  return most;
}
constexpr long up(long x, long unit) { return (x + unit - 1) / unit * unit; }

struct Free {
  void operator()(float* x) const { std::free(x); }
};
using Memory = std::unique_ptr<float[], Free>;
Memory room(long count) {
  Memory made(static_cast<float*>(std::aligned_alloc(64, up(4 * count + 1, 64))));
  if (!made) throw std::bad_alloc();
  return made;
}

// --- products

// c (M, V vectors) = or += a (M, L) b (L, V vectors). Steps from row to row, and in a from column to column.
template <int M, int V>
void block(long L, const float* a, long am, long al, const float* b, long bl, float* c, long cm, bool add) {
  vec sums[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[m][v] = add ? at(c + m * cm + v * W) : vec{};
  for (long l = 0; l < L; l++, a += al, b += bl) {
    vec line[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) line[v] = at(b + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const vec factor = fill(a[m * am]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[m][v] += factor * line[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) at(c + m * cm + v * W) = sums[m][v];
}

template <int V>
void lines(long M, long L, const float* a, long am, long al, const float* b, long bl, float* c, long cm, bool add) {
  for (; M >= LINES; M -= LINES, a += LINES * am, c += LINES * cm) block<LINES, V>(L, a, am, al, b, bl, c, cm, add);
  if (M == 1) block<1, V>(L, a, am, al, b, bl, c, cm, add);
  if (M == 2) block<2, V>(L, a, am, al, b, bl, c, cm, add);
  if (M == 3) block<3, V>(L, a, am, al, b, bl, c, cm, add);
  if (M == 4) block<4, V>(L, a, am, al, b, bl, c, cm, add);
  if (M == 5) block<5, V>(L, a, am, al, b, bl, c, cm, add);
}

// The same of any N, a multiple of W; bn is the step in b from one lot of COLUMNS to the next.
void product(long M, long N, long L, const float* a, long am, long al, const float* b, long bl, long bn, float* c,
             long cm, bool add) {
  for (long n = 0; n < N; n += COLUMNS, b += bn, c += COLUMNS) {
    const long vectors = std::min(VECTORS, (N - n) / W);
    if (vectors == 1) lines<1>(M, L, a, am, al, b, bl, c, cm, add);
    if (vectors == 2) lines<2>(M, L, a, am, al, b, bl, c, cm, add);
    if (vectors == 3) lines<3>(M, L, a, am, al, b, bl, c, cm, add);
    if (vectors == 4) lines<4>(M, L, a, am, al, b, bl, c, cm, add);
  }
}

// (K / COLUMNS, D, COLUMNS) of (K, D), with zeros for keys that are missing in the last lot.
Memory transposed(const float* x, long K, long D) {
  Memory out = room(up(K, COLUMNS) * D);
  for (long j = 0; j < up(K, COLUMNS); j++)
    for (long d = 0; d < D; d++)
      out[(j / COLUMNS * D + d) * COLUMNS + j % COLUMNS] = j < K ? x[j * D + d] : 0.0f;
  return out;
}

// --- functions of scores. A number that is not one stays so.

inline vec polynomial(vec, float c) { return fill(c); }
template <class... C>
inline vec polynomial(vec x, float c, C... rest) {
  return c + x * polynomial(x, rest...);
}

// 2^x for x <= 0, to 2e-7 of itself; of less than 2^-126 that.
inline vec exp2(vec x) {
  x = x < -126.0f ? fill(-126.0f) : x;
  const vec shifted = x + 12582912.0f;  // 1.5 2^23: the whole part lands in the last digits
  const vec rest = x - (shifted - 12582912.0f);
  const vec power = (vec)(((ivec)shifted + 127) << 23);
  return power * polynomial(rest, 1.0f, 0.693147182f, 0.240226462f, 0.0555032864f, 0.00961848907f, 0.00133999309f,
                            0.000153458124f);
}

// log2(1 + 2^s), to 2e-7 of itself, and its slope.
inline vec softplus(vec s, vec& slope) {
  const vec small = exp2(s > 0.0f ? -s : s);
  slope = (s > 0.0f ? fill(1.0f) : small) / (1.0f + small);
  return (s > 0.0f ? s : vec{}) +
         small * polynomial(small, 1.44269502f, -0.721340179f, 0.480692953f, -0.358408511f, 0.275641561f,
                            -0.197119251f, 0.1128565f, -0.0425672345f, 0.00754922302f);
}

// r^p and r^(p-1) for p >= 1; the latter is 0 at 0.
inline vec powers(vec r, double p, vec& slope) {
  // Few products are exact and fast; a larger power, which may be beyond any integer, is one call for each number.
  const long whole = p <= 64 ? static_cast<long>(p - 1) : 0;
  const float part = static_cast<float>(p - 1 - whole);
  slope = r > 0.0f ? fill(1.0f) : vec{};
  long left = whole;
  for (vec square = r; left; square *= square, left >>= 1)
    if (left & 1) slope *= square;
  if (part > 0)
    for (long i = 0; i < W; i++) slope[i] *= std::pow(r[i], part);
  return r * slope;
}

// --- attention

static_assert(sizeof(long) == 8, "native.py gives numbers of 64 bits");
struct Call {
  const float *q, *k, *v;
  // (sequences, R) and (sequences, K up to a multiple of 64): a row sees keys of its own group alone.
  const int32_t *row_groups, *key_groups;
  const float* counts;  // (sequences, R), n_i
  float* out;           // (N, R, E)
  float* statistics;    // (4, N, R): Z_i or G_i; o_i μ_i; 1 / (max_j f_ij - o_i μ_i); whether all f are equal
  const float* grad;    // (N, R, E); the rest is for the backward pass
  float *grad_q, *grad_k, *grad_v;
  long N, H, R, K, D, E, start, threads;  // H heads a sequence; the position of the first row, or -1: all see all
  double p;                                  // 0: none
};

// One head.
struct Head {
  const Call& call;
  const long n;
  const int32_t *row_groups, *key_groups;
  const float *counts, *q, *k, *v;
  float *out, *norm, *mean, *inverse, *equal;
  const Memory keys_by_columns;

  Head(const Call& c, long n)
      : call(c), n(n), row_groups(c.row_groups + n / c.H * c.R), key_groups(c.key_groups + n / c.H * up(c.K, 64)),
        counts(c.counts + n / c.H * c.R), q(c.q + n * c.R * c.D), k(c.k + n * c.K * c.D), v(c.v + n * c.K * c.E),
        out(c.out + n * c.R * c.E), norm(c.statistics + n * c.R), mean(norm + c.N * c.R), inverse(mean + c.N * c.R),
        equal(inverse + c.N * c.R), keys_by_columns(transposed(k, c.K, c.D)) {}

  long seen(long row, long rows) const {
    return call.start < 0 ? call.K : std::min<long>(call.K, call.start + row + rows);
  }

  ivec visible(long row, long key) const {
    ivec place;
    for (long i = 0; i < W; i++) place[i] = static_cast<int32_t>(key + i);
    const int32_t last = static_cast<int32_t>(call.start < 0 ? call.K : call.start + row);
    return (place <= last) & (*reinterpret_cast<const ivec*>(key_groups + key) == row_groups[row]);
  }

  void scores(long row, long rows, long key, long keys, float* into, long step) const {
    product(rows, up(keys, W), call.D, q + row * call.D, call.D, 1, &keys_by_columns[key * call.D], COLUMNS,
            COLUMNS * call.D, into, step, false);
  }

  vec relative(vec f, long row) const {  // r
    const vec r = (f - mean[row]) * inverse[row];
    return r < 0.0f ? vec{} : r;
  }

  void forward() const {
    const long E = call.E, step = call.p ? up(call.K, COLUMNS) + W : KEYS + W;
    const Memory tile = room(ROWS * step);
    for (long row = 0; row < call.R; row += ROWS) {
      const long rows = std::min(ROWS, call.R - row), all = seen(row, rows);
      float totals[ROWS] = {}, tops[ROWS] = {};
      std::fill(out + row * E, out + (row + rows) * E, 0.0f);
      for (long key = 0; key < all; key += KEYS) {
        const long keys = std::min(KEYS, all - key);
        float* f = &tile[call.p ? key : 0];
        scores(row, rows, key, keys, f, step);
        for (long i = 0; i < rows; i++) {
          vec total = {}, top = {}, slope;
          for (long j = 0; j < keys; j += W) {
            vec& x = at(f + i * step + j);
            x = visible(row + i, key + j) ? softplus(x, slope) : vec{};
            total += x;
            top = x > top ? x : top;
          }
          totals[i] += sum(total);
          tops[i] = std::max(tops[i], largest(top));
        }
        if (!call.p) product(rows, E, keys, f, step, 1, v + key * E, E, COLUMNS, out + row * E, E, true);
      }
      for (long i = 0; i < rows; i++) {
        const float center = counts[row + i] > 3 ? totals[i] / counts[row + i] : 0.0f;
        const bool none = tops[i] < 1e-37f, same = none || tops[i] - center <= 1e-6f * center;
        mean[row + i] = same ? 0.0f : center;
        inverse[row + i] = none ? 1.0f : 1.0f / (tops[i] - mean[row + i]);
        equal[row + i] = same;
      }
      if (call.p) {
        std::fill(totals, totals + ROWS, 0.0f);
        for (long key = 0; key < all; key += KEYS) {
          const long keys = std::min(KEYS, all - key);
          for (long i = 0; i < rows; i++) {
            vec total = {}, slope;
            for (long j = 0; j < keys; j += W) {
              vec& x = at(&tile[i * step + key + j]);
              x = powers(relative(x, row + i), equal[row + i] ? 1.0 : call.p, slope);
              total += x;
            }
            totals[i] += sum(total);
          }
          product(rows, E, keys, &tile[key], step, 1, v + key * E, E, COLUMNS, out + row * E, E, true);
        }
      }
      for (long i = 0; i < rows; i++) {
        norm[row + i] = totals[i] == 0 ? 1.0f : totals[i];  // or the row sees no key
        for (long e = 0; e < E; e++) out[(row + i) * E + e] /= norm[row + i];
      }
    }
  }

  void backward() const {
    const long D = call.D, E = call.E, step = call.p ? up(call.K, COLUMNS) + W : KEYS + W;
    float *grad_q = call.grad_q + n * call.R * D, *grad_k = call.grad_k + n * call.K * D,
          *grad_v = call.grad_v + n * call.K * E;
    const float* grad = call.grad + n * call.R * E;
    const Memory values_by_columns = transposed(v, call.K, E), g = room(ROWS * E), weights = room(ROWS * (KEYS + W)),
                 power_slopes = room(ROWS * (KEYS + W)), slopes = room(ROWS * step), tile = room(ROWS * step);
    for (long row = 0; row < call.R; row += ROWS) {
      const long rows = std::min(ROWS, call.R - row), all = seen(row, rows);
      float along[ROWS], totals[ROWS] = {};
      for (long i = 0; i < rows; i++) {
        along[i] = 0;
        for (long e = 0; e < E; e++) {
          g[i * E + e] = grad[(row + i) * E + e] / norm[row + i];
          along[i] += g[i * E + e] * out[(row + i) * E + e];
        }
      }
      // ds is ready in the tile: on to the gradients of queries and keys.
      auto finish = [&](long key, long keys, const float* ds) {
        product(rows, D, keys, ds, step, 1, k + key * D, D, COLUMNS, grad_q + row * D, D, true);
        product(keys, D, rows, ds, 1, step, q + row * D, D, COLUMNS, grad_k + key * D, D, true);
      };
      for (long key = 0; key < all; key += KEYS) {
        const long keys = std::min(KEYS, all - key), shift = call.p ? key : 0, width = KEYS + W;
        float *s = &slopes[shift], *A = &tile[shift];
        scores(row, rows, key, keys, &weights[0], width);
        for (long i = 0; i < rows; i++)
          for (long j = 0; j < keys; j += W) {
            const ivec shown = visible(row + i, key + j);
            vec slope, &y = at(&weights[i * width + j]);
            const vec f = softplus(y, slope);
            y = shown ? f : vec{};
            at(s + i * step + j) = shown ? slope : vec{};
            if (call.p)
              y = powers(relative(y, row + i), equal[row + i] ? 1.0 : call.p, at(&power_slopes[i * width + j]));
          }
        product(keys, E, rows, &weights[0], 1, width, &g[0], E, COLUMNS, grad_v + key * E, E, true);
        product(rows, up(keys, W), E, &g[0], E, 1, &values_by_columns[key * E], COLUMNS, COLUMNS * E, A, step, false);
        for (long i = 0; i < rows; i++) {
          vec total = {};
          for (long j = 0; j < keys; j += W) {
            vec& x = at(A + i * step + j);
            x = (x - along[i]) * at(call.p ? &power_slopes[i * width + j] : s + i * step + j);
            total += x;
          }
          totals[i] += sum(total);
        }
        if (!call.p) finish(key, keys, A);
      }
      if (!call.p) continue;
      for (long key = 0; key < all; key += KEYS) {
        const long keys = std::min(KEYS, all - key);
        for (long i = 0; i < rows; i++) {
          const float gain = inverse[row + i] * (equal[row + i] ? 1.0f : static_cast<float>(call.p)),
                      share = equal[row + i] || counts[row + i] <= 3 ? 0.0f : totals[i] / counts[row + i];
          for (long j = key; j < key + keys; j += W) {
            vec& x = at(&tile[i * step + j]);
            x = (x - share) * gain * at(&slopes[i * step + j]);
          }
        }
        finish(key, keys, &tile[key]);
      }
    }
  }
};

// Whether there was memory for it.
bool over_heads(const Call& call, void (Head::*pass)() const) {
  std::atomic<long> next{0};
  std::atomic<bool> done{true};
  auto work = [&] {
    try {
      for (long n; (n = next++) < call.N;) (Head(call, n).*pass)();
    } catch (const std::bad_alloc&) {
      done = false;
    }
  };
  std::vector<std::thread> others;
  try {
    for (long i = 1; i < std::min(call.threads, call.N); i++) others.emplace_back(work);
  } catch (const std::exception&) {  // the threads that there are do all the work
  }
  work();
  for (auto& other : others) other.join();
  return done;
}

}  // namespace

// 0, or 1 where there is too little memory. No exception leaves.
extern "C" int softplus_forward(const Call* call) { return !over_heads(*call, &Head::forward); }
extern "C" int softplus_backward(const Call* call) { return !over_heads(*call, &Head::backward); }
