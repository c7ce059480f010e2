// Mixture of experts: the router's choice, and the chosen experts' gated MLPs summed up per token.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "packed.h"
#include "vec.h"

namespace quire {
namespace QUIRE_ISA {

// p logits, weights out, ids out int64; n X, A, renormalise. Softmax over all, then the A largest, lower ids first. A
// NaN among the logits makes every weight NaN and leaves the ids within their range.
int64_t route(const Op& op, const Context& c) {
  int64_t experts = op.n[0], chosen = op.n[1];
  return each_row(c, c.tokens * op.rows, [&](int64_t t) {
    const float* x = static_cast<const float*>(op.p[0]) + t * experts;
    float* weights = static_cast<float*>(op.p[1]) + t * chosen;
    int64_t* ids = static_cast<int64_t*>(op.p[2]) + t * chosen;
    float top = x[0];
    for (int64_t i = 1; i < experts; ++i) top = std::max(top, x[i]);
    double total = 0;
    for (int64_t i = 0; i < experts; ++i) total += std::exp(double(x[i]) - top);
    float kept = 0;
    for (int64_t a = 0; a < chosen; ++a) {
      int64_t best = -1;
      for (int64_t i = 0; i < experts; ++i) {
        if (best >= 0 && !(x[i] > x[best])) continue;
        if (std::find(ids, ids + a, i) == ids + a) best = i;
      }
      ids[a] = best;
      weights[a] = float(std::exp(double(x[best]) - top) / total);
      kept += weights[a];
    }
    if (op.n[2])
      for (int64_t a = 0; a < chosen; ++a) weights[a] /= kept;
  });
}

namespace {

constexpr int64_t kTasksPerThread = 16;
constexpr int64_t kLeastPanels = 8;  // per task: each task turns its rows of x into tiles, which has to be worth it
constexpr int64_t kMostRows = 256;   // per task

struct Job {
  int64_t tokens, width, hidden, num_experts, chosen, kind, format;
  int64_t rows() const { return tokens * chosen; }
};

Job job_of(const Op& op, int64_t tokens) {
  return {tokens * op.rows, op.n[0], op.n[1], op.n[2], op.n[3], op.n[4], op.n[5]};
}

// The step's choices as rows sorted by expert, an expert's in the order of the tokens.
struct Layout {
  int64_t* starts;   // [X + 1]: expert e has the rows from starts[e] to starts[e + 1]
  int64_t* active;   // [X + 1]: how many experts have rows, then which
  int64_t* rows;     // [T A]: the row of a choice
  int64_t* choices;  // [T A]: the choice of a row
  float* outer;      // [T A, E]: what goes into the first product, and later what comes out of the second
  float* inner;      // [T A, 2F]: what comes out of the first, and later what goes into the second, in its first half
};

size_t layout_bytes(const Job& job) {
  int64_t numbers = 2 * (job.num_experts + 1) + 2 * job.rows(), floats = job.rows() * (job.hidden + 2 * job.width);
  return size_t(rounded_up(numbers * 8 + floats * 4, 64));
}

Layout place(const Job& job, char* memory) {
  Layout l{};
  l.starts = reinterpret_cast<int64_t*>(memory);
  l.active = l.starts + job.num_experts + 1;
  l.rows = l.active + job.num_experts + 1;
  l.choices = l.rows + job.rows();
  l.outer = reinterpret_cast<float*>(l.choices + job.rows());
  l.inner = l.outer + job.rows() * job.hidden;
  return l;
}

void sort_by_expert(const Job& job, const Layout& l, const int64_t* ids) {
  std::fill(l.starts, l.starts + job.num_experts + 1, int64_t(0));
  for (int64_t i = 0; i < job.rows(); ++i) ++l.starts[ids[i] + 1];
  for (int64_t e = 0; e < job.num_experts; ++e) l.starts[e + 1] += l.starts[e];
  int64_t* next = l.active;
  std::copy(l.starts, l.starts + job.num_experts, next);
  for (int64_t i = 0; i < job.rows(); ++i) {
    l.rows[i] = next[ids[i]]++;
    l.choices[l.rows[i]] = i;
  }
  l.active[0] = 0;
  for (int64_t e = 0; e < job.num_experts; ++e)
    if (l.starts[e + 1] > l.starts[e]) l.active[++l.active[0]] = e;
}

// One of the two products of every expert: rows [count, k] of x times its matrix [n, k].
struct Product {
  const float* x;
  float* y;
  const char* weights;
  int64_t n, k, x_stride, format;

