#pragma once

#include <string>
#include <string_view>

namespace nbdelta {

/// The text with U+FFFD in the place of each byte that is not part of UTF-8 (RFC 3629), for what
/// quotes others and must itself be UTF-8.
std::string as_utf8(std::string_view text);

}  // namespace nbdelta
