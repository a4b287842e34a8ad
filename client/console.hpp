#pragma once

#include <exception>
#include <memory>
#include <string_view>

#include "client/backup/options.hpp"
#include "client/backup/settle.hpp"
#include "client/guest_options.hpp"

namespace nbdelta::client {

/// What was put right, and what is left; returns the exit status.
int print_settled(const backup::Settled& settled, const GuestOptions& options);

/// "refused" where main() exits with kRefused, otherwise "failed".
std::string_view result_of(const std::exception& error);

/// Where JSON is asked for: an object with this result and the message, so that stdout is never
/// empty.
void print_failure(bool json, std::string_view result, std::string_view message);

/// Lines on stderr, and a progress line for each disk.
class ConsoleReporter {
 public:
  explicit ConsoleReporter(bool quiet);
  ~ConsoleReporter();
  const backup::Reporter& reporter() const { return reporter_; }
  void tick();

 private:
  class Display;
  std::unique_ptr<Display> display_;
  backup::Reporter reporter_;
};

}  // namespace nbdelta::client
