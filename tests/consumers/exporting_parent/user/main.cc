#include <cstdio>

const char* parent_version();

int main() { std::puts(parent_version()); }
