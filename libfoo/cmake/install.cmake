# Rules for two components: Runtime is the shared library, Development the rest.
include(CMakePackageConfigHelpers)
set(foo_core_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/foo_core)

set(foo_core_namelink NAMELINK_COMPONENT Development)
if(NOT FOO_CORE_NAMELINK)
  set(foo_core_namelink NAMELINK_SKIP)
endif()
install(
  TARGETS foo_core
  EXPORT foo_core-targets
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT Runtime
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT Runtime
          ${foo_core_namelink}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT Development)
install(
  DIRECTORY ${PROJECT_SOURCE_DIR}/include/ ${PROJECT_BINARY_DIR}/include/
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT Development)

# Users of a static library link its dependencies.
set(foo_core_find_dependencies "")
set(foo_core_pc_cflags "")
set(foo_core_pc_requires "")
if(NOT FOO_CORE_SHARED)
  set(foo_core_pc_cflags " -DFOO_CORE_STATIC_DEFINE")
  if(NOT FOO_CORE_FETCH_HIGHWAY)
    string(JOIN "\n" foo_core_find_dependencies
           "include(CMakeFindDependencyMacro)"
           "find_dependency(hwy 1.1 CONFIG)")
    set(foo_core_pc_requires "Requires: libhwy >= 1.1")
  endif()
endif()
set(foo_core_cuda_found FALSE)
if(FOO_CORE_CUDA)
  set(foo_core_cuda_found TRUE)
endif()
configure_package_config_file(
  cmake/foo_core-config.cmake.in foo_core-config.cmake
  INSTALL_DESTINATION ${foo_core_cmake_dir}
  NO_SET_AND_CHECK_MACRO)
configure_file(cmake/foo_core-config-version.cmake.in
               foo_core-config-version.cmake @ONLY)
install(
  FILES ${PROJECT_BINARY_DIR}/foo_core-config.cmake
        ${PROJECT_BINARY_DIR}/foo_core-config-version.cmake
  DESTINATION ${foo_core_cmake_dir}
  COMPONENT Development)
install(
  EXPORT foo_core-targets
  NAMESPACE foo_core::
  DESTINATION ${foo_core_cmake_dir}
  COMPONENT Development)
# Consumers of the build tree find this file.
export(EXPORT foo_core-targets NAMESPACE foo_core::)

if(FOO_CORE_NAMELINK) # without the link, -lfoo_core finds nothing
  if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}"
     OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
    message(FATAL_ERROR "CMAKE_INSTALL_LIBDIR and CMAKE_INSTALL_INCLUDEDIR "
                        "must be relative: the installation can be moved.")
  endif()
  file(RELATIVE_PATH foo_core_pc_prefix
       /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
  string(REGEX REPLACE "/$" "" foo_core_pc_prefix "${foo_core_pc_prefix}")
  configure_file(cmake/foo_core.pc.in foo_core.pc @ONLY)
  install(
    FILES ${PROJECT_BINARY_DIR}/foo_core.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
    COMPONENT Development)
endif()
