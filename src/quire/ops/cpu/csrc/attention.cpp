// Paged attention: the step's K and V go into their pages, then every query attends to its row's pages.
//
// A tile is a few queries of one row with all heads that share a kv head. Keys come in blocks of 64 positions and
// partitions of 256, both counted from position 0: a query's sums are the same in whatever tile, batch or chunk it
// comes. With fewer tiles than keep all threads busy, partitions are work of their own and merged afterwards, in the
// order in which one thread merges them.
//
// Op: p q, k, v, kv, out, alibi slopes or null; n H, K, D, strides of q, k, v rows, pages, page format, window (0:
// none), alibi before scale, both ways; f scale, softcap (0: none). One row per token.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <type_traits>

#include "attention_dots.h"
#include "attention_pages.h"
#include "attention_tile.h"
#include "kernels.h"

namespace quire {
namespace QUIRE_ISA {
namespace {

constexpr int64_t kPartition = 256;
// Tiles that may be cut into partitions: with more, threads end at about the same time anyway.
constexpr int64_t kMostCut = 32;

Job job_of(const Op& op) {
  return {static_cast<const float*>(op.p[0]),
          static_cast<const float*>(op.p[1]),
          static_cast<const float*>(op.p[2]),
          static_cast<char*>(op.p[3]),
          static_cast<float*>(op.p[4]),
          static_cast<const float*>(op.p[5]),
          op.n[0],
          op.n[1],
          op.n[2],
          op.n[3],
          op.n[4],
          op.n[5],
          op.n[6],
          op.n[7],
          op.n[8],
          op.n[9] != 0,
          op.n[10] != 0,
          op.f[0],
          op.f[1]};
}

// What one tile computes: some queries of a row, for some of the heads that share a kv head.
struct Task {
  int64_t row, kv_head, first, count, head, heads;
};

// The first position of the block that a position is in.
constexpr int64_t block_of(int64_t position) { return position / kBlock * kBlock; }

// Keys [lowest, end) that some query of a tile sees.
struct Reach {
  int64_t lowest, end;
  int64_t first_partition() const { return lowest / kPartition; }
  int64_t partitions() const { return (end + kPartition - 1) / kPartition - first_partition(); }
};

Reach reach_of(const Job& job, const Plan& plan, const Task& task) {
  if (job.both_ways) return {0, plan.context_lens[task.row]};
  int64_t base = plan.context_lens[task.row] - plan.query_lens[task.row] + task.first;
  return {job.window ? std::max<int64_t>(0, base - job.window + 1) : 0, base + task.count};
}

// The rows' queries: numbers of the rows that share registers lie side by side.
template <class Page>
void place_queries(Page, const Job& job, const float* const* q, Tile& t) {
  for (int r = 0; r < t.rows; ++r) {
    int first_row = r / kRegisterRows * kRegisterRows, side = std::min(kRegisterRows, t.rows - first_row);
    float* place = t.q + first_row * job.head + (r - first_row);
    for (int64_t d = 0; d < job.head; ++d) place[d * side] = q[r][d] * job.scale;
  }
}

template <class Page>
void load_queries(const Job& job, const Plan& plan, const Task& task, Tile& t) {
  int64_t base = plan.context_lens[task.row] - plan.query_lens[task.row] + task.first;
  int64_t token = plan.first_tokens[task.row] + task.first;
  t.head = job.head;
  t.wide = (job.head + kLanes - 1) / kLanes * kLanes;
  t.rows = int(task.count * task.heads);
  const float* q[kTileRows];
  for (int r = 0; r < t.rows; ++r) {
    int64_t query = r / task.heads, head = task.head + r % task.heads;
    q[r] = job.q + (token + query) * job.q_stride + head * job.head;
    t.position[r] = job.both_ways ? plan.context_lens[task.row] - 1 : base + query;
    t.slope[r] = job.slopes ? job.slopes[head] : 0.0f;
  }
  place_queries(Page(), job, q, t);
}

// Whether a tile reads a block's numbers so often that they are better turned into float32 once.
template <class Page>
bool is_unpacked(const Tile& t) {
  return !std::is_same<Page, Float32Page>::value && t.rows > kRegisterRows;
}

// The lines of a block's keys in their pages; lines past the last known key are the last one again.
template <class Page>
KeyLines<Page> lines_in_pages(const RowPages<Page>& pages, int64_t start, int lines) {
  KeyLines<Page> found{{}, pages.size};
  for (int line = 0; line < kBlockLines; ++line) {
    int64_t position = start + std::min(line, lines - 1) * kLanes;
    found.at[line] = pages.at(position / pages.size) + position % pages.size;
  }
  return found;
}

// A block's keys as float32 in the tile's own memory, for pages that hold less than a line or are read very often.
template <class Page>
KeyLines<Float32Page> unpacked_lines(const RowPages<Page>& pages, int64_t start, int64_t known, Tile& t) {
  int64_t step = std::min<int64_t>(pages.size, kLanes);
  for (int64_t at = 0; at < known; at += step) {
    const auto* from = pages.at((start + at) / pages.size) + (start + at) % pages.size;
    float* to = t.keys + at;
    for (int64_t d = 0; d < t.head; ++d, from += pages.size, to += kBlock) {
      if (step == kLanes)
        store(to, Page::get(from));
      else
        for (int64_t i = 0; i < step; ++i) to[i] = Page::one(from[i]);
    }
  }
  return {{t.keys, t.keys + kLanes, t.keys + 2 * kLanes, t.keys + 3 * kLanes}, kBlock};
}

// The scales of the block's keys or values [from, known); those of others are 0.
template <class Page>
void gather_scales(const RowPages<Page>& pages, int64_t start, int64_t from, int64_t known, float* scales) {
  std::fill_n(scales, kBlock, 0.0f);
  for (int64_t i = from; i < known;) {
    int64_t offset = (start + i) % pages.size, stop = std::min(known, i + pages.size - offset);
    const float* found = pages.scales_at((start + i) / pages.size) + offset;
    for (; i < stop; ++i) scales[i] = *found++;
  }
}

template <class Page, class Next>
void score(const RowPages<Page>& pages, int64_t start, int64_t known, Next& next, Tile& t) {
  int lines = int((known + kLanes - 1) / kLanes);
  if (pages.size < kLanes || is_unpacked<Page>(t))
    score_block<Float32Page>(t, unpacked_lines(pages, start, known, t), lines, next);
  else
    score_block<Page>(t, lines_in_pages(pages, start, lines), lines, next);
}

// Adds the values of the block's keys [from, known).
template <class Page, class Next>
void weigh(const RowPages<Page>& pages, int64_t start, int64_t from, int64_t known, Next& next, Tile& t) {
  const typename Page::Type* rows[kBlock];
  for (int64_t i = from; i < known;) {
    int64_t offset = (start + i) % pages.size, stop = std::min(known, i + pages.size - offset);
    const auto* page = pages.at((start + i) / pages.size) + offset * t.head;
    for (; i < stop; ++i, page += t.head) rows[i] = page;
  }
  if (t.wide == t.head && !is_unpacked<Page>(t)) return add_values<Page>(t, rows, from, known, next);
  const float* unpacked[kBlock];
  for (int64_t i = from; i < known; ++i) {
    float* to = t.values + i * t.wide;
    unpacked[i] = to;
    int64_t d = 0;
    for (; d + kLanes <= t.head; d += kLanes) store(to + d, Page::get(rows[i] + d));
    for (; d < t.wide; ++d) to[d] = d < t.head ? Page::one(rows[i][d]) : 0.0f;
  }
  add_values<Float32Page>(t, unpacked, from, known, next);
}

// A block of keys: those [skipped, known) may be looked at, counted from its first.
struct Block {
  int64_t start, skipped, known;
};

template <class Page, class Next>
void attend_block(const Job& job, const RowPages<Page>& keys, const RowPages<Page>& values, Block block,
                  Next& next, Tile& t) {
  score(keys, block.start, block.known, next, t);
  if constexpr (Page::kScaled) {
    gather_scales(keys, block.start, block.skipped, block.known, t.key_scales);
    scale_scores(t, t.key_scales);
  }
  softmax_block<FloatWeights>(job, t, block.start);
  if constexpr (Page::kScaled) {
    gather_scales(values, block.start, block.skipped, block.known, t.value_scales);
    scale_scores(t, t.value_scales);
  }
  weigh(values, block.start, block.skipped, block.known, next, t);
}

#if defined(__AVX512BF16__)
template <class Next>
void attend_block(const Job& job, const RowPages<PairPage>& keys, const RowPages<PairPage>& values, Block block,
                  Next& next, Tile& t) {
  score_pairs_of(keys, block.start, block.known, next, t);
  softmax_block<PairWeights>(job, t, block.start);
  weigh_pairs(values, block.start, block.skipped, block.known, next, t);
}
#endif

template <class Page>
NextBlock<Page> next_block(const Job& job, const Plan& plan, const Task& task, int64_t start, int64_t end) {
  return {row_pages<Page>(job, plan, task.row, task.kv_head, false),
          row_pages<Page>(job, plan, task.row, task.kv_head, true), start, std::min(kBlock, end - start)};
}

// `then`: the task that this thread goes on with, or null.
template <class Page>
void attend_partition(const Job& job, const Plan& plan, const Task& task, int64_t partition, Tile& t,
                      const Task* then = nullptr) {
  RowPages<Page> keys = row_pages<Page>(job, plan, task.row, task.kv_head, false);
  RowPages<Page> values = row_pages<Page>(job, plan, task.row, task.kv_head, true);
  Reach reach = reach_of(job, plan, task);
  int64_t begin = partition * kPartition, stop = std::min(begin + kPartition, reach.end);
  // Few rows wait for memory; many compute so long with a block that the next one comes in time.
  bool fetches = t.rows <= kRegisterRows && plan.page_size % kLanes == 0;
  auto with = [&](int64_t start, auto next) {
    // Nobody in the tile sees keys before the window: values there are not read, though their weight would be 0.
    Block block{start, std::max<int64_t>(0, reach.lowest - start), std::min(kBlock, reach.end - start)};
    attend_block(job, keys, values, block, next, t);
    next.finish();
  };
  start_partition(t);
  for (int64_t start = std::max(begin, block_of(reach.lowest)); start < stop; start += kBlock) {
    if (fetches && start + kBlock < reach.end) {
      with(start, next_block<Page>(job, plan, task, start + kBlock, reach.end));
    } else if (fetches && then) {
      Reach other = reach_of(job, plan, *then);
      with(start, next_block<Page>(job, plan, *then, block_of(other.lowest), other.end));
    } else {
      with(start, NoBlock());
    }
  }
  end_partition(t);
}

void write_result(const Job& job, const Plan& plan, const Task& task, const Tile& t) {
  int64_t token = plan.first_tokens[task.row] + task.first;
  for (int r = 0; r < t.rows; ++r) {
    int64_t head = task.head + r % task.heads;
    float* out = job.out + ((token + r / task.heads) * job.heads + head) * job.head;
    V16 total = splat(t.all_total[r]);
    for (int64_t d = 0; d < job.head; d += kLanes)
      store_part(out + d, load(t.result + r * t.wide + d) / total, job.head - d);
  }
}

template <class Page>
void attend(const Job& job, const Plan& plan, const Task& task, Tile& t, const Task* then = nullptr) {
  load_queries<Page>(job, plan, task, t);
  start_tile(t);
  Reach reach = reach_of(job, plan, task);
  for (int64_t i = 0; i < reach.partitions(); ++i) {
    attend_partition<Page>(job, plan, task, reach.first_partition() + i, t, then);
    merge(t, {t.sums, t.top, t.total});
  }
  write_result(job, plan, task, t);
}

// How rows are cut into tiles.
struct Cut {
  // More heads to a kv head than a tile has rows (Falcon 7B has 71) are cut into parts.
  int64_t group, parts, heads, per_tile, lanes;

