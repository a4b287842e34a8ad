#include "image/dirty_bitmap.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <span>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::image {
namespace {

using namespace qcow2;

constexpr std::uint64_t kTableReservedBits = 0xff000000000001fe;  // "Bitmap table"

std::uint64_t word_at(std::span<const std::byte> bits, std::size_t byte) {
  std::uint64_t word = 0;
  std::memcpy(&word, bits.data() + byte, std::min<std::size_t>(8, bits.size() - byte));
  if constexpr (std::endian::native == std::endian::big)
    word = __builtin_bswap64(word);
  return word;
}

/// The first bit at or after `from` that is not `value`, or `to`. Bit n is bit n % 8 of byte n / 8
/// ("Bitmap data").
std::uint64_t end_of_equal_bits(std::span<const std::byte> bits, std::uint64_t from,
                                std::uint64_t to, bool value) {
  while (from < to) {
    const std::uint64_t word = word_at(bits, from / 64 * 8) >> from % 64;
    const auto here =
        static_cast<std::uint64_t>(value ? std::countr_one(word) : std::countr_zero(word));
    const std::uint64_t left_in_word = 64 - from % 64;
    if (here < left_in_word)
      return std::min(from + here, to);
    from += left_in_word;
  }
  return to;
}

/// Reads the directory's entries one after the other.
class DirectoryParser {
 public:
  DirectoryParser(const File& file, const Qcow2Header::Bitmaps& place, std::uint64_t cluster_size)
      : file_(file), cluster_size_(cluster_size), bytes_(place.directory_size) {
    file.read_exactly_at(bytes_, place.directory_offset);
  }

  bool at_end() const { return at_ == bytes_.size(); }

  DirtyBitmap::Info next() {
    BitmapDirectoryEntry entry;
    if (bytes_.size() - at_ < sizeof entry)
      refuse("is cut off");
    std::memcpy(&entry, bytes_.data() + at_, sizeof entry);
    const std::uint64_t used =
        sizeof entry + std::uint64_t{entry.extra_data_size} + std::uint64_t{entry.name_size};
    if (round_up(used, 8) > bytes_.size() - at_)
      refuse("passes the directory's end");
    check(entry);
    const char* const name =
        reinterpret_cast<const char*>(bytes_.data() + at_ + sizeof entry + entry.extra_data_size);
    if (std::memchr(name, 0, entry.name_size) != nullptr)
      refuse("has a NUL byte in its name");
    DirtyBitmap::Info info{
        .name = std::string(name, entry.name_size),
        .granularity = std::uint64_t{1} << entry.granularity_bits,
        .in_use = (entry.flags & kBitmapInUse) != 0,
        .enabled = (entry.flags & kBitmapAuto) != 0,
        .readable = entry.extra_data_size == 0 || (entry.flags & kBitmapExtraDataCompatible) != 0,
        .table_offset = entry.table_offset,
        .table_entries = entry.table_size,
    };
    at_ += round_up(used, 8);
    return info;
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(EIO, fmt::format("{}: bitmap directory: the entry at byte {} ", file_.name(), at_) +
                         fmt::format(format, std::forward<Args>(args)...));
  }

  void check(const BitmapDirectoryEntry& entry) const {
    if (entry.type != kDirtyTrackingBitmap)
      refuse("has type {}; only 1 (dirty tracking) is known", entry.type);
    if (entry.granularity_bits < kMinGranularityBits ||
        entry.granularity_bits > kMaxGranularityBits)
      refuse("has granularity_bits {}, not {} to {}", entry.granularity_bits, kMinGranularityBits,
             kMaxGranularityBits);
    if (entry.name_size == 0 || entry.name_size > kMaxBitmapNameLength)
      refuse("has a name of {} bytes, not 1 to {}", std::uint16_t{entry.name_size},
             kMaxBitmapNameLength);
    const std::uint32_t known_flags = kBitmapInUse | kBitmapAuto | kBitmapExtraDataCompatible;
    if ((entry.flags & ~known_flags) != 0)
      refuse("has unknown flags {:#x}", entry.flags & ~known_flags);
    if (entry.table_offset == 0 || entry.table_offset % cluster_size_ != 0)
      refuse("has its table at {:#x}, which is 0 or not aligned",
             std::uint64_t{entry.table_offset});
  }

