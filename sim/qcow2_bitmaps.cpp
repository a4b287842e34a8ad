#include "sim/qcow2_bitmaps.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/dirty_bitmap.hpp"
#include "sim/stamp.hpp"

namespace nbdelta::sim {

using namespace image::qcow2;

namespace {

/// [offset, offset + clusters) of a file.
struct Clusters {
  std::uint64_t offset;
  std::uint64_t count;
};

/// What the directory leads to, and itself.
std::vector<Clusters> clusters_of(const File& file, const Qcow2HeaderFile& header) {
  std::vector<Clusters> found;
  if (!header.bitmaps)
    return found;
  const std::uint64_t cluster = std::uint64_t{1} << header.header().cluster_bits;
  const image::Qcow2Header::Bitmaps place{.count = header.bitmaps->nb_bitmaps,
                                          .directory_offset = header.bitmaps->directory_offset,
                                          .directory_size = header.bitmaps->directory_size};
  found.push_back({place.directory_offset, div_round_up(place.directory_size, cluster)});
  for (const auto& bitmap : image::read_bitmap_directory(file, place, cluster)) {
    std::vector<be64> table(bitmap.table_entries);
    file.read_exactly_at(std::as_writable_bytes(std::span(table)), bitmap.table_offset);
    found.push_back({bitmap.table_offset, div_round_up(table.size() * sizeof(be64), cluster)});
    for (const std::uint64_t entry : table)
      if ((entry & kOffsetMask) != 0)
        found.push_back({entry & kOffsetMask, 1});
  }
  return found;
}

/// Bits as the file has them.
std::vector<std::byte> bytes_of(const std::vector<bool>& bits) {
  std::vector<std::byte> bytes(div_round_up(bits.size(), 8));
  for (std::size_t i = 0; i < bits.size(); ++i)
    if (bits[i])
      bytes[i / 8] |= static_cast<std::byte>(1U << i % 8);
  return bytes;
}

class BitmapsWriter {
 public:
  BitmapsWriter(const File& file, std::uint64_t cluster_size, Qcow2Refcounts& refcounts)
      : file_(&file), cluster_size_(cluster_size), refcounts_(&refcounts) {}

  void add(const StoredBitmap& bitmap) {
    const std::vector<std::byte> bytes = bytes_of(bitmap.bits);
    std::vector<be64> table(div_round_up(bytes.size(), cluster_size_), be64(0));
    for (std::size_t i = 0; i < table.size(); ++i) {
      std::vector<std::byte> part(cluster_size_);
      const std::size_t length = std::min(cluster_size_, bytes.size() - i * cluster_size_);
      std::memcpy(part.data(), bytes.data() + i * cluster_size_, length);
      if (std::any_of(part.begin(), part.end(), [](std::byte b) { return b != std::byte{0}; }))
        table[i] = write(part);
    }
    BitmapDirectoryEntry entry{};
    entry.table_offset = write(std::as_bytes(std::span(table)));
    entry.table_size = static_cast<std::uint32_t>(table.size());
    entry.flags = (bitmap.in_use ? kBitmapInUse : 0) | (bitmap.recording ? kBitmapAuto : 0);
    entry.type = kDirtyTrackingBitmap;
    entry.granularity_bits = std::countr_zero(kFileGranule);
    entry.name_size = static_cast<std::uint16_t>(bitmap.name.size());
    directory_.append(reinterpret_cast<const char*>(&entry), sizeof entry);
    directory_ += bitmap.name;
    directory_.resize(round_up(directory_.size(), 8));
    ++count_;
  }

  /// What was written so far is given back.
  void abandon() {
    for (const Clusters& clusters : written_)
      refcounts_->free(clusters.offset, clusters.count);
  }

  BitmapsExtension finish() {
    BitmapsExtension extension{};
    extension.nb_bitmaps = count_;
    extension.directory_size = directory_.size();
    extension.directory_offset = write(std::as_bytes(std::span(directory_)));
    return extension;
  }

 private:
  std::uint64_t write(std::span<const std::byte> bytes) {
    const std::uint64_t clusters = div_round_up(bytes.size(), cluster_size_);
    const std::uint64_t offset = refcounts_->allocate(clusters);
    written_.push_back({offset, clusters});
    file_->write_at(bytes, offset);
    return offset;
  }

  const File* file_;
  std::uint64_t cluster_size_;
  Qcow2Refcounts* refcounts_;
  std::vector<Clusters> written_;
  std::string directory_;
  std::uint32_t count_ = 0;
};

}  // namespace

std::vector<StoredBitmap> read_bitmaps(const File& file, std::uint64_t granules) {
  const image::Qcow2Header header = image::read_qcow2_header(file);
  std::vector<StoredBitmap> bitmaps;
  if (!header.bitmaps)
    return bitmaps;
  image::BlockCache cache(4 * image::MetadataReader::kBlock, image::MetadataReader::kBlock);
  const image::MetadataReader metadata(file, cache, 0);
  for (image::DirtyBitmap::Info& info :
       image::read_bitmap_directory(file, *header.bitmaps, header.cluster_size())) {
    StoredBitmap bitmap{.name = info.name,
                        .recording = info.enabled,
                        .in_use = info.in_use,
                        .bits = std::vector<bool>(granules)};
    const auto take = [&](const image::Extent& extent) {
      if (extent.state != image::State::data)
        return true;
      const std::uint64_t end = std::min(div_round_up(extent.end(), kFileGranule), granules);
      for (std::uint64_t i = extent.offset / kFileGranule; i < end; ++i)
        bitmap.bits[i] = true;
      return true;
    };
    if (!bitmap.in_use)
      image::DirtyBitmap(std::move(info), metadata, header).for_each_extent(0, header.size, take);
    bitmaps.push_back(std::move(bitmap));
  }
  return bitmaps;
}

void write_bitmaps(const File& file, Qcow2HeaderFile& header, Qcow2Refcounts& refcounts,
                   const std::vector<StoredBitmap>& bitmaps) {
  const std::vector<Clusters> before = clusters_of(file, header);
  const auto extension_before = header.bitmaps;
  BitmapsWriter writer(file, std::uint64_t{1} << header.header().cluster_bits, refcounts);
  try {
    for (const StoredBitmap& bitmap : bitmaps)
      writer.add(bitmap);
    if (bitmaps.empty())
      header.bitmaps.reset();
    else
      header.bitmaps = writer.finish();
    refcounts.flush(header);
    header.write(file);
  } catch (const Error&) {
    header.bitmaps = extension_before;
    writer.abandon();
    throw;
  }
  for (const Clusters& clusters : before)
    refcounts.free(clusters.offset, clusters.count);
  refcounts.flush(header);
}

}  // namespace nbdelta::sim
