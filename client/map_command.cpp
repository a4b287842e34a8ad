#include "client/map_command.hpp"

#include <fmt/compile.h>
#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <string_view>

#include "base/arithmetic.hpp"
#include "base/units.hpp"
#include "client/exit_status.hpp"
#include "client/interruptible.hpp"
#include "client/nbd/map_reader.hpp"
#include "client/pull/direct_source.hpp"
#include "client/source_options.hpp"

namespace nbdelta::client {
namespace {

using image::Extent;
using image::ExtentMap;
using image::State;

struct MapOptions {
  SourceOptions source;
  bool json = false;
};

constexpr std::array kStates{State::data, State::unchanged, State::zero, State::hole};

/// As `nbdinfo --map` describes the flags of base:allocation; nbdkit-delta-plugin's map= reads
/// this.
constexpr std::string_view description(State state) {
  constexpr std::array<std::string_view, 4> kNames{"data", "hole", "zero", "hole,zero"};
  return kNames[static_cast<std::size_t>(state)];
}

/// For people.
constexpr std::string_view meaning(State state, bool changes) {
  switch (state) {
    case State::data:
      return changes ? "changed" : "data";
    case State::unchanged:
      return "unchanged";
    case State::zero:
      return changes ? "changed to zero" : "zero";
    case State::hole:
      return "hole";
  }
  return "";
}

/// Text for standard output, where there may be ten million lines.
class Lines {
 public:
  template <class Format, class... Args>
  void add(Format format, const Args&... args) {
    fmt::format_to(std::back_inserter(text_), format, args...);
    if (text_.size() >= kWritten)
      write();
  }
  void write() {
    std::fwrite(text_.data(), 1, text_.size(), stdout);  // its error is seen by fflush()
    text_.clear();
  }

 private:
  static constexpr std::size_t kWritten = 64 * kKiB;
  fmt::memory_buffer text_;
};

void print_json(const ExtentMap& map) {
  Lines lines;
  std::string_view separator = "[\n";
  for (auto run = map.begin(); !run.at_end(); run.next()) {
    const Extent& extent = run.extent();
    lines.add(FMT_COMPILE(R"({}{{ "offset": {}, "length": {}, "type": {}, "description": "{}" }})"),
              separator, extent.offset, extent.length, static_cast<unsigned>(extent.state),
              description(extent.state));
    separator = ",\n";
  }
  lines.add(FMT_COMPILE("{}\n]\n"), map.size() == 0 ? "[" : "");
  lines.write();
}

void print_table(const ExtentMap& map, bool changes) {
  Lines lines;
  for (auto run = map.begin(); !run.at_end(); run.next()) {
    const Extent& extent = run.extent();
    lines.add(FMT_COMPILE("{:>16} {:>16}  {}\n"), extent.offset, extent.length,
              meaning(extent.state, changes));
  }
  lines.write();
  fmt::print("\n");
  for (const State state : kStates) {
    if (map.extents(state) == 0)
      continue;
    fmt::print("{:<16} {:>10} in {} extent{}\n", meaning(state, changes),
               format_size(map.bytes(state)), map.extents(state),
               map.extents(state) == 1 ? "" : "s");
  }
  fmt::print("{:<16} {:>10}\n", "disk", format_size(map.size()));
}

int run_map_command(const MapOptions& options) {
  ExtentMap map;
  bool changes = false;
  const nbd::ConnectOptions from = options.source.connect_options();
  std::optional<image::ImageUri> direct;
  if (image::ImageUri::is_one(from.uri))
    direct = pull::parse_image_uri(from);
  const int status = run_interruptibly({.job = [&](std::stop_source& stop) {
    if (direct) {
      const pull::DirectSource source(*direct, options.source.full);
      changes = source.shows_changes();
      map = source.read_map();
      return;
    }
    nbd::Source source(from, options.source.retry_policy(), stop.get_token());
    source.connect();
    changes = source.negotiated().shows_changes();
    map = nbd::read_map(source);
  }});
  if (status != kDone)
    return status;
  if (options.json)
    print_json(map);
  else
    print_table(map, changes);
  if (std::fflush(stdout) != 0)
    fail_errno("standard output");
  return kDone;
}

constexpr const char* kFooter = R"(Example:
  nbdelta map 'nbd+unix:///dirty:b0?socket=/run/nbd.sock'
  nbdelta map nbd://localhost/disk0 --context qemu:dirty-bitmap:b0 --json > map.json

The JSON is what `nbdinfo --map --json` prints and what map= of nbdkit-delta-plugin reads; of
changes, type 0 is changed, 2 changed and reads zero, 1 not changed.
Exit status: 0 done; 1 failed; 2 the command line makes no sense; 130, 143 interrupted.)";

}  // namespace

std::function<int()> add_map_command(CLI::App& app) {
  const auto options = std::make_shared<MapOptions>();
  CLI::App* command =
      app.add_subcommand("map", "Print what an NBD server, or an image, says of a disk's extents");
  options->source.add_to(*command);
  command->add_flag("--json", options->json, "as nbdinfo --map --json");
  command->footer(kFooter);
  return [options] { return run_map_command(*options); };
}

}  // namespace nbdelta::client
