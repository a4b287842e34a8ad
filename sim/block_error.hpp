#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "base/error.hpp"

namespace nbdelta::sim {

/// A refusal, in QEMU's words.
class BlockError : public Error {
 public:
  explicit BlockError(const std::string& description, std::string error_class = "GenericError")
      : Error(EINVAL, description), class_(std::move(error_class)) {}
  const std::string& error_class() const { return class_; }

 private:
  std::string class_;
};

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw BlockError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nbdelta::sim
