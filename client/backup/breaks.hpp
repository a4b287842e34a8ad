#pragma once

#include <string_view>

/// Mistakes that a test makes on purpose, to see that the simulator finds them
/// (tests/sim/breaks.hpp): `if (broken("name"))` stands where each would be made. Nothing of this
/// is in what is shipped.
namespace nbdelta::client::backup {

#ifdef NBDELTA_BREAKS
/// Whether the mistake of this name is to be made now, in this thread.
bool broken(std::string_view name);
#else
/// Evaluated by the compiler alone, so that not even the names remain.
consteval bool broken(std::string_view /*name*/) {
  return false;
}
#endif

}  // namespace nbdelta::client::backup
