#include "base/error.hpp"

#include <cstdio>
#include <cstdlib>

namespace nbdelta {

void invariant(bool holds, std::string_view what, std::source_location where) {
  if (holds) [[likely]]
    return;
  fmt::print(stderr, "nbdelta: internal error: {} ({}:{})\n", what, where.file_name(),
             where.line());
  std::abort();
}

}  // namespace nbdelta
