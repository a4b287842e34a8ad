#include "client/seconds.hpp"

#include <fmt/format.h>

#include <cstdlib>

namespace nbdelta::client {

CLI::Validator seconds_between(double least, double most) {
  return {[=](const std::string& text) {
            char* end = nullptr;
            const double seconds = std::strtod(text.c_str(), &end);
            const bool valid = end != text.c_str() && *end == '\0' && seconds >= least &&
                               seconds <= most;  // nan is neither
            return valid ? std::string()
                         : fmt::format("Value {} not in range {} to {}", text, least, most);
          },
          fmt::format("FLOAT in [{} - {}]", least, most)};
}

}  // namespace nbdelta::client
