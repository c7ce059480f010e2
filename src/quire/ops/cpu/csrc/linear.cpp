// y[T, N] = x[T, K] * W^T + bias for weights in panels: how a product is cut up and shared out among threads.
//
// Op: p x, y, weights, bias or null; rows per token; n N, K, format, row stride of x, row stride of y.
#include <algorithm>

#include "kernels.h"
#include "products.h"

namespace quire {
namespace QUIRE_ISA {
namespace {

constexpr int64_t kBlock = 640;        // most k values per pass over several tiles
constexpr int64_t kPanelsPerTask = 6;  // of many rows
constexpr int64_t kTilesPerTask = 24;  // what a pass reads of so many tiles stays in L2
constexpr int64_t kBytesPerTask = 128 << 10;  // of few rows, at least
constexpr int64_t kMostFetching = 8;   // tiles of a task that is long enough to wait for its weights
constexpr int64_t kCheapTiles = 16384;        // values that a thread prepares sooner than it meets another

Job job_of(const Op& op, int64_t tokens) {
  return {static_cast<const float*>(op.p[0]), static_cast<float*>(op.p[1]), static_cast<const char*>(op.p[2]),
          static_cast<const float*>(op.p[3]), tokens * op.rows,             op.n[0],
          op.n[1],                            op.n[2],                      op.n[3],
          op.n[4]};
}

// The span of a pass that begins at `start`.
Span span_from(const Tiles& t, int64_t start, int64_t step) {
  int64_t stop = std::min(start + step, t.padded);
  return {start, stop, start == 0, stop == t.padded};
}

// Some panels at a time: their weights stay in L2 until the last tile is done, while those of the next span, or of the
// next panels, are on their way.
void run_fetching(const Job& job, const Tiles& t, Share tiles, Share panels, int64_t step) {
  int64_t rows = rows_of(job, t, tiles.from).rows, count = tiles.to - tiles.from;
  int64_t width = panels_at_once(int(rows), is_integer(job.format));
  for (int64_t panel = panels.from; panel < panels.to; panel += width)
    for (int64_t start = 0; start < t.padded; start += step) {
      Span span = span_from(t, start, step);
      Share group{panel, std::min(panel + width, panels.to)};
      for (int64_t i = 0; i < count; ++i)
        multiply_tile(job, t, tiles.from + i, group, span,
                      Ahead{span.last ? group.to : panel, span.last ? 0 : span.to, i, count});
    }
}

// One or two rows read weights as fast as they come, and many rows hardly wait for them.
void run_block(const Job& job, const Tiles& t, Share tiles, Share panels) {
  // Passes of equal length; a tile's part stays in L1.
  int64_t passes = (t.padded + kBlock - 1) / kBlock, step = rounded_up((t.padded + passes - 1) / passes, 64);
  int64_t count = tiles.to - tiles.from;
  if (job.rows > 2 && count <= kMostFetching) return run_fetching(job, t, tiles, panels, step);
  if (count == 1) step = t.padded;
  for (int64_t start = 0; start < t.padded; start += step)
    for (int64_t tile = tiles.from; tile < tiles.to; ++tile)
      multiply_tile(job, t, tile, panels, span_from(t, start, step), Idle());
}

// How many parts the panels and the tiles are cut into; the threads take them one by one.
struct Tasks {
  int64_t panels, tiles;
};

Tasks tasks_of(const Job& job, const Tiles& t, int64_t threads) {
  int64_t panels = num_panels(job.n);
  if (t.count <= 2) {  // as many for each thread, so that none waits long for the others
    int64_t bytes = panels * panel_bytes(job.format, job.k);
    int64_t most = std::min(panels / (4 * threads), bytes / (kBytesPerTask * threads));
    return {threads * std::clamp<int64_t>(most, 1, 8), 1};
  }
  int64_t parts = (panels + kPanelsPerTask - 1) / kPanelsPerTask;
  int64_t enough = std::clamp<int64_t>(12 * threads / parts, 1, std::max<int64_t>(1, t.count / 4));
  int64_t tiles = std::max(enough, (t.count + kTilesPerTask - 1) / kTilesPerTask), even = rounded_up(tiles, threads);
  return {parts, even * kTilesPerTask <= 2 * t.count ? even : tiles};  // a range of rows for each thread, if long enough
}

}  // namespace

size_t linear_scratch(const Op& op, int64_t tokens) {
  size_t bytes = tiles_bytes(job_of(op, tokens));
  return bytes <= kLocalScratch / 2 ? 0 : bytes;
}

int64_t linear(const Op& op, const Context& c) {
  Job job = job_of(op, c.tokens);
  if (job.rows == 0) return 0;
  // Little to prepare: every thread does it for itself, which is cheaper than waiting for each other.
  bool alone = c.threads == 1 || job.rows * job.k <= kCheapTiles || job.rows == 1;
  alone &= tiles_bytes(job) <= kLocalScratch / 2;
  Tiles t = place_tiles(alone ? c.local : c.shared, job);
  if (!alone) {
    for (int64_t tile = c.take(t.count); tile >= 0; tile = c.take(t.count)) make_tile(job, t, tile);
    c.meet(t.count);
  }
  int64_t panels = num_panels(job.n);
  Tasks tasks = tasks_of(job, t, c.threads);
  int64_t count = tasks.panels * tasks.tiles, task = c.take(count);
  if (job.rows == 1 && (job.format == kFloat32 || job.format == kBfloat16))
    t.values = nullptr;
  else if (alone && task >= 0)
    for (int64_t tile = 0; tile < t.count; ++tile) make_tile(job, t, tile);
  for (; task >= 0; task = c.take(count)) {
    // Neighbours share their tiles.
    Share tile_share = share_of(t.count, task / tasks.panels, tasks.tiles);
    run_block(job, t, tile_share, share_of(panels, task % tasks.panels, tasks.panels));
  }
  return count;
}

}  // namespace QUIRE_ISA
}  // namespace quire
