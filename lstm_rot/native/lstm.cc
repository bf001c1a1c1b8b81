// One LSTM layer along time, forward and backward, for a CPU. kernels/packed.py says what it computes and when it is
// used.
//
// The loop over time is inside: the weights are packed once, into panels that the cache holds, and each thread takes
// some sequences of the batch through all steps, so that no step waits for another thread. Everything a step does to a
// few sequences and a few units happens in registers: the product, the gates, the cell state, h.

#include "vectors.h"

namespace {

using Ints = ffi::Buffer<ffi::S32>;
constexpr int ROWS = REGISTERS >= 32 ? 6 : 2;  // sequences at once: ROWS x 4 sums and 4 weights are in registers
constexpr int P = 4 * V;                       // columns of a panel
constexpr int64_t AT_ONCE = 8 * ROWS;          // rows of x in one product, where a thread has fewer sequences than that

}  // namespace

// Floats that the packed weights take: each handler's last result, for XLA to count them with the rest.
extern "C" int64_t lstm_rot_forward_room(int64_t input, int64_t hidden) {
  return (hidden + V - 1) / V * P * (input + hidden);
}
extern "C" int64_t lstm_rot_backward_room(int64_t hidden) { return (hidden + P - 1) / P * P * 4 * hidden; }

namespace {

// A quotient of polynomials, as Eigen and XLA have it; NaN stays NaN.
inline vec tanh(vec x) {
  const vec most = vec{} + 7.90531110763549805f;
  x = x > most ? most : x;
  x = x < -most ? -most : x;
  const vec s = x * x;
  vec p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  vec q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}
inline vec sigmoid(vec x) { return tanh(x * 0.5f) * 0.5f + 0.5f; }

// acc[r] += a[r] W for R rows a and one panel W [k, P].
template <int R>
inline void multiply(vec (&acc)[R][4], const float* const* rows, int64_t k, const float* panel) {
  const float* a[R];
  for (int r = 0; r < R; r++) a[r] = rows[r];
  for (int64_t at = 0; at < k; at++, panel += P) {
    const vec w0 = load(panel), w1 = load(panel + V), w2 = load(panel + 2 * V), w3 = load(panel + 3 * V);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const float x = a[r][at];
      acc[r][0] += x * w0, acc[r][1] += x * w1, acc[r][2] += x * w2, acc[r][3] += x * w3;
    }
  }
}

// f<R>(first row) for rows 0 to n in blocks of nearly equal R <= ROWS.
template <int R = ROWS, typename F>
inline void block_of(int64_t size, int64_t first, const F& f) {
  if constexpr (R == 1) {
    f(std::integral_constant<int, 1>(), first);
  } else if (size == R) {
    f(std::integral_constant<int, R>(), first);
  } else {
    block_of<R - 1>(size, first, f);
  }
}
template <typename F>
inline void in_blocks(int64_t n, const F& f) {
  const int64_t blocks = (n + ROWS - 1) / ROWS;
  for (int64_t k = 0; k < blocks; k++) block_of(n * (k + 1) / blocks - n * k / blocks, n * k / blocks, f);
}

struct Sizes {
  int64_t steps, batch, input, hidden;
  int64_t panels(int64_t width) const { return (hidden + width - 1) / width; }
};

// Panels of V units, the four gates of each side by side: from [K, 4, H].
void pack_gates(const float* w, int64_t k, int64_t hidden, int64_t panel, float* to) {
  const int64_t unit = panel * V;
  for (int64_t at = 0; at < k * 4; at++) store(to + at * V, load(w + at * hidden + unit, hidden - unit));
}

struct Forward {
  Sizes n;
  const float *x, *b, *c0, *h0;
  const int32_t* lengths;
  float *y, *c_last, *h_last;
  float *gates, *cells;  // kept for the gradient, or null
  const float *wx, *wh;  // packed

