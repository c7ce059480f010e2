// Paged attention: the step's K and V go into their pages, then every query attends to its row's pages.
//
// A tile is a few queries of one row with all heads that share a kv head. How a page is laid out, and how it meets
// queries and weights, is the policy's business (attention_lanes.h, attention_dots.h).
//
// Op: p q, k, v, kv, out, alibi slopes or null; n H, K, D, strides of q, k, v rows, pages, kv dtype, window (0: none),
// alibi before scale; f scale, softcap (0: none). One row per token.
#include "attention_dots.h"
#include "attention_lanes.h"

namespace quire {
namespace QUIRE_ISA {
namespace paged {
namespace {

Job job_of(const Op& op) {
  return {static_cast<const float*>(op.p[0]),
          static_cast<const float*>(op.p[1]),
          static_cast<const float*>(op.p[2]),
          op.p[3],
          static_cast<float*>(op.p[4]),
          static_cast<const float*>(op.p[5]),
          op.n[0],
          op.n[1],
          op.n[2],
          op.n[3],
          op.n[4],
          op.n[5],
          op.n[6],
          op.n[7] != 0,
          op.n[8],
          op.n[9] != 0,
          op.f[0],
          op.f[1]};
}

template <class Policy>
void write_pages(const Job& job, const Context& c) {
  const Plan& plan = *c.plan;
  int64_t size = plan.page_size, bytes = size * job.head * (job.is_bf16 ? 2 : 4);
  char* keys = static_cast<char*>(job.kv);
  char* values = keys + job.pages * job.kv_heads * bytes;
  c.meet(each_row(c, c.tokens, [&](int64_t t) {
    int64_t page = plan.slots[t] / size, at = plan.slots[t] % size;
    for (int64_t h = 0; h < job.kv_heads; ++h) {
      int64_t place = (page * job.kv_heads + h) * bytes;
      Policy::write(keys + place, values + place, at, size, job.head, job.k + t * job.k_stride + h * job.head,
                    job.v + t * job.v_stride + h * job.head);
    }
  }));
}

// What one tile computes: some queries of a row, for some of the heads that share a kv head.
struct Task {
  int64_t row, kv_head, first, count, head, heads;
};

template <class Policy>
void attend(const Job& job, const Context& c, Tile& t, Task task) {
  const Plan& plan = *c.plan;
  int64_t head = job.head, group = task.heads;
  int64_t base = plan.context_lens[task.row] - plan.query_lens[task.row] + task.first, end = base + task.count;
  int64_t token = plan.first_tokens[task.row] + task.first;
  Pages pages(job, plan, task.row, task.kv_head, job.is_bf16 ? 2 : 4);
  t.rows = int(task.count * group);
  for (int r = 0; r < t.rows; ++r) {
    Policy::set_query(job, t, r, job.q + (token + r / group) * job.q_stride + (task.head + r % group) * head);
    t.position[r] = base + r / group;
    t.slope[r] = job.slopes ? job.slopes[task.head + r % group] : 0.0f;
  }
  std::fill(t.result, t.result + t.rows * head, 0.0f);
  std::fill(t.all_top, t.all_top + 32, kNothing);
  std::fill(t.all_total, t.all_total + 32, 0.0f);
  int64_t lowest = job.window ? std::max<int64_t>(0, base - job.window + 1) : 0;
  for (int64_t part = lowest / kPartition * kPartition; part < end; part += kPartition) {
    start_partition(t, head);
    int64_t stop = std::min(part + kPartition, end);
    for (int64_t start = std::max(part, lowest / kBlock * kBlock); start < stop; start += kBlock) {
      Block block{start, std::min(start + kBlock, end) - start, std::max<int64_t>(0, lowest - start)};
      Policy::scores(job, pages, t, block);
      Policy::soften(job, t, start);
      Policy::values(job, pages, t, block);
    }
    merge_partition(t, head);
  }
  for (int r = 0; r < t.rows; ++r) {
    float* out = job.out + ((token + r / group) * job.heads + task.head + r % group) * head;
    V16 total = splat(t.all_total[r]);
    for (int64_t d = 0; d < head; d += kLanes)
      store_part(out + d, load_part(t.result + r * head + d, head - d) / total, head - d);
  }
}

template <class Policy>
int64_t run(const Job& job, const Context& c) {
  write_pages<Policy>(job, c);
  const Plan& plan = *c.plan;
  Tile& tile = *reinterpret_cast<Tile*>(c.local);
  // More heads to a kv head than a tile has rows (Falcon 7B has 71) are cut into parts.
  int64_t group = job.heads / job.kv_heads, parts = (group + kQueryRows - 1) / kQueryRows;
  int64_t heads = (group + parts - 1) / parts, per_tile = kQueryRows / heads, lanes = job.kv_heads * parts;
  auto tiles_of = [&](int64_t row) { return (plan.query_lens[row] + per_tile - 1) / per_tile; };
  int64_t total = 0, before = 0;
  for (int64_t row = 0; row < plan.num_rows; ++row) total += tiles_of(row) * lanes;
  int64_t task = c.take(total);
  // Rows from the last to the first: chunks of prompts, the largest tasks, mostly come behind the decodes.
  for (int64_t row = plan.num_rows - 1; row >= 0 && task >= 0; --row) {
    int64_t tiles = tiles_of(row), tasks = tiles * lanes;
    for (; task >= 0 && task < before + tasks; task = c.take(total)) {
      // Later queries see more keys, so they go first.
      int64_t index = tiles - 1 - (task - before) / lanes, kv_head = (task - before) % lanes / parts;
      int64_t first = index * per_tile, skipped = (task - before) % parts * heads;
      attend<Policy>(job, c, tile,
                     {row, kv_head, first, std::min(per_tile, plan.query_lens[row] - first), kv_head * group + skipped,
                      std::min(heads, group - skipped)});
    }
    before += tasks;
  }
  return total;
}

}  // namespace
}  // namespace paged

int64_t attention(const Op& op, const Context& c) {
  paged::Job job = paged::job_of(op);
#if defined(__AVX512BF16__)
  if (job.is_bf16 && job.head % kLanes == 0) return paged::run<paged::Dots>(job, c);
#endif
  return job.is_bf16 ? paged::run<paged::Lanes<paged::Bfloat16Page>>(job, c)
                     : paged::run<paged::Lanes<paged::Float32Page>>(job, c);
}

}  // namespace QUIRE_ISA
}  // namespace quire
