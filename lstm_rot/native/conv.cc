// A 3x3 convolution of maps [B, R, P, C], and its weights' gradient, for a CPU: products of matrices whose one side is
// never made. Of a map with zeros around it, the three pixels below a row of the window lie side by side, so that an
// output is the sum of three products of 3 C numbers with 3 C rows of the weights. convolution.py says what it
// computes.

#include "vectors.h"

namespace {

// Sums in registers: so many pixels, or rows of the weights, by N registers of filters.
template <int N>
constexpr int AT_ONCE = (REGISTERS >= 32 ? 16 : 8) / N;

// f(integral_constant<R>, first) for 0 to n in blocks of the largest R, and what is left in smaller ones.
template <int R, typename F>
inline void in_steps(int64_t n, int64_t first, const F& f) {
  for (; n - first >= R; first += R) f(std::integral_constant<int, R>(), first);
  if constexpr (R > 1) in_steps<R / 2>(n, first, f);
}

// acc[r] += k numbers from r steps behind x, times the panel W [k, N V].
template <int R, int N>
inline void multiply(vec (&acc)[R][N], const float* x, int64_t step, int64_t k, const float* panel) {
  const float* fourth[(R + 3) / 4];  // every fourth pixel's place: the others are one, two and three steps behind it
  for (int r = 0; r < R; r += 4) fourth[r / 4] = x + r * step;
  for (int64_t at = 0; at < k; at++, panel += N * V) {
    vec w[N];
    for (int n = 0; n < N; n++) w[n] = load(panel + n * V);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float of_map = fourth[r / 4][r % 4 * step + at];
      for (int n = 0; n < N; n++) acc[r][n] += of_map * w[n];
    }
  }
}

// f(integral_constant<N>) for so many registers of filters as hold the channels, 1, 2 or 4.
template <typename F>
void in_registers(int64_t channels, const F& f) {
  if (channels <= V) return f(std::integral_constant<int, 1>());
  if (channels <= 2 * V) return f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 4>());
}

struct Maps {
  int64_t batch, rows, columns, channels;
  explicit Maps(const ffi::Span<const int64_t>& d) : batch(d[0]), rows(d[1]), columns(d[2]), channels(d[3]) {}
  int64_t pixels() const { return rows * columns; }
  int64_t size() const { return pixels() * channels; }
};

// One map with zeros around it and, where it is spread, between its pixels: what all windows of the outputs see.
struct Padded {
  Maps in;
  int64_t spread, rows, columns;
  Memory memory;

  Padded(const Maps& in, const Maps& out, int64_t stride, int64_t spread)
      : in(in),
        spread(spread),
        rows(std::max(stride * (out.rows - 1) + 3, spread * (in.rows - 1) + 2)),
        columns(std::max(stride * (out.columns - 1) + 3, spread * (in.columns - 1) + 2)),
        memory(floats(rows * columns * in.channels)) {
    std::memset(memory.get(), 0, rows * columns * in.channels * sizeof(float));
  }
  int64_t row() const { return columns * in.channels; }
  const float* at(int64_t i, int64_t j) const { return &memory[(i * columns + j) * in.channels]; }
  void fill(const float* map) {
    for (int64_t i = 0; i < in.rows; i++) {
      float* to = &memory[((1 + spread * i) * columns + 1) * in.channels];
      if (spread == 1) {
        std::memcpy(to, map + i * in.columns * in.channels, in.columns * in.channels * sizeof(float));
        continue;
      }
      for (int64_t j = 0; j < in.columns; j++) {
        std::memcpy(to + spread * j * in.channels, map + (i * in.columns + j) * in.channels,
                    in.channels * sizeof(float));
      }
    }
  }
};

