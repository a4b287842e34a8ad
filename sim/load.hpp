#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/clock.hpp"
#include "sim/iolog.hpp"
#include "sim/random.hpp"

namespace nbdelta::sim {

using client::Clock;

/// What a program of the guest does to a disk.
struct Request {
  enum class Kind : std::uint8_t { write, zero, discard, sync };
  Kind kind = Kind::write;
  std::uint64_t offset = 0;  // bytes of the disk; a sync: of the file, whose place that is
  std::uint64_t length = 0;
  /// From the time that the request before was due; zero: as soon as that is done.
  Clock::Duration gap{};
  bool operator==(const Request&) const = default;
};

enum class Pattern : std::uint8_t {
  sequential,  // from the area's beginning to its end, and again
  uniform,     // anywhere in the area
  zipf,        // a few places most of the time
  database,    // a log that is synced with each transaction, and pages anywhere
  idle,        // a desktop that nobody uses: now and then a few small files, synced
  trace,       // what fio recorded
};

struct LoadSetup {
  Pattern pattern = Pattern::uniform;
  std::optional<std::uint64_t>
      rate;  // bytes a second of all its programs; none: as fast as it goes
  std::uint64_t request = 16U << 10;  // bytes, a multiple of kSector
  std::uint64_t area = 0;             // bytes from the disk's beginning on; 0: all of it
  double skew = 0.99;                 // of zipf, database: the exponent, 0 (uniform) to 3
  double zero_share = 0;              // of the requests
  double discard_share = 0;
  std::uint64_t sync_every = 0;  // requests; 0: never
  std::uint64_t files = 1;       // that the area is: a sync is of the one written to last
  std::uint64_t programs = 1;    // at the same time
  bool direct = false;           // past the page cache
  std::vector<TraceEntry> trace = {};

  static constexpr std::uint64_t kSector = 512;
};

/// One program's requests, without end but for a trace. For one thread.
class Load {
 public:
  virtual ~Load() = default;
  /// Nothing where a trace has ended.
  virtual std::optional<Request> next() = 0;
};

/// `disk_size`: bytes. A trace stays within it.
std::unique_ptr<Load> make_load(const LoadSetup& setup, std::uint64_t disk_size,
                                std::uint64_t seed);

/// "sequential", ...; all of them in their order.
const std::vector<std::string_view>& pattern_names();

/// Draws 0 to `count` - 1 with weights 1 / (1 + i)^skew in constant time and memory, by rejection
/// (Hörmann and Derflinger 1996, "rejection-inversion").
class Zipf {
 public:
  Zipf(std::uint64_t count, double skew);
  std::uint64_t draw(Random& random) const;

 private:
  double integral(double x) const;
  double inverse(double y) const;

  std::uint64_t count_;
  double skew_;
  double first_;  // integral() where the first value's share begins
  double last_;
};

}  // namespace nbdelta::sim
