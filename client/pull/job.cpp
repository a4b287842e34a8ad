#include "client/pull/job.hpp"

#include <chrono>
#include <utility>

#include "client/nbd/map_reader.hpp"

namespace nbdelta::client::pull {
namespace {

using Clock = std::chrono::steady_clock;
using image::State;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Job::Job(JobOptions options, Counters& counters)
    : options_(std::move(options)),
      counters_(counters),
      target_(target::open_target(options_.target)) {}

void Job::run(std::stop_source& stop) {
  try {
    pull(stop);
  } catch (const target::TargetRefused&) {
    target_->abandon();  // nothing that was there is touched
    throw;
  } catch (const std::exception& error) {
    const auto* known = dynamic_cast<const Error*>(&error);
    const std::string done = target_->abandon();
    fail(known == nullptr ? ENOMEM : known->error_number(), "{}{}{}", error.what(),
         done.empty() ? "" : "; ", done);
  }
}

void Job::pull(std::stop_source& stop) {
  const auto start = Clock::now();
  source_.emplace(options_.source, options_.retry, stop.get_token());
  source_->connect();
  const nbd::Export& exported = source_->negotiated();
  const image::ExtentMap map = nbd::read_map(*source_);
  result_.map_seconds = seconds_since(start);

  const target::Description description{.source = options_.source.uri,
                                        .disk_size = exported.size,
                                        .contents = exported.shows_changes()
                                                        ? target::Contents::changes
                                                        : target::Contents::whole_disk,
                                        .map = &map};
  const image::ExtentMap& followed = target_->prepare(description, source_->loop());
  Settings settings = options_.settings;
  if (!exported.multi_conn && !options_.connections_given)
    settings.connections = 1;
  run_pull(*source_, *target_, followed, settings, counters_, stop);
  target_->finish();

  result_.disk_size = exported.size;
  result_.changed_view = exported.shows_changes();
  result_.extents = map.extents(State::data);
  if (exported.shows_changes())
    result_.extents += map.extents(State::zero);
  result_.seconds = seconds_since(start);
}

}  // namespace nbdelta::client::pull
