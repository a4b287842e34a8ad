#include "image/qcow2_header.hpp"

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::image {
namespace {

bool begins_with_magic(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "QFI\xfb", 4) == 0;
}

using namespace qcow2;

constexpr std::uint64_t kLargestCluster = std::uint64_t{1} << kMaxClusterBits;
constexpr std::size_t kFirstRead = 4096;  // enough for the fixed fields

class HeaderParser {
 public:
  explicit HeaderParser(const File& file) : file_(file), file_size_(file.size()) {}

  Qcow2Header parse() {
    read_fixed_fields();
    parse_geometry();
    parse_features();
    parse_extensions();
    name_unknown_features();
    parse_backing_name();
    check_data_file();
    check_tables();
    return std::move(header_);
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(EINVAL, file_.name() + ": " + fmt::format(format, std::forward<Args>(args)...));
  }

  /// Of the first cluster so much that `length` bytes are there, if the file has them.
  void read_up_to(std::size_t length) {
    bytes_.resize(std::min<std::uint64_t>(file_size_, length));
    file_.read_exactly_at(bytes_, 0);
  }

  void read_fixed_fields() {
    read_up_to(kFirstRead);
    if (!begins_with_magic(bytes_))
      refuse("is not a qcow2 image (no magic at offset 0); say format=raw for a raw one");
    if (bytes_.size() < kVersion2HeaderLength)
      refuse("qcow2 header: is cut off: the file has {} bytes", file_size_);
    std::memcpy(&on_disk_, bytes_.data(), kVersion2HeaderLength);
    header_.version = on_disk_.version;
    if (header_.version != 2 && header_.version != 3)
      refuse("qcow2 header: version {} is not known (2 and 3 are)", header_.version);
    if (header_.version == 2) {
      on_disk_.header_length = kVersion2HeaderLength;
      return;
    }
    if (bytes_.size() < kVersion3HeaderLength)
      refuse("qcow2 header: is cut off: the file has {} bytes", file_size_);
    std::memcpy(&on_disk_, bytes_.data(), kVersion3HeaderLength);
  }

  void parse_geometry() {
    const std::uint32_t cluster_bits = on_disk_.cluster_bits;
    if (cluster_bits < kMinClusterBits || cluster_bits > kMaxClusterBits)
      refuse("qcow2 header: cluster_bits {} is not in {} to {}", cluster_bits, kMinClusterBits,
             kMaxClusterBits);
    header_.cluster_bits = cluster_bits;
    const std::uint32_t length = on_disk_.header_length;
    if (header_.version == 3 &&
        (length < kVersion3HeaderLength || length > header_.cluster_size() || length % 8 != 0))
      refuse("qcow2 header: header_length {} is not a multiple of 8 in {} to {}", length,
             kVersion3HeaderLength, header_.cluster_size());
    if (length > file_size_)
      refuse("qcow2 header: is cut off: header_length is {}, the file has {} bytes", length,
             file_size_);
    read_up_to(header_.cluster_size());
    header_.size = on_disk_.size;
    if (header_.size > static_cast<std::uint64_t>(INT64_MAX) - kLargestCluster)
      refuse("qcow2 header: the virtual size, {} bytes, is more than a disk can have",
             header_.size);
    if (on_disk_.refcount_order > kMaxRefcountOrder && header_.version == 3)
      refuse("qcow2 header: refcount_order {} is more than {}",
             std::uint32_t{on_disk_.refcount_order}, kMaxRefcountOrder);
  }

  void parse_features() {
    if (on_disk_.crypt_method != 0)
      refuse("is encrypted ({}); encrypted images cannot be read here",
             on_disk_.crypt_method == 1   ? "AES"
             : on_disk_.crypt_method == 2 ? "LUKS"
                                          : "unknown method");
    if (header_.version == 2)
      return;
    const std::uint64_t features = on_disk_.incompatible_features;
    if ((features & kCorrupt) != 0)
      refuse("is marked corrupt (incompatible feature bit 1); 'qemu-img check -r all' repairs it");
    header_.dirty_refcounts = (features & kDirtyRefcounts) != 0;
    header_.external_data = (features & kExternalDataFile) != 0;
    header_.extended_l2 = (features & kExtendedL2) != 0;
    if (header_.extended_l2 && header_.cluster_bits < kMinExtendedL2ClusterBits)
      refuse("qcow2 header: extended L2 entries need clusters of 16 KiB or more, not {} bytes",
             header_.cluster_size());
    unsigned compression = 0;
    if (on_disk_.header_length > kCompressionTypeOffset)
      compression = static_cast<unsigned>(bytes_[kCompressionTypeOffset]);
    if (compression > 1)
      refuse("qcow2 header: compression type {} is not known (0 zlib and 1 zstd are)", compression);
    if ((compression != 0) != ((features & kCompressionType) != 0))
      refuse("qcow2 header: compression type {} and incompatible feature bit 3 disagree",
             compression);
    header_.compression = static_cast<Compression>(compression);
  }

  /// Extensions lie between the header and the backing file's name, or the first cluster's end.
  void parse_extensions() {
    std::size_t end = bytes_.size();
    if (on_disk_.backing_file_offset != 0) {
      if (on_disk_.backing_file_offset > end)
        refuse("qcow2 header: backing_file_offset {:#x} is not in the first cluster",
               std::uint64_t{on_disk_.backing_file_offset});
      end = on_disk_.backing_file_offset;
    }
    std::size_t at = on_disk_.header_length;
    while (at + sizeof(ExtensionHeader) <= end) {
      ExtensionHeader extension;
      std::memcpy(&extension, bytes_.data() + at, sizeof extension);
      at += sizeof extension;
      if (static_cast<Extension>(std::uint32_t{extension.type}) == Extension::end)
        return;
      if (extension.length > end - at)
        refuse("qcow2 header extension {:#x} at {:#x}: its length {} passes the end ({:#x})",
               std::uint32_t{extension.type}, at, std::uint32_t{extension.length}, end);
      parse_extension(static_cast<Extension>(std::uint32_t{extension.type}), at, extension.length);
      at += round_up(extension.length, 8);
    }
  }

  void parse_extension(Extension type, std::size_t at, std::size_t length) {
    const auto text = [&] {
      return std::string(reinterpret_cast<const char*>(bytes_.data() + at), length);
    };
    switch (type) {
      case Extension::backing_format:
        header_.backing_format = text();
        break;
      case Extension::data_file_name:
        header_.data_file_name = text();
        break;
      case Extension::bitmaps:
        parse_bitmaps_extension(at, length);
        break;
      case Extension::feature_names:
        for (std::size_t i = 0; i + sizeof(FeatureName) <= length; i += sizeof(FeatureName)) {
          FeatureName& name = feature_names_.emplace_back();
          std::memcpy(&name, bytes_.data() + at + i, sizeof name);
        }
        break;
      default:  // encryption was refused by crypt_method; others may be ignored
        break;
    }
  }

  void parse_bitmaps_extension(std::size_t at, std::size_t length) {
    BitmapsExtension extension;
    if (length != sizeof extension)
      refuse("qcow2 bitmaps extension: its length is {} rather than {}", length, sizeof extension);
    std::memcpy(&extension, bytes_.data() + at, sizeof extension);
    header_.bitmaps_stale =
        header_.version == 2 || (on_disk_.autoclear_features & kBitmapsValid) == 0;
    if (header_.bitmaps_stale)
      return;
    if (header_.bitmaps)
      refuse("qcow2 bitmaps extension: occurs twice");
    if (extension.nb_bitmaps == 0 || extension.nb_bitmaps > kMaxBitmaps)
      refuse("qcow2 bitmaps extension: nb_bitmaps {} is not in 1 to {}",
             std::uint32_t{extension.nb_bitmaps}, kMaxBitmaps);
    if (extension.reserved != 0)
      refuse("qcow2 bitmaps extension: the reserved field is {:#x}, not 0",
             std::uint32_t{extension.reserved});
    if (extension.directory_size > kMaxBitmapDirectoryBytes)
      refuse("qcow2 bitmaps extension: the directory's size, {} bytes, is more than {}",
             std::uint64_t{extension.directory_size}, kMaxBitmapDirectoryBytes);
    header_.bitmaps = {.count = extension.nb_bitmaps,
                       .directory_offset = extension.directory_offset,
                       .directory_size = extension.directory_size};
  }

  /// The feature name table gives a name to a bit that this reader does not know.
  void name_unknown_features() const {
    if (header_.version == 2)
      return;
    const std::uint64_t unknown =
        on_disk_.incompatible_features &
        ~(kDirtyRefcounts | kCorrupt | kExternalDataFile | kCompressionType | kExtendedL2);
    for (unsigned bit = 0; bit < 64; ++bit) {
      if ((unknown >> bit & 1) == 0)
        continue;
      for (const FeatureName& name : feature_names_)
        if (name.kind == 0 && name.bit == bit)
          refuse("needs the feature '{}' (incompatible feature bit {}), which is not known here",
                 std::string_view(name.name, ::strnlen(name.name, sizeof name.name)), bit);
      refuse("needs an unknown feature (incompatible feature bit {})", bit);
    }
  }

  void parse_backing_name() {
    if (on_disk_.backing_file_offset == 0)
      return;
    const std::uint64_t offset = on_disk_.backing_file_offset;
    const std::uint32_t length = on_disk_.backing_file_size;
    if (length > kMaxBackingNameLength || length > bytes_.size() - offset)
      refuse(
          "qcow2 header: the backing file's name ({} bytes at {:#x}) passes {} bytes or the "
          "first cluster",
          length, offset, kMaxBackingNameLength);
    header_.backing_name.assign(reinterpret_cast<const char*>(bytes_.data() + offset), length);
    if (header_.backing_name.find('\0') != std::string::npos)
      refuse("qcow2 header: the backing file's name holds a NUL byte");
  }

  void check_data_file() const {
    if (header_.external_data && header_.data_file_name.empty())
      refuse("keeps its data in an external file, but does not name it");
    if (header_.external_data && header_.data_file_name.find('\0') != std::string::npos)
      refuse("qcow2 header: the data file's name holds a NUL byte");
  }

  void check_tables() {
    header_.l1_offset = on_disk_.l1_table_offset;
    header_.l1_entries = on_disk_.l1_size;
    const std::uint64_t covered_by_l2 = header_.l2_entries() << header_.cluster_bits;
    const std::uint64_t needed = div_round_up(header_.size, covered_by_l2);
    if (header_.l1_entries > kMaxL1Bytes / sizeof(be64))
      refuse("qcow2 header: l1_size {} is more than {}", header_.l1_entries,
             kMaxL1Bytes / sizeof(be64));
    if (header_.l1_entries < needed)
      refuse("qcow2 header: l1_size {} is too small for a disk of {} bytes (needs {})",
             header_.l1_entries, header_.size, needed);
    if (on_disk_.nb_snapshots > kMaxSnapshots)
      refuse("qcow2 header: nb_snapshots {} is more than {}", std::uint32_t{on_disk_.nb_snapshots},
             kMaxSnapshots);
    const std::uint64_t refcount_bytes =
        checked_mul(on_disk_.refcount_table_clusters, header_.cluster_size(), "refcount table");
    if (refcount_bytes > kMaxRefcountTableBytes)
      refuse("qcow2 header: refcount_table_clusters {} is more than {} bytes",
             std::uint32_t{on_disk_.refcount_table_clusters}, kMaxRefcountTableBytes);
    header_.regions.push_back({"the header", 0, header_.cluster_size()});
    add_region("the L1 table", header_.l1_offset, std::uint64_t{header_.l1_entries} * sizeof(be64));
    add_region("the refcount table", on_disk_.refcount_table_offset, refcount_bytes);
    header_.snapshots = on_disk_.nb_snapshots;
    if (on_disk_.nb_snapshots != 0)  // its length is not known without reading it
      add_region("the snapshot table", on_disk_.snapshots_offset, 1);
    if (header_.bitmaps)
      add_region("the bitmap directory", header_.bitmaps->directory_offset,
                 header_.bitmaps->directory_size);
  }

  void add_region(const char* what, std::uint64_t offset, std::uint64_t length) {
    if (length == 0)
      return;
    if (offset % header_.cluster_size() != 0)
      refuse("{}'s offset {:#x} is no multiple of the cluster size ({})", what, offset,
             header_.cluster_size());
    if (offset > file_size_ || length > file_size_ - offset)
      refuse("{} ({} bytes at {:#x}) passes the end of the file ({:#x})", what, length, offset,
             file_size_);
    if (const Qcow2Header::Region* other = header_.region_at(offset, length))
      refuse("{} ({} bytes at {:#x}) overlaps {} ({:#x})", what, length, offset, other->what,
             other->offset);
    header_.regions.push_back({what, offset, length});
  }

  const File& file_;
  std::uint64_t file_size_;
  std::vector<std::byte> bytes_;  // of the first cluster
  Header on_disk_{};
  std::vector<FeatureName> feature_names_;
  Qcow2Header header_;
};

}  // namespace

const Qcow2Header::Region* Qcow2Header::region_at(std::uint64_t offset,
                                                  std::uint64_t length) const {
  for (const Region& region : regions)
    if (offset < region.offset + region.length && region.offset < offset + length)
      return &region;
  return nullptr;
}

Qcow2Header read_qcow2_header(const File& file) {
  return HeaderParser(file).parse();
}

bool has_qcow2_magic(const File& file) {
  std::vector<std::byte> bytes(4);
  bytes.resize(file.read_at(bytes, 0));
  return begins_with_magic(bytes);
}

}  // namespace nbdelta::image
