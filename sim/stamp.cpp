#include "sim/stamp.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace nbdelta::sim {

void fill_with_stamp(std::span<std::byte> out, std::uint64_t granule, WriteNumber number) {
  invariant(out.size() == kFileGranule, "a granule of a file has 4 KiB");
  if (number == 0) {
    std::memset(out.data(), 0, out.size());
    return;
  }
  const Stamp stamp{.magic = kStampMagic, .number = number, .granule = granule};
  for (std::size_t at = 0; at < out.size(); at += sizeof stamp)
    std::memcpy(out.data() + at, &stamp, sizeof stamp);
}

std::optional<WriteNumber> stamp_number(std::span<const std::byte> bytes, std::uint64_t granule) {
  Stamp stamp;
  std::memcpy(&stamp, bytes.data(), sizeof stamp);
  const WriteNumber number = stamp.magic == kStampMagic ? std::uint32_t{stamp.number} : 0;
  GranuleBytes expected;
  fill_with_stamp(expected, granule, number);
  if (std::memcmp(expected.data(), bytes.data(), kFileGranule) != 0)
    return std::nullopt;
  return number;
}

std::uint64_t content_of(std::span<const std::byte> bytes, std::uint64_t granule) {
  if (const auto number = stamp_number(bytes, granule))
    return *number;
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, eight bytes a time
  for (std::size_t at = 0; at < kFileGranule; at += sizeof hash) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, sizeof word);
    hash = (hash ^ word) * 0x100000001b3;
    hash ^= hash >> 29;
  }
  return hash | kForeignContent;
}

WriteNumber ForeignGranules::number_of(std::span<const std::byte> bytes, std::uint64_t granule) {
  if (const auto number = stamp_number(bytes, granule); number && *number < kFirst)
    return *number;
  GranuleBytes key;
  std::memcpy(key.data(), bytes.data(), key.size());
  const auto found = numbers_.find(key);
  if (found != numbers_.end())
    return found->second;
  if (granules_.size() == kMost)
    fail(ENOMEM,
         "the images hold more than {} granules that are not of this guest: start on empty disks",
         kMost);
  const WriteNumber number = kFirst + static_cast<WriteNumber>(granules_.size());
  granules_.push_back(&numbers_.emplace(key, number).first->first);
  return number;
}

void ForeignGranules::fill(std::span<std::byte> out, std::uint64_t granule,
                           WriteNumber number) const {
  if (number < kFirst)
    fill_with_stamp(out, granule, number);
  else
    std::memcpy(out.data(), granules_.at(number - kFirst)->data(), kFileGranule);
}

}  // namespace nbdelta::sim
