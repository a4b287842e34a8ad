#pragma once

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include <string>
#include <vector>

#include "base/file.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/process.hpp"

namespace nbdelta::testing {

/// `nbdelta ARGUMENTS`.
inline Command nbdelta_command(const Command& arguments) {
  Command command{nbdelta_program()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

inline Outcome nbdelta(const Command& arguments, const ProcessOptions& options = {}) {
  return run(nbdelta_command(arguments), options);
}

/// `nbdelta pull ARGUMENTS --json`, which must succeed; its result.
inline boost::json::value pulled(const Command& arguments, const ProcessOptions& options = {}) {
  Command command = nbdelta_command({"pull", "--json", "--quiet"});
  command.insert(command.end(), arguments.begin(), arguments.end());
  return boost::json::parse(run_ok(command, options));
}

}  // namespace nbdelta::testing
