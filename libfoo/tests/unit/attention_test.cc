// attention against weights and sums in long double, and how pieces of the keys
// are combined.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

struct Sizes {
  std::int64_t batch, heads, key_heads, queries, keys, size, value_size;
};

class AttentionTest : public KernelTest {
 protected:
  static constexpr double kScale = 0.3;

  Tensor query(const Sizes& s, Shape strides = {}) const {
    return make({s.batch, s.heads, s.queries, s.size}, std::move(strides))
        .randomize(1);
  }
  Tensor key(const Sizes& s, Shape strides = {}) const {
    return cached({s.batch, s.key_heads, s.keys, s.size}, std::move(strides))
        .randomize(2);
  }
  Tensor value(const Sizes& s, Shape strides = {}) const {
    return cached({s.batch, s.key_heads, s.keys, s.value_size},
                  std::move(strides))
        .randomize(3);
  }

  /// A tensor of the dtype of keys and values.
  Tensor cached(Shape sizes, Shape strides = {}, std::int64_t shift = 0) const {
    return Tensor(cache_.value_or(dtype()), std::move(sizes),
                  std::move(strides), shift);
  }

  /// Calls f() for each dtype that keys and values may have.
  template <class F>
  void for_each_cache(F f) {
    f();
    if (dtype() != DType::kFloat32) return;
    for (const DType narrow : {DType::kFloat16, DType::kBFloat16}) {
      cache_ = narrow;
      f();
    }
    cache_.reset();
  }

  Tensor attend(const Tensor& query, const Tensor& key, const Tensor& value,
                const Tensor* mask = nullptr, Shape out_strides = {},
                const Executor& executor = {}) {
    Tensor out =
        make({query.sizes[0], query.sizes[1], query.sizes[2], value.sizes[3]},
             std::move(out_strides));
    const Memory scratch =
        aligned_memory(attention_scratch_size(query, key, value, executor));
    ConstTensorView view;
    if (mask != nullptr) view = *mask;
    attention(query, key, value, mask == nullptr ? nullptr : &view, kScale, out,
              scratch.get(), executor);
    EXPECT_TRUE(out.guards_intact());
    return out;
  }

  /// What a mask of any shape adds to a score.
  static double bias(const Tensor* mask, const std::int64_t (&at)[4]) {
    if (mask == nullptr) return 0;
    std::int64_t index = 0;
    const std::size_t ndim = mask->sizes.size();
    for (std::size_t d = 0; d < ndim; ++d) {
      const std::int64_t size = mask->sizes[d];
      index = index * size + (size == 1 ? 0 : at[4 - ndim + d]);
    }
    const double x = mask->get(index);
    if (mask->dtype != DType::kUInt8) return x;
    return x != 0 ? 0 : -INFINITY;
  }

  /// Expects weighted sums as in long double, up to the rounding of the result
  /// and of scores and sums in the type of computation.
  void check(const Tensor& query, const Tensor& key, const Tensor& value,
             const Tensor* mask = nullptr, Shape out_strides = {}) {
    const Tensor got = attend(query, key, value, mask, std::move(out_strides));
    const auto vq = query.values(), vk = key.values(), vv = value.values();
    const std::int64_t heads = query.sizes[1], queries = query.sizes[2];
    const std::int64_t key_heads = key.sizes[1], keys = key.sizes[2];
    const std::int64_t size = query.sizes[3], columns = value.sizes[3];
    const double step = dtype() == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
    // Weights of 16-bit types have 18 bits.
    const double weight_step = item_size(dtype()) == 2 ? 0x1p-18 : 4 * step;
    for (std::int64_t row = 0; row < query.sizes[0] * heads * queries; ++row) {
      const std::int64_t b = row / queries / heads, h = row / queries % heads;
      const std::int64_t first =
          (b * key_heads + h / (heads / key_heads)) * keys;
      std::vector<long double> scores;
      double largest = 0;  // sum of magnitudes in a score
      long double most = -INFINITY;
      for (std::int64_t j = 0; j < keys; ++j) {
        long double sum = 0;
        double magnitude = 0;
        for (std::int64_t i = 0; i < size; ++i) {
          const auto product =
              static_cast<long double>(
                  vq[static_cast<std::size_t>(row * size + i)]) *
              vk[static_cast<std::size_t>((first + j) * size + i)];
          sum += product;
          magnitude += std::fabs(static_cast<double>(product)) * kScale;
        }
        const double added = bias(mask, {b, h, row % queries, j});
        scores.push_back(sum * kScale + added);
        if (std::isfinite(added)) magnitude += std::fabs(added);
        largest = std::max(largest, magnitude);
        most = std::max(most, scores.back());
      }
      long double total = 0;
      for (auto& score : scores) {
        score = most == -INFINITY ? 0 : std::exp(score - most);
        total += score;
      }
      for (std::int64_t c = 0; c < columns; ++c) {
        long double sum = 0;
        double magnitude = 0;
        for (std::int64_t j = 0; j < keys && total > 0; ++j) {
          const auto product =
              scores[static_cast<std::size_t>(j)] / total *
              vv[static_cast<std::size_t>((first + j) * columns + c)];
          sum += product;
          magnitude += std::fabs(static_cast<double>(product));
        }
        const auto expected = static_cast<double>(sum);
        const double error =
            magnitude *
                (weight_step + step * (16 + 2 * largest + std::sqrt(keys))) +
            0.501 * ulp(dtype(), expected);
        ASSERT_NEAR(got.get(row * columns + c), expected, error)
            << "row " << row << ", column " << c << ", keys " << keys
            << ", size " << size;
      }
    }
  }

