#pragma once

#include <CLI/CLI.hpp>

#include <initializer_list>
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

/// Throws UsageError where the source is an image, which is read here and asked for nothing, and
/// one of these options is given.
void refuse_for_image(const CLI::App& command, const std::string& source,
                      std::initializer_list<const char*> options);

}  // namespace nbdelta::client
