#include "image/qcow2_layer.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/compressed_cluster.hpp"
#include "image/known_runs.hpp"

namespace nbdelta::image {

using namespace qcow2;

/// qcow2 specification, "Compressed Clusters Descriptor".
struct CompressedCluster {
  std::uint64_t offset;
  std::uint64_t length;  // up to the end of the last sector; the stream may end before

  CompressedCluster(std::uint64_t descriptor, unsigned cluster_bits) {
    const unsigned offset_bits = 62 - (cluster_bits - 8);
    offset = descriptor & ((std::uint64_t{1} << offset_bits) - 1);
    const std::uint64_t more_sectors = (descriptor & (kCompressed - 1)) >> offset_bits;
    length = (more_sectors + 1) * 512 - offset % 512;
  }
};

Qcow2Layer::Qcow2Layer(Files files, Qcow2Header header, BlockCache& metadata_cache,
                       BlockCache& decompressed_cache, std::uint64_t source)
    : files_(std::move(files)),
      header_(std::move(header)),
      metadata_(files_.metadata, metadata_cache, source),
      data_(files_.data ? files_.data : files_.metadata, files_.direct_alignment),
      decompressed_(decompressed_cache),
      source_(source) {
  check_l1();
}

/// Every L2 table has a place of its own, whatever else may be wrong in it.
void Qcow2Layer::check_l1() const {
  std::vector<std::uint64_t> tables;
  const std::uint64_t covered = header_.l2_entries() << header_.cluster_bits;
  for (std::uint64_t i = 0; i < header_.l1_entries;) {
    const auto entries =
        metadata_.entries(header_.l1_offset + i * sizeof(be64), header_.l1_entries - i, "L1 table");
    for (std::size_t j = 0; j < entries.size(); ++j)
      if ((entries[j] & kOffsetMask) != 0)
        tables.push_back(check_l2_offset(entries[j], (i + j) * covered));
    i += entries.size();
  }
  std::sort(tables.begin(), tables.end());
  const auto twice = std::adjacent_find(tables.begin(), tables.end());
  if (twice != tables.end())
    fail(EIO, "{}: L1 table: two entries point to the same L2 table at {:#x}", name(), *twice);
}

std::uint64_t Qcow2Layer::check_l2_offset(std::uint64_t l1_entry, std::uint64_t guest) const {
  const std::uint64_t table = l1_entry & kOffsetMask;
  if (table % header_.cluster_size() != 0)
    fail(EIO, "{}: L1 entry of guest offset {:#x}: L2 table offset {:#x} is not aligned", name(),
         guest, table);
  if (table >= metadata_.file_size() || header_.cluster_size() > metadata_.file_size() - table)
    fail(EIO,
         "{}: L1 entry of guest offset {:#x}: the L2 table at {:#x} passes the end of the "
         "file ({:#x})",
         name(), guest, table, metadata_.file_size());
  if (const auto* region = header_.region_at(table, header_.cluster_size()))
    fail(EIO, "{}: L1 entry of guest offset {:#x}: the L2 table at {:#x} overlaps {}", name(),
         guest, table, region->what);
  return table;
}

Run Qcow2Layer::run_at(std::uint64_t offset, std::uint64_t limit) const {
  return run_at(offset, limit, [this](auto, auto... place) { return metadata_.entries(place...); });
}

Run Qcow2Layer::run_at(std::uint64_t offset, std::uint64_t limit, LayerWalk& walk) const {
  if (walk.known != nullptr) {
    const Run known = walk.known->at(offset, limit, walk.next_known);
    if (known.length != 0)
      return known;
  }
  const std::size_t words = header_.l2_entry_size() / sizeof(be64);
  if (offset >= walk.begin && offset < walk.end) {
    const std::uint64_t skipped = (offset - walk.begin) >> header_.cluster_bits;
    return run_in_l2(walk.l2_table, walk.entries.without(skipped * words), offset, limit);
  }
  walk.end = walk.begin;  // the window moves
  return run_at(offset, limit,
                [&](MetadataWindow LayerWalk::*window, std::uint64_t at, auto... of) {
                  const auto entries = metadata_.entries(at, of..., walk.*window);
                  if (window == &LayerWalk::inner) {
                    walk.entries = entries;
                    walk.l2_table = round_down(at, header_.cluster_size());
                    walk.begin = round_down(offset, header_.cluster_size());
                    walk.end = walk.begin + entries.size() / words * header_.cluster_size();
                  }
                  return entries;
                });
}

template <class Entries>
Run Qcow2Layer::run_at(std::uint64_t offset, std::uint64_t limit, Entries entries) const {
  const std::uint64_t index =
      offset >> header_.cluster_bits >> std::countr_zero(header_.l2_entries());
  const auto l1 = entries(&LayerWalk::outer, header_.l1_offset + index * sizeof(be64),
                          header_.l1_entries - index, "L1 table");
  if ((l1[0] & kOffsetMask) == 0)
    return run_without_l2(offset, limit, l1);
  const std::uint64_t table = check_l2_offset(l1[0], offset);
  const std::size_t words = header_.l2_entry_size() / sizeof(be64);
  const std::uint64_t first = (offset >> header_.cluster_bits) & (header_.l2_entries() - 1);
  return run_in_l2(table,
                   entries(&LayerWalk::inner, table + first * header_.l2_entry_size(),
                           (header_.l2_entries() - first) * words, "L2 table"),
                   offset, limit);
}

Run Qcow2Layer::run_without_l2(std::uint64_t guest, std::uint64_t limit,
                               const MetadataReader::Entries& l1) const {
  const std::uint64_t covered = header_.l2_entries() << header_.cluster_bits;
  const std::uint64_t start = guest - guest % covered;
  std::size_t absent = 1;
  while (absent < l1.size() && absent * covered < guest - start + limit &&
         (l1[absent] & kOffsetMask) == 0)
    ++absent;
  return {.allocation = Allocation::unallocated,
          .length = std::min(limit, start + absent * covered - guest)};
}

/// Joins the pieces of neighbouring clusters, within what `entries` shows.
Run Qcow2Layer::run_in_l2(std::uint64_t l2_table, const MetadataReader::Entries& entries,
                          std::uint64_t guest, std::uint64_t limit) const {
  const std::size_t words = header_.l2_entry_size() / sizeof(be64);
  Run run;
  for (std::size_t i = 0; i + words <= entries.size() && run.length < limit; i += words) {
    const std::uint64_t position = guest + run.length;
    const Run piece = words == 1 ? piece_of_cluster(entries[i], position)
                                 : piece_of_subclusters(entries[i], entries[i + 1], position);
    if (piece.allocation == Allocation::data && !header_.external_data &&
        round_down(raw(piece.host_offset), header_.cluster_size()) == l2_table)
      fail(EIO, "{}: L2 table of guest offset {:#x}: host offset {:#x} is the L2 table itself",
           name(), position, l2_table);
    const bool continues = piece.allocation == run.allocation &&
                           piece.allocation != Allocation::compressed &&
                           (piece.allocation != Allocation::data ||
                            raw(piece.host_offset) == raw(run.host_offset) + run.length);
    if (run.length != 0 && !continues)
      break;
    if (run.length == 0)
      run = piece;
    else
      run.length += piece.length;
    if (offset_in_cluster(guest + run.length) != 0)
      break;  // the rest of this cluster differs
  }
  if (run.length == 0)  // half an extended entry: the file was cut since it was opened
    fail(EIO, "{}: L2 table at {:#x} of guest offset {:#x} is cut off by the end of the file",
         name(), l2_table, guest);
  run.length = std::min(run.length, limit);
  return run;
}

/// From `guest` to the end of its cluster.
Run Qcow2Layer::piece_of_cluster(std::uint64_t descriptor, std::uint64_t guest) const {
  const std::uint64_t length = header_.cluster_size() - offset_in_cluster(guest);
  if ((descriptor & kCompressed) != 0)
    return {Allocation::compressed, length, HostOffset{descriptor}};
  const std::uint64_t host = descriptor & kOffsetMask;
  if ((descriptor & kZeroFlag) != 0 && !header_.extended_l2) {
    if (header_.version < 3)
      fail(EIO, "{}: L2 entry of guest offset {:#x}: a zero cluster in a version 2 image", name(),
           guest);
    return {Allocation::zero, length, {}};
  }
  // Only an external data file can hold data at offset 0; there, "copied" tells it from nothing.
  if (host == 0 && !(header_.external_data && (descriptor & kCopied) != 0))
    return {Allocation::unallocated, length, {}};
  check_data_offset(host, guest);
  return {Allocation::data, length, HostOffset{host + offset_in_cluster(guest)}};
}

/// qcow2 specification, "Extended L2 Entries": from `guest` on, subclusters of one kind.
Run Qcow2Layer::piece_of_subclusters(std::uint64_t descriptor, std::uint64_t bitmap,
                                     std::uint64_t guest) const {
  Run whole = piece_of_cluster(descriptor, guest);
  if (whole.allocation == Allocation::compressed)
    return whole;
  const auto allocated = static_cast<std::uint32_t>(bitmap);
  const auto zero = static_cast<std::uint32_t>(bitmap >> 32);
  if ((allocated & zero) != 0 || (allocated != 0 && whole.allocation != Allocation::data))
    fail(EIO, "{}: L2 entry of guest offset {:#x}: the subcluster bitmap {:#018x} is invalid",
         name(), guest, bitmap);
  const std::uint64_t subcluster = header_.cluster_size() / kSubclusters;
  const std::uint64_t inside = offset_in_cluster(guest);
  const auto index = static_cast<unsigned>(inside / subcluster);
  const std::uint32_t allocated_here = allocated >> index;
  const std::uint32_t zero_here = zero >> index;
  Run piece;
  std::uint32_t same = ~(allocated_here | zero_here);  // bit i: like the first subcluster
  if ((zero_here & 1) != 0) {
    piece.allocation = Allocation::zero;
    same = zero_here;
  } else if ((allocated_here & 1) != 0) {
    piece.allocation = Allocation::data;
    piece.host_offset = whole.host_offset;
    same = allocated_here;
  }
  const unsigned count =
      std::min(static_cast<unsigned>(std::countr_one(same)), kSubclusters - index);
  piece.length = (index + count) * subcluster - inside;
  return piece;
}

void Qcow2Layer::check_data_offset(std::uint64_t host, std::uint64_t guest) const {
  if (host % header_.cluster_size() != 0)
    fail(EIO, "{}: L2 table of guest offset {:#x}: host offset {:#x} is not aligned", name(), guest,
         host);
  if (host >= data_.size())
    fail(EIO, "{}: L2 table of guest offset {:#x}: host offset {:#x} is past the end of {} ({:#x})",
         name(), guest, host, header_.external_data ? data_.file().name() : "the file",
         data_.size());
  if (header_.external_data)
    return;
  if (const auto* region = header_.region_at(host, header_.cluster_size()))
    fail(EIO, "{}: L2 table of guest offset {:#x}: host offset {:#x} overlaps {}", name(), guest,
         host, region->what);
}

void Qcow2Layer::read(std::span<std::byte> out, std::uint64_t offset, const Run& run) const {
  if (run.allocation == Allocation::data) {
    data_.read(out, run.host_offset);
    return;
  }
  const CompressedCluster place(raw(run.host_offset), header_.cluster_bits);
  if (out.size() == header_.cluster_size()) {  // nothing of it is left for another read
    decompress(place, offset, out);
    return;
  }
  const auto cluster = decompressed_.get(
      {.source = source_, .offset = place.offset}, [&](std::span<std::byte> fresh) {
        decompress(place, offset, fresh.first(header_.cluster_size()));
        return header_.cluster_size();
      });
  std::memcpy(out.data(), cluster->data() + offset_in_cluster(offset), out.size());
}

void Qcow2Layer::decompress(const CompressedCluster& place, std::uint64_t guest,
                            std::span<std::byte> cluster) const {
  if (header_.external_data)
    fail(EIO, "{}: guest offset {:#x}: a compressed cluster in an image with an external data file",
         name(), guest);
  if (place.offset >= data_.size())
    fail(EIO,
         "{}: L2 table of guest offset {:#x}: the compressed cluster at {:#x} is past the end "
         "of the file ({:#x})",
         name(), guest, place.offset, data_.size());
  if (const auto* region = header_.region_at(place.offset, 1))
    fail(EIO, "{}: L2 table of guest offset {:#x}: the compressed cluster at {:#x} overlaps {}",
         name(), guest, place.offset, region->what);
  thread_local std::vector<std::byte> buffer;
  if (buffer.size() < place.length)
    buffer.resize(place.length);
  auto compressed = std::span(buffer).first(place.length);
  compressed = compressed.first(data_.read_up_to(compressed, HostOffset{place.offset}));
  if (!decompress_cluster(header_.compression, compressed, cluster))
    fail(EIO, "{}: guest offset {:#x}: the compressed cluster at {:#x} ({} bytes) is damaged",
         name(), guest, place.offset, compressed.size());
}

void Qcow2Layer::will_need(const Run& run) const {
  if (run.allocation == Allocation::data) {
    data_.will_need(run.host_offset, run.length);
  } else if (run.allocation == Allocation::compressed) {
    const CompressedCluster place(raw(run.host_offset), header_.cluster_bits);
    data_.will_need(HostOffset{place.offset}, place.length);
  }
}

void Qcow2Layer::entry_will_be_read(std::uint64_t offset, LayerWalk& announced) const {
  if (offset < announced.end)
    return;
  const std::uint64_t together = bytes_of_metadata_block();
  const std::uint64_t begin = round_down(offset, together);
  const bool is_next = begin == announced.end;
  announced.end = begin + together;
  if (is_next)
    return;
  const std::uint64_t cluster = offset >> header_.cluster_bits;
  const std::uint64_t index = cluster / header_.l2_entries();
  const std::uint64_t table =
      metadata_.entries(header_.l1_offset + index * sizeof(be64), header_.l1_entries - index,
                        "L1 table", announced.outer)[0] &
      kOffsetMask;
  if (table != 0)
    metadata_.will_need(table + cluster % header_.l2_entries() * header_.l2_entry_size());
}

std::vector<DirtyBitmap::Info> Qcow2Layer::bitmaps() const {
  if (!header_.bitmaps)
    return {};
  return read_bitmap_directory(files_.metadata, *header_.bitmaps, header_.cluster_size());
}

DirtyBitmap Qcow2Layer::bitmap(std::string_view wanted) const {
  std::string known;
  for (DirtyBitmap::Info& info : bitmaps()) {
    if (info.name == wanted)
      return bitmap(std::move(info));
    known += (known.empty() ? "" : ", ") + info.name;
  }
  if (header_.bitmaps_stale)
    fail(
        ENOENT,
        "{}: bitmap '{}': the image's bitmaps are not valid any more: a program that does not know "
        "bitmaps wrote to it (autoclear feature bit 0)",
        name(), wanted);
  fail(ENOENT, "{}: has no persistent bitmap '{}' (it has: {})", name(), wanted,
       known.empty() ? "none" : known);
}

DirtyBitmap Qcow2Layer::bitmap(DirtyBitmap::Info info) const {
  if (header_.dirty_refcounts)
    fail(EINVAL,
         "{}: bitmap '{}': the image was not closed properly (incompatible feature bit 0): it may "
         "miss writes",
         name(), info.name);
  return {std::move(info), metadata_, header_};
}

}  // namespace nbdelta::image
