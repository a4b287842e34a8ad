// A qcow2 image: header, L1, L2, compressed clusters, bitmaps; opened, walked and read as the
// plugin does.

#include "tests/corrupt/exercise.hpp"
#include "tests/fuzz/memory_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const nbdelta::testing::MemoryFile file;
  file.hold({data, size});
  (void)nbdelta::testing::exercise(file.path());
  return 0;
}
