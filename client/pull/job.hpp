#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "client/nbd/source.hpp"
#include "client/pull/direct_source.hpp"
#include "client/pull/pull.hpp"
#include "client/target/open_target.hpp"

namespace nbdelta::client::pull {

struct JobOptions {
  nbd::ConnectOptions source;
  target::TargetOptions target;
  Settings settings;
  bool connections_given = false;  // more than one also where the server says no multi-conn
};

struct JobResult {
  std::uint64_t disk_size = 0;
  bool changed_view = false;
  bool packed = false;        // the bytes came from a packed export
  std::uint64_t extents = 0;  // that were pulled: data, and changed to zero
  double map_seconds = 0;
  double seconds = 0;
};

/// One pull, from an NBD server or directly from an image, from the connection to the finished
/// target.
class Job {
 public:
  /// Refuses what can be refused without the source; see open_target(). `counters` must outlive
  /// the job.
  Job(JobOptions options, Counters& counters);

  /// Blocks. Throws TargetRefused, or Error with what became of the target; Error (ECANCELED) once
  /// a stop is requested.
  void run(std::stop_source& stop);

  /// From any thread, when run() does not end: see Target::abandon().
  std::string abandon() { return target_->abandon(); }
  const JobResult& result() const { return result_; }

 private:
  using Clock = std::chrono::steady_clock;

  void pull(std::stop_source& stop);
  void pull_from_server(std::stop_source& stop);
  void pull_direct(std::stop_source& stop);
  void take_result(const image::ExtentMap& map, bool shows_changes, Clock::time_point start);
  target::Description describe(const image::ExtentMap& map, const std::string& state) const;

  JobOptions options_;
  Counters& counters_;
  std::optional<image::ImageUri> direct_;
  asio::io_context loop_;              // of the target, where there is no source_
  std::optional<nbd::Source> source_;  // its loop must outlive the target's connections
  std::unique_ptr<target::Target> target_;
  JobResult result_;
};

}  // namespace nbdelta::client::pull