  void check(const Sizes& s, const Tensor* mask = nullptr) {
    for_each_cache([&] { check(query(s), key(s), value(s), mask); });
  }

 private:
  std::optional<DType> cache_;
};
FOO_CORE_KERNEL_TESTS(AttentionTest);

TEST_P(AttentionTest, EverySizeAroundTheVectors) {
  for (std::int64_t n = 1; n <= 70; ++n) {
    check({1, 2, 1, 1, 5, n, 3});
    check({1, 2, 1, 1, 5, 3, n});
  }
  for (const std::int64_t n : {127, 128, 129, 255, 256, 257, 600}) {
    check({1, 1, 1, 2, 5, n, n});
  }
}

TEST_P(AttentionTest, EveryCountOfKeysAroundThePieces) {
  for (std::int64_t keys = 0; keys <= 40; ++keys) {
    check({1, 3, 1, 1, keys, 8, 8});
  }
  for (const std::int64_t keys : {127, 128, 129, 256, 257, 1000, 1025}) {
    check({2, 2, 1, 1, keys, 8, 5});
  }
  FOO_CORE_SKIP_ON_CUDA("a piece does not know how many there are");
  // Each of the parts has several pieces.
  check({1, 2, 2, 1, 40000, 3, 3});
}

TEST_P(AttentionTest, EveryCountOfRows) {
  for (std::int64_t rows = 0; rows <= 9; ++rows) {
    check({1, 2 * rows, 2, 1, 131, 8, 8});
    check({1, 2, 2, rows, 131, 8, 8});
  }
  for (const std::int64_t queries : {31, 32, 33, 64, 65}) {
    check({2, 4, 2, queries, 131, 4, 4});
  }
}

TEST_P(AttentionTest, Empty) {
  check({0, 2, 1, 1, 5, 4, 4});
  check({2, 2, 1, 1, 5, 4, 0});
  check({2, 2, 1, 1, 5, 0, 4});
  const Sizes none{2, 2, 1, 3, 0, 4, 4};
  EXPECT_EQ(attend(query(none), key(none), value(none)).values(),
            Values(2 * 2 * 3 * 4, 0.0));
  const Tensor q = make({2, 0, 3, 4}), k = make({2, 0, 5, 4});
  EXPECT_EQ(attend(q, k, k).numel(), 0);
}

TEST_P(AttentionTest, AnyStrides) {
  const Sizes s{2, 4, 2, 3, 140, 20, 40};
  for_each_cache([&] {
    const Tensor q = query(s), k = key(s), v = value(s);
    check(query(s, {1, 2, 8, 24}), k, v);
    check(query(s, {0, 20, 80, -1}), k, v);
    check(q, key(s, {1, 2, 4, 560}), v);
    check(q, key(s, {20000, -6000, 20, 1}), v);
    check(q, key(s, {5600, 0, 20, 2}), v);
    check(q, k, value(s, {1, 2, 4, 560}));
    check(q, k, value(s, {22400, 11200, -80, -2}));
    check(q, k, value(s, {11200, 0, 40, 0}));
    check(q, k, v, nullptr, {1, 2, 8, 24});
    check(q, k, v, nullptr, {-480, 120, 40, -1});
  });
}

