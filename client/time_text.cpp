#include "client/time_text.hpp"

#include <fmt/chrono.h>

#include <ctime>

namespace nbdelta::client {

std::string utc_text(std::int64_t seconds_since_1970) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                     fmt::gmtime(static_cast<std::time_t>(seconds_since_1970)));
}

}  // namespace nbdelta::client
