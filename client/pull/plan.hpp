#pragma once

#include <cstdint>
#include <optional>

#include "image/extent_map.hpp"

namespace nbdelta::client::pull {

struct Limits {
  std::uint64_t request_size = 0;   // bytes of one read at most; a multiple of minimum_block
  std::uint64_t zero_size = 0;      // bytes of one zero at most; a multiple of minimum_block
  std::uint64_t minimum_block = 1;  // reads begin and end at multiples of it, or at the disk's end
  std::uint64_t bridge = 0;         // gaps of at most this many bytes are read along
};

struct Operation {
  enum class Kind : std::uint8_t { read, zero };

  Kind kind = Kind::read;
  /// What this operation is to settle: [offset, offset + length). Begins and ends with a byte in
  /// state data (read), or reads zero throughout (zero).
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  /// At the run that holds `offset`; a consumer goes on from here and writes what is data, zeros
  /// what reads zero, and leaves what is unchanged.
  image::ExtentMap::Cursor first;

  std::uint64_t end() const { return offset + length; }
};

/// `[offset, offset + length)` that a read must ask for: the operation, widened to blocks.
struct ReadRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};
ReadRange read_range(const Operation& operation, const Limits& limits, std::uint64_t disk_size);

/// What a pull does, in the order of the disk.
///
/// 1. Every byte in state data is in exactly one read; every byte that reads zero is in exactly one
///    zero, or in a read that bridges it; no byte that is unchanged lies at the ends of any.
/// 2. No operation crosses a multiple of request_size (read) or zero_size (zero); so a widened read
///    is at most request_size long.
class Plan {
 public:
  /// `map` must outlive the plan.
  Plan(const image::ExtentMap& map, const Limits& limits);

  std::optional<Operation> next();

 private:
  Operation next_read();
  Operation next_zero();

  Limits limits_;
  image::ExtentMap::Cursor cursor_;
  std::uint64_t position_ = 0;  // everything before is planned; lies in cursor_'s run
};

/// The same from a packed export. A read's `length` counts bytes in state data, from `offset` on,
/// whatever lies between; so reads neither bridge nor widen. No read crosses a multiple of
/// request_size, counted in such bytes. All zeros come first.
class PackedPlan {
 public:
  /// `map` must outlive the plan.
  PackedPlan(const image::ExtentMap& map, const Limits& limits);

  std::optional<Operation> next();

 private:
  std::optional<Operation> next_zero();
  std::optional<Operation> next_read();

  Limits limits_;
  image::ExtentMap::Cursor zeros_;  // everything before is planned
  std::uint64_t zeros_from_ = 0;
  image::ExtentMap::Cursor data_;
  std::uint64_t data_from_ = 0;
};

/// Bytes in state data before the read's first.
inline std::uint64_t data_before(const Operation& read) {
  return read.first.data_before() + (read.offset - read.first.extent().offset);
}

}  // namespace nbdelta::client::pull
