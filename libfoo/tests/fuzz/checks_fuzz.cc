// Calls of any operator with hostile views: a libFuzzer target, or a program of
// its own that makes its inputs. An input picks an operator and valid tensors,
// and damages them: sizes, strides, dtypes, pointers, alignment, overlap.
//
// The call first names a device that does not exist, which is refused last, so
// that all checks run and no kernel does. What they accept is compared with the
// rules in integers of 128 bits, and with all addresses of all elements. If all
// tensors lie in the arena, the call is then made on the CPU, and must write
// its outputs and nothing else.
#include <foo_core/foo_core.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "operators.h"

#ifdef __SANITIZE_ADDRESS__
#define FOO_CORE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FOO_CORE_ASAN 1
#endif
#endif
#ifdef FOO_CORE_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

namespace foo_core::testing {
namespace {

__extension__ using Wide = __int128;
using Shape = std::vector<std::int64_t>;
using Addresses = std::vector<std::uintptr_t>;

constexpr auto kNoDevice = static_cast<Device>(7);
constexpr std::size_t kArena = 1 << 16, kPart = 1 << 12;
constexpr std::int64_t kMostElements = 2048;
constexpr std::size_t kDims = 80;  // so that views of too many can be read

/// How many calls were accepted, and made.
long accepted = 0, made = 0;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "checks_fuzz: %s\n", what.c_str());
  std::abort();
}

/// The bytes of an input, and zeros after them.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), left_(size) {}

  bool done() const { return left_ == 0; }

  unsigned byte() {
    if (left_ == 0) return 0;
    --left_;
    return *at_++;
  }

  /// A small number, one near a limit, or any.
  std::int64_t number() {
    const unsigned kind = byte();
    if (kind < 128) return static_cast<std::int64_t>(kind % 16) - 4;
    if (kind < 224) {
      const std::uint64_t power = std::uint64_t{1} << (byte() % 64);
      const auto near = static_cast<std::int64_t>(
          power + static_cast<std::uint64_t>(kind % 3) - 1);
      return kind % 2 == 0 ? near
                           : static_cast<std::int64_t>(
                                 0 - static_cast<std::uint64_t>(near));
    }
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | byte();
    return static_cast<std::int64_t>(bits);
  }

 private:
  const std::uint8_t* at_;
  std::size_t left_;
};

unsigned char* arena() {
  static auto* const memory =
      static_cast<unsigned char*>(std::aligned_alloc(64, kArena));
  return memory;
}

struct Argument {
  TensorView view() const {
    return {data, dtype, ndim, no_sizes ? nullptr : sizes.data(),
            no_strides ? nullptr : strides.data()};
  }

  bool given = true, no_sizes = false, no_strides = false;
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t ndim = 0;
  Shape sizes = Shape(kDims, 1), strides = Shape(kDims, 1);
};

/// Whether a view keeps the rules of tensor.h.
bool is_valid(const TensorView& x) {
  const std::int64_t item = item_size(x.dtype);
  if (item == 0 || x.ndim < 0 || x.ndim > kMaxDims) return false;
  if (x.ndim > 0 && (x.sizes == nullptr || x.strides == nullptr)) return false;
  constexpr Wide kLarge = Wide{1} << 62;
  Wide count = 1, reach = 0;
  bool empty = false;
  for (std::int64_t d = 0; d < x.ndim; ++d) {
    if (x.sizes[d] < 0) return false;
    empty |= x.sizes[d] == 0;
    if (x.sizes[d] <= 1) continue;
    count = std::min(count * x.sizes[d], kLarge);
    const Wide stride = x.strides[d];
    reach = std::min(reach + (x.sizes[d] - 1) * (stride < 0 ? -stride : stride),
                     kLarge);
  }
  const Wide most = empty ? Wide{1} << 61 : Wide{kMaxBytes / item};
  const Wide rounded = most + (most >> 40);  // the library counts in double
  if (count > rounded || reach > rounded) return false;
  return empty ||
         (x.data != nullptr && reinterpret_cast<std::uintptr_t>(x.data) %
                                       static_cast<std::uintptr_t>(item) ==
                                   0);
}

std::int64_t count_of(const TensorView& x) {
  for (std::int64_t d = 0; d < x.ndim; ++d) {
    if (x.sizes[d] == 0) return 0;
  }
  std::int64_t count = 1;
  for (std::int64_t d = 0; d < x.ndim; ++d) count *= x.sizes[d];
  return count;
}