  explicit Cut(const Job& job) {
    group = job.heads / job.kv_heads;
    parts = (group + kTileRows - 1) / kTileRows;
    heads = (group + parts - 1) / parts;
    per_tile = kTileRows / heads;
    lanes = job.kv_heads * parts;
  }
  int64_t tiles(int64_t queries) const { return (queries + per_tile - 1) / per_tile; }
  // Task `index` of those of one row. Later queries see more keys, so they go first.
  Task task(int64_t row, int64_t queries, int64_t index) const {
    int64_t first = (tiles(queries) - 1 - index / lanes) * per_tile;
    int64_t kv_head = index % lanes / parts, skipped = index % parts * heads;
    return {row,
            kv_head,
            first,
            std::min(per_tile, queries - first),
            kv_head * group + skipped,
            std::min(heads, group - skipped)};
  }
};

// The rows with one query, some at a time for one kv head after the other: rows that share the pages of a prefix then
// find them in the cache, and a thread knows what it attends to next.
struct Decodes {
  int64_t rows = 0, lanes, per_task;

  Decodes(const Plan& plan, const Cut& cut, int64_t threads) : lanes(cut.lanes) {
    for (int64_t row = 0; row < plan.num_rows; ++row) rows += plan.query_lens[row] == 1;
    per_task = std::clamp<int64_t>(rows * lanes / (12 * threads), 1, 8);
  }
  int64_t spans() const { return (rows + per_task - 1) / per_task; }
  int64_t tasks() const { return spans() * lanes; }
};

int64_t next_decode(const Plan& plan, int64_t row) {
  while (row < plan.num_rows && plan.query_lens[row] != 1) ++row;
  return row;
}

template <class Page>
void attend_decodes(const Job& job, const Plan& plan, const Cut& cut, const Decodes& decodes, int64_t index, Tile& t) {
  int64_t lane = index / decodes.spans(), first = index % decodes.spans() * decodes.per_task;
  int64_t row = next_decode(plan, 0), count = std::min(decodes.per_task, decodes.rows - first);
  for (; first > 0; --first) row = next_decode(plan, row + 1);
  for (; count > 1; --count) {
    int64_t following = next_decode(plan, row + 1);
    Task then = cut.task(following, 1, lane);
    attend<Page>(job, plan, cut.task(row, 1, lane), t, &then);
    row = following;
  }
  attend<Page>(job, plan, cut.task(row, 1, lane), t);
}

// How many of its partitions each task has done, at the beginning of the shared scratch.
using Done = std::atomic<int32_t>;
constexpr size_t kDoneBytes = 256;
static_assert(kMostCut * sizeof(Done) <= kDoneBytes, "records begin behind the counters");

// All tasks of a step that has few of them, with the first of the partitions and the scratch of each.
struct CutTasks {
  Task tasks[kMostCut];
  int64_t partitions[kMostCut + 1] = {}, floats[kMostCut];
  int64_t count = 0;

