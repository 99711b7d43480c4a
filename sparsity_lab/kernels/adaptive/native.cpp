// A decoding step of adaptive sparse attention for each head of keys: scores of blocks in float64, the best blocks as
// formula.py ranks them, and attention to those. Plain C++17 with the vector types of GCC and Clang; native.py calls it.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <new>
#include <thread>
#include <vector>

namespace {

struct Step {
  const float *q, *beta;                         // (heads, M, D) and (heads of a sequence, 2)
  const double *moments, *box, *log_count;       // summaries: (heads, room, 2D), and the last (sequences, room)
  const float* blocks;                           // (heads, held, size, D + E)
  float* out;                                    // (heads, M, E)
  int64_t heads, of_sequence, M, D, E, room, held, size;
  int64_t length, sinks, local, count, threads;  // keys, the row's own last; sinks, local blocks, and best blocks
};

template <class T>
T dot(const T* a, const T* b, int64_t size) {
  typedef T vec __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
  constexpr int64_t W = 64 / sizeof(T);
  vec sums = {};
  int64_t i = 0;
  for (; i + W <= size; i += W) sums += *reinterpret_cast<const vec*>(a + i) * *reinterpret_cast<const vec*>(b + i);
  T total = 0;
  for (int64_t j = 0; j < W; j++) total += sums[j];
  for (; i < size; i++) total += a[i] * b[i];
  return total;
}

double log_sum_exp(const double* x, int64_t size, int64_t step) {
  double top = -std::numeric_limits<double>::infinity(), total = 0;
  for (int64_t i = 0; i < size; i++) top = std::max(top, x[i * step]);
  for (int64_t i = 0; i < size; i++) total += std::exp(x[i * step] - top);
  return top + std::log(total);
}

// Orders as a float does, then the lower block first. An integer, since NaN has no order.
uint64_t rank(double importance, int64_t block) {
  const float rounded = static_cast<float>(importance) + 0.0f;  // there is no -0
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | ~static_cast<uint32_t>(block);
}

std::vector<int64_t> kept_blocks(const Step& step, int64_t head) {
  const int64_t own = (step.length - 1) / step.size, width = 2 * step.D, M = step.M;
  const int64_t local = std::max<int64_t>(own - step.local + 1, 0), sinks = std::min(step.sinks, local);
  std::vector<int64_t> kept;
  for (int64_t block = 0; block < sinks; block++) kept.push_back(block);
  for (int64_t block = local; block <= own; block++) kept.push_back(block);
  const double* log_count = step.log_count + head / step.of_sequence * step.room;
  const double *moments = step.moments + head * step.room * width, *box = step.box + head * step.room * width;
  const float* beta = step.beta + head % step.of_sequence * 2;
  const double scale = 1.0 / std::sqrt(static_cast<double>(step.D));
  std::vector<double> scores(own * M), of_moments(width), of_box(width);
  for (int64_t m = 0; m < M; m++) {
    for (int64_t d = 0; d < step.D; d++) {
      const double q = step.q[(head * M + m) * step.D + d];
      of_moments[d] = scale * (1.0 - beta[1]) * q;
      of_moments[step.D + d] = 0.5 * scale * scale * beta[0] * q * q;
      of_box[d] = scale * beta[1] * std::max(q, 0.0);
      of_box[step.D + d] = scale * beta[1] * std::min(q, 0.0);
    }
    for (int64_t block = 0; block < own; block++) {
      double score = dot(of_moments.data(), moments + block * width, width) + log_count[block];
      if (beta[1]) score += dot(of_box.data(), box + block * width, width);
      scores[m * own + block] = score;
    }
    if (M == 1 || !own) continue;
    const double total = log_sum_exp(&scores[m * own], own, 1);
    for (int64_t block = 0; block < own; block++) scores[m * own + block] -= total;
  }
  std::vector<uint64_t> ranks;
  for (int64_t block = sinks; block < local; block++)
    ranks.push_back(rank(M == 1 ? scores[block] : log_sum_exp(&scores[block], M, own), block));
  const auto best = ranks.begin() + std::min<int64_t>(step.count, ranks.size());
  std::partial_sort(ranks.begin(), best, ranks.end(), std::greater<uint64_t>());
  for (auto one = ranks.begin(); one != best; one++) kept.push_back(~static_cast<uint32_t>(*one));
  return kept;
}

void attend(const Step& step, int64_t head) {
  const int64_t D = step.D, E = step.E, width = D + E;
  const std::vector<int64_t> kept = kept_blocks(step, head);
  std::vector<float> weights(kept.size() * step.size);
  for (int64_t m = 0; m < step.M; m++) {
    const float* q = step.q + (head * step.M + m) * D;
    float* out = step.out + (head * step.M + m) * E;
    const float scale = 1.0f / std::sqrt(static_cast<float>(D));
    float top = -std::numeric_limits<float>::infinity(), total = 0;
    auto each = [&](auto use) {  // a number of the weights and its key, which its value follows
      float* weight = weights.data();
      for (const int64_t block : kept) {
        const float* key = step.blocks + (head * step.held + block) * step.size * width;
        const int64_t keys = std::min(step.size, step.length - block * step.size);
        for (int64_t i = 0; i < keys; i++, key += width) use(*weight++, key);
      }
    };
    each([&](float& weight, const float* key) { top = std::max(top, weight = scale * dot(q, key, D)); });
    std::fill(out, out + E, 0.0f);
    each([&](float& weight, const float* key) {
      weight = std::exp(weight - top);
      total += weight;
      for (int64_t e = 0; e < E; e++) out[e] += weight * key[D + e];
    });
    for (int64_t e = 0; e < E; e++) out[e] /= total;
  }
}

}  // namespace

// 0, or 1 where there is too little memory. No exception leaves.
extern "C" int adaptive_step(const Step* step) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    try {
      for (int64_t head; (head = next++) < step->heads;) attend(*step, head);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min(step->threads, step->heads); i++) others.emplace_back(work);
  } catch (const std::exception&) {  // the threads that there are do all the work
  }
  work();
  for (auto& other : others) other.join();
  return failed;
}
