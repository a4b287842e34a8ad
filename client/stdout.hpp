#pragma once

#include <string>

namespace nbdelta::client {

/// Prints data for scripts. Throws Error where it cannot be written.
void print_stdout(const std::string& text);

}  // namespace nbdelta::client
