#include <gmock/gmock.h>

#include <functional>

#include "tests/corrupt/damaged_image.hpp"
#include "tests/corrupt/exercise.hpp"

namespace nbdelta::testing {
namespace {

namespace field = header_field;

enum class Kind { plain, version_2, extended, zstd };

struct Damage {
  const char* name;
  Kind kind;
  std::function<void(const std::string& path, const Places& at)> inflict;
  std::string message;  // after the file's name; "{end}" stands for the file's length
};

/// Clusters of 4 KiB (16 KiB where extended); 1 MiB of which the first 64 KiB are data; b0, b1.
void make_plain_image(const std::string& path, Kind kind) {
  const char* const options[] = {"cluster_size=4k", "cluster_size=4k,compat=0.10",
                                 "cluster_size=16k,extended_l2=on",
                                 "cluster_size=4k,compression_type=zstd"};
  create_image(path, "qcow2", 8 * kMiB, options[static_cast<int>(kind)]);
  if (kind != Kind::version_2)
    qemu_img({"bitmap", "--add", "-g", "512", path, "b0"});
  qemu_io(path, "qcow2", {"write -q -P 1 0 64k", "write -q -P 1 3M 64k", "write -q -P 1 7M 64k"});
  if (kind != Kind::version_2)
    qemu_img({"bitmap", "--add", "-g", "512", path, "b1"});
}

template <class Unsigned>
auto set(std::uint64_t offset, Unsigned value) {
  return
      [=](const std::string& path, const Places&) { write_number<Unsigned>(path, offset, value); };
}
auto set32(std::uint64_t offset, std::uint32_t value) {
  return set<std::uint32_t>(offset, value);
}
auto set64(std::uint64_t offset, std::uint64_t value) {
  return set<std::uint64_t>(offset, value);
}

/// A field at a distance from one of the tables.
template <class Unsigned>
auto set_at(std::uint64_t Places::*table, std::uint64_t distance, Unsigned value) {
  return [=](const std::string& path, const Places& at) {
    write_number<Unsigned>(path, at.*table + distance, value);
  };
}
auto in_l1(std::uint64_t value) {
  return set_at<std::uint64_t>(&Places::l1, 0, value);
}
auto in_l2(std::uint64_t value) {
  return set_at<std::uint64_t>(&Places::l2, 0, value);
}
auto in_bitmap_table(std::uint64_t value) {
  return set_at<std::uint64_t>(&Places::bitmap_table, 0, value);
}
template <class Unsigned>
auto in_directory(std::uint64_t distance, Unsigned value) {
  return set_at<Unsigned>(&Places::directory, distance, value);
}
template <class Unsigned>
auto in_bitmaps_extension(std::uint64_t distance, Unsigned value) {
  return set_at<Unsigned>(&Places::bitmaps_extension, distance, value);
}

constexpr std::uint64_t kCompressed = std::uint64_t{1} << 62;

/// The first cluster compressed, at the end of the file: what the descriptor says of its place and
/// length (in sectors of 512, one more than the number) with these bytes there.
auto compressed(const std::vector<unsigned char>& bytes, unsigned more_sectors) {
  return [=](const std::string& path, const Places& at) {
    const std::uint64_t end = round_up(std::filesystem::file_size(path), 512);
    File::open(path, O_WRONLY).write_at(std::as_bytes(std::span(bytes)), end);
    const unsigned offset_bits = 62 - (12 - 8);  // clusters of 4 KiB
    write_number<std::uint64_t>(path, at.l2,
                                kCompressed | std::uint64_t{more_sectors} << offset_bits | end);
  };
}

/// A frame whose window is 128 MiB: one cluster of the letter x. It lacks its last block, since a
/// whole frame is decompressed with no window.
std::vector<unsigned char> zstd_of_large_window() {
  return {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88,  // magic, no content size, window 2^27
          0x02, 0x80, 0x00, 'x'};              // a block, run-length, 4096 bytes
}

std::vector<Damage> damages() {
  using K = Kind;
  return {
      // The header
      {"magic", K::plain, set32(0, 0x514649fc), "is not a qcow2 image (no magic at offset 0)"},
      {"version 1", K::plain, set32(field::kVersion, 1), "qcow2 header: version 1 is not known"},
      {"version 4", K::plain, set32(field::kVersion, 4), "qcow2 header: version 4 is not known"},
      {"cluster_bits 8", K::plain, set32(field::kClusterBits, 8),
       "cluster_bits 8 is not in 9 to 21"},
      {"cluster_bits 22", K::plain, set32(field::kClusterBits, 22), "cluster_bits 22 is not in"},
      {"cluster_bits huge", K::plain, set32(field::kClusterBits, 0xffffffff),
       "cluster_bits 4294967295 is not in 9 to 21"},
      {"header_length short", K::plain, set32(field::kHeaderLength, 96), "header_length 96 is not"},
      {"header_length odd", K::plain, set32(field::kHeaderLength, 109), "header_length 109 is not"},
      {"header_length huge", K::plain, set32(field::kHeaderLength, 0xfffffff8),
       "header_length 4294967288 is not a multiple of 8 in 104 to 4096"},
      {"size 2^63", K::plain, set64(field::kSize, std::uint64_t{1} << 63),
       "the virtual size, 9223372036854775808 bytes, is more than a disk can have"},
      {"size beyond the L1 table", K::plain, set64(field::kSize, kTiB),
       "l1_size 4 is too small for a disk of 1099511627776 bytes (needs 524288)"},
      {"refcount_order", K::plain, set32(field::kRefcountOrder, 7),
       "refcount_order 7 is more than 6"},
      {"compression type", K::plain, set<std::uint8_t>(field::kCompressionType, 2),
       "compression type 2 is not known"},
      {"compression bit", K::plain, set64(field::kIncompatible, 8),
       "compression type 0 and incompatible feature bit 3 disagree"},
      {"extended L2 with small clusters", K::plain, set64(field::kIncompatible, 16),
       "extended L2 entries need clusters of 16 KiB or more, not 4096 bytes"},
      {"data file without a name", K::plain, set64(field::kIncompatible, 4),
       "keeps its data in an external file, but does not name it"},
      {"backing name past the cluster", K::plain, set64(field::kBackingOffset, 4097),
       "backing_file_offset 0x1001 is not in the first cluster"},
      {"backing name of 2^64-1", K::plain, set64(field::kBackingOffset, ~std::uint64_t{0}),
       "backing_file_offset 0xffffffffffffffff is not in the first cluster"},
      {"backing name too long", K::plain,
       [](const std::string& path, const Places&) {
         write_number<std::uint64_t>(path, field::kBackingOffset, 2048);
         write_number<std::uint32_t>(path, field::kBackingSize, 1024);
       },
       "the backing file's name (1024 bytes at 0x800) passes 1023 bytes"},
      {"backing name out of the cluster", K::plain,
       [](const std::string& path, const Places&) {
         write_number<std::uint64_t>(path, field::kBackingOffset, 4090);
         write_number<std::uint32_t>(path, field::kBackingSize, 100);
       },
       "the backing file's name (100 bytes at 0xffa) passes"},
      {"backing name with NUL", K::plain,
       [](const std::string& path, const Places&) {
         write_number<std::uint64_t>(path, field::kBackingOffset, 2048);
         write_number<std::uint32_t>(path, field::kBackingSize, 3);
         write_text(path, 2048, std::string_view("a\0b", 3));
       },
       "the backing file's name holds a NUL byte"},
      {"extension length", K::plain, set_at<std::uint32_t>(&Places::extensions, 4, 0xfffffff0),
       "its length 4294967280 passes the end (0x1000)"},

      // Tables that the header gives the place of
      {"l1_size huge", K::plain, set32(field::kL1Size, 0xffffffff),
       "l1_size 4294967295 is more than"},
      {"l1_size past the file", K::plain, set32(field::kL1Size, 4'000'000),
       "the L1 table (32000000 bytes at 0x"},
      {"l1_size 0", K::plain, set32(field::kL1Size, 0), "l1_size 0 is too small for a disk of"},
      {"L1 not aligned", K::plain, set64(field::kL1Offset, 0x3008),
       "the L1 table's offset 0x3008 is no multiple of the cluster size (4096)"},
      {"L1 past the end", K::plain, set64(field::kL1Offset, kTiB),
       "the L1 table (32 bytes at 0x10000000000) passes the end of the file ({end})"},
      {"L1 near 2^64", K::plain, set64(field::kL1Offset, 0xfffffffffffff000),
       "the L1 table (32 bytes at 0xfffffffffffff000) passes the end of the file"},
      {"L1 over the header", K::plain, set64(field::kL1Offset, 0),
       "the L1 table (32 bytes at 0x0) overlaps the header (0x0)"},
      {"refcount table over the L1 table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, field::kRefcountTableOffset, at.l1);
       },
       "overlaps the L1 table"},
      {"refcount_table_clusters huge", K::plain, set32(field::kRefcountTableClusters, 0xffffffff),
       "refcount_table_clusters 4294967295 is more than 8388608 bytes"},
      {"refcount table past the end", K::plain, set64(field::kRefcountTableOffset, kGiB),
       "the refcount table (4096 bytes at 0x40000000) passes the end of the file ({end})"},
      {"nb_snapshots huge", K::plain, set32(field::kSnapshots, 0xffffffff),
       "nb_snapshots 4294967295 is more than 65536"},
      {"snapshot table past the end", K::plain,
       [](const std::string& path, const Places&) {
         write_number<std::uint32_t>(path, field::kSnapshots, 1);
         write_number<std::uint64_t>(path, field::kSnapshotsOffset, kGiB);
       },
       "the snapshot table (1 bytes at 0x40000000) passes the end of the file"},
      {"snapshot table over the refcount table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint32_t>(path, field::kSnapshots, 1);
         write_number<std::uint64_t>(path, field::kSnapshotsOffset, at.refcount_table);
       },
       "overlaps the refcount table"},

