#include "client/pull/job.hpp"

#include <fmt/format.h>

#include <utility>

#include "client/nbd/map_reader.hpp"
#include "client/pull/direct.hpp"
#include "client/pull/direct_source.hpp"

namespace nbdelta::client::pull {
namespace {

using image::State;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Job::Job(JobOptions options, Counters& counters)
    : options_(std::move(options)),
      counters_(counters),
      target_(target::open_target(options_.target)) {
  if (image::ImageUri::is_one(options_.source.uri))
    direct_ = parse_image_uri(options_.source);
}

void Job::run(std::stop_source& stop) {
  try {
    pull(stop);
  } catch (const target::TargetRefused&) {
    target_->abandon();  // nothing that was there is touched
    throw;
  } catch (const std::exception& error) {
    const auto* known = dynamic_cast<const Error*>(&error);
    const std::string done = target_->abandon();
    fail(known == nullptr ? ENOMEM : known->error_number(), "{}{}{}",
         known == nullptr ? fmt::format("{}: out of memory ({})", options_.source.uri, error.what())
                          : error.what(),
         done.empty() ? "" : "; ", done);
  }
}

void Job::pull(std::stop_source& stop) {
  const auto start = Clock::now();
  if (direct_)
    pull_direct(stop);
  else
    pull_from_server(stop);
  result_.seconds = seconds_since(start);
}

void Job::pull_from_server(std::stop_source& stop) {
  const auto start = Clock::now();
  source_.emplace(options_.source, options_.settings.retry, stop.get_token());
  source_->connect();
  const nbd::Export exported = source_->negotiated();
  std::optional<nbd::PackedExport> packed = source_->turn_to_packed();
  const image::ExtentMap map = packed ? std::move(packed->map) : nbd::read_map(*source_);
  take_result(map, exported.shows_changes(), start);
  const target::Description description = describe(map, exported.description);
  const image::ExtentMap& followed = target_->prepare(description, source_->loop());
  result_.packed = packed && followed.bytes(State::data) == map.bytes(State::data);
  if (packed && !result_.packed)
    source_->turn_back();  // the target wants what lies around the extents too
  Settings settings = options_.settings;
  if (!exported.multi_conn && !options_.connections_given)
    settings.connections = 1;
  run_pull(*source_, *target_, followed, settings, counters_, stop);
  target_->finish();
}

void Job::pull_direct(std::stop_source& stop) {
  const auto start = Clock::now();
  const DirectSource source(*direct_, options_.source.view == nbd::View::whole_disk);
  target::refuse_as_source(options_.target, source.disk().files());
  image::KnownRuns known;
  const image::ExtentMap map = source.read_map(stop.get_token(), &known);
  take_result(map, source.shows_changes(), start);
  target::Description description =
      describe(map, fmt::format("state {:016x}", source.disk().state()));
  description.copied_from = source.copied_from(map);
  const image::ExtentMap& followed = target_->prepare(description, loop_);
  run_direct(loop_, source.disk(), known, *target_, followed, options_.settings, counters_, stop);
  target_->finish();
}

void Job::take_result(const image::ExtentMap& map, bool shows_changes, Clock::time_point start) {
  result_.disk_size = map.size();
  result_.changed_view = shows_changes;
  result_.extents = map.extents(State::data);
  if (shows_changes)
    result_.extents += map.extents(State::zero);
  result_.map_seconds = seconds_since(start);
}

/// The changes of one instant are not the end of those of another, from the same place.
target::Description Job::describe(const image::ExtentMap& map, const std::string& state) const {
  return {
      .source = options_.source.uri +
                (result_.changed_view && !state.empty() ? fmt::format(" ({})", state) : ""),
      .disk_size = map.size(),
      .contents = result_.changed_view ? target::Contents::changes : target::Contents::whole_disk,
      .map = &map};
}

}  // namespace nbdelta::client::pull