TEST_P(AttentionTest, MasksBroadcast) {
  const Sizes s{2, 4, 2, 3, 150, 8, 8};
  for (const Shape& shape :
       {Shape{2, 4, 3, 150}, Shape{2, 1, 1, 150}, Shape{1, 4, 3, 1},
        Shape{3, 150}, Shape{150}, Shape{1}, Shape{}}) {
    for (const bool bytes : {false, true}) {
      Tensor mask(bytes ? DType::kUInt8 : dtype(), shape);
      mask.randomize(4);
      for (std::int64_t i = 0; i < mask.numel(); ++i) {
        if (bytes) {
          mask.set(i, static_cast<double>(i % 3));
        } else if (i % 5 == 1) {
          mask.set(i, -INFINITY);
        }
      }
      check(s, &mask);
    }
  }
  Tensor across(DType::kUInt8, {2, 4, 3, 150}, {1, 2, 8, 24});
  Tensor added = make({2, 4, 3, 150}, {1, 2, 8, 24});
  for (std::int64_t i = 0; i < across.numel(); ++i) {
    across.set(i, static_cast<double>(i % 7 % 2));
  }
  check(s, &across);
  check(s, &added.randomize(5));
}

// No piece may take the weights of a query that has no key in it for NaN.
TEST_P(AttentionTest, KeysThatAreLeftOut) {
  const Sizes s{1, 2, 1, 2, 700, 8, 8};
  for (const std::int64_t begin : {0, 1, 128, 300, 640, 700}) {
    for (const std::int64_t end : {begin + 1, begin + 200, s.keys}) {
      Tensor mask(DType::kUInt8, {s.keys});
      for (std::int64_t i = 0; i < s.keys; ++i) {
        mask.set(i, begin <= i && i < end ? 1 : 0);
      }
      check(s, &mask);
    }
  }
}

// Scores that rise, fall and lie far apart.
TEST_P(AttentionTest, ScoresOfAnySize) {
  const Sizes s{1, 2, 1, 1, 600, 2, 8};
  for (const double size : {1e-3, 1.0, 40.0}) {
    for (const double sign : {-1.0, 1.0}) {
      Tensor q = query(s), k = key(s);
      for (std::int64_t i = 0; i < q.numel(); ++i) q.set(i, size);
      for (std::int64_t i = 0; i < k.numel(); ++i) {
        k.set(i, round_to(dtype(), sign * static_cast<double>(i) / 100));
      }
      check(q, k, value(s));
    }
  }
}

// Every number of 16 bits, infinity too. The only key has the weight 1.
TEST_P(AttentionTest, WidensExactly) {
  constexpr int kCount = 1 << 16;
  for_each_cache([&] {
    Tensor v = cached({1, 1, 1, kCount});
    const DType from = item_size(v.dtype) == 2 ? v.dtype : DType::kBFloat16;
    for (int i = 0; i < kCount; ++i) {
      const auto bits = static_cast<std::uint16_t>(i);
      v.set(i, decode(from, &bits));
    }
    const Tensor out = attend(make({1, 1, 1, 1}).randomize(1),
                              cached({1, 1, 1, 1}).randomize(2), v);
    for (int i = 0; i < kCount; ++i) {
      const double got = out.get(i), expected = v.get(i);
      ASSERT_TRUE(got == expected || (got != got && expected != expected))
          << got << ", expected " << expected;
    }
  });
}

TEST_P(AttentionTest, NaNAndInfinity) {
  const Sizes s{1, 3, 1, 1, 300, 8, 8};
  Tensor q = query(s), k = key(s), v = value(s);
  q.set(8 + 3, std::nan(""));  // of the second head
  const Tensor out = attend(q, k, v);
  for (std::int64_t i = 0; i < 24; ++i) {
    EXPECT_EQ(std::isnan(out.get(i)), 8 <= i && i < 16) << i;
  }
  v.set(200 * 8 + 2, INFINITY);
  v.set(200 * 8 + 5, std::nan(""));
  const Tensor some = attend(query(s), k, v);
  for (std::int64_t i = 0; i < 24; ++i) {
    EXPECT_EQ(std::isnan(some.get(i)), i % 8 == 5) << i;
    if (i % 8 == 2) {
      EXPECT_EQ(some.get(i), INFINITY);
    }
  }
  // What a mask leaves out has the weight 0, and 0 times NaN is NaN.
  Tensor mask(DType::kUInt8, {300});
  for (std::int64_t i = 0; i < 300; ++i) mask.set(i, 0);
  const Tensor none = attend(query(s), k, v, &mask);
  for (std::int64_t i = 0; i < 24; ++i) {
    EXPECT_EQ(std::isnan(none.get(i)), i % 8 == 5 || i % 8 == 2) << i;
    if (i % 8 != 5 && i % 8 != 2) {
      EXPECT_EQ(none.get(i), 0);
    }
  }
  k.set(100 * 8, std::nan(""));  // where all other scores are minus infinity
  Tensor lowest = make({300});
  for (std::int64_t i = 0; i < 300; ++i) lowest.set(i, -INFINITY);
  for (const double at : attend(query(s), k, value(s), &lowest).values()) {
    EXPECT_TRUE(std::isnan(at));
  }
}

