option(NBDELTA_WERROR "Treat warnings as errors (CI does)" OFF)
option(NBDELTA_TESTS "Build the tests" ON)
option(NBDELTA_BENCH "Build the benchmarks" ON)
option(NBDELTA_FUZZ "Build the libFuzzer targets (needs clang)" OFF)
set(NBDELTA_SANITIZE "" CACHE STRING "What goes to -fsanitize=, for instance address,undefined")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_compile_options(-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wconversion
                    -Wsign-conversion -Wundef)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC bug 105651: a literal assigned to a std::string is taken for overlapping memory.
  add_compile_options(-Wno-restrict)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # It takes Asio's allocator of coroutine frames for a mismatch.
  add_compile_options(-Wno-mismatched-new-delete)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_UNITY_BUILD)
  # It takes every source file of a unity build for a header.
  add_compile_options(-Wno-subobject-linkage)
endif()
if(NBDELTA_WERROR)
  add_compile_options(-Werror)
endif()
if(NBDELTA_SANITIZE)
  add_compile_options(-fsanitize=${NBDELTA_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${NBDELTA_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # The sanitizers' checks hide from GCC what is set (its manual warns of that); std::regex, say.
    add_compile_options(-Wno-maybe-uninitialized)
    # These two take GCC longer than all the others together. AddressSanitizer finds a null pointer
    # that is used, and the fuzz targets (clang) look for misaligned ones.
    add_compile_options(-fno-sanitize=null,alignment)
  endif()
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NBDELTA_SANITIZE MATCHES "thread")
  # Asio's fences, which ThreadSanitizer does not see; it takes no order from them, so it may
  # complain without need, but misses nothing.
  add_compile_options(-Wno-tsan)
endif()
if(NBDELTA_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
  add_link_options(-fsanitize=address,undefined)
endif()

# Large files on 32-bit machines, pread64 and the like behind their plain names.
add_compile_definitions(_FILE_OFFSET_BITS=64)
include_directories(${PROJECT_SOURCE_DIR})