  // The product of the rows from `row` on with panels [from, to) of matrix e.
  Op of(int64_t e, int64_t row, int64_t from, int64_t to) const {
    int64_t panel = e * num_panels(n) + from, columns = std::min(to * kPanel, n) - from * kPanel;
    const char* matrix = weights + panel * panel_bytes(format, k);
    return {kLinear,
            1,
            {const_cast<float*>(x + row * x_stride), y + row * n + from * kPanel, const_cast<char*>(matrix), nullptr},
            {columns, k, format, x_stride, n},
            {}};
  }
};

// How many rows of x of k values a task takes at most: their tiles must fit a thread's scratch.
int64_t rows_per_task(int64_t k, int64_t format) {
  Op op{};
  op.rows = 1;
  op.n[1] = k;
  op.n[2] = format;
  int64_t rows = kMostRows;
  while (rows > 1 && linear_scratch(op, rows)) rows /= 2;
  return rows;
}

// Pieces of rows that the experts' rows come in.
int64_t count_pieces(const Layout& l, int64_t most) {
  int64_t pieces = 0;
  for (int64_t i = 1; i <= l.active[0]; ++i)
    pieces += (l.starts[l.active[i] + 1] - l.starts[l.active[i]] + most - 1) / most;
  return pieces;
}

// All experts' products as one set of tasks, each some rows of one expert with a range of panels, that a thread computes
// on its own: the threads meet once, not once per expert. Which rows came together does not show in the bits. Returns the
// number of tasks.
int64_t multiply(const Layout& l, const Product& product, int64_t pieces, const Context& c) {
  int64_t panels = num_panels(product.n), most = rows_per_task(product.k, product.format);
  int64_t wanted = (kTasksPerThread * c.threads + pieces - 1) / pieces;
  int64_t step = std::max(kLeastPanels, rounded_up((panels + wanted - 1) / wanted, 4));
  int64_t ranges = (panels + step - 1) / step, tasks = pieces * ranges;
  for (int64_t task = c.take(tasks); task >= 0; task = c.take(tasks)) {
    int64_t piece = task / ranges, from = task % ranges * step, i = 1, parts = 0;
    for (;; ++i, piece -= parts) {
      parts = (l.starts[l.active[i] + 1] - l.starts[l.active[i]] + most - 1) / most;
      if (piece < parts) break;
    }
    int64_t e = l.active[i], first = l.starts[e] + piece * most, count = std::min(most, l.starts[e + 1] - first);
    Op op = product.of(e, first, from, std::min(from + step, panels));
    Phases own;
    own.start(1);
    Progress progress{};
    Context alone{0, 1, count, nullptr, &own, &progress, nullptr, c.local};
    alone.meet(linear(op, alone));
  }
  return tasks;
}

// A token's results, weighted, in the order of the experts' ids: that of the rows.
void add_up(const Job& job, const Layout& l, const float* weights, float* out, int64_t t) {
  int64_t* rows = l.rows + t * job.chosen;
  std::sort(rows, rows + job.chosen);
  for (int64_t i = 0; i < job.hidden; i += kLanes) {
    int64_t left = job.hidden - i;
    V16 sum = zero();
    for (int64_t a = 0; a < job.chosen; ++a)
      sum = sum + load_part(l.outer + rows[a] * job.hidden + i, left) * splat(weights[l.choices[rows[a]]]);
    store_part(out + t * job.hidden + i, sum, left);
  }
}

}  // namespace

size_t experts_scratch(const Op& op, int64_t tokens) { return layout_bytes(job_of(op, tokens)); }

// p x, gate_up panels, down panels, weights, ids, out; n F, E, X, A, activation, format. A token's ids differ from each
// other. Matrices lie one after the other, each in whole panels. A row's bits are those of the row alone.
int64_t experts(const Op& op, const Context& c) {
  Job job = job_of(op, c.tokens);
  if (job.tokens == 0) return 0;
  int64_t width = job.width, hidden = job.hidden;
  const float *x = static_cast<const float*>(op.p[0]), *weights = static_cast<const float*>(op.p[3]);
  const char *up = static_cast<const char*>(op.p[1]), *down = static_cast<const char*>(op.p[2]);
  Layout l = place(job, c.shared);
  if (c.take(1) >= 0) {
    sort_by_expert(job, l, static_cast<const int64_t*>(op.p[4]));
    c.phases->notes[0].store(count_pieces(l, rows_per_task(hidden, job.format)), std::memory_order_relaxed);
    c.phases->notes[1].store(count_pieces(l, rows_per_task(width, job.format)), std::memory_order_relaxed);
  }
  c.meet(1);
  int64_t pieces[2];
  // A thread that comes too late may find another op's notes, and then no task.
  for (int i = 0; i < 2; ++i) pieces[i] = std::max<int64_t>(1, c.phases->notes[i].load(std::memory_order_relaxed));
  c.meet(each_row(c, job.rows(), [&](int64_t row) {
    std::memcpy(l.outer + row * hidden, x + l.choices[row] / job.chosen * hidden, size_t(hidden) * 4);
  }));
  c.meet(multiply(l, {l.outer, l.inner, up, 2 * width, hidden, hidden, job.format}, pieces[0], c));
  Context rows = c;
  rows.tokens = job.rows();
  c.meet(gated_activation({kGatedActivation, 1, {l.inner, l.inner}, {width, job.kind, 2 * width, 2 * width}, {}}, rows));
  c.meet(multiply(l, {l.inner, l.outer, down, hidden, width, 2 * width, job.format}, pieces[1], c));
  float* out = static_cast<float*>(op.p[5]);
  return each_row(c, job.tokens, [&](int64_t t) { add_up(job, l, weights, out, t); });
}

}  // namespace QUIRE_ISA
}  // namespace quire
