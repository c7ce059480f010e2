// Drawing a token per row: random numbers from (seed, position), and the draw itself. Formulas: quire/ops/sampling.py.
//
// Weights are whole numbers, so their sums are exact in any order. Nothing is sorted but the tokens at a border: one pass
// deals all tokens into bins by their distance from the largest logit, and only the bin a border falls into is looked at.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {
namespace {

constexpr int64_t kBins = 2048;
constexpr float kBinsPerNat = 64.0f;  // tokens of one bin differ by at most 1.6 % in weight, up to e^-32 of the largest
constexpr int64_t kBlock = 512;       // tokens whose sum is taken before it is asked whether the drawn one is among them
constexpr float kWeightOne = 0x1p52f;

// Scratch of one thread.
struct Scratch {
  float* shares;      // [V] softmax, whole vectors
  int64_t* weights;   // [kBins]
  int32_t* counts;    // [kBins]
  int32_t* members;   // [V] ids of one bin

  static size_t column(int64_t vocabulary) { return size_t((vocabulary + kLanes - 1) / kLanes * kLanes); }
  static size_t bytes(int64_t vocabulary) { return column(vocabulary) * 8 + size_t(kBins) * 12; }
  Scratch(char* memory, int64_t vocabulary) {
    shares = reinterpret_cast<float*>(memory);
    weights = reinterpret_cast<int64_t*>(shares + column(vocabulary));
    counts = reinterpret_cast<int32_t*>(weights + kBins);
    members = counts + kBins;
  }
};

int64_t weight_of(float share) { return int64_t(share * kWeightOne); }

// A row on its way to a token. Order means: larger logit first, the lower id of equals.
struct Row {
  const float* x;
  int64_t size;
  float largest, temperature;
  Scratch scratch;

  // The softmax over the row; false where it has no finite largest logit.
  bool find_shares() {
    V16 top = splat(-INFINITY);
    int64_t whole = size / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) top = max(load(x + i), top);
    largest = max_of(top);
    for (int64_t i = whole; i < size; ++i) largest = x[i] > largest ? x[i] : largest;
    if (!std::isfinite(largest)) return false;
    V16 middle = splat(largest), divisor = splat(temperature);
    double total = 0;
    for (int64_t start = 0; start < size; start += kBlock) {
      int64_t stop = std::min(start + kBlock, size);
      V16 sum = zero();
      for (int64_t i = start; i < stop; i += kLanes) {
        store(scratch.shares + i, exp((load_part(x + i, stop - i) - middle) / divisor));
        for (int64_t j = stop; j < i + kLanes; ++j) scratch.shares[j] = 0;  // lanes past the row
        sum = sum + load(scratch.shares + i);
      }
      total += sum_of(sum);
    }
    if (!(total > 0)) return false;  // a NaN
    V16 all = splat(float(total));
    for (int64_t i = 0; i < size; i += kLanes) store(scratch.shares + i, load(scratch.shares + i) / all);
    return true;
  }

  // min_p: tokens of less weight than this share of the largest are out.
  void drop_unlikely(double min_p) {
    float top = 0;
    for (int64_t i = 0; i < size; ++i) top = scratch.shares[i] > top ? scratch.shares[i] : top;
    double least = double(weight_of(top)) * min_p;
    for (int64_t i = 0; i < size; ++i)
      if (double(weight_of(scratch.shares[i])) < least) scratch.shares[i] = 0;
  }

  int64_t bin_of(int64_t i) const {
    float distance = (largest - x[i]) / temperature * kBinsPerNat;
    return distance < float(kBins - 1) ? int64_t(distance) : kBins - 1;
  }

  void fill_bins() {
    std::fill(scratch.weights, scratch.weights + kBins, 0);
    std::fill(scratch.counts, scratch.counts + kBins, 0);
    for (int64_t i = 0; i < size; ++i) {
      int64_t bin = bin_of(i);
      scratch.weights[bin] += weight_of(scratch.shares[i]);
      scratch.counts[bin] += 1;
    }
  }

  bool before(int64_t a, int64_t b) const { return x[a] > x[b] || (x[a] == x[b] && a < b); }

  // The ids of a bin in order; how many.
  int64_t sort_bin(int64_t bin) {
    int32_t* ids = scratch.members;
    int64_t count = 0;
    for (int64_t i = 0; i < size && count < scratch.counts[bin]; ++i)
      if (bin_of(i) == bin) ids[count++] = int32_t(i);
    std::sort(ids, ids + count, [this](int32_t a, int32_t b) { return before(a, b); });
    return count;
  }

