#pragma once

#include <cstddef>
#include <cstdint>

#include "base/big_endian.hpp"

/// The structures and constants of a qcow2 file as they stand on disk
/// (QEMU docs/interop/qcow2.rst), shared by reader and writer.
namespace nbdelta::image::qcow2 {

inline constexpr std::uint32_t kMagic = 0x514649fb;  // "QFI\xfb"

/// qcow2 specification, "Header". Version 2 ends before `incompatible_features`.
struct Header {
  be32 magic;
  be32 version;
  be64 backing_file_offset;
  be32 backing_file_size;
  be32 cluster_bits;
  be64 size;
  be32 crypt_method;
  be32 l1_size;
  be64 l1_table_offset;
  be64 refcount_table_offset;
  be32 refcount_table_clusters;
  be32 nb_snapshots;
  be64 snapshots_offset;
  be64 incompatible_features;
  be64 compatible_features;
  be64 autoclear_features;
  be32 refcount_order;
  be32 header_length;
};
inline constexpr std::size_t kVersion2HeaderLength = 72;
inline constexpr std::size_t kVersion3HeaderLength = 104;
static_assert(sizeof(Header) == kVersion3HeaderLength);
inline constexpr std::size_t kCompressionTypeOffset = 104;  // one byte, where the header has it

// "Header", incompatible_features
inline constexpr std::uint64_t kDirtyRefcounts = 1U << 0;
inline constexpr std::uint64_t kCorrupt = 1U << 1;
inline constexpr std::uint64_t kExternalDataFile = 1U << 2;
inline constexpr std::uint64_t kCompressionType = 1U << 3;
inline constexpr std::uint64_t kExtendedL2 = 1U << 4;
// autoclear_features
inline constexpr std::uint64_t kBitmapsValid = 1U << 0;

enum class Compression : std::uint8_t { zlib = 0, zstd = 1 };

// "Header extensions"
struct ExtensionHeader {
  be32 type;
  be32 length;
};
enum class Extension : std::uint32_t {
  end = 0,
  backing_format = 0xe2792aca,
  feature_names = 0x6803f857,
  bitmaps = 0x23852875,
  encryption = 0x0537be77,
  data_file_name = 0x44415441,
};
/// "Feature name table"
struct FeatureName {
  std::uint8_t kind;  // 0 incompatible, 1 compatible, 2 autoclear
  std::uint8_t bit;
  char name[46];
};
static_assert(sizeof(FeatureName) == 48);

/// "Bitmaps extension"
struct BitmapsExtension {
  be32 nb_bitmaps;
  be32 reserved;
  be64 directory_size;
  be64 directory_offset;
};
static_assert(sizeof(BitmapsExtension) == 24);

/// "Bitmap directory"; extra data and the name follow, the whole padded to 8 bytes.
struct BitmapDirectoryEntry {
  be64 table_offset;
  be32 table_size;  // entries
  be32 flags;
  std::uint8_t type;
  std::uint8_t granularity_bits;
  be16 name_size;
  be32 extra_data_size;
};
static_assert(sizeof(BitmapDirectoryEntry) == 24);
inline constexpr std::uint32_t kBitmapInUse = 1U << 0;
inline constexpr std::uint32_t kBitmapAuto = 1U << 1;
inline constexpr std::uint32_t kBitmapExtraDataCompatible = 1U << 2;
inline constexpr std::uint8_t kDirtyTrackingBitmap = 1;

// "Bitmap table"
inline constexpr std::uint64_t kBitmapAllOnes = 1;

// "L1 table entry", "L2 table entry": bits 9-55 are a host offset
inline constexpr std::uint64_t kOffsetMask = 0x00fffffffffffe00;
inline constexpr std::uint64_t kCopied = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kCompressed = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kZeroFlag = 1;

// QEMU limits (block/qcow2.h, block/qcow2-bitmap.c)
inline constexpr unsigned kMinClusterBits = 9;
inline constexpr unsigned kMaxClusterBits = 21;
inline constexpr unsigned kMinExtendedL2ClusterBits = 14;
inline constexpr unsigned kMaxRefcountOrder = 6;
inline constexpr std::uint64_t kMaxL1Bytes = 32U << 20;
inline constexpr std::uint64_t kMaxRefcountTableBytes = 8U << 20;
inline constexpr std::uint32_t kMaxBackingNameLength = 1023;
inline constexpr std::uint32_t kMaxBitmaps = 65535;
inline constexpr std::uint64_t kMaxBitmapDirectoryBytes = 64U << 20;
inline constexpr std::uint32_t kMaxBitmapNameLength = 1023;
inline constexpr unsigned kMinGranularityBits = 9;
inline constexpr unsigned kMaxGranularityBits = 31;
inline constexpr std::uint32_t kMaxSnapshots = 65536;

inline constexpr unsigned kSubclusters = 32;

}  // namespace nbdelta::image::qcow2