// y[i, j] = sum over a, b of padded[stride i + a, stride j + b] w[a, b]
ffi::Error convolve(ffi::ThreadPool pool, Floats x, Floats w, Result y, int64_t stride, int64_t spread, int64_t) {
  const Maps in(x.dimensions()), out(y->dimensions());
  const int64_t depth = 9 * in.channels, parts = std::min(threads(pool), in.batch);
  in_registers(out.channels, [&](auto registers) {
    constexpr int N = decltype(registers)::value;
    const int64_t width = N * V, panels = (out.channels + width - 1) / width;
    Memory packed = floats(panels * depth * width);
    for (int64_t p = 0; p < panels; p++) {
      for (int64_t k = 0; k < depth; k++) {
        for (int64_t n = 0; n < N; n++) {
          const int64_t filter = p * width + n * V;
          store(&packed[(p * depth + k) * width + n * V],
                load(w.typed_data() + k * out.channels + filter, out.channels - filter));
        }
      }
    }
    in_parallel(pool, parts, [&](int64_t part) {
      Padded map(in, out, stride, spread);
      for (int64_t b = in.batch * part / parts; b < in.batch * (part + 1) / parts; b++) {
        map.fill(x.typed_data() + b * in.size());
        for (int64_t p = 0; p < panels; p++) {
          for (int64_t i = 0; i < out.rows; i++) {
            in_steps<AT_ONCE<N>>(out.columns, 0, [&](auto pixels, int64_t first) {
              constexpr int R = decltype(pixels)::value;
              vec acc[R][N] = {};
              for (int a = 0; a < 3; a++) {
                const float* window = map.at(stride * i + a, stride * first);
                const float* of_row = &packed[(p * depth + a * 3 * in.channels) * width];
                multiply<R, N>(acc, window, stride * in.channels, 3 * in.channels, of_row);
              }
              float* to = y->typed_data() + (b * out.pixels() + i * out.columns + first) * out.channels + p * width;
              for (int r = 0; r < R; r++, to += out.channels) {
                for (int n = 0; n < N; n++) store(to + n * V, acc[r][n], out.channels - p * width - n * V);
              }
            });
          }
        }
      }
    });
  });
  return ffi::Error::Success();
}

// dw[a, b] = sum over images and pixels of padded[stride i + a, stride j + b]^T dy[i, j]
ffi::Error weigh(ffi::ThreadPool pool, Floats x, Floats dy, Result dw, int64_t stride, int64_t) {
  const Maps in(x.dimensions()), out(dy.dimensions());
  const int64_t segment = 3 * in.channels, depth = 3 * segment, parts = std::min(threads(pool), in.batch);
  in_registers(out.channels, [&](auto registers) {
    constexpr int N = decltype(registers)::value;
    const int64_t width = N * V, panels = (out.channels + width - 1) / width, padded = panels * width;
    Memory sums = floats(parts * depth * padded);  // of each part, [depth, padded]
    in_parallel(pool, parts, [&](int64_t part) {
      Padded map(in, out, stride, 1);
      float* of_part = &sums[part * depth * padded];
      std::memset(of_part, 0, depth * padded * sizeof(float));
      Memory copy = floats(padded == out.channels ? 0 : out.pixels() * padded);
      for (int64_t b = in.batch * part / parts; b < in.batch * (part + 1) / parts; b++) {
        map.fill(x.typed_data() + b * in.size());
        const float* d = dy.typed_data() + b * out.size();
        if (padded != out.channels) {
          for (int64_t q = 0; q < out.pixels() * panels * N; q++) {
            const int64_t pixel = q / (panels * N), filter = q % (panels * N) * V;
            store(&copy[q * V], load(d + pixel * out.channels + filter, out.channels - filter));
          }
          d = copy.get();
        }
        for (int64_t p = 0; p < panels; p++) {
          for (int a = 0; a < 3; a++) {
            in_steps<AT_ONCE<N>>(segment, 0, [&](auto rows, int64_t first) {
              constexpr int R = decltype(rows)::value;
              float* to = of_part + (a * segment + first) * padded + p * width;
              vec acc[R][N] = {};  // of one image, so that no sum is of very many terms
              for (int64_t i = 0; i < out.rows; i++) {
                const float* from = map.at(stride * i + a, 0) + first;
                const float* of_pixel = d + i * out.columns * padded + p * width;
                for (int64_t j = 0; j < out.columns; j++, from += stride * in.channels, of_pixel += padded) {
                  vec filters[N];
                  for (int n = 0; n < N; n++) filters[n] = load(of_pixel + n * V);
#pragma GCC unroll 16
                  for (int r = 0; r < R; r++) {
                    const float of_map = from[r];
                    for (int n = 0; n < N; n++) acc[r][n] += of_map * filters[n];
                  }
                }
              }
              for (int r = 0; r < R; r++) {
                for (int n = 0; n < N; n++) store(to + r * padded + n * V, load(to + r * padded + n * V) + acc[r][n]);
              }
            });
          }
        }
      }
    });
    for (int64_t k = 0; k < depth; k++) {
      for (int64_t filter = 0; filter < out.channels; filter += V) {
        vec sum = {};
        for (int64_t part = 0; part < parts; part++) sum += load(&sums[(part * depth + k) * padded + filter]);
        store(dw->typed_data() + k * out.channels + filter, sum, out.channels - filter);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    lstm_rot_convolve, convolve,
    BOUND.Arg<Floats>().Arg<Floats>().Ret<Floats>().Attr<int64_t>("stride").Attr<int64_t>("spread") COUNTED);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_rot_weigh, weigh,
                              BOUND.Arg<Floats>().Arg<Floats>().Ret<Floats>().Attr<int64_t>("stride") COUNTED);
