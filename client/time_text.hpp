#pragma once

#include <cstdint>
#include <string>

namespace nbdelta::client {

/// RFC 3339 in UTC: "2026-03-01T07:45:00Z".
std::string utc_text(std::int64_t seconds_since_1970);

}  // namespace nbdelta::client
