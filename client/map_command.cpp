#include "client/map_command.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

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

/// Text for standard output, where there may be ten million lines: as fast as it can be written.
class Text {
  static constexpr std::array<char, 200> kPairs = [] {  // 00 to 99
    std::array<char, 200> digits{};
    for (std::size_t i = 0; i < digits.size(); ++i)
      digits[i] = static_cast<char>('0' + (i % 2 == 0 ? i / 20 : i / 2 % 10));
    return digits;
  }();

 public:
  static constexpr std::size_t kLongestLine = 160;

  explicit Text(std::size_t lines)
      : text_(std::make_unique_for_overwrite<char[]>(lines * kLongestLine)), end_(text_.get()) {}

  Text& operator<<(std::string_view more) {
    end_ = std::copy(more.begin(), more.end(), end_);
    return *this;
  }
  Text& operator<<(std::uint64_t number) {
    const fmt::format_int digits(number);
    return *this << std::string_view(digits.data(), digits.size());
  }
  /// To the right of a column; a number that is too long for it is not cut.
  Text& column(std::uint64_t number) {
    constexpr std::size_t kWidth = 16;
    constexpr std::uint64_t kTooLong = 10'000'000'000'000'000;
    if (number >= kTooLong)
      return *this << number;
    std::fill_n(end_, kWidth, ' ');
    char* digit = end_ += kWidth;
    for (; number >= 100; number /= 100)
      std::memcpy(digit -= 2, &kPairs[number % 100 * 2], 2);
    if (number >= 10)
      std::memcpy(digit - 2, &kPairs[number * 2], 2);
    else
      *--digit = static_cast<char>('0' + number);
    return *this;
  }
  void write_and_clear() {  // a large block is written at once: fflush() would not see its error
    const auto length = static_cast<std::size_t>(end_ - text_.get());
    if (std::fwrite(text_.get(), 1, length, stdout) != length)
      fail_errno("standard output");
    end_ = text_.get();
  }

 private:
  std::unique_ptr<char[]> text_;
  char* end_;
};

/// `add_line(text, extent)` for each run. Several threads make the text, this one writes it.
template <class AddLine>
void print_lines(const ExtentMap& map, AddLine add_line) {
  constexpr std::size_t kAhead = 4;
  std::deque<std::future<Text>> texts;
  std::vector<Text> used;  // to be used again: memory that was never touched costs more
  const auto write_one = [&] {
    used.push_back(texts.front().get());
    used.back().write_and_clear();
    texts.pop_front();
  };
  const auto make = [&](std::size_t part, Text text) {
    const std::uint64_t end = map.at_part(part + 1).extent().offset;
    for (auto run = map.at_part(part); run.extent().offset < end; run.next())
      add_line(text, run.extent());
    return text;
  };
  for (std::size_t part = 0; part < map.parts(); ++part) {
    if (texts.size() == kAhead)
      write_one();
    Text text = used.empty() ? Text(ExtentMap::kMostRunsOfAPart) : std::move(used.back());
    if (!used.empty())
      used.pop_back();
    texts.push_back(std::async(map.parts() == 1 ? std::launch::deferred : std::launch::async, make,
                               part, std::move(text)));
  }
  while (!texts.empty())
    write_one();
}

void print_json(const ExtentMap& map) {
  print_lines(map, [](Text& text, const Extent& extent) {
    text << (extent.offset == 0 ? "[\n" : ",\n") << R"({ "offset": )" << extent.offset
         << R"(, "length": )" << extent.length << R"(, "type": )"
         << static_cast<std::uint64_t>(extent.state) << R"(, "description": ")"
         << description(extent.state) << R"(" })";
  });
  fmt::print("{}\n]\n", map.size() == 0 ? "[" : "");
}

void print_table(const ExtentMap& map, bool changes) {
  print_lines(map, [changes](Text& text, const Extent& extent) {
    text.column(extent.offset) << " ";
    text.column(extent.length) << "  " << meaning(extent.state, changes) << "\n";
  });
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
      map = source.read_map(stop.get_token());
      return;
    }
    nbd::Source source(from, options.source.retry_policy(), stop.get_token());
    source.connect();
    changes = source.negotiated().shows_changes();
    std::optional<nbd::PackedExport> packed = source.turn_to_packed();
    map = packed ? std::move(packed->map) : nbd::read_map(source);
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
Exit status: 0 done; 1 failed; 2 the command line makes no sense; 129, 130, 143 interrupted.)";

}  // namespace

std::function<int()> add_map_command(CLI::App& app) {
  const auto options = std::make_shared<MapOptions>();
  CLI::App* command =
      app.add_subcommand("map", "Print what an NBD server, or an image, says of a disk's extents");
  options->source.add_to(*command);
  command->add_flag("--json", options->json, "as nbdinfo --map --json");
  command->footer(kFooter);
  return [options, command] {
    refuse_for_image(*command, options->source.uri, {"--retries", "--timeout"});
    return run_map_command(*options);
  };
}

}  // namespace nbdelta::client
