// Rotary position embedding. The cosines and sines of many tokens are prepared
// in a table on the stack: converted to the type of computation, in the order
// of vectors and with the signs of the formula. All heads of the tokens then
// rotate by plain multiplications and additions.
#include "foo_core/rope.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "checks.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rope.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_ROPE_CALL_
#define FOO_CORE_ROPE_CALL_
namespace foo_core {
namespace {

/// The arguments of a call.
struct RopeCall {
  const ConstTensorView& x;
  const ConstTensorView& cos;
  const ConstTensorView& sin;
  const ConstTensorView* positions;  // (batch, seq)
  const RopeOptions& options;
  const TensorView& out;
  std::atomic<bool>& changed;  // whether a position is out of range now
  bool stream = worth_streaming(out, {x.data});

  /// A row of the tables; the first one if another thread has made the position
  /// invalid since it was checked.
  std::int64_t position(std::int64_t batch, std::int64_t at) const {
    if (positions == nullptr) return at;
    const std::int64_t* strides = positions->strides;
    const std::int64_t position =
        read_index(static_cast<const std::int64_t*>(positions->data) +
                   batch * strides[0] + at * strides[1]);
    if (position >= 0 && position < cos.sizes[0]) return position;
    changed = true;
    return 0;
  }
};

/// The kind of a table, which decides its signs.
enum class Sign { kCos, kSin, kInverseSin };

using RopeFunction = void (*)(const RopeCall& call, std::int64_t begin,
                              std::int64_t end);

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// The number of elements in a table of cos or sin. It holds many positions, so
/// that each head is read in one long run if heads are outermost: 1.1× to 1.5×
/// faster than a quarter of the size.
template <class C>
constexpr int64_t kTable = 16384 / sizeof(C);

/// Writes each of n elements twice.
template <class S>
HWY_INLINE void Repeat(const S* row, int64_t stride, int64_t n, S* out) {
  int64_t j = 0;
  if (stride == 1) {
    using Bits = hwy::UnsignedFromSize<sizeof(S)>;
    const hn::ScalableTag<Bits> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (; j + lanes <= n; j += lanes) {
      const auto v = hn::LoadU(d, reinterpret_cast<const Bits*>(row + j));
      hn::StoreInterleaved2(v, v, d, reinterpret_cast<Bits*>(out + 2 * j));
    }
  }
  for (; j < n; ++j) out[2 * j] = out[2 * j + 1] = row[j * stride];
}

/// x with the elements 2i and 2i + 1 of T swapped.
template <class T>
HWY_INLINE Pair<Compute<T>> SwapNeighbours(Pair<Compute<T>> x) {
  const hn::ScalableTag<Compute<T>> d;
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) return {x.b, x.a};
  return {hn::Reverse2(d, x.a), hn::Reverse2(d, x.b)};
}

/// x with the elements 2i of T negated.
template <class T>
HWY_INLINE Pair<Compute<T>> NegateEven(Pair<Compute<T>> x) {
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) return {hn::Neg(x.a), x.b};
  return {hn::OddEven(x.a, hn::Neg(x.a)), hn::OddEven(x.b, hn::Neg(x.b))};
}

/// Prepares n elements of a row of cos or sin, each twice if interleaved, for
/// products with elements of T. It fills whole vectors; instead of a partial
/// last vector it writes the last Lanes() elements.
template <bool kInterleaved, class T, class S>
HWY_INLINE void FillTable(const S* row, int64_t stride, int64_t n, Sign sign,
                          Compute<T>* out) {
  using C = Compute<T>;
  HWY_ALIGN S tile[kTile];
  const int64_t step = Lanes<C>();
  const S* p = row;
  if constexpr (kInterleaved) {
    Repeat(row, stride, n, tile);
    n *= 2;
    p = tile;
  } else {
    p = InputTile(row, stride, 0, n, tile);
  }
  for (int64_t i = 0; i < n; i += step) {
    auto y = n < step ? LoadSomeAs<T, false>(p, n)
                      : LoadSomeAs<T, true>(p + HWY_MIN(i, n - step), step);
    if (sign == Sign::kInverseSin) y = {hn::Neg(y.a), hn::Neg(y.b)};
    if (kInterleaved && sign != Sign::kCos) y = NegateEven<T>(y);
    Store(y, out + i);
  }
}

