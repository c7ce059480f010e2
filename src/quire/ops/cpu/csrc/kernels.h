// The kernels that every instruction set has. QUIRE_ISA names the one that a file is being compiled for.
#pragma once

#include "op.h"

namespace quire {
namespace QUIRE_ISA {

int64_t embedding(const Op&, const Context&);
int64_t linear(const Op&, const Context&);
int64_t rms_norm(const Op&, const Context&);
int64_t layer_norm(const Op&, const Context&);
int64_t rope(const Op&, const Context&);
int64_t activation(const Op&, const Context&);
int64_t gated_activation(const Op&, const Context&);
int64_t softcap(const Op&, const Context&);
int64_t add(const Op&, const Context&);
int64_t attention(const Op&, const Context&);
int64_t route(const Op&, const Context&);
int64_t experts(const Op&, const Context&);
int64_t greedy(const Op&, const Context&);
int64_t draw(const Op&, const Context&);
int64_t uniform(const Op&, const Context&);
int64_t read_tokens(const Op&, const Context&);
int64_t append_tokens(const Op&, const Context&);
int64_t mask_tokens(const Op&, const Context&);

// Bytes of shared scratch; 0 says that a thread on its own needs no more than the scratch it has for itself.
size_t linear_scratch(const Op&, int64_t tokens);
size_t experts_scratch(const Op&, int64_t tokens);
size_t draw_scratch(const Op&, int64_t tokens);

// One of so many parts of the job.
void pack(const PackJob&, int64_t part, int64_t parts);

// One of `parts` even parts of [0, count).
struct Share {
  int64_t from, to;
};
inline Share share_of(int64_t count, int64_t part, int64_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

// Calls work(index) for each of `count` rows, shared out evenly; returns the number of tasks. Many rows are more tasks
// than threads, so that one which the system holds up leaves little to wait for.
template <class Work>
int64_t each_row(const Context& c, int64_t count, Work work) {
  int64_t most = count < 64 ? c.threads : 4 * int64_t(c.threads), parts = count < most ? count : most;
  for (int64_t part = c.take(parts); part >= 0; part = c.take(parts)) {
    Share share = share_of(count, part, parts);
    for (int64_t row = share.from; row < share.to; ++row) work(row);
  }
  return parts;
}

}  // namespace QUIRE_ISA
}  // namespace quire
