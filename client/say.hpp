#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <utility>

namespace nbdelta::client {

/// Prints to stderr, for people. Nobody may be reading there any more: that is no reason to fail.
template <class... Args>
void say(fmt::format_string<Args...> format, Args&&... args) noexcept {
  try {
    fmt::print(stderr, format, std::forward<Args>(args)...);
  } catch (...) {  // what cannot be said is not said
  }
}

}  // namespace nbdelta::client