/// Rotates the first n elements of v. If interleaved they are whole pairs;
/// otherwise they are the first of their pairs, v2 has the second ones, and
/// their results go to out2.
template <bool kInterleaved, bool kAll, class T>
HWY_INLINE void RotateSome(Pair<Compute<T>> v, Pair<Compute<T>> v2,
                           const Compute<T>* cos, const Compute<T>* sin, T* out,
                           T* out2, bool stream, int64_t n) {
  const auto store = [&](Pair<Compute<T>> y, T* to) HWY_ATTR {
    if constexpr (kAll) return Store(y, to, stream);
    StoreN(y, to, n);
  };
  const auto c = Load(cos), s = Load(sin);
  if constexpr (kInterleaved) {
    store(MulAdd(SwapNeighbours<T>(v), s, v * c), out);
  } else {
    store(NegMulAdd(v2, s, v * c), out);
    store(MulAdd(v, s, v2 * c), out2);
  }
}

/// Rotates n elements in memory, which are whole vectors.
template <bool kInterleaved, class T>
HWY_INLINE void RotateVectors(const T* x, const T* x2, const Compute<T>* cos,
                              const Compute<T>* sin, T* out, T* out2,
                              bool stream, int64_t n) {
  const int64_t step = Lanes<Compute<T>>();
  for (int64_t i = 0; i < n; i += step) {
    const auto v = Load(x + i), v2 = kInterleaved ? v : Load(x2 + i);
    RotateSome<kInterleaved, true>(v, v2, cos + i, sin + i, out + i, out2 + i,
                                   stream, step);
  }
}

/// Rotates n elements in memory.
template <bool kInterleaved, class T>
HWY_INLINE void Rotate(const T* x, const T* x2, const Compute<T>* cos,
                       const Compute<T>* sin, T* out, T* out2, bool stream,
                       int64_t n) {
  const int64_t step = Lanes<Compute<T>>();
  const int64_t rest = n % step;
  if (rest == 0) {
    stream = stream && can_stream(out) && can_stream(out2);
    RotateVectors<kInterleaved>(x, x2, cos, sin, out, out2, stream, n);
  } else if (n < step) {
    const auto v = LoadN(x, n), v2 = kInterleaved ? v : LoadN(x2, n);
    RotateSome<kInterleaved, false>(v, v2, cos, sin, out, out2, false, n);
  } else {
    // The last vector overlaps the one before it, which is 2× to 3× faster than
    // a partial vector. It is loaded first, because out may be x.
    const int64_t last = n - step;
    const auto v = Load(x + last), v2 = kInterleaved ? v : Load(x2 + last);
    RotateVectors<kInterleaved>(x, x2, cos, sin, out, out2, false, n - rest);
    RotateSome<kInterleaved, true>(v, v2, cos + n - rest, sin + n - rest,
                                   out + last, out2 + last, false, step);
  }
}

/// Rotates a head with any strides.
template <bool kInterleaved, class T>
HWY_NOINLINE void RotateStrided(const T* x, const T* x2, int64_t x_stride,
                                const Compute<T>* cos, const Compute<T>* sin,
                                T* out, T* out2, int64_t out_stride,
                                int64_t n) {
  HWY_ALIGN T tile[kTile], tile2[kTile], out_tile[kTile], out_tile2[kTile];
  const T* p = InputTile(x, x_stride, 0, n, tile);
  const T* p2 = kInterleaved ? p : InputTile(x2, x_stride, 0, n, tile2);
  T* q = OutputTile(out, out_stride, 0, out_tile);
  T* q2 = OutputTile(out2, out_stride, 0, out_tile2);
  Rotate<kInterleaved>(p, p2, cos, sin, q, q2, false, n);
  FinishTile(q, out, out_stride, 0, n);
  if (!kInterleaved) FinishTile(q2, out2, out_stride, 0, n);
}

template <class T>
HWY_INLINE void CopyRest(const T* x, int64_t x_stride, T* out,
                         int64_t out_stride, int64_t n) {
  if (x_stride == 1 && out_stride == 1) {
    hwy::CopyBytes(x, out, static_cast<size_t>(n) * sizeof(T));
  } else {
    for (int64_t j = 0; j < n; ++j) out[j * out_stride] = x[j * x_stride];
  }
}

/// Prepares pairs [pair, pair + n) of a position's row of cos or sin.
template <bool kInterleaved, class T>
HWY_INLINE void FillRow(const ConstTensorView& table, int64_t position,
                        int64_t pair, int64_t n, Sign sign, Compute<T>* out) {
  const int64_t stride = table.strides[1];
  const int64_t offset = position * table.strides[0] + pair * stride;
  if (!hwy::IsSame<T, float>() && table.dtype == DType::kFloat32) {
    const auto* row = static_cast<const float*>(table.data) + offset;
    FillTable<kInterleaved, T>(row, stride, n, sign, out);
  } else {
    const auto* row = static_cast<const T*>(table.data) + offset;
    FillTable<kInterleaved, T>(row, stride, n, sign, out);
  }
}

