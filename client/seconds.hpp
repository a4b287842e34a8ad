#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace nbdelta::client {

/// Accepts a number of seconds between these, and no "nan", which CLI::Range lets pass.
CLI::Validator seconds_between(double least, double most);

}  // namespace nbdelta::client
