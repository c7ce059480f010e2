// The kernels that every instruction set has. QUIRE_ISA names the one that a file is being compiled for.
#pragma once

#include "op.h"

namespace quire {
namespace QUIRE_ISA {

void embedding(const Op&, const Context&);
void linear(const Op&, const Context&);
void rms_norm(const Op&, const Context&);
void layer_norm(const Op&, const Context&);
void rope(const Op&, const Context&);
void activation(const Op&, const Context&);
void gated_activation(const Op&, const Context&);
void softcap(const Op&, const Context&);
void add(const Op&, const Context&);
void attention(const Op&, const Context&);
void route(const Op&, const Context&);
void experts(const Op&, const Context&);
void greedy(const Op&, const Context&);
void draw(const Op&, const Context&);
void uniform(const Op&, const Context&);

// Bytes of shared scratch; 0 says that a thread on its own needs no more than the scratch it has for itself.
size_t linear_scratch(const Op&, int64_t tokens);
size_t experts_scratch(const Op&, int64_t tokens);
size_t draw_scratch(const Op&, int64_t tokens);

void pack(const PackJob&, int thread, int threads);

// The part of [0, count) that is this thread's when work is shared out evenly.
struct Share {
  int64_t from, to;
};
inline Share share_of(int64_t count, int thread, int threads) {
  return {count * thread / threads, count * (thread + 1) / threads};
}

}  // namespace QUIRE_ISA
}  // namespace quire