  void run(int64_t from, int64_t to) const {  // some sequences through all steps
    const int64_t rows = to - from, panels = n.panels(V), chunk = std::max<int64_t>((AT_ONCE + rows - 1) / rows, 1);
    Memory sums = floats(chunk * rows * panels * P), state = floats(rows * panels * V);
    std::vector<const float*> inputs(chunk * rows), hs(rows);
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t j = 0; j < panels; j++) {
        store(&state[(r * panels + j) * V], load(c0 + (from + r) * n.hidden + j * V, n.hidden - j * V));
      }
      hs[r] = h0 + (from + r) * n.hidden;
      if (lengths[from + r] <= 0) std::memcpy(h_last + (from + r) * n.hidden, hs[r], n.hidden * sizeof(float));
    }
    for (int64_t first = 0; first < n.steps; first += chunk) {
      const int64_t size = std::min(chunk, n.steps - first);
      for (int64_t k = 0; k < size * rows; k++) {
        inputs[k] = x + ((first + k / rows) * n.batch + from + k % rows) * n.input;
      }
      for (int64_t j = 0; j < panels; j++) {
        in_blocks(size * rows, [&](auto R, int64_t r) { enter<R>(j, &inputs[r], &sums[r * panels * P]); });
      }
      for (int64_t t = first; t < first + size; t++) {
        float* of_step = &sums[(t - first) * rows * panels * P];
        for (int64_t j = 0; j < panels; j++) {
          in_blocks(rows, [&](auto R, int64_t r) {
            step<R>(t, j, from + r, &hs[r], of_step + r * panels * P, &state[r * panels * V]);
          });
        }
        for (int64_t r = 0; r < rows; r++) {
          hs[r] = y + (t * n.batch + from + r) * n.hidden;
          if (t == lengths[from + r] - 1) std::memcpy(h_last + (from + r) * n.hidden, hs[r], n.hidden * sizeof(float));
        }
      }
    }
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t j = 0; j < panels; j++) {
        store(c_last + (from + r) * n.hidden + j * V, load(&state[(r * panels + j) * V]), n.hidden - j * V);
      }
    }
  }

  template <int R>
  void enter(int64_t panel, const float* const* inputs, float* sums) const {  // x W_x + b
    vec acc[R][4];
    for (int r = 0; r < R; r++) {
      for (int g = 0; g < 4; g++) acc[r][g] = load(b + g * n.hidden + panel * V, n.hidden - panel * V);
    }
    multiply<R>(acc, inputs, n.input, wx + panel * n.input * P);
    for (int r = 0; r < R; r++) {
      for (int g = 0; g < 4; g++) store(sums + (r * n.panels(V) + panel) * P + g * V, acc[r][g]);
    }
  }

  template <int R>
  void step(int64_t t, int64_t panel, int64_t row, const float* const* h, const float* sums, float* state) const {
    vec acc[R][4];
    for (int r = 0; r < R; r++) {
      for (int g = 0; g < 4; g++) acc[r][g] = load(sums + (r * n.panels(V) + panel) * P + g * V);
    }
    multiply<R>(acc, h, n.hidden, wh + panel * n.hidden * P);
    const int64_t left = n.hidden - panel * V;
    for (int r = 0; r < R; r++) {
      float* at = state + (r * n.panels(V) + panel) * V;
      const int64_t place = (t * n.batch + row + r) * n.hidden + panel * V;
      const vec i = sigmoid(acc[r][0]), f = sigmoid(acc[r][1]), g = tanh(acc[r][2]), o = sigmoid(acc[r][3]);
      const vec c = f * load(at) + i * g;
      const bool valid = t < lengths[row + r];
      if (valid) store(at, c);
      store(y + place, valid ? o * tanh(c) : vec{}, left);
      if (gates != nullptr) {
        float* gate = gates + (t * n.batch + row + r) * 4 * n.hidden + panel * V;
        store(gate, i, left), store(gate + n.hidden, f, left);
        store(gate + 2 * n.hidden, g, left), store(gate + 3 * n.hidden, o, left);
        store(cells + place, c, left);
      }
    }
  }
};