/// The addresses of a valid view's elements, in row-major order.
Addresses addresses_of(const TensorView& x) {
  Addresses result;
  const std::int64_t count = count_of(x);
  for (std::int64_t i = 0; i < count; ++i) {
    auto address = reinterpret_cast<std::uintptr_t>(x.data);
    std::int64_t rest = i;
    for (std::int64_t d = x.ndim - 1; d >= 0; --d) {
      address += static_cast<std::uintptr_t>(rest % x.sizes[d] * x.strides[d] *
                                             item_size(x.dtype));
      rest /= x.sizes[d];
    }
    result.push_back(address);
  }
  return result;
}

/// Whether elements of `item` bytes at the first addresses share bytes with
/// those at the others.
bool share(const Addresses& x, std::int64_t x_item, Addresses y,
           std::int64_t y_item) {
  std::sort(y.begin(), y.end());
  for (const std::uintptr_t address : x) {
    const auto first = std::upper_bound(
        y.begin(), y.end(), address - static_cast<std::uintptr_t>(y_item));
    if (first != y.end() &&
        *first < address + static_cast<std::uintptr_t>(x_item)) {
      return true;
    }
  }
  return false;
}

bool has_duplicates(Addresses x) {
  std::sort(x.begin(), x.end());
  return std::adjacent_find(x.begin(), x.end()) != x.end();
}

class Case {
 public:
  explicit Case(Input input) {
    static const std::vector<Operator> operators = all_operators();
    op_ = &operators[input.byte() % operators.size()];
    const DType dtype =
        std::vector<DType>{DType::kFloat32, DType::kFloat64, DType::kFloat16,
                           DType::kBFloat16}[input.byte() % 4];
    const unsigned options = input.byte();
    call_.flag = options % 2 != 0;
    call_.reduction = static_cast<Reduction>(options / 2 % 3);
    target_ = options / 8;
    std::int64_t sizes[kSizes];
    for (std::int64_t& size : sizes) size = input.byte() % 5;
    sizes[kN] = sizes[kN] * 5 + sizes[kHalf];
    sizes[kOne] = 1;
    sizes[kBlockBytes] = sizes[kBlocked] % 3 * 34;
    sizes[kBlocked] = sizes[kBlocked] % 3 * 32;
    fill_ = options / 128 != 0 ? 0x11 : 0;
    std::memset(arena(), fill_, kArena);

    for (std::size_t i = 0; i < op_->parameters.size(); ++i) {
      const Parameter& parameter = op_->parameters[i];
      Argument x;
      x.dtype = parameter.dtype_in(dtype);
      x.data = arena() + i * kPart;
      std::vector<Size> shape = parameter.shape;
      if (parameter.dtype == kOfLoss && call_.reduction == Reduction::kNone) {
        shape = {kBatch, kOne};
      }
      x.ndim = static_cast<std::int64_t>(shape.size());
      std::int64_t stride = 1;
      for (std::size_t d = shape.size(); d-- > 0;) {
        x.sizes[d] = sizes[shape[d]];
        x.strides[d] = stride;
        stride *= std::max<std::int64_t>(x.sizes[d], 1);
      }
      arguments_.push_back(x);
    }
    for (int i = 0; i < 12 && !input.done(); ++i) damage(input);

    for (const Argument& x : arguments_) views_.push_back(x.view());
    for (std::size_t i = 0; i < views_.size(); ++i) {
      call_.tensors.push_back(arguments_[i].given ? &views_[i] : nullptr);
    }
    call_.inputs.resize(views_.size());
  }

  void run() {
    call_.executor.device = kNoDevice;
    const std::int64_t bytes =
        op_->scratch_size == nullptr ? 0 : op_->scratch_size(call_);
    if (bytes < 0) fail("scratch of " + std::to_string(bytes) + " bytes");
    std::unique_ptr<char, decltype(&std::free)> scratch(
        bytes == 0 || bytes > (1 << 22)
            ? nullptr
            : static_cast<char*>(std::aligned_alloc(
                  64, static_cast<std::size_t>(bytes + 127) / 64 * 64)),
        &std::free);
    call_.scratch =
        scratch == nullptr ? nullptr : scratch.get() + scratch_shift_;

    const std::string refused = error();
    if (refused.empty()) fail("a device that does not exist is accepted");
    if (refused.find(": executor has device number 7") == std::string::npos) {
      check_refusal(refused);
      return;
    }
    ++accepted;
    bool inside = true;
    for (std::size_t i = 0; i < views_.size(); ++i) {
      if (!arguments_[i].given) continue;
      if (!is_valid(views_[i])) fail(label(i) + " is accepted");
      inside = inside && is_inside(views_[i]);
    }
    if (!inside) return;
    for (std::size_t i = 0; i < views_.size(); ++i) check_apart(i);
    make_call();
  }

