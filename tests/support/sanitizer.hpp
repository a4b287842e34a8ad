#pragma once

namespace nbdelta::testing {

/// Whether a sanitizer is built in: it keeps memory of its own, and is several times as slow.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace nbdelta::testing