/// The dimension of tokens or that of heads.
struct Dimension {
  int64_t size, x_stride, out_stride, table_stride;
};

/// Rotates pairs [pair, pair + pairs) of tokens [at, at + tokens) of one batch,
/// whose cosines fit in kTable elements.
template <bool kInterleaved, class T>
void Block(const RopeCall& call, int64_t batch, int64_t at, int64_t tokens,
           int64_t pair, int64_t pairs) {
  using C = Compute<T>;
  HWY_ALIGN C cos[kTable<C>], sin[kTable<C>];
  const int64_t n = kInterleaved ? 2 * pairs : pairs;
  const int64_t width = hwy::RoundUpTo(n, Lanes<C>());
  for (int64_t t = 0; n > 0 && t < tokens; ++t) {  // without n they may be null
    const int64_t position = call.position(batch, at + t);
    FillRow<kInterleaved, T>(call.cos, position, pair, pairs, Sign::kCos,
                             cos + t * width);
    FillRow<kInterleaved, T>(
        call.sin, position, pair, pairs,
        call.options.inverse ? Sign::kInverseSin : Sign::kSin, sin + t * width);
  }

  const int64_t half = last_size(call.cos);
  const int64_t rest = pair == 0 ? last_size(call.x) - 2 * half : 0;
  const bool copy = rest > 0 && call.x.data != call.out.data;
  const int64_t* xs = call.x.strides;
  const int64_t* os = call.out.strides;
  const bool contiguous = xs[3] == 1 && os[3] == 1;
  const int64_t first = kInterleaved ? 2 * pair : pair;
  const auto* x = static_cast<const T*>(call.x.data) + batch * xs[0] +
                  at * xs[1] + first * xs[3];
  auto* out = static_cast<T*>(call.out.data) + batch * os[0] + at * os[1] +
              first * os[3];
  // The loops follow out's memory, which may be (batch, heads, seq, head_dim).
  Dimension outer{tokens, xs[1], os[1], width};
  Dimension inner{call.x.sizes[2], xs[2], os[2], 0};
  if (magnitude(inner.out_stride) > magnitude(outer.out_stride)) {
    std::swap(outer, inner);
  }
  for (int64_t i = 0; i < outer.size; ++i) {
    for (int64_t j = 0; j < inner.size; ++j) {
      const T* px = x + i * outer.x_stride + j * inner.x_stride;
      T* pout = out + i * outer.out_stride + j * inner.out_stride;
      const int64_t row = i * outer.table_stride + j * inner.table_stride;
      if (contiguous) {
        Rotate<kInterleaved>(px, px + half, cos + row, sin + row, pout,
                             pout + half, call.stream, n);
      } else {
        RotateStrided<kInterleaved>(px, px + half * xs[3], xs[3], cos + row,
                                    sin + row, pout, pout + half * os[3], os[3],
                                    n);
      }
      if (copy) {
        CopyRest(px + 2 * half * xs[3], xs[3], pout + 2 * half * os[3], os[3],
                 rest);
      }
    }
  }
}

/// Rotates tokens [begin, end), as many at a time as fit in the tables.
template <bool kInterleaved, class T>
void Tokens(const RopeCall& call, int64_t begin, int64_t end) {
  constexpr int64_t kElements = kInterleaved ? 2 : 1;  // of a table, per pair
  const int64_t seq = call.x.sizes[1];
  const int64_t all = last_size(call.cos);
  const int64_t pairs = HWY_MIN(all, kTile / kElements);
  const int64_t width =
      HWY_MAX(1, hwy::RoundUpTo(kElements * pairs, Lanes<Compute<T>>()));
  while (begin < end) {
    const int64_t batch = begin / seq, at = begin % seq;
    const int64_t tokens =
        HWY_MIN(kTable<Compute<T>> / width, HWY_MIN(end - begin, seq - at));
    int64_t pair = 0;
    do {  // at least once, because there may be elements to copy
      Block<kInterleaved, T>(call, batch, at, tokens, pair,
                             HWY_MIN(pairs, all - pair));
      pair += pairs;
    } while (pair < all);
    begin += tokens;
  }
  if (call.stream) hwy::FlushStream();
}

struct TokensOf {
  bool interleaved;

  template <class T>
  HWY_INLINE RopeFunction operator()(T) const {
    return interleaved ? Tokens<true, T> : Tokens<false, T>;
  }
};