  const File& file_;
  std::uint64_t cluster_size_;
  std::vector<std::byte> bytes_;
  std::size_t at_ = 0;
};

/// Two bitmaps that share a table: one of them says what the other should.
void refuse_overlapping_tables(const File& file, const std::vector<DirtyBitmap::Info>& bitmaps) {
  std::vector<const DirtyBitmap::Info*> tables;
  for (const DirtyBitmap::Info& info : bitmaps)
    if (info.table_entries != 0)
      tables.push_back(&info);
  std::sort(tables.begin(), tables.end(),
            [](const auto* a, const auto* b) { return a->table_offset < b->table_offset; });
  for (std::size_t i = 1; i < tables.size(); ++i) {
    const DirtyBitmap::Info& before = *tables[i - 1];
    if (tables[i]->table_offset - before.table_offset < before.table_entries * sizeof(be64))
      fail(EIO, "{}: bitmap directory: the tables of '{}' ({:#x}) and '{}' ({:#x}) overlap",
           file.name(), before.name, before.table_offset, tables[i]->name, tables[i]->table_offset);
  }
}

}  // namespace

std::vector<DirtyBitmap::Info> read_bitmap_directory(const File& file,
                                                     const Qcow2Header::Bitmaps& place,
                                                     std::uint64_t cluster_size) {
  DirectoryParser parser(file, place, cluster_size);
  std::vector<DirtyBitmap::Info> bitmaps;
  std::set<std::string, std::less<>> names;
  while (!parser.at_end()) {
    bitmaps.push_back(parser.next());
    if (!names.insert(bitmaps.back().name).second)
      fail(EIO, "{}: bitmap directory: two bitmaps are called '{}'", file.name(),
           bitmaps.back().name);
  }
  if (bitmaps.size() != place.count)
    fail(EIO, "{}: bitmap directory: has {} entries, the header says {}", file.name(),
         bitmaps.size(), place.count);
  refuse_overlapping_tables(file, bitmaps);
  return bitmaps;
}

DirtyBitmap::DirtyBitmap(Info info, const MetadataReader& metadata, const Qcow2Header& header)
    : info_(std::move(info)), metadata_(&metadata), header_(&header) {
  const std::string& file = metadata.file().name();
  if (info_.in_use)
    fail(EINVAL,
         "{}: bitmap '{}' is in use: QEMU has the image open, or ended without saving the bitmap; "
         "its contents cannot be trusted",
         file, info_.name);
  if (!info_.readable)
    fail(EINVAL, "{}: bitmap '{}' has extra data that is not known here", file, info_.name);
  const std::uint64_t bytes = div_round_up(div_round_up(header.size, info_.granularity), 8);
  const std::uint64_t entries = div_round_up(bytes, header.cluster_size());
  if (info_.table_entries != entries)
    fail(EINVAL,
         "{}: bitmap '{}': its table has {} entries; a disk of {} bytes with a granularity of {} "
         "needs {}",
         file, info_.name, info_.table_entries, header.size, info_.granularity, entries);
  const std::uint64_t table_bytes = entries * sizeof(be64);
  if (info_.table_offset > metadata.file_size() ||
      table_bytes > metadata.file_size() - info_.table_offset)
    fail(EIO, "{}: bitmap '{}': its table ({} bytes at {:#x}) passes the end of the file ({:#x})",
         file, info_.name, table_bytes, info_.table_offset, metadata.file_size());
  if (const auto* region = header.region_at(info_.table_offset, table_bytes))
    fail(EIO, "{}: bitmap '{}': its table at {:#x} overlaps {}", file, info_.name,
         info_.table_offset, region->what);
}

