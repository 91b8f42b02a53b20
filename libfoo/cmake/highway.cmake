# Links Google Highway >= 1.1; older versions truncate when they convert to
# bfloat16. FOO_CORE_FETCH_HIGHWAY alone decides where it comes from, whatever is
# installed, so that a library built with it never needs libhwy.so.
function(foo_core_link_highway)
  if(NOT FOO_CORE_FETCH_HIGHWAY)
    find_package(hwy 1.1 CONFIG QUIET)
    if(NOT hwy_FOUND)
      set(refused "")
      foreach(config version IN ZIP_LISTS hwy_CONSIDERED_CONFIGS
              hwy_CONSIDERED_VERSIONS)
        string(APPEND refused "\n  found, but too old: ${version} (${config})")
      endforeach()
      message(FATAL_ERROR
        "foo_core needs Google Highway 1.1 or newer.${refused}\n"
        "Install it (conda install -c conda-forge libhwy; "
        "apt install libhwy-dev from Debian 13 or Ubuntu 24.10 on), or "
        "configure with -DFOO_CORE_FETCH_HIGHWAY=ON to build it from source.")
    endif()
    message(STATUS "Highway ${hwy_VERSION}: ${hwy_DIR}")
    target_link_libraries(foo_core PRIVATE hwy::hwy)
    return()
  endif()

  # These are local to this function. The policies make Highway heed them.
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(CMAKE_POLICY_DEFAULT_CMP0126 NEW)
  set(CMAKE_UNITY_BUILD OFF) # it compiles sources once per target, as we do
  set(BUILD_TESTING OFF)
  set(HWY_ENABLE_CONTRIB OFF)
  set(HWY_ENABLE_EXAMPLES OFF)
  set(HWY_ENABLE_INSTALL OFF)
  set(HWY_ENABLE_TESTS OFF)
  set(HWY_FORCE_STATIC_LIBS ON)
  include(FetchContent)
  FetchContent_Declare(
    highway
    GIT_REPOSITORY https://github.com/google/highway.git
    GIT_TAG ac0d5d297b13ab1b89f48484fc7911082d76a93f # 1.3.0
  )
  FetchContent_MakeAvailable(highway)
  set_target_properties(hwy PROPERTIES SYSTEM ON) # its warnings are not ours
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    # Its messages would name the path of its sources on this machine.
    target_compile_options(
      hwy PRIVATE -fmacro-prefix-map=${highway_SOURCE_DIR}/=)
  endif()
  message(STATUS "Highway: built from ${highway_SOURCE_DIR}")
  target_link_libraries(foo_core PRIVATE $<BUILD_LOCAL_INTERFACE:hwy>)
  if(NOT FOO_CORE_SHARED)
    # An installed libfoo_core.a contains it.
    target_sources(foo_core PRIVATE $<TARGET_OBJECTS:hwy>)
  endif()
endfunction()