 private:
  std::string label(std::size_t i) const {
    return std::string(op_->name) + "'s " + op_->parameters[i].name;
  }

  void damage(Input& input) {
    const unsigned kind = input.byte();
    const std::size_t i = input.byte() % arguments_.size();
    Argument& x = arguments_[i];
    const std::size_t dims =
        static_cast<std::size_t>(std::clamp<std::int64_t>(x.ndim, 1, 64));
    const std::size_t d = input.byte() % dims;
    auto* data = static_cast<unsigned char*>(x.data);
    switch (kind % 14) {
      case 0:
        x.sizes[d] = input.number();
        break;
      case 1:
      case 2:
        x.strides[d] = input.number();
        break;
      case 3:  // it stays aligned
        x.data = reinterpret_cast<void*>(
            reinterpret_cast<std::uintptr_t>(data) +
            input.byte() * static_cast<std::uintptr_t>(
                               std::max<std::int64_t>(item_size(x.dtype), 1)));
        break;
      case 4:
        x.data = reinterpret_cast<void*>(
            reinterpret_cast<std::uintptr_t>(data) +
            static_cast<std::uintptr_t>(input.number()));
        break;
      case 5:
        x.data = input.byte() % 4 != 0 ? x.data : nullptr;
        break;
      case 6:
        x.no_sizes = input.byte() % 8 == 0;
        x.no_strides = input.byte() % 8 == 0;
        break;
      case 7:
        if (input.byte() % 8 == 0) {
          x.dtype = static_cast<DType>(input.number());
        }
        break;
      case 8:
        if (input.byte() % 4 == 0) x.ndim = input.number();
        break;
      case 9:
        x.given = !op_->parameters[i].is_optional();
        break;
      case 10: {  // the memory of another, or nearly
        const Argument& other = arguments_[input.byte() % arguments_.size()];
        x.data = reinterpret_cast<void*>(
            reinterpret_cast<std::uintptr_t>(other.data) +
            (input.byte() % 4 == 0 ? input.byte() : 0U));
        break;
      }
      case 11: {  // exactly another
        const Argument& other = arguments_[input.byte() % arguments_.size()];
        const bool given = x.given;
        x = Argument(other);
        x.given = given;
        break;
      }
      case 12:
        if (dims > 1) {
          std::swap(x.sizes[d], x.sizes[(d + 1) % dims]);
          std::swap(x.strides[d], x.strides[(d + 1) % dims]);
        }
        break;
      default:
        scratch_shift_ = input.byte() % 4 == 0 ? input.byte() % 64 : 0;
    }
  }

  /// The error of the call, or "".
  std::string error() {
    try {
      op_->run(call_);
    } catch (const InvalidArgument& refused) {
      return refused.what();
    }
    return "";
  }

  /// Whether the elements can be listed and lie in the arena.
  static bool is_inside(const TensorView& x) {
    const std::int64_t count = count_of(x);
    if (count > kMostElements) return false;
    const auto begin = reinterpret_cast<std::uintptr_t>(arena());
    for (const std::uintptr_t address : addresses_of(x)) {
      if (address < begin ||
          address > begin + kArena -
                        static_cast<std::uintptr_t>(item_size(x.dtype))) {
        return false;
      }
    }
    return true;
  }

  /// "OP: OUT overlaps X" has to be true.
  void check_refusal(const std::string& message) {
    if (message.compare(0, std::strlen(op_->name), op_->name) != 0) {
      fail("no operator in: " + message);
    }
    std::istringstream words(message);
    std::string op, out, verb, other;
    words >> op >> out >> verb >> other;
    if (verb != "overlaps") return;
    std::size_t i = find(out);
    if (other == "itself:") {
      if (count_of(views_[i]) <= kMostElements &&
          !has_duplicates(addresses_of(views_[i]))) {
        fail("not true: " + message);
      }
      return;
    }
    while (!other.empty() && other.back() == ',') other.pop_back();
    if (out == "scratch" || other == "scratch") return;
    const TensorView &x = views_[i], &y = views_[find(other)];
    if (count_of(x) > kMostElements || count_of(y) > kMostElements) return;
    if (!share(addresses_of(x), item_size(x.dtype), addresses_of(y),
               item_size(y.dtype))) {
      fail("not true: " + message);
    }
  }