TEST_P(AttentionTest, MisalignedArguments) {
  const Shape sizes{1, 2, 130, 32};
  for_each_cache([&] {
    check(make({1, 2, 1, 32}, {}, 1).randomize(1), cached(sizes).randomize(2),
          cached(sizes).randomize(3));
    check(make({1, 2, 1, 32}).randomize(1), cached(sizes, {}, 1).randomize(2),
          cached(sizes, {}, 1).randomize(3));
  });
}

TEST_P(AttentionTest, ThreadsChangeNothing) {
  for (const Sizes& s :
       {Sizes{1, 3, 1, 1, 5000, 16, 16}, Sizes{2, 4, 2, 70, 300, 16, 16}}) {
    const Tensor q = query(s), k = key(s), v = value(s);
    EXPECT_EQ(attend(q, k, v, nullptr, {}, threads()).memory(),
              attend(q, k, v).memory());
  }
}

TEST(AttentionChecksTest, Refuses) {
  constexpr auto kF32 = DType::kFloat32;
  const std::string op = "attention: ";
  const Tensor query(kF32, {2, 4, 3, 8}), key(kF32, {2, 2, 5, 8});
  const Tensor value(kF32, {2, 2, 5, 6});
  Tensor out(kF32, {2, 4, 3, 6});
  const auto before = out.memory();
  const Memory scratch = aligned_memory(1 << 16);
  const auto call = [&](const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor* mask, const TensorView& to,
                        void* memory) {
    ConstTensorView view;
    if (mask != nullptr) view = *mask;
    attention(q, k, v, mask == nullptr ? nullptr : &view, 1, to, memory);
  };
  const auto with = [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    call(q, k, v, nullptr, out, scratch.get());
  };
  const auto masked = [&](const Tensor& mask) {
    call(query, key, value, &mask, out, scratch.get());
  };
  const Tensor flat(kF32, {2, 4, 24}), half(DType::kFloat16, {2, 2, 5, 8});
  EXPECT_INVALID(with(flat, key, value),
                 op + "query has shape (2, 4, 24), expected (batch, heads, "
                      "queries, size)");
  const Tensor wide(DType::kFloat64, {2, 2, 5, 8});
  EXPECT_INVALID(with(query, wide, value),
                 op + "key is float64, expected float32, float16 or bfloat16, "
                      "as query is float32");
  for (const DType dtype :
       {DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
    EXPECT_INVALID(with(Tensor(dtype, {2, 4, 3, 8}), key, value),
                   op + "key is float32, but query is " + name(dtype));
  }
  EXPECT_INVALID(with(query, half, Tensor(DType::kBFloat16, {2, 2, 5, 6})),
                 op + "value is bfloat16, but key is float16");
  EXPECT_INVALID(with(query, half, value),
                 op + "value is float32, but key is float16");
  const std::string keys =
      ", expected (2, key heads, keys, 8), where query's 4 heads are a "
      "multiple of key heads";
  EXPECT_INVALID(with(query, flat, value),
                 op + "key has shape (2, 4, 24)" + keys);
  EXPECT_INVALID(with(query, value, value),
                 op + "key has shape (2, 2, 5, 6)" + keys);
  EXPECT_INVALID(with(query, Tensor(kF32, {1, 2, 5, 8}), value),
                 op + "key has shape (1, 2, 5, 8)" + keys);
  EXPECT_INVALID(with(query, Tensor(kF32, {2, 3, 5, 8}), value),
                 op + "key has shape (2, 3, 5, 8)" + keys);
  EXPECT_INVALID(with(query, Tensor(kF32, {2, 0, 5, 8}), value),
                 op + "key has shape (2, 0, 5, 8)" + keys);
  EXPECT_INVALID(with(query, key, half),
                 op + "value is float16, but key is float32");
  const std::string values = ", expected (2, 2, 5, value size)";
  EXPECT_INVALID(with(query, key, Tensor(kF32, {2, 2, 4, 6})),
                 op + "value has shape (2, 2, 4, 6)" + values);
  EXPECT_INVALID(with(query, key, flat),
                 op + "value has shape (2, 4, 24)" + values);
  EXPECT_INVALID(masked(Tensor(DType::kFloat16, {5})),
                 op + "mask is float16, but query is float32");
  EXPECT_INVALID(
      masked(Tensor(DType::kInt64, {5})),
      op + "mask is int64, expected float32, float64, float16 or bfloat16");
  for (const DType dtype : {kF32, DType::kUInt8}) {
    for (const Shape& shape : {Shape{4}, Shape{2, 5}, Shape{0, 5},
                               Shape{3, 4, 3, 5}, Shape{1, 2, 4, 3, 5}}) {
      std::string text;
      for (const auto n : shape) {
        text += (text.empty() ? "(" : ", ") + std::to_string(n);
      }
      if (shape.size() == 1) text += ",";
      EXPECT_INVALID(masked(Tensor(dtype, shape)),
                     op + "mask has shape " + text +
                         "), which does not broadcast to (2, 4, 3, 5)");
    }
  }
  EXPECT_INVALID(call(query, key, value, nullptr, query, scratch.get()),
                 op + "out has shape (2, 4, 3, 8), expected (2, 4, 3, 6)");
  const auto at = [&](const void* data) {
    return moved_to(out, const_cast<void*>(data));
  };
  const std::string own = ", expected memory of its own";
  const auto overlapping = [&](const TensorView& to) {
    call(query, key, value, nullptr, to, scratch.get());
  };
  EXPECT_INVALID(overlapping(at(query.view().data)),
                 op + "out may overlap query" + own);
  EXPECT_INVALID(overlapping(at(key.view().data)),
                 op + "out may overlap key" + own);
  EXPECT_INVALID(overlapping(at(value.view().data)),
                 op + "out may overlap value" + own);
  if (!on_cuda()) {
    EXPECT_INVALID(overlapping(at(scratch.get())),
                   op + "out may overlap scratch" + own);
    const auto bytes =
        std::to_string(attention_scratch_size(query, key, value, Executor()));
    EXPECT_INVALID(call(query, key, value, nullptr, out, nullptr),
                   op + "scratch is null, expected " + bytes + " bytes");
  }
  EXPECT_EQ(out.memory(), before);
}

TEST(AttentionChecksTest, ScratchSizes) {
  FOO_CORE_SKIP_ON_CUDA("none is needed");
  const Tensor query(DType::kFloat32, {2, 4, 3, 8});
  const Tensor key(DType::kFloat32, {2, 2, 5, 8});
  EXPECT_EQ(attention_scratch_size(query, key, key, Executor()),
            2 * 4 * 3 * (32 + 2) * 4);
  EXPECT_EQ(attention_scratch_size(key, query, key, Executor()), 0);
  EXPECT_EQ(attention_scratch_size(query, query, key, Executor()), 0);
  // Sizes whose product overflows.
  const std::int64_t many[] = {std::int64_t{1} << 60, 1, 1, 0};
  const std::int64_t none[] = {std::int64_t{1} << 60, 1, 0, 1};
  const std::int64_t strides[] = {0, 0, 0, 0};
  const ConstTensorView q{nullptr, DType::kFloat32, 4, many, strides};
  const ConstTensorView k{nullptr, DType::kFloat32, 4, many, strides};
  ConstTensorView v{nullptr, DType::kFloat32, 4, none, strides};
  EXPECT_EQ(attention_scratch_size(q, k, v, Executor()), 0);
  const std::int64_t no_keys[] = {std::int64_t{1} << 60, 1, 0, 0};
  const ConstTensorView empty{nullptr, DType::kFloat32, 4, no_keys, strides};
  EXPECT_EQ(attention_scratch_size(q, empty, v, Executor()), kMaxBytes);
}

}  // namespace
}  // namespace foo_core::testing
