#pragma once

#include <string>
#include <string_view>

namespace nbdelta {

/// Everything but the unreserved characters (RFC 3986, section 2.3) and '/' as %XX.
std::string percent_encoded(std::string_view text);

/// The opposite. Throws Error (EINVAL) where a '%' is not followed by two hex digits, or stands for
/// a zero byte.
std::string percent_decoded(std::string_view text);

}  // namespace nbdelta