  std::size_t find(const std::string& name) const {
    for (std::size_t i = 0; i < op_->parameters.size(); ++i) {
      if (op_->parameters[i].name == name) return i;
    }
    return 0;  // scratch
  }

  /// Argument i, if it is an output, shares no memory that was not allowed.
  void check_apart(std::size_t i) const {
    if (!arguments_[i].given || !op_->parameters[i].is_output()) return;
    const Addresses out = addresses_of(views_[i]);
    if (has_duplicates(out)) fail(label(i) + " overlaps itself");
    for (std::size_t j = 0; j < views_.size(); ++j) {
      if (j == i || !arguments_[j].given) continue;
      const Addresses x = addresses_of(views_[j]);
      if (!share(out, item_size(views_[i].dtype), x,
                 item_size(views_[j].dtype))) {
        continue;
      }
      const bool same = out == x && views_[i].dtype == views_[j].dtype;
      if (!same || op_->parameters[j].is_output()) {
        fail(label(i) + " overlaps " + op_->parameters[j].name);
      }
    }
  }

  /// Makes the call on the CPU.
  void make_call() {
    ++made;
    std::istringstream names(build_info().simd_targets);
    const std::vector<std::string> targets{
        std::istream_iterator<std::string>(names), {}};
    set_simd_target(targets[target_ % targets.size()].c_str());

    std::vector<bool> mine(kArena);  // bytes that may change
    ASAN_POISON_MEMORY_REGION(arena(), kArena);
    for (std::size_t i = 0; i < views_.size(); ++i) {
      if (!arguments_[i].given) continue;
      const std::int64_t item = item_size(views_[i].dtype);
      for (const std::uintptr_t address : addresses_of(views_[i])) {
        ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(address),
                                    static_cast<std::size_t>(item));
        if (!op_->parameters[i].is_output()) continue;
        const auto at = address - reinterpret_cast<std::uintptr_t>(arena());
        for (std::int64_t b = 0; b < item; ++b) {
          mine[at + static_cast<std::size_t>(b)] = true;
        }
      }
    }
    call_.executor = Executor();
    const std::string refused = error();
    ASAN_UNPOISON_MEMORY_REGION(arena(), kArena);
    const bool of_index =
        refused.find(": target is ") != std::string::npos ||
        refused.find(": positions holds ") != std::string::npos;
    if (!refused.empty() && !of_index) fail("refused late: " + refused);
    for (std::size_t at = 0; at < kArena; ++at) {
      if (arena()[at] == fill_ || (mine[at] && refused.empty())) continue;
      fail(std::string(op_->name) + " wrote outside of its outputs");
    }
  }

  const Operator* op_;
  Call call_;
  std::vector<Argument> arguments_;
  std::vector<TensorView> views_;
  unsigned target_;
  unsigned char fill_ = 0;
  unsigned scratch_shift_ = 0;
};

}  // namespace
}  // namespace foo_core::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  using namespace foo_core::testing;
  Case(Input(data, size)).run();
  return 0;
}

#ifndef FOO_CORE_LIBFUZZER
namespace {

std::vector<std::uint8_t> input;

/// Prints the input that the program dies of.
void print_input() {
  std::fputs("checks_fuzz: to see it again: checks_fuzz --input ", stderr);
  for (const unsigned byte : input) std::fprintf(stderr, "%02x", byte);
  std::fputc('\n', stderr);
}

void die(int signal) {
  print_input();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run() { LLVMFuzzerTestOneInput(input.data(), input.size()); }

}  // namespace

int main(int argc, char** argv) {
  unsigned long long seed = 1, runs = 100000;
  for (const int signal : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV}) {
    std::signal(signal, die);
  }
#ifdef FOO_CORE_ASAN
  __asan_set_death_callback(print_input);
#endif
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--input") {
      for (std::size_t at = 0; at + 1 < value.size(); at += 2) {
        input.push_back(static_cast<std::uint8_t>(
            std::stoul(value.substr(at, 2), nullptr, 16)));
      }
      run();
      return 0;
    }
    (option == "--seed" ? seed : runs) = std::stoull(value);
  }
  std::printf("checks_fuzz --seed %llu --runs %llu\n", seed, runs);
  std::fflush(stdout);
  std::mt19937_64 engine(seed);
  for (unsigned long long i = 0; i < runs; ++i) {
    input.resize(10 + engine() % 64);
    for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(engine());
    run();
  }
  std::printf("%ld calls accepted, %ld made\n", foo_core::testing::accepted,
              foo_core::testing::made);
}
#endif