ffi::Error forward(ffi::ThreadPool& pool, const Floats& x, const Floats& wx, const Floats& wh, const Floats& b,
                   const Floats& c, const Floats& h, const Ints& lengths, Result& y, Result& c_last, Result& h_last,
                   Result& room, float* gates, float* cells) {
  const Sizes n{x.dimensions()[0], x.dimensions()[1], x.dimensions()[2], wh.dimensions()[0]};
  const int64_t panels = n.panels(V), packers = std::min(threads(pool), panels);
  if (ffi::Error error = enough(room, lstm_rot_forward_room(n.input, n.hidden)); error.failure()) return error;
  float *const packed_x = room->typed_data(), *const packed_h = packed_x + panels * n.input * P;
  in_parallel(pool, packers, [&](int64_t k) {
    for (int64_t j = panels * k / packers; j < panels * (k + 1) / packers; j++) {
      pack_gates(wx.typed_data(), n.input, n.hidden, j, &packed_x[j * n.input * P]);
      pack_gates(wh.typed_data(), n.hidden, n.hidden, j, &packed_h[j * n.hidden * P]);
    }
  });
  const Forward line{n,
                     x.typed_data(),
                     b.typed_data(),
                     c.typed_data(),
                     h.typed_data(),
                     lengths.typed_data(),
                     y->typed_data(),
                     c_last->typed_data(),
                     h_last->typed_data(),
                     gates,
                     cells,
                     packed_x,
                     packed_h};
  const int64_t parts = std::min(threads(pool), n.batch);
  in_parallel(pool, parts, [&](int64_t k) { line.run(n.batch * k / parts, n.batch * (k + 1) / parts); });
  return ffi::Error::Success();
}

struct Backward {
  Sizes n;
  const float *gates, *cells, *c0, *h0, *y, *dy, *dc_last, *dh_last;
  const int32_t* lengths;
  float *da, *before, *dc, *dh;  // da may lie where the gates do, h before each step where the cell states do
  const float* wh;               // packed, transposed

  void run(int64_t from, int64_t to) const {
    const int64_t rows = to - from, panels = n.panels(P);
    std::vector<float> zeros(4 * n.hidden);
    std::vector<const float*> later(rows, zeros.data());
    std::memcpy(dc + from * n.hidden, dc_last + from * n.hidden, rows * n.hidden * sizeof(float));
    for (int64_t t = n.steps - 1; t >= -1; t--) {
      for (int64_t j = 0; j < panels; j++) {
        in_blocks(rows, [&](auto R, int64_t r) { step<R>(t, j, from + r, &later[r]); });
      }
      for (int64_t r = 0; r < rows && t >= 0; r++) {
        const int64_t at = t * n.batch + from + r;
        later[r] = da + at * 4 * n.hidden;
        const float* h = t > 0 ? y + (at - n.batch) * n.hidden : h0 + (from + r) * n.hidden;
        std::memcpy(before + at * n.hidden, h, n.hidden * sizeof(float));
      }
    }
  }

  template <int R>
  void step(int64_t t, int64_t panel, int64_t row, const float* const* later) const {  // t = -1: dh of h0
    vec acc[R][4] = {};
    multiply<R>(acc, later, 4 * n.hidden, wh + panel * 4 * n.hidden * P);
    for (int r = 0; r < R; r++) {
      const int64_t batch = row + r;
      for (int v = 0; v < 4; v++) {
        const int64_t unit = panel * P + v * V, left = n.hidden - unit, at = batch * n.hidden + unit;
        if (left <= 0) break;
        if (t == lengths[batch] - 1) acc[r][v] += load(dh_last + at, left);
        if (t < 0) {
          store(dh + at, acc[r][v], left);
        } else {
          through(t, batch, unit, left, acc[r][v]);
        }
      }
    }
  }