void DirtyBitmap::for_each_extent(std::uint64_t offset, std::uint64_t length,
                                  const ExtentSink& sink) const {
  const std::uint64_t end = offset + length;
  const std::uint64_t covered = header_->cluster_size() * 8 * info_.granularity;
  MetadataWindow window;
  while (offset < end) {
    const std::uint64_t index = offset / covered;
    const auto entries = metadata_->entries(info_.table_offset + index * sizeof(be64),
                                            info_.table_entries - index, "bitmap table");
    for (std::size_t i = 0; i < entries.size() && offset < end; ++i) {
      const std::uint64_t start = (index + i) * covered;
      const std::uint64_t part_end = std::min(end - start, covered) + start;
      if (!walk_table_entry(entries[i], start, offset, part_end, window, sink))
        return;
      offset = part_end;
    }
  }
}

/// [from, to) is what the caller wants of the part of the disk that begins at `start`.
bool DirtyBitmap::walk_table_entry(std::uint64_t entry, std::uint64_t start, std::uint64_t from,
                                   std::uint64_t to, MetadataWindow& window,
                                   const ExtentSink& sink) const {
  const std::uint64_t host = entry & kOffsetMask;
  if (host == 0 && (entry & kTableReservedBits) == 0) {
    const State state = (entry & kBitmapAllOnes) != 0 ? State::data : State::unchanged;
    return sink({.offset = from, .length = to - from, .state = state});
  }
  check_table_entry(entry, from);
  const std::uint64_t granularity = info_.granularity;
  const std::uint64_t last_bit = div_round_up(to - start, granularity);
  for (std::uint64_t bit = (from - start) / granularity; bit < last_bit;) {
    // Whole words, so that a word never lies across two windows.
    const std::uint64_t first_byte = bit / 64 * 8;
    const auto view =
        metadata_->bytes(host + first_byte, round_up(div_round_up(last_bit, 8), 8) - first_byte,
                         "bitmap data", window);
    const std::uint64_t base = first_byte * 8;
    const std::uint64_t block_end = std::min(base + view.size() * 8, last_bit);
    if (block_end <= bit)
      fail(EIO, "{}: bitmap '{}': its data at {:#x} is past the end of the file ({:#x})",
           metadata_->file().name(), info_.name, host + bit / 8, metadata_->file_size());
    while (bit < block_end) {
      const bool set = (view[(bit - base) / 8] >> (bit % 8) & std::byte{1}) != std::byte{0};
      const std::uint64_t next = base + end_of_equal_bits(view, bit - base, block_end - base, set);
      const std::uint64_t extent_start = std::max(from, start + bit * granularity);
      const std::uint64_t extent_end = std::min(to, start + next * granularity);
      if (!sink({.offset = extent_start,
                 .length = extent_end - extent_start,
                 .state = set ? State::data : State::unchanged}))
        return false;
      bit = next;
    }
  }
  return true;
}

void DirtyBitmap::check_table_entry(std::uint64_t entry, std::uint64_t guest) const {
  const std::uint64_t host = entry & kOffsetMask;
  const std::uint64_t cluster_size = header_->cluster_size();
  const auto refuse = [&](const std::string& why) {
    fail(EIO, "{}: bitmap '{}': table entry {:#018x} of guest offset {:#x}: {}",
         metadata_->file().name(), info_.name, entry, guest, why);
  };
  if ((entry & (kTableReservedBits | kBitmapAllOnes)) != 0)
    refuse("reserved bits are set");
  if (host % cluster_size != 0)
    refuse("its offset is not aligned");
  if (host >= metadata_->file_size())
    refuse(fmt::format("is past the end of the file ({:#x})", metadata_->file_size()));
  if (const auto* region = header_->region_at(host, cluster_size))
    refuse(fmt::format("overlaps {}", region->what));
  const std::uint64_t table_end = info_.table_offset + info_.table_entries * sizeof(be64);
  if (host < table_end && info_.table_offset < host + cluster_size)
    refuse("overlaps the bitmap's own table");
}

}  // namespace nbdelta::image
