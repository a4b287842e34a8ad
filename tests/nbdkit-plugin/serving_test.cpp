#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "image/qcow2_layer.hpp"
#include "tests/nbdkit-plugin/nbd_client.hpp"
#include "tests/nbdkit-plugin/plugin_test.hpp"
#include "tests/support/page_cache.hpp"
#include "tests/support/random.hpp"

namespace nbdelta::testing {
namespace {

class Serving : public PluginTest {
 protected:
  /// Random data in every cluster, 8 MiB; the raw bytes are in `contents`.
  void make_random_disk(const std::string& options = {}, const Command& convert = {}) {
    contents.resize(8 * kMiB);
    Random random = Random::from_environment();
    random.fill(contents);
    for (std::uint64_t at = 0; at < contents.size(); at += 64 * kKiB)  // half of it compresses
      std::memset(contents.data() + at, 1, 32 * kKiB);
    write_file(folder / "contents.raw", contents);
    Command arguments{"convert", "-f", "raw", "-O", "qcow2"};
    arguments.insert(arguments.end(), convert.begin(), convert.end());
    if (!options.empty())
      arguments.insert(arguments.end(), {"-o", options});
    arguments.insert(arguments.end(), {folder / "contents.raw", disk});
    qemu_img(arguments);
  }

  /// Reads of odd sizes at odd places.
  void expect_contents(const NbdClient& client, std::uint64_t seed, int reads) const {
    Random random(seed);
    for (int i = 0; i < reads; ++i) {
      const std::uint64_t offset = random.below(contents.size());
      const std::uint64_t length = std::min(contents.size() - offset, 1 + random.below(300'000));
      const std::vector<std::byte> got = client.read(offset, length);
      ASSERT_EQ(std::memcmp(got.data(), contents.data() + offset, length), 0)
          << length << " bytes at " << offset;
    }
  }

  std::vector<std::byte> contents;
};

/// nbdkit 1.32 ends with an assertion where an extent passes such a request's end.
TEST_F(Serving, BlockStatusOfNearlyFourGiBOverSixteenTiB) {
  create_image(disk, "qcow2", 16 * kTiB);
  qemu_img({"bitmap", "--add", disk, "b0"});
  qemu_io(disk, "qcow2", {"write -q -P 1 1T 64k"});
  const NbdServer server = NbdServer::delta({disk});
  constexpr std::uint64_t kLongest = 0xffff'ffff;
  for (const char* name : {"", "layer", "dirty:b0"}) {
    const NbdClient client(server.uri(name));
    const std::uint64_t nothing = std::string_view(name).empty() ? kHole : kUnchanged;
    for (const std::uint64_t offset :
         {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{512}, kTiB + 64 * kKiB,
          16 * kTiB - kLongest, 16 * kTiB - kLongest - 1})
      EXPECT_EQ(client.block_status(offset, kLongest),
                (std::vector<NbdExtent>{{offset, kLongest, nothing}}))
          << name << " at " << offset;
    EXPECT_EQ(client.block_status(kTiB - 1, kLongest),
              (std::vector<NbdExtent>{{kTiB - 1, 1, nothing},
                                      {kTiB, 64 * kKiB, kData},
                                      {kTiB + 64 * kKiB, kLongest - 64 * kKiB - 1, nothing}}));
    EXPECT_EQ(client.block_status(kTiB - 1, kLongest, LIBNBD_CMD_FLAG_REQ_ONE),
              (std::vector<NbdExtent>{{kTiB - 1, 1, nothing}}));
    EXPECT_EQ(client.block_status(kTiB + 1, 1), (std::vector<NbdExtent>{{kTiB + 1, 1, kData}}));
  }
}

/// The longest reply stops short; the client asks on.
TEST_F(Serving, BlockStatusOfMoreExtentsThanAReplyHolds) {
  constexpr std::uint64_t kPieces = 400'000;
  std::string json = "[";
  for (std::uint64_t i = 0; i < kPieces; ++i)
    json += fmt::format(R"({}{{"offset":{},"length":512,"type":{}}})", i == 0 ? "" : ",", i * 512,
                        i % 2);
  write_file(folder / "map.json", json + "]");
  create_image(folder / "disk.raw", "raw", kPieces * 512);
  qemu_io(folder / "disk.raw", "raw", {fmt::format("write -q -P 1 0 {}", kPieces * 512)});
  const NbdServer server =
      NbdServer::delta({folder / "disk.raw", "format=raw", "map=" + folder / "map.json"});
  const NbdClient client(server.uri("dirty"));
  const std::vector<NbdExtent> reply = client.block_status(0, kPieces * 512);
  EXPECT_EQ(reply.size(), 131'072U);
  EXPECT_EQ(nbdinfo_map(server.uri("dirty")).size(), kPieces);
}

/// 16 TiB whose L2 tables are all there, 2 GiB of them: they pass through the cache.
TEST_F(Serving, CachesAreBoundedWhateverTheSize) {
  create_image(disk, "qcow2", 16 * kTiB);
  const auto l1 = read_number<std::uint64_t>(disk, header_field::kL1Offset);
  const auto entries = read_number<std::uint32_t>(disk, header_field::kL1Size);
  const std::uint64_t first = round_up(std::filesystem::file_size(disk), 64 * kKiB);
  for (std::uint32_t i = 0; i < entries; ++i)
    write_number<std::uint64_t>(disk, l1 + i * 8, first + i * 64 * kKiB);
  std::filesystem::resize_file(disk, first + entries * 64 * kKiB);
  NbdServer server = NbdServer::delta({disk});
  const auto peak = [&] {
    std::ifstream status(fmt::format("/proc/{}/status", server.process().pid()));
    std::uint64_t kib = 0;
    for (std::string word; status >> word;)
      if (word == "VmHWM:")
        status >> kib;
    return kib * kKiB;
  };
  const std::uint64_t before = peak();
  ASSERT_GT(before, 0U);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(nbdinfo_map(server.uri()), (std::vector<NbdExtent>{{0, 16 * kTiB, kHole}}));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  fmt::print("the map of 16 TiB took {:.2f} s; the server grew by {} KiB to {} KiB\n", took.count(),
             (peak() - before) / kKiB, peak() / kKiB);
  if (std::string_view(NBDELTA_SANITIZER_PRELOAD).empty()) {
    EXPECT_LT(peak() - before, 64 * kMiB);
  }
}

TEST_F(Serving, ManyRequestsOnSeveralConnections) {
  for (const char* kind : {"plain", "compressed"}) {
    std::filesystem::remove(disk);
    make_random_disk("cluster_size=64k",
                     std::string_view(kind) == "plain" ? Command{} : Command{"-c"});
    const NbdServer server = NbdServer::delta({disk, "readahead=1M"});
    std::vector<std::thread> threads;
    for (std::uint64_t connection = 0; connection < 4; ++connection)
      threads.emplace_back([&, connection] {
        constexpr std::size_t kInFlight = 16;
        constexpr std::size_t kLength = 40'000;
        const NbdClient client(server.uri());
        Random random(connection);
        for (int round = 0; round < 25; ++round) {
          std::array<std::vector<std::byte>, kInFlight> buffers;
          std::array<std::uint64_t, kInFlight> offsets{};
          std::array<std::uint64_t, kInFlight> cookies{};
          for (std::size_t i = 0; i < kInFlight; ++i) {
            buffers[i].resize(kLength);
            offsets[i] = random.below(contents.size() - kLength);
            const std::int64_t cookie = nbd_aio_pread(client.nbd(), buffers[i].data(), kLength,
                                                      offsets[i], NBD_NULL_COMPLETION, 0);
            NbdClient::check(cookie);
            cookies[i] = static_cast<std::uint64_t>(cookie);
          }
          for (std::size_t i = 0; i < kInFlight; ++i) {
            while (nbd_aio_command_completed(client.nbd(), cookies[i]) == 0)
              NbdClient::check(nbd_poll(client.nbd(), -1));
            EXPECT_EQ(std::memcmp(buffers[i].data(), contents.data() + offsets[i], kLength), 0);
          }
        }
      });
    for (std::thread& thread : threads)
      thread.join();
    run_ok({"nbdcopy", "--connections=4", "--requests=16", "--request-size=65536", server.uri(),
            folder / "copy.raw"});
    EXPECT_EQ(difference(folder / "contents.raw", "raw", folder / "copy.raw", "raw"), "");
  }
}

TEST_F(Serving, DirectReadsOddRanges) {
  const struct {
    const char* options;
    Command convert;
  } rows[] = {
      {"cluster_size=64k", {}}, {"cluster_size=512", {}}, {"compression_type=zstd", {"-c"}}};
  for (const auto& row : rows) {
    SCOPED_TRACE(row.options);
    std::filesystem::remove(disk);
    make_random_disk(row.options, row.convert);
    const NbdServer server = NbdServer::delta({disk, "direct=on"});
    expect_contents(NbdClient(server.uri()), 1, 50);
  }
  std::filesystem::resize_file(folder / "contents.raw", contents.size() - 100);  // odd end
  const NbdServer server = NbdServer::delta({folder / "contents.raw", "format=raw", "direct=on"});
  contents.resize(contents.size() - 100);
  const NbdClient client(server.uri());
  EXPECT_EQ(client.size(), contents.size());
  expect_contents(client, 2, 50);
  EXPECT_EQ(client.read(contents.size() - 1, 1).front(), contents.back());
}

/// How much of [offset, offset + length) is in the page cache.
double resident(const std::string& path, std::uint64_t offset, std::uint64_t length) {
  return static_cast<double>(cached_bytes(path, offset, length)) / static_cast<double>(length);
}

TEST_F(Serving, ReadaheadAnnouncesTheNextChangedRanges) {
  const std::string raw = folder / "disk.raw";
  create_image(raw, "raw", 64 * kMiB);
  qemu_io(raw, "raw", {"write -q -P 1 0 64M"});
  write_file(folder / "map.json", R"([{"offset":0,"length":1048576,"type":0},)"
                                  R"({"offset":1048576,"length":19922944,"type":1},)"
                                  R"({"offset":20971520,"length":1048576,"type":0},)"
                                  R"({"offset":22020096,"length":45088768,"type":1}])");
  for (const char* readahead : {"readahead=0", "readahead=8M"}) {
    if (!drop_from_page_cache(raw))
      GTEST_SKIP() << "the page cache of this file system cannot be emptied";
    const NbdServer server =
        NbdServer::delta({raw, "format=raw", "map=" + folder / "map.json", readahead});
    const NbdClient client(server.uri("dirty"));
    (void)client.read(0, 64 * kKiB);
    double there = 0;
    for (int i = 0; i < 500 && there < 1; ++i) {
      there = resident(raw, 20 * kMiB, kMiB);
      if (std::string_view(readahead) == "readahead=0")
        break;
      ::usleep(10'000);
    }
    EXPECT_EQ(there, std::string_view(readahead) == "readahead=0" ? 0 : 1);
    EXPECT_EQ(resident(raw, 10 * kMiB, 8 * kMiB), 0) << "what did not change was read";
    EXPECT_EQ(resident(raw, 40 * kMiB, 8 * kMiB), 0) << "what did not change was read";
  }
}

/// One who starts over has the next ranges announced again; one who is only late has not.
TEST_F(Serving, ReadaheadBeginsAnewForWhoStartsOver) {
  const std::string raw = folder / "disk.raw";
  create_image(raw, "raw", 64 * kMiB);
  qemu_io(raw, "raw", {"write -q -P 1 0 64M"});
  write_file(folder / "map.json", R"([{"offset":0,"length":67108864,"type":0}])");
  const File file = File::open(raw, O_RDONLY);
  file.sync();
  constexpr double kMost = 0.9;  // the kernel need not take all
  const struct {
    const char* name;
    std::uint64_t read_before;  // from 0 on
    std::uint64_t offset;       // read next
    bool announced;             // what lies 2 MiB ahead of that
  } rows[] = {{"from the start, after all", 64 * kMiB, 0, true},
              {"from the start, after a little", kMiB, 0, true},
              {"from the middle, after all", 64 * kMiB, 16 * kMiB, true},
              {"late", kMiB, 64 * kKiB, false}};
  for (const char* packed : {"packed=off", "packed=on"})
    for (const auto& row : rows) {
      SCOPED_TRACE(fmt::format("{}, {}", packed, row.name));
      const NbdServer server = NbdServer::delta(
          {raw, "format=raw", "map=" + folder / "map.json", "readahead=8M", packed});
      const bool is_packed = std::string_view(packed) == "packed=on";
      const NbdClient client(server.uri(is_packed ? "packed:dirty" : "dirty"));
      const std::uint64_t data = is_packed ? client.size() - 64 * kMiB : 0;
      for (std::uint64_t at = 0; at < row.read_before; at += 256 * kKiB)
        (void)client.read(data + at, 256 * kKiB);
      const auto comes = [&](std::uint64_t offset, int attempts) {
        for (int i = 0; i < attempts && resident(raw, offset, kMiB) < kMost; ++i)
          ::usleep(10'000);
        return resident(raw, offset, kMiB);
      };
      ASSERT_GE(comes(7 * kMiB, 500),
                kMost);  // what was announced before is not on its way any more
      ::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED);
      if (resident(raw, row.offset + 2 * kMiB, kMiB) > 0)
        GTEST_SKIP() << "the page cache of this file system cannot be emptied";
      (void)client.read(data + row.offset, 64 * kKiB);
      const double came = comes(row.offset + 2 * kMiB, row.announced ? 500 : 20);
      if (row.announced) {
        EXPECT_GE(came, kMost);
      } else {
        EXPECT_EQ(came, 0);
      }
    }
}

/// Readahead must not stop at, nor be stopped by, a damaged table.
TEST_F(Serving, ReadaheadOverDamageDoesNotFailTheRead) {
  create_image(disk, "qcow2", 64 * kMiB, "cluster_size=4k");
  qemu_io(disk, "qcow2", {"write -q -P 1 0 64M"});
  const auto l1 = read_number<std::uint64_t>(disk, header_field::kL1Offset);
  const auto second = read_number<std::uint64_t>(disk, l1 + 8) & 0x00fffffffffffe00;
  write_number<std::uint64_t>(disk, second, 0x200);  // not aligned
  const NbdServer server = NbdServer::delta({disk, "readahead=8M"});
  const NbdClient client(server.uri());
  EXPECT_EQ(client.read(0, 64 * kKiB), std::vector<std::byte>(64 * kKiB, std::byte{1}));
  EXPECT_EQ(client.read(kMiB, 64 * kKiB), std::vector<std::byte>(64 * kKiB, std::byte{1}));
  EXPECT_THROW(client.read(2 * kMiB, 4096), Error);
  EXPECT_THAT(server.errors(), HasSubstr("disk.qcow2: L2 table of guest offset 0x200000: host "
                                         "offset 0x200 is not aligned"));
  EXPECT_EQ(client.read(2 * kMiB + 4096, 4096), std::vector<std::byte>(4096, std::byte{1}));
}

TEST_F(Serving, NeighbouringReadsDecompressAClusterOnce) {
  make_random_disk("cluster_size=64k", {"-c"});
  File file = File::open(disk, O_RDONLY);
  image::BlockCache metadata(kMiB, image::MetadataReader::kBlock);
  image::BlockCache decompressed(4 * 64 * kKiB, 64 * kKiB);
  image::Qcow2Header header = image::read_qcow2_header(file);
  const image::Qcow2Layer layer(
      {.metadata = std::move(file), .data = File(), .direct_alignment = 0}, std::move(header),
      metadata, decompressed, 0);
  std::vector<std::byte> got(4096);
  for (std::uint64_t offset = 0; offset < contents.size(); offset += got.size()) {
    const image::Run run = layer.run_at(offset, got.size());
    ASSERT_EQ(run.allocation, image::Allocation::compressed);
    layer.read(got, offset, run);
    ASSERT_EQ(std::memcmp(got.data(), contents.data() + offset, got.size()), 0);
  }
  EXPECT_EQ(decompressed.loads(), contents.size() / (64 * kKiB));
}

TEST_F(Serving, SignalsEndItCleanly) {
  make_changed_disk();
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
    NbdServer server = NbdServer::delta({disk});
    // nbdkit waits for its clients to go: there is none left.
    (void)NbdClient(server.uri()).read(0, 4096);
    server.process().signal(number);
    const std::optional<Outcome> ended = server.process().wait(std::chrono::seconds(20));
    ASSERT_TRUE(ended) << "signal " << number;
    EXPECT_EQ(ended->status, 0) << "signal " << number << ": " << ended->err;
    (void)server.stop();
  }
}

}  // namespace
}  // namespace nbdelta::testing