  static int64_t record_floats(const Job& job, const Task& task) {
    return task.count * task.heads * ((job.head + kLanes - 1) / kLanes * kLanes + 2);
  }

  // Whether cutting tasks into partitions is of use and its records fit the scratch; every thread finds the same.
  bool find(const Job& job, const Context& c, const Cut& cut) {
    const Plan& plan = *c.plan;
    int64_t used = 0;
    if (c.threads == 1) return false;
    for (int64_t row = plan.num_rows - 1; row >= 0; --row) {
      int64_t added = cut.tiles(plan.query_lens[row]) * cut.lanes;
      if (count + added > kMostCut) return false;
      for (int64_t i = 0; i < added; ++i, ++count) {
        Task task = tasks[count] = cut.task(row, plan.query_lens[row], i);
        int64_t pieces = reach_of(job, plan, task).partitions();
        floats[count] = used;
        partitions[count + 1] = partitions[count] + pieces;
        used += pieces * record_floats(job, task);
      }
    }
    return partitions[count] > count && used * int64_t(sizeof(float)) <= int64_t(kLocalScratch - kDoneBytes);
  }
};

void clear_done(const Context& c) {
  for (int64_t i = 0; i < kMostCut; ++i) new (c.shared + size_t(i) * sizeof(Done)) Done(0);
}

void merge_records(const Job& job, const Plan& plan, const Task& task, const float* record, int64_t pieces, Tile& t) {
  start_tile(t);
  for (; pieces > 0; --pieces, record += t.rows * (t.wide + 2))
    merge(t, {record, record + t.rows * t.wide, record + t.rows * (t.wide + 1)});
  write_result(job, plan, task, t);
}

// Partitions as work of their own; who ends the last one of a task merges them.
template <class Page>
int64_t attend_cut(const Job& job, const Context& c, const CutTasks& cut, Tile& t) {
  const Plan& plan = *c.plan;
  Done* done = reinterpret_cast<Done*>(c.shared);
  float* shared = reinterpret_cast<float*>(c.shared + kDoneBytes);
  int64_t index = 0, total = cut.partitions[cut.count];
  for (int64_t i = c.take(total); i >= 0; i = c.take(total)) {
    if (i < cut.partitions[index]) index = 0;
    while (i >= cut.partitions[index + 1]) ++index;
    const Task& task = cut.tasks[index];
    int64_t piece = i - cut.partitions[index], pieces = cut.partitions[index + 1] - cut.partitions[index];
    load_queries<Page>(job, plan, task, t);
    attend_partition<Page>(job, plan, task, reach_of(job, plan, task).first_partition() + piece, t);
    float *records = shared + cut.floats[index], *record = records + piece * CutTasks::record_floats(job, task);
    std::memcpy(record, t.sums, size_t(t.rows * t.wide) * sizeof(float));
    std::memcpy(record + t.rows * t.wide, t.top, size_t(t.rows) * sizeof(float));
    std::memcpy(record + t.rows * (t.wide + 1), t.total, size_t(t.rows) * sizeof(float));
    if (done[index].fetch_add(1, std::memory_order_acq_rel) + 1 == pieces)
      merge_records(job, plan, task, records, pieces, t);
  }
  return total;
}

// The tasks of the rows with several tokens.
struct Prompts {
  const Plan& plan;
  const Cut& cut;
  int64_t count = 0;

