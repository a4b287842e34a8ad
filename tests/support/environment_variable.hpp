#pragma once

#include <cstdlib>
#include <optional>
#include <string>

namespace nbdelta::testing {

/// An environment variable of this process, and of those it starts, as long as this lives.
class EnvironmentVariable {
 public:
  // NOLINTBEGIN(concurrency-mt-unsafe): tests begin with one thread
  EnvironmentVariable(std::string name, const std::string& value) : name_(std::move(name)) {
    if (const char* before = std::getenv(name_.c_str()))
      before_ = before;
    ::setenv(name_.c_str(), value.c_str(), 1);
  }
  EnvironmentVariable(const EnvironmentVariable&) = delete;
  EnvironmentVariable& operator=(const EnvironmentVariable&) = delete;
  ~EnvironmentVariable() {
    if (before_)
      ::setenv(name_.c_str(), before_->c_str(), 1);
    else
      ::unsetenv(name_.c_str());
  }
  // NOLINTEND(concurrency-mt-unsafe)

 private:
  std::string name_;
  std::optional<std::string> before_;
};

}  // namespace nbdelta::testing