      // L1 and L2
      {"L1 entry not aligned", K::plain, in_l1(0x5200),
       "L1 entry of guest offset 0x0: L2 table offset 0x5200 is not aligned"},
      {"L1 entry past the end", K::plain, in_l1(kTiB),
       "L1 entry of guest offset 0x0: the L2 table at 0x10000000000 passes the end of the file "
       "({end})"},
      {"L1 entry at the L1 table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.l1, at.l1);
       },
       "L1 entry of guest offset 0x0: the L2 table at 0x"},
      {"two L1 entries with one L2 table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.l1 + 8, at.l2);
       },
       "L1 table: two entries point to the same L2 table at 0x"},
      {"L2 entry not aligned", K::plain, in_l2(0x5200),
       "L2 table of guest offset 0x0: host offset 0x5200 is not aligned"},
      {"L2 entry past the end", K::plain, in_l2(kTiB),
       "L2 table of guest offset 0x0: host offset 0x10000000000 is past the end of the file "
       "({end})"},
      {"L2 entry at the L1 table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.l2, at.l1);
       },
       "L2 table of guest offset 0x0: host offset 0x"},
      {"L2 entry at its own table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.l2, at.l2);
       },
       "is the L2 table itself"},
      {"zero cluster in version 2", K::version_2, in_l2(1),
       "L2 entry of guest offset 0x0: a zero cluster in a version 2 image"},
      {"subcluster both zero and data", K::extended,
       set_at<std::uint64_t>(&Places::l2, 8, 0x00000001ffffffff),
       "L2 entry of guest offset 0x0: the subcluster bitmap 0x00000001ffffffff is invalid"},
      {"subclusters without a cluster", K::extended, in_l2(0),
       "L2 entry of guest offset 0x0: the subcluster bitmap 0x00000000ffffffff is invalid"},

      // Compressed clusters
      {"compressed past the end", K::plain, in_l2(kCompressed | kTiB),
       "the compressed cluster at 0x10000000000 is past the end of the file ({end})"},
      {"compressed in the header", K::plain, in_l2(kCompressed | 0x20),
       "the compressed cluster at 0x20 overlaps the header"},
      {"zlib garbage", K::plain, compressed(std::vector<unsigned char>(512, 0xff), 0),
       "(512 bytes) is damaged"},
      {"zlib ends too early", K::plain, compressed({0x03, 0x00}, 0), "(2 bytes) is damaged"},
      {"zstd garbage", K::zstd, compressed(std::vector<unsigned char>(512, 0xff), 0),
       "(512 bytes) is damaged"},
      {"zstd of nothing", K::zstd, compressed({}, 0), "is past the end of the file"},
      {"zstd window", K::zstd, compressed(zstd_of_large_window(), 0), "(10 bytes) is damaged"},

      // Bitmaps
      {"bitmaps extension length", K::plain, in_bitmaps_extension<std::uint32_t>(4, 16),
       "qcow2 bitmaps extension: its length is 16 rather than 24"},
      {"nb_bitmaps 0", K::plain, in_bitmaps_extension<std::uint32_t>(8, 0),
       "nb_bitmaps 0 is not in 1 to 65535"},
      {"nb_bitmaps huge", K::plain, in_bitmaps_extension<std::uint32_t>(8, 0xffffffff),
       "nb_bitmaps 4294967295 is not in 1 to 65535"},
      {"nb_bitmaps too many", K::plain, in_bitmaps_extension<std::uint32_t>(8, 3),
       "bitmap directory: has 2 entries, the header says 3"},
      {"bitmaps reserved field", K::plain, in_bitmaps_extension<std::uint32_t>(12, 1),
       "the reserved field is 0x1, not 0"},
      {"directory size huge", K::plain, in_bitmaps_extension<std::uint64_t>(16, kTiB),
       "the directory's size, 1099511627776 bytes, is more than 67108864"},
      {"directory size past the file", K::plain, in_bitmaps_extension<std::uint64_t>(16, 60 * kMiB),
       "the bitmap directory (62914560 bytes at 0x"},
      {"directory cut", K::plain, in_bitmaps_extension<std::uint64_t>(16, 40),
       "bitmap directory: the entry at byte 32 is cut off"},
      {"directory past the end", K::plain, in_bitmaps_extension<std::uint64_t>(24, kGiB),
       "the bitmap directory (64 bytes at 0x40000000) passes the end of the file ({end})"},
      {"directory over the L1 table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.bitmaps_extension + 24, at.l1);
       },
       "overlaps the L1 table"},
      {"bitmap type", K::plain, in_directory<std::uint8_t>(16, 2),
       "bitmap directory: the entry at byte 0 has type 2; only 1 (dirty tracking) is known"},
      {"bitmap granularity small", K::plain, in_directory<std::uint8_t>(17, 8),
       "has granularity_bits 8, not 9 to 31"},
      {"bitmap granularity huge", K::plain, in_directory<std::uint8_t>(17, 255),
       "has granularity_bits 255, not 9 to 31"},
      {"bitmap name empty", K::plain, in_directory<std::uint16_t>(18, 0),
       "has a name of 0 bytes, not 1 to 1023"},
      {"bitmap name out of the directory", K::plain, in_directory<std::uint16_t>(18, 0xffff),
       "bitmap directory: the entry at byte 0 passes the directory's end"},
      {"bitmap name with NUL", K::plain, in_directory<std::uint8_t>(25, 0),
       "bitmap directory: the entry at byte 0 has a NUL byte in its name"},
      {"bitmap extra data huge", K::plain, in_directory<std::uint32_t>(20, 0xffffffff),
       "bitmap directory: the entry at byte 0 passes the directory's end"},
      {"bitmap flags", K::plain, in_directory<std::uint32_t>(12, 0x80000002),
       "has unknown flags 0x80000000"},
      {"bitmap in use", K::plain, in_directory<std::uint32_t>(12, 3), "bitmap 'b0' is in use"},
      {"two bitmaps of one name", K::plain, in_directory<std::uint8_t>(32 + 25, '0'),
       "bitmap directory: two bitmaps are called 'b0'"},
      {"two bitmaps with one table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.directory + 32, at.bitmap_table);
       },
       "bitmap directory: the tables of 'b0' (0x"},
      {"bitmap table at 0", K::plain, in_directory<std::uint64_t>(0, 0),
       "has its table at 0x0, which is 0 or not aligned"},
      {"bitmap table not aligned", K::plain, in_directory<std::uint64_t>(0, 0x5008),
       "has its table at 0x5008, which is 0 or not aligned"},
      {"bitmap table past the end", K::plain, in_directory<std::uint64_t>(0, kGiB),
       "bitmap 'b0': its table (8 bytes at 0x40000000) passes the end of the file ({end})"},
      {"bitmap table over the L1 table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.directory, at.l1);
       },
       "overlaps the L1 table"},
      {"bitmap table of a wrong size", K::plain, in_directory<std::uint32_t>(8, 16),
       "bitmap 'b0': its table has 16 entries; a disk of 8388608 bytes with a granularity "
       "of 512 needs 1"},
      {"bitmap data not aligned", K::plain, in_bitmap_table(0x5200),
       "bitmap 'b0': table entry 0x0000000000005200 of guest offset 0x0: its offset is not "
       "aligned"},
      {"bitmap data past the end", K::plain, in_bitmap_table(kTiB),
       "bitmap 'b0': table entry 0x0000010000000000 of guest offset 0x0: is past the end of the "
       "file ({end})"},
      {"bitmap data, reserved bits", K::plain, in_bitmap_table(std::uint64_t{1} << 60),
       "reserved bits are set"},
      {"bitmap data and all ones", K::plain, in_bitmap_table(0x5001), "reserved bits are set"},
      {"bitmap data in the L1 table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.bitmap_table, at.l1);
       },
       "overlaps the L1 table"},
      {"bitmap data in its own table", K::plain,
       [](const std::string& path, const Places& at) {
         write_number<std::uint64_t>(path, at.bitmap_table, at.bitmap_table);
       },
       "overlaps the bitmap's own table"},
  };
}

TEST(Corrupt, NamedDamage) {
  const TempFolder folder;
  const std::string path = folder / "disk.qcow2";
  for (const Damage& damage : damages()) {
    SCOPED_TRACE(damage.name);
    const std::string sound = folder / fmt::format("sound{}", static_cast<int>(damage.kind));
    if (!std::filesystem::exists(sound)) {
      make_plain_image(sound, damage.kind);
      ASSERT_THAT(exercise(sound).errors, ::testing::IsEmpty());
    }
    std::filesystem::copy_file(sound, path, std::filesystem::copy_options::overwrite_existing);
    damage.inflict(path, Places(path));
    std::string message = damage.message;
    if (const std::size_t at = message.find("{end}"); at != std::string::npos)
      message.replace(at, 5, fmt::format("{:#x}", std::filesystem::file_size(path)));
    const Exercise result = exercise(path);
    EXPECT_THAT(result.errors,
                ::testing::Contains(::testing::AllOf(::testing::StartsWith(path + ": "),
                                                     ::testing::HasSubstr(message))));
  }
}

}  // namespace
}  // namespace nbdelta::testing
