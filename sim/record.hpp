#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.hpp"
#include "client/clock.hpp"
#include "sim/image.hpp"

namespace nbdelta::sim {

/// What the record says of a disk.
struct RecordedDisk {
  std::string name;
  std::string path;    // of its image
  std::string format;  // of that
  std::uint64_t granules = 0;
};

/// The record of what a guest's disks must hold: a text file to which a line is added before a
/// write is carried out, so that a crash of the writer leaves no write unknown. Lines:
///
///     nbdelta-sim record 1
///     disk NAME FORMAT GRANULES PATH        once for each disk, numbered from 0
///     TIME start
///     TIME found DISK GRANULE CONTENT       what differs from the lines before: what was there at
///                                           the start, after a crash, after a write that failed
///     TIME write DISK GRANULE COUNT NUMBER
///     TIME zero DISK GRANULE COUNT
///     TIME flush DISK                       what was written before survives a crash
///     TIME switch OVERLAY-NODE...           a transaction with snapshots was carried out
///     TIME end                              everything was flushed
///
/// TIME is in microseconds of the machine's monotonic clock; CONTENT as of content_of().
class Record {
 public:
  /// Begins one, or goes on with one of the same disks. Throws Error.
  Record(const std::string& path, const std::vector<RecordedDisk>& disks, client::Clock& clock);

  void start() { add("start"); }
  void found(std::size_t disk, std::uint64_t granule, std::uint64_t content);
  void write(std::size_t disk, std::uint64_t granule, std::uint64_t count, WriteNumber number);
  void zero(std::size_t disk, std::uint64_t granule, std::uint64_t count);
  void flush(std::size_t disk);
  void switched(const std::vector<std::string>& overlays);
  void end() { add("end"); }

 private:
  void add(std::string_view what);

  File file_;
  client::Clock* clock_;
};

/// Throws Error where the file at `path` is not the record of exactly these disks, in this order.
void check_record(const std::string& path, const std::vector<RecordedDisk>& disks);

/// What follows from a record's lines, read from its first to its last.
class Replay {
 public:
  /// What the guest's disks hold, by content_of(), at the instant of the line that was read last.
  std::vector<std::vector<std::uint64_t>> contents;
  std::vector<RecordedDisk> disks;
  WriteNumber last_write = 0;  // the greatest number
  bool started = false;        // a guest was: the lines say what its disks hold

  /// Of a granule that was written since its disk's last flush: what a crash may leave there.
  /// What was written last is in `contents`.
  std::vector<std::map<std::uint64_t, std::vector<std::uint64_t>>> unflushed;
  bool may_hold(std::size_t disk, std::uint64_t granule, std::uint64_t content) const;

  /// Calls these, where they are set, after the line has taken effect.
  std::function<void()> on_disks = [] {};  // all disks are known
  std::function<void(std::size_t disk, std::uint64_t granule, std::uint64_t before)> on_change =
      [](std::size_t, std::uint64_t, std::uint64_t) {};
  std::function<void(const std::vector<std::string>& overlays)> on_switch =
      [](const std::vector<std::string>&) {};

  /// A last line without its end does not count. Throws Error with the line's number where one
  /// makes no sense; what the calls throw passes through.
  void run(const std::string& path);

 private:
  void take(std::string_view line);
  void take_event(std::string_view line);
  void set(std::size_t disk, std::uint64_t granule, std::uint64_t content);
};

}  // namespace nbdelta::sim
