#include "image/qcow2_overlay.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/qcow2_format.hpp"

// The file: header | refcount table | refcount blocks | L1 | L2 tables | data, all cluster-aligned
// and without gaps, so every refcount is 1 and data cluster n of the map stands at
// data_start + n clusters.

namespace nbdelta::image {
namespace {

using namespace qcow2;

constexpr std::uint64_t kPreferredCluster = 64 * kKiB;
constexpr std::uint64_t kSmallestCluster = 4 * kKiB;
constexpr std::uint64_t kSectorSize = 512;
constexpr unsigned kRefcountOrder = 4;  // 16 bits

bool is_allocated(State state) {
  return state == State::data || state == State::zero;
}

/// Writes one thing after the other, a MiB at a time, into a file that reads as zeros.
class SequentialWriter {
 public:
  SequentialWriter(const File& file, std::uint64_t offset) : file_(file), offset_(offset) {
    buffer_.reserve(kMiB);
  }

  template <class T>
  void put(std::span<const T> items) {
    const auto bytes = std::as_bytes(items);
    if (buffer_.size() + bytes.size() > kMiB)
      flush();
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }

  /// These stay zero, and the file sparse.
  void skip(std::uint64_t bytes) {
    flush();
    offset_ += bytes;
  }

  void flush() {
    if (buffer_.empty())
      return;
    file_.write_at(buffer_, offset_);
    offset_ += buffer_.size();
    buffer_.clear();
  }

 private:
  const File& file_;
  std::uint64_t offset_;
  std::vector<std::byte> buffer_;
};

/// Knows which of its pages hold anything: where little of the disk is allocated most do not.
class L2Table {
 public:
  explicit L2Table(std::uint64_t cluster_size)
      : entries_(cluster_size / sizeof(be64)), used_(cluster_size / kPage) {}

  std::size_t size() const { return entries_.size(); }

  void set(std::uint64_t index, std::uint64_t entry) {
    entries_[index] = entry;
    used_[index / kEntries] = true;
  }

  /// Leaves it empty; nothing is written where it was.
  void move_to(SequentialWriter& writer) {
    if (std::none_of(used_.begin(), used_.end(), [](bool used) { return used; }))
      return;
    for (std::size_t i = 0; i < used_.size(); ++i) {
      if (!used_[i]) {
        writer.skip(kPage);
        continue;
      }
      const auto page = std::span(entries_).subspan(i * kEntries, kEntries);
      writer.put(std::span<const be64>(page));
      std::fill(page.begin(), page.end(), be64(0));
      used_[i] = false;
    }
  }

 private:
  static constexpr std::size_t kPage = 4096;  // a cluster has at least one
  static constexpr std::size_t kEntries = kPage / sizeof(be64);

  std::vector<be64> entries_;
  std::vector<bool> used_;
};

/// Walks the map one L2 table's range after the other: `part` gets each allocated run's part in the
/// range, then `range_end(index)` is called.
template <class Part, class RangeEnd>
void walk_ranges(const ExtentMap& map, std::uint64_t covered_by_l2, Part part, RangeEnd range_end) {
  auto cursor = map.begin();
  for (std::uint64_t start = 0; start < map.size(); start += covered_by_l2) {
    const std::uint64_t end = start + std::min(covered_by_l2, map.size() - start);
    while (!cursor.at_end() && cursor.extent().offset < end) {
      const Extent& run = cursor.extent();
      const std::uint64_t from = std::max(run.offset, start);
      const std::uint64_t to = std::min(run.end(), end);
      if (is_allocated(run.state))
        part(Extent{.offset = from, .length = to - from, .state = run.state});
      if (run.end() > end)
        break;
      cursor.next();
    }
    range_end(start / covered_by_l2);
  }
}

void check(const std::stop_token& stop) {
  if (stop.stop_requested())
    fail(ECANCELED, "interrupted");
}

std::uint64_t l1_entries_for(std::uint64_t disk_size, std::uint64_t cluster_size) {
  return std::max<std::uint64_t>(
      1, div_round_up(disk_size, cluster_size / sizeof(be64) * cluster_size));
}

}  // namespace

/// Clusters of each part of the file.
struct Qcow2Overlay::Layout {
  std::uint64_t cluster_size;
  std::uint64_t l1_entries;
  std::uint64_t refcount_table = 1;
  std::uint64_t refcount_blocks = 1;
  std::uint64_t l1 = 0;
  std::uint64_t l2 = 0;
  std::uint64_t data = 0;

