// Runs every kernel on ragged shapes with memory of exactly the right size, for builds with a sanitizer.
//
// Every instruction set computes everything with one thread and with several, on pools that several callers share; the
// results must have the same bits. Prints one line per instruction set and exits with 1 where bits differ.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "op.h"
#include "packed.h"

using namespace quire;

extern "C" {
int64_t quire_instruction_sets(char* out, int64_t size);
void* quire_engine_new(int64_t threads, const char* name);
void quire_engine_free(void* engine);
int64_t quire_run(void* engine, const Op* ops, int64_t count, int64_t tokens, const Plan* plan);
void quire_pack(void* engine, const PackJob* job);
}

namespace {

using Floats = std::vector<float>;
using Ids = std::vector<int64_t>;

constexpr int kMostThreads = 3;

Floats random_floats(size_t count, unsigned seed) {
  std::mt19937 source(seed);
  std::normal_distribution<float> normal;
  Floats result(count);
  for (float& x : result) x = normal(source);
  return result;
}

// Memory at a cache line's start and of no byte more than asked for.
struct Free {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
using Lines = std::unique_ptr<char, Free>;
Lines lines_of(int64_t bytes) {
  char* p = static_cast<char*>(::operator new[](size_t(bytes), std::align_val_t(64)));
  std::memset(p, 0, size_t(bytes));
  return Lines(p);
}

// One engine, what it computed so far as a list of bits, and memory that must outlive its ops.
struct Run {
  void* engine;
  std::vector<uint32_t> bits;

