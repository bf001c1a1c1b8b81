// What the compiled loops share: vectors of floats as GCC and Clang have them, memory, and the pool's threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Floats>;

#if defined(__AVX512F__)
constexpr int V = 16, REGISTERS = 32;  // floats in a register, and how many there are
#elif defined(__AVX__)
constexpr int V = 8, REGISTERS = 16;
#elif defined(__ARM_NEON)
constexpr int V = 4, REGISTERS = 32;
#else
constexpr int V = 4, REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(V * sizeof(float))));
typedef float loose __attribute__((vector_size(V * sizeof(float)), aligned(4), may_alias));

inline vec load(const float* from) { return *reinterpret_cast<const loose*>(from); }
inline void store(float* to, vec x) { *reinterpret_cast<loose*>(to) = x; }

// The first n of a register's floats, as much of it as the array still has.
inline vec load(const float* from, int64_t n) {
  if (n >= V) return load(from);
  vec x = {};
  if (n > 0) std::memcpy(&x, from, n * sizeof(float));
  return x;
}
inline void store(float* to, vec x, int64_t n) {
  if (n >= V) return store(to, x);
  if (n > 0) std::memcpy(to, &x, n * sizeof(float));
}

// Runs f(0) to f(n - 1), on the pool's threads and on this one, and returns when all have run. It waits only for what
// another thread has begun, so a pool without a free thread makes it slower, not stuck.
template <typename F>
void in_parallel(ffi::ThreadPool& pool, int64_t n, const F& f) noexcept {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, n, &f] {  // f is read only while some k < n is not done, so while this frame stands
    for (int64_t k; (k = shared->next++) < n; shared->done++) f(k);
  };
  for (int64_t k = 1; k < n; k++) pool.Schedule(decltype(work)(work));
  work();
  while (shared->done < n) std::this_thread::yield();
}

int64_t threads(const ffi::ThreadPool& pool) { return std::max<int64_t>(pool.num_threads(), 1); }

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Memory = std::unique_ptr<float[], Free>;
Memory floats(int64_t n) {  // not initialised
  const size_t bytes = (std::max<int64_t>(n, 1) * sizeof(float) + 63) / 64 * 64;
  float* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (memory == nullptr) std::abort();
  return Memory(memory);
}

// Whether XLA gave as much room as asked for: a program of another machine may ask for less.
ffi::Error enough(Result& room, int64_t n) {
  if (static_cast<int64_t>(room->element_count()) >= n) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("this program was compiled on a machine with other vectors: compile it here");
}

}  // namespace

#define BOUND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define COUNTED .Attr<int64_t>("flops")  // for those who count a program's work