  // The last token that stays under top_k (0: no limit) and top_p; `total` becomes the weight of all that stay.
  int64_t last_kept(int64_t top_k, double top_p, int64_t* total) {
    fill_bins();
    int64_t last = -1, all = 0;
    if (top_k > 0 && top_k < size) {
      int64_t left = top_k, bin = 0;
      for (; left > scratch.counts[bin]; ++bin) {
        left -= scratch.counts[bin];
        all += scratch.weights[bin];
      }
      sort_bin(bin);
      for (int64_t at = 0; at < left; ++at) all += weight_of(scratch.shares[scratch.members[at]]);
      last = scratch.members[left - 1];
    } else {
      for (int64_t bin = 0; bin < kBins; ++bin) all += scratch.weights[bin];
    }
    *total = all;
    if (!(top_p < 1)) return last;
    double limit = top_p * double(all);
    int64_t bin = 0, so_far = 0;  // a token stays while the weight before it is below the limit
    while (bin + 1 < kBins && double(so_far + scratch.weights[bin]) < limit) so_far += scratch.weights[bin++];
    int64_t count = sort_bin(bin);
    for (int64_t at = 0; at < count; ++at) {
      if (at > 0 && !(double(so_far) < limit)) break;
      int64_t id = scratch.members[at];
      if (last >= 0 && before(last, id)) break;  // top_k ends first
      so_far += weight_of(scratch.shares[id]);
      *total = so_far;
      if (at + 1 == count || !(double(so_far) < limit) || id == last) return id;
    }
    return last;
  }

  void drop_after(int64_t last) {
    for (int64_t i = 0; i < size; ++i)
      if (before(last, i)) scratch.shares[i] = 0;
  }

  int64_t total_weight() const {
    int64_t total = 0;
    for (int64_t i = 0; i < size; ++i) total += weight_of(scratch.shares[i]);
    return total;
  }

  // The first id whose running sum of weights exceeds the target.
  int64_t find(int64_t target) const {
    int64_t running = 0;
    for (int64_t start = 0; start < size; start += kBlock) {
      int64_t stop = std::min(start + kBlock, size), sum = 0;
      for (int64_t i = start; i < stop; ++i) sum += weight_of(scratch.shares[i]);
      if (running + sum <= target) {
        running += sum;
        continue;
      }
      for (int64_t i = start; i < stop; ++i) {
        running += weight_of(scratch.shares[i]);
        if (running > target) return i;
      }
    }
    return size - 1;  // not reached: the target is below the total
  }
};

}  // namespace

size_t draw_scratch(const Op& op, int64_t) { return size_t(op.n[2]) * Scratch::bytes(op.n[0]); }

// p logits, ids out int64, temperature, min_p, top_k int64, top_p, uniform; n V, row stride, threads. min_p, top_p and
// uniform are float64. A row without a finite largest logit gets id 0.
int64_t draw(const Op& op, const Context& c) {
  Scratch scratch(c.shared + size_t(c.thread) * Scratch::bytes(op.n[0]), op.n[0]);
  int64_t* ids = static_cast<int64_t*>(op.p[1]);
  const float* temperature = static_cast<const float*>(op.p[2]);
  const double* min_p = static_cast<const double*>(op.p[3]);
  const int64_t* top_k = static_cast<const int64_t*>(op.p[4]);
  const double *top_p = static_cast<const double*>(op.p[5]), *uniform = static_cast<const double*>(op.p[6]);
  int64_t rows = c.tokens * op.rows;
  for (int64_t r = c.take(rows); r >= 0; r = c.take(rows)) {
    Row row{static_cast<const float*>(op.p[0]) + r * op.n[1], op.n[0], 0, temperature[r], scratch};
    ids[r] = 0;
    if (!row.find_shares()) continue;
    if (min_p[r] > 0) row.drop_unlikely(min_p[r]);
    int64_t total;
    if ((top_k[r] > 0 && top_k[r] < op.n[0]) || top_p[r] < 1) {
      row.drop_after(row.last_kept(top_k[r], top_p[r], &total));
    } else {
      total = row.total_weight();
    }
    ids[r] = row.find(int64_t(uniform[r] * double(total)));
  }
  return rows;
}

// p seeds int64, positions int64, out float64. Philox4x32-10.
int64_t uniform(const Op& op, const Context& c) {
  return each_row(c, c.tokens * op.rows, [&](int64_t r) {
    uint64_t seed = static_cast<const uint64_t*>(op.p[0])[r], position = static_cast<const uint64_t*>(op.p[1])[r];
    uint32_t word[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
      uint64_t first = uint64_t(word[0]) * 0xD2511F53u, second = uint64_t(word[2]) * 0xCD9E8D57u;
      word[0] = uint32_t(second >> 32) ^ word[1] ^ key[0];
      word[1] = uint32_t(second);
      word[2] = uint32_t(first >> 32) ^ word[3] ^ key[1];
      word[3] = uint32_t(first);
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    uint64_t bits = (uint64_t(word[0] >> 5) << 26) + (word[1] >> 6);
    static_cast<double*>(op.p[2])[r] = double(bits) * 0x1p-53;
  });
}

}  // namespace QUIRE_ISA
}  // namespace quire