  // Back through the gates of a few units; dh without dy.
  void through(int64_t t, int64_t batch, int64_t unit, int64_t left, vec dh) const {
    const int64_t at = batch * n.hidden + unit, step = n.batch * n.hidden,
                  gate = (t * n.batch + batch) * 4 * n.hidden + unit;
    vec di = {}, df = {}, dg = {}, dho = {};
    if (t < lengths[batch]) {
      const vec i = load(gates + gate, left), f = load(gates + gate + n.hidden, left);
      const vec g = load(gates + gate + 2 * n.hidden, left), o = load(gates + gate + 3 * n.hidden, left);
      const vec before = load(t > 0 ? cells + (t - 1) * step + at : c0 + at, left);
      const vec squashed = tanh(load(cells + t * step + at, left));
      dh += load(dy + t * step + at, left);
      const vec d = load(dc + at, left) + dh * o * (1.0f - squashed * squashed);
      di = d * g * i * (1.0f - i), df = d * before * f * (1.0f - f), dg = d * i * (1.0f - g * g);
      dho = dh * squashed * o * (1.0f - o);
      store(dc + at, d * f, left);
    }
    store(da + gate, di, left), store(da + gate + n.hidden, df, left);
    store(da + gate + 2 * n.hidden, dg, left), store(da + gate + 3 * n.hidden, dho, left);
  }
};

ffi::Error backward(ffi::ThreadPool pool, Floats wh, Floats gates, Floats cells, Floats c, Floats h, Floats y,
                    Ints lengths, Floats dy, Floats dc_last, Floats dh_last, Result da, Result before, Result dc,
                    Result dh, Result room, int64_t) {
  const auto dims = dy.dimensions();
  const Sizes n{dims[0], dims[1], 0, dims[2]};
  const int64_t panels = n.panels(P), k = 4 * n.hidden;
  if (ffi::Error error = enough(room, lstm_rot_backward_room(n.hidden)); error.failure()) return error;
  float* const packed = room->typed_data();
  in_parallel(pool, panels, [&](int64_t j) {
    for (int64_t column = 0; column < P; column++) {
      const int64_t unit = j * P + column;
      const float* from = wh.typed_data() + unit * k;
      float* to = &packed[j * k * P + column];
      for (int64_t at = 0; at < k; at++) to[at * P] = unit < n.hidden ? from[at] : 0.0f;
    }
  });
  const Backward line{n,
                      gates.typed_data(),
                      cells.typed_data(),
                      c.typed_data(),
                      h.typed_data(),
                      y.typed_data(),
                      dy.typed_data(),
                      dc_last.typed_data(),
                      dh_last.typed_data(),
                      lengths.typed_data(),
                      da->typed_data(),
                      before->typed_data(),
                      dc->typed_data(),
                      dh->typed_data(),
                      packed};
  const int64_t parts = std::min(threads(pool), n.batch);
  in_parallel(pool, parts, [&](int64_t k) { line.run(n.batch * k / parts, n.batch * (k + 1) / parts); });
  return ffi::Error::Success();
}

ffi::Error values(ffi::ThreadPool pool, Floats x, Floats wx, Floats wh, Floats b, Floats c, Floats h, Ints lengths,
                  Result y, Result c_last, Result h_last, Result room, int64_t) {
  return forward(pool, x, wx, wh, b, c, h, lengths, y, c_last, h_last, room, nullptr, nullptr);
}

ffi::Error kept(ffi::ThreadPool pool, Floats x, Floats wx, Floats wh, Floats b, Floats c, Floats h, Ints lengths,
                Result y, Result c_last, Result h_last, Result gates, Result cells, Result room, int64_t) {
  return forward(pool, x, wx, wh, b, c, h, lengths, y, c_last, h_last, room, gates->typed_data(), cells->typed_data());
}

}  // namespace

#define THREE(a) .a<Floats>().a<Floats>().a<Floats>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_rot_values, values,
                              BOUND THREE(Arg) THREE(Arg).Arg<Ints>() THREE(Ret).Ret<Floats>() COUNTED);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_rot_kept, kept,
                              BOUND THREE(Arg) THREE(Arg).Arg<Ints>() THREE(Ret) THREE(Ret) COUNTED);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_rot_backward, backward,
                              BOUND THREE(Arg) THREE(Arg).Arg<Ints>() THREE(Arg) THREE(Ret).Ret<Floats>().Ret<Floats>()
                                  COUNTED);