  Layout(const ExtentMap& map, std::uint64_t cluster)
      : cluster_size(cluster), l1_entries(l1_entries_for(map.size(), cluster)) {
    l1 = div_round_up(l1_entries * sizeof(be64), cluster);
    data = div_round_up(map.bytes(State::data), cluster);
    bool used = false;
    walk_ranges(
        map, covered_by_l2(), [&](const Extent&) { used = true; },
        [&](std::uint64_t) { l2 += std::exchange(used, false) ? 1U : 0U; });
    // The refcounts count themselves too.
    for (std::uint64_t before = 0; before != total();) {
      before = total();
      refcount_blocks = div_round_up(before, refcounts_per_block());
      refcount_table = div_round_up(refcount_blocks * sizeof(be64), cluster);
    }
  }

  std::uint64_t covered_by_l2() const { return cluster_size / sizeof(be64) * cluster_size; }
  std::uint64_t refcounts_per_block() const { return cluster_size / sizeof(be16); }

  std::uint64_t refcount_table_offset() const { return cluster_size; }
  std::uint64_t refcount_blocks_offset() const { return (1 + refcount_table) * cluster_size; }
  std::uint64_t l1_offset() const {
    return refcount_blocks_offset() + refcount_blocks * cluster_size;
  }
  std::uint64_t l2_offset() const { return l1_offset() + l1 * cluster_size; }
  std::uint64_t data_offset() const { return l2_offset() + l2 * cluster_size; }
  std::uint64_t total() const { return 1 + refcount_table + refcount_blocks + l1 + l2 + data; }

  void write_refcounts(const File& file, const std::stop_token& stop) const {
    SequentialWriter writer(file, refcount_table_offset());
    std::vector<be64> table(refcount_table * cluster_size / sizeof(be64));
    for (std::uint64_t i = 0; i < refcount_blocks; ++i)
      table[i] = refcount_blocks_offset() + i * cluster_size;
    writer.put(std::span<const be64>(table));
    const std::vector<be16> ones(refcounts_per_block(), be16(1));
    std::uint64_t left = total();
    for (std::uint64_t i = 0; i < refcount_blocks; ++i) {
      check(stop);
      const std::uint64_t here = std::min(left, refcounts_per_block());
      writer.put(std::span(ones).first(here));
      left -= here;
    }
    writer.flush();
  }

  void write_l1(const File& file, const ExtentMap& map) const {
    SequentialWriter writer(file, l1_offset());
    std::uint64_t next_table = l2_offset();
    bool used = false;
    walk_ranges(
        map, covered_by_l2(), [&](const Extent&) { used = true; },
        [&](std::uint64_t) {
          const be64 entry = used ? next_table | kCopied : 0;
          next_table += std::exchange(used, false) ? cluster_size : 0;
          writer.put(std::span(&entry, 1));
        });
    writer.flush();
  }

  void write_l2(const File& file, const ExtentMap& map, const std::stop_token& stop) const {
    SequentialWriter writer(file, l2_offset());
    L2Table table(cluster_size);
    std::uint64_t next_data = data_offset();
    walk_ranges(
        map, covered_by_l2(),
        [&](const Extent& run) {
          std::uint64_t index = run.offset / cluster_size % table.size();
          for (std::uint64_t n = div_round_up(run.length, cluster_size); n > 0; --n, ++index) {
            if (run.state == State::zero) {
              table.set(index, kZeroFlag);
            } else {
              table.set(index, next_data | kCopied);
              next_data += cluster_size;
            }
          }
        },
        [&](std::uint64_t) {
          check(stop);
          table.move_to(writer);
        });
    writer.flush();
  }

