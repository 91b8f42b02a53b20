/// @file
/// The macro that marks what the library exports; all other symbols are hidden.
///
/// CMake defines foo_core_EXPORTS while it compiles the shared library. The
/// target of a static library defines FOO_CORE_STATIC_DEFINE for its users.
#pragma once

/// @def FOO_CORE_EXPORT
/// Marks a declaration that the library exports.
#if defined(FOO_CORE_STATIC_DEFINE)
#define FOO_CORE_EXPORT
#elif defined(_WIN32) && defined(foo_core_EXPORTS)
#define FOO_CORE_EXPORT __declspec(dllexport)
#elif defined(_WIN32)
#define FOO_CORE_EXPORT __declspec(dllimport)
#else
#define FOO_CORE_EXPORT __attribute__((visibility("default")))
#endif
