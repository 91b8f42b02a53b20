// Half of a planted violation: Tag, which is a different type in the other
// half, chooses between two functions of one name.
namespace foo_core {

struct Result1 {
  void (*kernel)();
};

struct Tag {
  Result1 operator()() const { return {nullptr}; }
};

template <class F>
auto call(F f) {
  return f();
}

void* planted_1() { return reinterpret_cast<void*>(call(Tag()).kernel); }

}  // namespace foo_core