  /// The first cluster, up to where its bytes end.
  std::string header(std::uint64_t disk_size, const Backing& backing) const;
};

std::string Qcow2Overlay::Layout::header(std::uint64_t disk_size, const Backing& backing) const {
  const auto text_of = [](const auto& structure) {
    return std::string(reinterpret_cast<const char*>(&structure), sizeof structure);
  };
  std::string extensions;
  const auto add_extension = [&](Extension type, std::string_view text) {
    extensions += text_of(
        ExtensionHeader{static_cast<std::uint32_t>(type), static_cast<std::uint32_t>(text.size())});
    extensions += text;
    extensions.resize(round_up(extensions.size(), 8));
  };
  if (!backing.name.empty())
    add_extension(Extension::backing_format, backing.format == Format::raw ? "raw" : "qcow2");
  add_extension(Extension::end, "");

  constexpr std::uint32_t kHeaderLength = kVersion3HeaderLength + 8;  // with the compression type
  Header header{};
  header.magic = kMagic;
  header.version = 3;
  header.cluster_bits = static_cast<std::uint32_t>(std::countr_zero(cluster_size));
  header.size = round_up(disk_size, kSectorSize);
  header.l1_size = static_cast<std::uint32_t>(l1_entries);
  header.l1_table_offset = l1_offset();
  header.refcount_table_offset = refcount_table_offset();
  header.refcount_table_clusters = static_cast<std::uint32_t>(refcount_table);
  header.refcount_order = kRefcountOrder;
  header.header_length = kHeaderLength;
  if (!backing.name.empty()) {
    header.backing_file_offset = kHeaderLength + extensions.size();
    header.backing_file_size = static_cast<std::uint32_t>(backing.name.size());
  }
  return text_of(header) + std::string(kHeaderLength - sizeof header, '\0') + extensions +
         backing.name;
}

std::uint64_t Qcow2Overlay::suitable_cluster_size(const ExtentMap& map) {
  if (map.bytes(State::unchanged) == 0)
    return kPreferredCluster;
  std::uint64_t size = std::max(map.alignment(kPreferredCluster), kSmallestCluster);
  while (size < kPreferredCluster && l1_entries_for(map.size(), size) * sizeof(be64) > kMaxL1Bytes)
    size *= 2;
  return size;
}

Qcow2Overlay::Qcow2Overlay(const File& file, const ExtentMap& map, std::uint64_t cluster_size,
                           const Backing& backing)
    : file_(&file), map_(&map) {
  invariant(is_power_of_two(cluster_size) && cluster_size >= kSmallestCluster,
            "an overlay's cluster size is a power of two, at least 4 KiB");
  if (backing.name.size() > kMaxBackingNameLength)
    fail(ENAMETOOLONG, "{}: the backing file's name has {} bytes; qcow2 allows {}", file.name(),
         backing.name.size(), kMaxBackingNameLength);
  layout_ = std::make_unique<const Layout>(map, cluster_size);
  const Layout& layout = *layout_;
  if (layout.l1_entries * sizeof(be64) > kMaxL1Bytes ||
      layout.refcount_table * cluster_size > kMaxRefcountTableBytes)
    fail(EFBIG, "{}: a disk of {} bytes is too large for qcow2 with clusters of {} bytes",
         file.name(), map.size(), cluster_size);
  data_start_ = layout.data_offset();
  header_ = layout.header(map.size(), backing);
  file.resize(0);
  file.resize(layout.total() * cluster_size);
}

Qcow2Overlay::~Qcow2Overlay() = default;

void Qcow2Overlay::write_tables(const std::stop_token& stop) const {
  layout_->write_refcounts(*file_, stop);
  layout_->write_l1(*file_, *map_);
  layout_->write_l2(*file_, *map_, stop);
}

std::uint64_t Qcow2Overlay::file_size(const ExtentMap& map, std::uint64_t cluster_size) {
  return Layout(map, cluster_size).total() * cluster_size;
}

template <class Body>
bool Qcow2Overlay::for_each_place(std::uint64_t offset, std::uint64_t length, Body body) const {
  const std::uint64_t end = offset + length;
  bool go_on = true;
  for (auto cursor = map_->at(offset); go_on && !cursor.at_end() && cursor.extent().offset < end;
       cursor.next()) {
    const Extent& run = cursor.extent();
    if (run.state != State::data)
      continue;
    const std::uint64_t from = std::max(run.offset, offset);
    const std::uint64_t to = std::min(run.end(), end);
    go_on = body(from, to - from, data_start_ + cursor.data_before() + (from - run.offset));
  }
  return go_on;
}

void Qcow2Overlay::write(std::span<const std::byte> data, std::uint64_t offset) const {
  for_each_place(offset, data.size(),
                 [&](std::uint64_t from, std::uint64_t length, std::uint64_t host) {
                   file_->write_at(data.subspan(from - offset, length), host);
                   return true;
                 });
}

void Qcow2Overlay::write_packed(std::span<const std::byte> data, std::uint64_t data_before) const {
  invariant(data_before + data.size() <= map_->bytes(State::data), "there is that much data");
  file_->write_at(data, data_start_ + data_before);
}

bool Qcow2Overlay::copy_from(const File& from, std::uint64_t from_offset, std::uint64_t length,
                             std::uint64_t offset) const {
  return for_each_place(
      offset, length, [&](std::uint64_t begin, std::uint64_t count, std::uint64_t host) {
        return file_->copy_from(from, from_offset + (begin - offset), count, host);
      });
}

void Qcow2Overlay::finish() const {
  file_->sync();
  file_->write_at(std::as_bytes(std::span(header_)), 0);
  file_->sync();
}

}  // namespace nbdelta::image