RopeFunction RopeForward(DType dtype, bool interleaved) {
  return ForDType(dtype, TokensOf{interleaved});
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

constexpr const char* kOp = "rope";

void check_ndim(const Argument& x, std::int64_t ndim, const char* dimensions) {
  if (x.view.ndim == ndim) return;
  fail(kOp, std::string(x.name) + " has shape " +
                shape_text(x.view.ndim, x.view.sizes) + ", expected " +
                dimensions);
}

void check_tables(const Argument& x, const Argument& cos, const Argument& sin) {
  check_tensor(kOp, cos);
  if (cos.view.dtype != DType::kFloat32) check_same_dtype(kOp, x, cos);
  check_ndim(cos, 2, "(max_position, rotary_dim / 2)");
  check_like(kOp, sin, cos);
  const std::int64_t columns = last_size(cos.view);
  if (columns > last_size(x.view) / 2) {
    fail(kOp, "cos has " + std::to_string(columns) + " columns, which rotate " +
                  std::to_string(2 * columns) +
                  " elements, but x's last dimension is " +
                  std::to_string(last_size(x.view)));
  }
}

/// positions is a valid view of shape (seq,) or (batch, seq).
void check_positions(const Argument& positions, const std::int64_t* x_sizes) {
  check_tensor(kOp, positions, DType::kInt64);
  const ConstTensorView& view = positions.view;
  if (view.ndim == 1 && view.sizes[0] == x_sizes[1]) return;
  if (view.ndim == 2 && view.sizes[0] == x_sizes[0] &&
      view.sizes[1] == x_sizes[1]) {
    return;
  }
  fail(kOp, "positions has shape " + shape_text(view.ndim, view.sizes) +
                ", expected " + shape_text(1, x_sizes + 1) + " or " +
                shape_text(2, x_sizes));
}

/// Each position is a row of the tables.
void check_range(const ConstTensorView& positions, std::int64_t max_position) {
  const std::int64_t columns = last_size(positions);
  const std::int64_t rows = count_rows(positions);
  const auto* data = static_cast<const std::int64_t*>(positions.data);
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t offset =
        positions.ndim == 1 ? 0 : i * positions.strides[0];
    for (std::int64_t j = 0; j < columns; ++j) {
      const std::int64_t position =
          read_index(data + offset + j * last_stride(positions));
      if (position >= 0 && position < max_position) continue;
      const std::int64_t index[] = {i, j};
      fail(kOp, "positions holds " + std::to_string(position) + " at " +
                    shape_text(positions.ndim, index + 2 - positions.ndim) +
                    ", but cos has " + std::to_string(max_position) + " rows");
    }
  }
}

}  // namespace

void rope(const ConstTensorView& x, const ConstTensorView& cos,
          const ConstTensorView& sin, const ConstTensorView* positions,
          const RopeOptions& options, const TensorView& out,
          const Executor& executor) {
  const Argument arg_x{"x", x}, arg_cos{"cos", cos}, arg_sin{"sin", sin},
      arg_positions{"positions", positions}, arg_out{"out", out};
  check_tensor(kOp, arg_x);
  check_ndim(arg_x, 4, "(batch, seq, heads, head_dim)");
  check_tables(arg_x, arg_cos, arg_sin);
  check_like(kOp, arg_out, arg_x);
  const std::int64_t batch = x.sizes[0], seq = x.sizes[1];
  if (positions != nullptr) {
    check_positions(arg_positions, x.sizes);
  } else if (seq > cos.sizes[0]) {
    fail(kOp, "x has " + std::to_string(seq) + " positions, but cos has " +
                  std::to_string(cos.sizes[0]) + " rows");
  }
  check_output(kOp, arg_out, {&arg_x}, {&arg_cos, &arg_sin, &arg_positions});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::rope(x, cos, sin, positions, options, out, executor.stream);
    }
  }
  const CpuThreads threads(kOp, executor);
  // Without tokens, positions may have more rows than can be counted.
  if (positions != nullptr && batch * seq > 0) {
    check_range(*positions, cos.sizes[0]);
  }
  if (numel(x) == 0) return;

  // positions, broadcast to (batch, seq)
  std::int64_t strides[] = {0, 1};
  ConstTensorView wide{nullptr, DType::kInt64, 2, x.sizes, strides};
  if (positions != nullptr) {
    wide.data = positions->data;
    strides[1] = last_stride(*positions);
    if (positions->ndim == 2) strides[0] = positions->strides[0];
    positions = &wide;
  }
  const auto forward =
      FOO_CORE_DISPATCH(RopeForward)(x.dtype, options.interleaved);
  std::atomic<bool> changed{false};
  const RopeCall call{x, cos, sin, positions, options, out, changed};
  threads.for_ranges(
      batch * seq, x.sizes[2] * x.sizes[3],
      [&](std::int64_t begin, std::int64_t end) { forward(call, begin, end); });
  if (changed) fail_changed(kOp, "positions");
}

}  // namespace foo_core
#endif  // HWY_ONCE
