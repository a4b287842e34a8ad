#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include "client/nbd/source.hpp"

namespace nbdelta::client {

/// The part of the command line that says where the map and the data come from.
struct SourceOptions {
  std::string uri;
  std::string context;
  bool full = false;
  double timeout_s = 60;
  unsigned retries = 5;

  void add_to(CLI::App& app);
  nbd::ConnectOptions connect_options() const;
  nbd::RetryPolicy retry_policy() const;
};

}  // namespace nbdelta::client
