/// @file
/// What the library exports; all else is hidden.
///
/// foo_core_EXPORTS is defined while the shared library itself is compiled, and
/// FOO_CORE_STATIC_DEFINE by the CMake target of a static one for its users.
#pragma once

/// @def FOO_CORE_EXPORT
/// Before a declaration: the library exports it.
#if defined(FOO_CORE_STATIC_DEFINE)
#define FOO_CORE_EXPORT
#elif defined(_WIN32) && defined(foo_core_EXPORTS)
#define FOO_CORE_EXPORT __declspec(dllexport)
#elif defined(_WIN32)
#define FOO_CORE_EXPORT __declspec(dllimport)
#else
#define FOO_CORE_EXPORT __attribute__((visibility("default")))
#endif