  Prompts(const Plan& p, const Cut& c) : plan(p), cut(c), row_(p.num_rows - 1) {
    for (int64_t row = 0; row < plan.num_rows; ++row) count += tasks(row);
  }
  // Mostly called with ascending numbers.
  Task task(int64_t index) {
    if (index < before_) {
      row_ = plan.num_rows - 1;
      before_ = 0;
    }
    for (; index >= before_ + tasks(row_); --row_) before_ += tasks(row_);
    return cut.task(row_, plan.query_lens[row_], index - before_);
  }

 private:
  int64_t tasks(int64_t row) const {
    return plan.query_lens[row] > 1 ? cut.tiles(plan.query_lens[row]) * cut.lanes : 0;
  }
  int64_t row_, before_ = 0;  // the row of the last task, and the tasks of those in front of it
};

// K and V of the token t of the step into their pages.
template <class Page>
void write_token(const Job& job, const Plan& plan, int64_t t) {
  int64_t size = plan.page_size, head = job.head, bytes = part_bytes<Page>(size, head);
  int64_t page = plan.slots[t] / size, at = plan.slots[t] % size;
  for (int64_t h = 0; h < job.kv_heads; ++h) {
    char* keys = job.kv + (page * job.kv_heads + h) * bytes;
    const float *k = job.k + t * job.k_stride + h * head, *v = job.v + t * job.v_stride + h * head;
    write_heads(Page(), k, v, head, keys, keys + job.pages * job.kv_heads * bytes, size, at);
  }
}

template <class Page>
int64_t run(const Job& job, const Context& c) {
  const Plan& plan = *c.plan;
  c.meet(each_row(c, c.tokens, [&](int64_t t) {
    if (t == 0) clear_done(c);  // read after the meeting
    write_token<Page>(job, plan, t);
  }));
  static_assert(sizeof(Tile) <= kLocalScratch, "a tile must fit a thread's scratch");
  Tile& tile = *reinterpret_cast<Tile*>(c.local);
  Cut cut(job);
  CutTasks few;
  if (few.find(job, c, cut)) return attend_cut<Page>(job, c, few, tile);
  Decodes decodes(plan, cut, c.threads);
  Prompts prompts(plan, cut);
  int64_t total = prompts.count + decodes.tasks();
  for (int64_t task = c.take(total); task >= 0; task = c.take(total)) {
    if (task < prompts.count)
      attend<Page>(job, plan, prompts.task(task), tile);
    else
      attend_decodes<Page>(job, plan, cut, decodes, task - prompts.count, tile);
  }
  return total;
}

}  // namespace

int64_t attention(const Op& op, const Context& c) {
  Job job = job_of(op);
#if defined(__AVX512BF16__)
  if (job.format == kBfloat16Pages && job.head % kLanes == 0) return run<PairPage>(job, c);
#endif
  if (job.format == kBfloat16Pages) return run<Bfloat16Page>(job, c);
  return job.format == kInt8Pages ? run<Int8Page>(job, c) : run<Float32Page>(job, c);
}

}  // namespace QUIRE_ISA
}  // namespace quire
