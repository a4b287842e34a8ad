#include "tests/support/temp_folder.hpp"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "base/error.hpp"

namespace nbdelta::testing {

TempFolder::TempFolder() {
  const char* parent = std::getenv("TMPDIR");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  path_ = std::string(parent != nullptr && *parent != '\0' ? parent : "/var/tmp") +
          "/nbdelta-test.XXXXXX";
  if (::mkdtemp(path_.data()) == nullptr)
    fail_errno("{}: cannot make a temporary folder", path_);
}

TempFolder::~TempFolder() {
  std::error_code ignored;  // what cannot be removed must not end the tests
  std::filesystem::remove_all(path_, ignored);
}

std::string TempFolder::operator/(std::string_view name) const {
  return path_ + "/" + std::string(name);
}

}  // namespace nbdelta::testing
