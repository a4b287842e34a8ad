#include "sim/scenario.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json/stream_parser.hpp>
#include <filesystem>
#include <set>

#include "sim/json_entry.hpp"
#include "sim/seed.hpp"
#include "sim/text_file.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

constexpr std::uint64_t kLargestDisk = std::uint64_t{1} << 40;
constexpr std::size_t kMostDisks = 64;
constexpr std::size_t kLongestScenario = std::size_t{1} << 20;
constexpr std::size_t kLongestTrace = std::size_t{1} << 30;

QemuSetup read_qemu(const JsonEntry& entry) {
  QemuSetup qemu;
  entry.check_keys({"version", "command", "snapshot", "jitter"});
  optional(entry, "version", [&](const JsonEntry& e) {
    e.get_choice(qemu.version, {"7.2", "10.0"});
  });
  optional(entry, "command", [&](const JsonEntry& e) { e.get_time(qemu.command, "0 s", "1 min"); });
  optional(entry, "snapshot",
           [&](const JsonEntry& e) { e.get_time(qemu.snapshot, "0 s", "1 min"); });
  optional(entry, "jitter", [&](const JsonEntry& e) { e.get_number(qemu.jitter, 0, 2); });
  return qemu;
}

ScenarioDisk read_disk(const JsonEntry& entry) {
  ScenarioDisk disk;
  entry.check_keys({"name", "size", "format", "backing", "by-drive"}, {"name", "size"});
  const JsonEntry name = entry.member("name");
  name.get(disk.name);
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const bool plain = std::all_of(disk.name.begin(), disk.name.end(), [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
  if (disk.name.empty() || disk.name.size() > 20 || !plain || !is_letter(disk.name.front()))
    name.refuse("'{}' is no name of a disk: a letter, then up to 19 letters, digits, '-' and '_'",
                disk.name);
  const JsonEntry size = entry.member("size");
  size.get_bytes(disk.size, "64 KiB", "1 TiB");
  if (disk.size % ScenarioDisk::kGranule != 0)
    size.refuse("expected a multiple of 64 KiB");
  optional(entry, "format", [&](const JsonEntry& e) {
    e.get_choice(disk.format, {"qcow2", "raw"});
  });
  optional(entry, "by-drive", [&](const JsonEntry& e) { e.get(disk.by_drive); });
  optional(entry, "backing", [&](const JsonEntry& e) {
    e.get(disk.backing);
    if (disk.backing && disk.format == "raw")
      e.refuse("a raw image has no backing file: expected false, or another \"format\"");
  });
  return disk;
}

PageCacheSetup read_cache(const JsonEntry& entry) {
  PageCacheSetup cache;
  entry.check_keys({"dirty-limit", "background", "expire", "interval"});
  optional(entry, "dirty-limit",
           [&](const JsonEntry& e) { e.get_bytes(cache.dirty_limit, "64 KiB", "1 TiB"); });
  cache.background = std::min(cache.background, cache.dirty_limit / 2);
  optional(entry, "background", [&](const JsonEntry& e) {
    e.get_bytes(cache.background, "0 B", "1 TiB");
    if (cache.background >= cache.dirty_limit)
      e.refuse("expected less than \"dirty-limit\", {}", exact_bytes(cache.dirty_limit));
  });
  optional(entry, "expire", [&](const JsonEntry& e) { e.get_time(cache.expire, "1 ms", "24 h"); });
  optional(entry, "interval",
           [&](const JsonEntry& e) { e.get_time(cache.interval, "1 ms", "24 h"); });
  return cache;
}

StorageSetup read_storage(const JsonEntry& entry) {
  StorageSetup storage;
  entry.check_keys({"throughput", "latency", "flush-latency", "parallel", "jitter"});
  optional(entry, "throughput",
           [&](const JsonEntry& e) { e.get_rate(storage.throughput, "1 KiB/s", "1 TiB/s"); });
  optional(entry, "latency",
           [&](const JsonEntry& e) { e.get_time(storage.latency, "0 s", "1 min"); });
  optional(entry, "flush-latency",
           [&](const JsonEntry& e) { e.get_time(storage.flush, "0 s", "1 min"); });
  optional(entry, "parallel", [&](const JsonEntry& e) { e.get_count(storage.parallel, 1, 1024); });
  optional(entry, "jitter", [&](const JsonEntry& e) { e.get_number(storage.jitter, 0, 2); });
  return storage;
}

AgentSetup read_agent(const JsonEntry& entry, GuestSetup& guest) {
  AgentSetup agent;
  entry.check_keys({"latency", "freeze", "thaw", "jitter"});
  optional(entry, "latency", [&](const JsonEntry& e) { e.get_time(agent.latency, "0 s", "1 h"); });
  optional(entry, "freeze", [&](const JsonEntry& e) { e.get_time(guest.freeze, "0 s", "1 h"); });
  optional(entry, "thaw", [&](const JsonEntry& e) { e.get_time(agent.thaw, "0 s", "1 h"); });
  optional(entry, "jitter", [&](const JsonEntry& e) {
    e.get_number(agent.jitter, 0, 2);
    guest.freeze_jitter = agent.jitter;
  });
  return agent;
}

std::string trace_path(const JsonEntry& entry, const std::string& scenario) {
  std::string path;
  entry.member("trace").get(path);
  if (path.find('\0') != std::string::npos)
    entry.member("trace").refuse("'{}' is no path", path);
  return (std::filesystem::path(scenario).parent_path() / path).string();
}

/// The actions of one of the trace's files.
std::vector<TraceEntry> read_trace(const JsonEntry& entry, const std::string& scenario) {
  const std::string path = trace_path(entry, scenario);
  Trace trace;
  try {
    trace = parse_iolog(read_text_file(path, kLongestTrace), path);
  } catch (const Error& error) {
    entry.member("trace").refuse("{}", error.what());
  }
  if (trace.files.empty())
    entry.member("trace").refuse("{}: adds no file: there is nothing to do", path);
  std::string file;
  optional(entry, "file", [&](const JsonEntry& e) { e.get(file); });
  if (file.empty() && trace.files.size() == 1)
    file = trace.files.front();
  const auto found = std::find(trace.files.begin(), trace.files.end(), file);
  if (found == trace.files.end())
    (file.empty() ? entry : entry.member("file"))
        .refuse("\"file\" must be one of the trace's: {}", fmt::join(trace.files, ", "));
  const auto index = static_cast<std::uint64_t>(found - trace.files.begin());
  std::erase_if(trace.entries, [&](const TraceEntry& each) { return each.file != index; });
  return trace.entries;
}

/// A smaller disk than the traced one would not be written to as that was.
void check_trace(const JsonEntry& entry, const std::vector<TraceEntry>& trace,
                 const ScenarioDisk& disk, const std::string& scenario) {
  for (const TraceEntry& each : trace)
    if (each.kind != TraceEntry::Kind::sync && each.offset + each.length > disk.size)
      entry.member("trace").refuse("{}:{}: {} bytes at {} reach beyond the disk {}, which has {}",
                                   trace_path(entry, scenario), each.line, each.length, each.offset,
                                   disk.name, disk.size);
}

/// What a pattern can be told besides "disk" and "pattern".
std::vector<std::string_view> keys_of(Pattern pattern) {
  std::vector<std::string_view> keys{"disk", "pattern", "direct"};
  if (pattern == Pattern::trace) {
    keys.insert(keys.end(), {"trace", "file"});
    return keys;
  }
  keys.insert(keys.end(), {"rate", "request", "area", "zeros", "discards", "programs"});
  if (pattern == Pattern::zipf || pattern == Pattern::database)
    keys.emplace_back("skew");
  if (pattern != Pattern::database && pattern != Pattern::idle)
    keys.insert(keys.end(), {"sync-every", "files"});
  return keys;
}

LoadSetup read_load_setup(const JsonEntry& entry, const std::string& scenario) {
  LoadSetup load;
  std::string pattern;
  entry.member("pattern").get_choice(pattern, pattern_names());
  load.pattern = static_cast<Pattern>(
      std::find(pattern_names().begin(), pattern_names().end(), pattern) - pattern_names().begin());
  entry.check_keys(keys_of(load.pattern));
  optional(entry, "direct", [&](const JsonEntry& e) { e.get(load.direct); });
  if (load.pattern == Pattern::trace) {
    if (!entry.object().contains("trace"))
      entry.refuse("\"trace\" is missing: the path of what fio --write_iolog wrote");
    load.trace = read_trace(entry, scenario);
    return load;
  }
  optional(entry, "rate", [&](const JsonEntry& e) {
    std::string text;
    e.get(text);
    if (text != "unlimited")
      e.get_rate(load.rate.emplace(), "1 B/s", "1 TiB/s");
  });
  const auto sectors = [](const JsonEntry& e, std::uint64_t& bytes, std::string_view high) {
    e.get_bytes(bytes, "512 B", high);
    if (bytes % LoadSetup::kSector != 0)
      e.refuse("expected a multiple of 512 B");
  };
  optional(entry, "request", [&](const JsonEntry& e) { sectors(e, load.request, "64 MiB"); });
  optional(entry, "area", [&](const JsonEntry& e) { sectors(e, load.area, "1 TiB"); });
  optional(entry, "skew", [&](const JsonEntry& e) { e.get_number(load.skew, 0, 3); });
  optional(entry, "zeros", [&](const JsonEntry& e) { e.get_number(load.zero_share, 0, 1); });
  optional(entry, "discards", [&](const JsonEntry& e) {
    e.get_number(load.discard_share, 0, 1);
    if (load.zero_share + load.discard_share > 1)
      e.refuse(
          "\"zeros\" and \"discards\" are shares of the same requests: expected at most {:.12g}",
          1 - load.zero_share);  // and not what the subtraction leaves in the last digits
  });
  optional(entry, "sync-every",
           [&](const JsonEntry& e) { e.get_count(load.sync_every, 1, 1'000'000); });
  optional(entry, "files", [&](const JsonEntry& e) { e.get_count(load.files, 1, 1'000'000); });
  optional(entry, "programs", [&](const JsonEntry& e) { e.get_count(load.programs, 1, 256); });
  return load;
}

/// Without "disk" it is a load of each disk.
void read_load(const JsonEntry& entry, Scenario& scenario, const std::string& file) {
  if (!entry.object().contains("pattern"))
    entry.refuse("\"pattern\" is missing: one of \"{}\"", fmt::join(pattern_names(), "\", \""));
  const LoadSetup load = read_load_setup(entry, file);
  std::string wanted;
  optional(entry, "disk", [&](const JsonEntry& e) { e.get(wanted); });
  std::vector<std::string_view> names;
  bool found = false;
  for (std::size_t i = 0; i < scenario.disks.size(); ++i) {
    const ScenarioDisk& disk = scenario.disks[i];
    names.emplace_back(disk.name);
    if (!wanted.empty() && disk.name != wanted)
      continue;
    found = true;
    if (load.request > disk.size)
      entry.member("request").refuse("is larger than the disk {}: expected at most {}", disk.name,
                                     exact_bytes(disk.size));
    if (load.area > disk.size)
      entry.member("area").refuse("is larger than the disk {}: expected at most {}", disk.name,
                                  exact_bytes(disk.size));
    if (load.area != 0 && load.area < load.request)
      entry.member("area").refuse("'{}' is smaller than one request: expected {} to {}",
                                  exact_bytes(load.area), exact_bytes(load.request),
                                  exact_bytes(disk.size));
    check_trace(entry, load.trace, disk, file);
    scenario.guest.loads.push_back({i, load});
  }
  if (!found)
    entry.member("disk").refuse("there is no disk '{}': expected one of \"{}\"", wanted,
                                fmt::join(names, "\", \""));
}

void read_disks(const JsonEntry& entry, Scenario& scenario) {
  std::set<std::string> names;
  for (const JsonEntry& each : entry.elements()) {
    scenario.disks.push_back(read_disk(each));
    if (!names.insert(scenario.disks.back().name).second)
      each.member("name").refuse("there are two disks '{}'", scenario.disks.back().name);
  }
  if (scenario.disks.empty() || scenario.disks.size() > kMostDisks)
    entry.refuse("expected 1 to {} disks", kMostDisks);
  std::uint64_t total = 0;
  for (const ScenarioDisk& disk : scenario.disks)
    total += disk.size;
  if (total > kLargestDisk)
    entry.refuse(
        "expected at most 1 TiB in all disks together: the simulator keeps them in memory");
}

}  // namespace

Scenario parse_scenario(std::string_view text, const std::string& file,
                        const OptionNames& options) {
  const JsonSource source{text, file, options};
  json::stream_parser parser;
  json::error_code status;
  const std::size_t taken =
      text.size() > kLongestScenario ? 0 : parser.write_some(text.data(), text.size(), status);
  if (text.size() > kLongestScenario)
    fail(EFBIG, "{}: is longer than 1 MiB: no scenario", file);
  const std::size_t rest = text.find_first_not_of(" \t\r\n", taken);
  if (status || !parser.done() || rest != std::string_view::npos) {
    const Place place = place_at(text, taken);
    fail(EINVAL, "{}:{}:{}: /: is not JSON: {}", file, place.line, place.column,
         status          ? status.message()
         : parser.done() ? "something follows it"
                         : "it ends too early");
  }
  if (const auto repeated = repeated_key(text))
    source.refuse(*repeated, "there are two members of this name: expected one");
  const json::value value = parser.release();
  const JsonEntry top(source, value, "");
  top.check_keys({"qemu", "disks", "page-cache", "storage", "agent", "loads", "duration", "seed"},
                 {"disks"});
  Scenario scenario;
  scenario.name = std::filesystem::path(file).stem().string();
  optional(top, "qemu", [&](const JsonEntry& e) { scenario.qemu = read_qemu(e); });
  read_disks(top.member("disks"), scenario);
  optional(top, "page-cache", [&](const JsonEntry& e) { scenario.guest.cache = read_cache(e); });
  optional(top, "storage", [&](const JsonEntry& e) { scenario.guest.storage = read_storage(e); });
  optional(top, "agent",
           [&](const JsonEntry& e) { scenario.agent = read_agent(e, scenario.guest); });
  optional(top, "loads", [&](const JsonEntry& e) {
    for (const JsonEntry& each : e.elements())
      read_load(each, scenario, file);
  });
  optional(top, "duration", [&](const JsonEntry& e) {
    e.get_time(scenario.duration, Scenario::kShortestDuration, Scenario::kLongestDuration);
  });
  optional(top, "seed", [&](const JsonEntry& e) { e.get_count(scenario.seed, 0, kLastSeed); });
  return scenario;
}

Scenario read_scenario(const std::string& file) {
  return parse_scenario(read_text_file(file, kLongestScenario), file);
}

}  // namespace nbdelta::sim