  void note(const Floats& values) {
    for (float x : values) {
      uint32_t word;
      std::memcpy(&word, &x, 4);
      bits.push_back(word);
    }
  }
  void note(const Ids& values) {
    for (int64_t x : values) bits.push_back(uint32_t(x));
  }
  void call(Op op, int64_t rows, const Plan* plan = nullptr) {
    op.rows = 1;
    if (quire_run(engine, &op, 1, rows, plan)) std::abort();
  }
};

Lines packed(Run& run, const Floats& weight, int64_t rows, int64_t k, int64_t format, int64_t count = 1) {
  int64_t whole = num_panels(rows) * panel_bytes(format, k);
  Lines result = lines_of(count * whole);
  for (int64_t i = 0; i < count; ++i) {
    PackJob job{weight.data() + i * rows * k, kSourceFloat32, k, 1, rows, k, result.get(), format,
                i * num_panels(rows) * kPanel};
    quire_pack(run.engine, &job);
  }
  return result;
}

void products(Run& run, int64_t rows, int64_t n, int64_t k, unsigned seed) {
  Floats weight = random_floats(size_t(n * k), seed), bias = random_floats(size_t(n), seed + 1);
  Floats x = random_floats(size_t(rows * k), seed + 2);
  for (int64_t format = kFloat32; format <= kInt4; ++format) {
    Lines panels = packed(run, weight, n, k, format);
    Floats y(size_t(rows * n));
    run.call({kLinear, 1, {x.data(), y.data(), panels.get(), bias.data()}, {n, k, format, k, n}, {}}, rows);
    run.note(y);
    Ids ids(static_cast<size_t>(rows));
    for (int64_t i = 0; i < rows; ++i) ids[size_t(i)] = (i * 7) % n;
    Floats looked_up(size_t(rows * k));
    run.call({kEmbedding, 1, {ids.data(), panels.get(), looked_up.data()}, {k, format, k, 0}, {1.5f}}, rows);
    run.note(looked_up);
  }
}

void row_ops(Run& run, int64_t rows, int64_t n, unsigned seed) {
  size_t count = size_t(rows * n);
  Floats x = random_floats(count, seed), y = random_floats(count, seed + 1), both = random_floats(2 * count, seed + 2);
  Floats weight = random_floats(size_t(n), seed + 3), out(count), sum(count);
  run.call({kRmsNorm, 1, {x.data(), y.data(), weight.data(), out.data(), sum.data()}, {n, 1, n, 0, n, 0, 1}, {1e-5f}}, rows);
  run.note(out);
  run.note(sum);
  run.call({kLayerNorm, 1, {x.data(), weight.data(), weight.data(), out.data()}, {n, 1, n, 0, n, 0},
            {1e-5f}}, rows);
  run.note(out);
  for (int64_t kind = 0; kind < 5; ++kind) {
    run.call({kActivation, 1, {x.data(), out.data()}, {n, kind, n, n}, {}}, rows);
    run.note(out);
    run.call({kGatedActivation, 1, {both.data(), out.data()}, {n, kind, 2 * n, n}, {}}, rows);
    run.note(out);
  }
  run.call({kSoftcap, 1, {x.data(), out.data()}, {n}, {3.0f}}, rows);
  run.note(out);
  run.call({kAdd, 1, {x.data(), y.data(), out.data()}, {n}, {}}, rows);
  run.note(out);
  Ids ids(static_cast<size_t>(rows));
  Floats largest(static_cast<size_t>(rows));
  run.call({kGreedy, 1, {x.data(), ids.data(), largest.data()}, {n, n}, {}}, rows);
  run.note(ids);
  run.note(largest);
  run.call({kEmbedding, 1, {ids.data(), random_floats(size_t(n * n), seed).data(), out.data()}, {n, -1, n, 0}, {1.0f}}, rows);
  run.note(out);
}

void rotation(Run& run, int64_t tokens, int64_t heads, int64_t size, int64_t pairs, unsigned seed) {
  Floats x = random_floats(size_t(tokens * heads * size), seed), out(x.size());
  Floats cos = random_floats(size_t(tokens * pairs), seed + 1), sin = random_floats(size_t(tokens * pairs), seed + 2);
  for (int64_t interleaved = 0; interleaved < 2; ++interleaved) {
    run.call({kRope, 1, {x.data(), cos.data(), sin.data(), out.data()},
              {heads, size, pairs, heads * size, heads * size, interleaved}, {}}, tokens);
    run.note(out);
  }
}

void attention(Run& run, int64_t heads, int64_t kv_heads, int64_t size, int64_t page, int64_t window, int64_t format) {
  // Rows of (queries, context): a decode, a chunk, a late chunk.
  Ids queries{1, 9, 30}, contexts{70, 9, 530}, firsts{0, 1, 10};
  int64_t tokens = 40, width = (530 + page - 1) / page, pages = 3 * width;
  std::vector<int32_t> tables(size_t(3 * width));
  for (int64_t i = 0; i < 3 * width; ++i) tables[size_t(i)] = int32_t(pages - 1 - i);
  Ids slots;
  for (size_t row = 0; row < 3; ++row)
    for (int64_t p = contexts[row] - queries[row]; p < contexts[row]; ++p)
      slots.push_back(tables[row * size_t(width) + size_t(p / page)] * page + p % page);
  Plan plan{3, page, width, firsts.data(), queries.data(), contexts.data(), tables.data(), slots.data()};
  Floats q = random_floats(size_t(tokens * heads * size), 1), k = random_floats(size_t(tokens * kv_heads * size), 2);
  Floats v = random_floats(k.size(), 3), slopes = random_floats(size_t(heads), 4), out(q.size());
  // Formats are float32, bfloat16 and int8 with scales; what is there before stands for ones, or scales of about 1.
  int64_t width_of[] = {4 * size, 2 * size, size + 4};
  uint32_t word_of[] = {0x3f800000u, 0x3f803f80u, 0x3f803f80u};
  std::vector<uint32_t> kv(size_t(2 * pages * kv_heads * page * width_of[format] / 4), word_of[format]);
  Op op{kAttention, 1, {q.data(), k.data(), v.data(), kv.data(), out.data(), slopes.data()},
        {heads, kv_heads, size, heads * size, kv_heads * size, kv_heads * size, pages, format, window, 0}, {0.2f, 5.0f}};
  run.call(op, tokens, &plan);
  run.note(out);
}

void mixture(Run& run, int64_t tokens, int64_t hidden, int64_t width, int64_t experts, int64_t chosen, int64_t format) {
  Floats x = random_floats(size_t(tokens * hidden), 1), logits = random_floats(size_t(tokens * experts), 2);
  Floats up = random_floats(size_t(experts * 2 * width * hidden), 3), down = random_floats(size_t(experts * hidden * width), 4);
  Lines up_panels = packed(run, up, 2 * width, hidden, format, experts);
  Lines down_panels = packed(run, down, hidden, width, format, experts);
  Floats weights(size_t(tokens * chosen)), out(x.size());
  Ids ids(size_t(tokens * chosen));
  run.call({kRoute, 1, {logits.data(), weights.data(), ids.data()}, {experts, chosen, 1}, {}}, tokens);
  run.note(weights);
  run.note(ids);
  run.call({kExperts, 1, {x.data(), up_panels.get(), down_panels.get(), weights.data(), ids.data(), out.data()},
            {width, hidden, experts, chosen, 0, format}, {}}, tokens);
  run.note(out);
}

void drawing(Run& run, int64_t rows, int64_t vocabulary, int64_t top_k, double top_p, double min_p) {
  size_t count = static_cast<size_t>(rows);
  Floats logits = random_floats(size_t(rows * vocabulary), 11), temperature(count, 0.8f);
  std::vector<double> least(count, min_p), share(count, top_p), numbers(count);
  Ids ids(count), most(count, top_k), seeds(count), positions(count);
  for (size_t i = 0; i < count; ++i) seeds[i] = -int64_t(i) * 77, positions[i] = int64_t(i);
  run.call({kUniform, 1, {seeds.data(), positions.data(), numbers.data()}, {}, {}}, rows);
  run.call({kDraw, 1, {logits.data(), ids.data(), temperature.data(), least.data(), most.data(), share.data(), numbers.data()},
            {vocabulary, vocabulary, kMostThreads}, {}}, rows);
  run.note(ids);
}

void tokens_of_rows(Run& run, int64_t rows) {
  size_t count = static_cast<size_t>(rows);
  std::vector<int32_t> tokens(2 * count + 1, 5);
  Ids places(count), found(count);
  for (size_t i = 0; i < count; ++i) places[i] = int64_t(2 * i + 1 - i % 2);  // the last one is appended at the end
  run.call({kReadTokens, 1, {tokens.data(), places.data(), found.data()}, {}, {}}, rows);
  run.call({kAppendTokens, 1, {tokens.data(), places.data(), found.data()}, {}, {}}, rows);
  run.note(found);
}

// A chain of ops in one call: what a recorded step is.
void chain(Run& run, int64_t rows) {
  int64_t n = 77;
  Floats a = random_floats(size_t(rows * n), 1), b(a.size()), c(a.size());
  std::vector<Op> ops;
  for (int i = 0; i < 30; ++i) {
    ops.push_back({kSoftcap, 1, {a.data(), b.data()}, {n}, {2.0f}});
    ops.push_back({kAdd, 1, {a.data(), b.data(), c.data()}, {n}, {}});
    ops.push_back({kActivation, 1, {c.data(), a.data()}, {n, 0, n, n}, {}});
  }
  if (quire_run(run.engine, ops.data(), int64_t(ops.size()), rows, nullptr)) std::abort();
  run.note(a);
}

void everything(Run& run) {
  for (int64_t rows : {0, 1, 2, 5, 6, 7, 13, 70}) {
    products(run, rows, 1, 1, 1);
    products(run, rows, 33, 31, 2);
    row_ops(run, rows, 1, 3);
    row_ops(run, rows, 17, 4);
    row_ops(run, rows, 300, 5);
    rotation(run, rows, 3, 20, 10, 6);
    rotation(run, rows, 2, 24, 5, 7);
    chain(run, rows);
    tokens_of_rows(run, rows);
    drawing(run, rows, 1, 0, 0.5, 0);
    drawing(run, rows, 700, 0, 1, 0);
    drawing(run, rows, 515, 9, 0.9, 0.01);
  }
  products(run, 9, 130, 1100, 8);
  products(run, 400, 40, 700, 9);
  for (int64_t page : {8, 16, 64, 128})
    for (int64_t format : {0, 1, 2}) {
      attention(run, 4, 2, 20, page, 0, format);
      attention(run, 70, 1, 32, page, 75, format);
    }
  for (int64_t format : {0, 1, 2}) attention(run, 2, 1, 256, 16, 0, format);
  for (int64_t format = kFloat32; format <= kInt4; ++format) {
    mixture(run, 1, 24, 17, 5, 2, format);
    mixture(run, 30, 33, 20, 4, 3, format);
    mixture(run, 300, 64, 96, 3, 2, format);
  }
}

std::vector<uint32_t> results_of(void* engine) {
  Run run{engine, {}};
  everything(run);
  return run.bits;
}

bool check(const std::string& name) {
  void* alone = quire_engine_new(1, name.c_str());
  std::vector<uint32_t> expected = results_of(alone);
  quire_engine_free(alone);
  bool same = true;
  for (int threads : {2, kMostThreads}) {
    void* engine = quire_engine_new(threads, name.c_str());
    same = same && results_of(engine) == expected;
    // Two callers at once.
    std::vector<uint32_t> found[2];
    std::thread other([&] { found[1] = results_of(engine); });
    found[0] = results_of(engine);
    other.join();
    same = same && found[0] == expected && found[1] == expected;
    // Calls after pauses, when threads are about to sleep or do.
    Run run{engine, {}};
    for (int i = 0; i < 60; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(i * 20));
      chain(run, 5);
    }
    quire_engine_free(engine);
    quire_engine_free(quire_engine_new(threads, name.c_str()));
  }
  std::printf("%s: %zu words %s\n", name.c_str(), expected.size(), same ? "equal" : "DIFFER");
  return same;
}

}  // namespace

int main() {
  char names[256];
  quire_instruction_sets(names, sizeof names);
  std::istringstream list(names);
  bool same = true;
  for (std::string name; list >> name;) same = check(name) && same;
  return same ? 0 : 1;
}
