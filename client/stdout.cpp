#include "client/stdout.hpp"

#include <cstdio>

#include "base/error.hpp"

namespace nbdelta::client {

void print_stdout(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    fail_errno("standard output");
}

}  // namespace nbdelta::client
