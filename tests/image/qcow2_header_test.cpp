#include "image/qcow2_header.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/file.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/qemu.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

namespace field = header_field;

/// Puts an extension that nobody knows before the others, so that these and the backing file's name
/// end at `end`, or a few bytes before: extensions are aligned.
void stretch_header(const std::string& path, std::uint32_t end) {
  const auto header_length = read_number<std::uint32_t>(path, field::kHeaderLength);
  const auto name_offset = read_number<std::uint64_t>(path, field::kBackingOffset);
  const auto name_size = read_number<std::uint32_t>(path, field::kBackingSize);
  const auto length = static_cast<std::uint32_t>(round_down(end - 8 - name_offset - name_size, 8));
  std::vector<std::byte> rest(name_offset + name_size - header_length);
  File::open(path, O_RDONLY).read_exactly_at(rest, header_length);

  const std::uint32_t inserted = 8U + length;
  write_number<std::uint32_t>(path, header_length, 0x6e6f6e65);
  write_number<std::uint32_t>(path, header_length + 4, length);
  File::open(path, O_WRONLY).write_at(rest, header_length + inserted);
  write_number<std::uint64_t>(path, field::kBackingOffset, name_offset + inserted);
}

/// QEMU keeps extensions that it does not know, of whatever length.
TEST(Qcow2Header, TakesUpToTheWholeFirstCluster) {
  const TempFolder folder;
  const std::string path = folder / "disk";
  create_image(folder / "base", "raw", kMiB);
  for (const std::uint32_t end : {4096U, 4104U, 4200U, 9000U, 65536U}) {
    SCOPED_TRACE(end);
    create_overlay(path, folder / "base", "raw");
    qemu_img({"bitmap", "--add", path, "b0"});
    stretch_header(path, end);
    ASSERT_EQ(check_complaints(path), "");
    const auto info = image_info(path, "qcow2");
    ASSERT_EQ(info.at("backing-filename").as_string(), folder / "base");

    const image::Qcow2Header header = image::read_qcow2_header(File::open(path, O_RDONLY));
    EXPECT_EQ(header.backing_name, folder / "base");
    EXPECT_EQ(header.backing_format, "raw");
    ASSERT_TRUE(header.bitmaps);
    EXPECT_EQ(header.bitmaps->count, 1U);
  }
}

}  // namespace
}  // namespace nbdelta::testing
