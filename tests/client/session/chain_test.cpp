#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "tests/client/session/session_test.hpp"

/// What an incremental would be built on: chains that become long, and such that are broken.
namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;

constexpr int kLongest = 128;  // restore points

/// Writes qcow2 images that rest on each other, FOLDER/NNNN-incremental/FILE from `first` to
/// `last`, the first of them on `base`.
void make_chain(const std::string& folder, const std::string& file, int first, int last,
                const std::string& base) {
  run_ok({"sh", "-ec",
          R"(below=$5; i=$3
             while [ $i -le $4 ]; do
               name=$(printf %04d-incremental $i); mkdir "$1/$name"; cd "$1/$name"
               qemu-img create -q -u -f qcow2 -F qcow2 -b "$below" "$2" 32M
               below=../$name/$2; i=$((i + 1))
             done)",
          "sh", folder, file, std::to_string(first), std::to_string(last), base},
         {}, std::chrono::minutes(2));
}

class Chain : public ::testing::Test {
 protected:
  Outcome backup(const Command& more = {}) {
    return run(points_.command("backup", joined(Command{"--quiesce", "no"}, more)));
  }
  std::string image(const std::string& point, const std::string& disk = "vda") const {
    return points_.vm_folder() + "/" + point + "/" + disk + ".qcow2";
  }

  Machine machine_{{{.name = "vda"}, {.name = "vdb"}}};
  Points points_{machine_};
};

TEST_F(Chain, EndsWithAFullOfThatDiskBeforeItIsTooLong) {
  points_.backup();
  machine_.write(machine_.disks()[0], "write -P 1 0 1M");
  points_.backup();
  // As if there had been more of one disk.
  const std::string between = points_.repository() + "/between";
  fs::create_directory(between);
  make_chain(between, "x", 1, kLongest - 3, image("0001-full"));
  const std::string top = fmt::format("{}/{:04}-incremental/x", between, kLongest - 3);
  qemu_img({"rebase", "-u", "-f", "qcow2", "-b", top, "-F", "qcow2", image("0002-incremental")});

  machine_.write(machine_.disks()[0], "write -P 2 1M 1M");
  EXPECT_EQ(type_of(points_.backup()), "incremental");  // the last that there may be

  const std::string why = fmt::format("its chain has {} restore points", kLongest);
  machine_.write(machine_.disks()[0], "write -P 3 2M 1M");
  const Outcome dry = backup({"--dry-run"});
  EXPECT_THAT(dry.out, HasSubstr("full"));
  EXPECT_THAT(dry.out, HasSubstr(why));
  const Outcome refused = backup({"--require-incremental"});
  EXPECT_EQ(refused.status, 3);
  EXPECT_THAT(refused.err, HasSubstr("vda: an incremental cannot be made: " + why));
  const auto result = points_.backup();
  EXPECT_EQ(type_of(result, 0), "full");
  EXPECT_EQ(type_of(result, 1), "incremental");
  machine_.write(machine_.disks()[0], "write -P 4 3M 1M");
  EXPECT_EQ(type_of(points_.backup({"--require-incremental"})), "incremental");
  points_.check();
}

/// Longer names and higher numbers than anybody has; the path has 1 KiB less than Linux allows.
TEST(ChainOfTheGreatestLength, IsReadFromAnAbsolutePath) {
  const TempFolder folder;
  std::string repository = folder.path();
  while (repository.size() < 1024)
    repository += "/" + std::string(std::min<std::size_t>(1023 - repository.size(), 200), 'r');
  repository.resize(1024);
  fs::create_directories(repository);
  const std::string file = std::string(160, 'd') + ".qcow2";
  run_ok({"sh", "-ec", "mkdir $1/100000-full; cd $1/100000-full; qemu-img create -q -f qcow2 $2 1M",
          "sh", repository, file});
  make_chain(repository, file, 100001, 100000 + kLongest - 1, "../100000-full/" + file);
  const std::string last =
      fmt::format("{}/{}-incremental/{}", repository, 100000 + kLongest - 1, file);
  qemu_img({"convert", "-O", "raw", last, folder / "restored"});
}

TEST_F(Chain, WithAPointMissingIsFollowedByAFull) {
  for (int i = 0; i < 3; ++i) {
    machine_.write(machine_.disks()[0], fmt::format("write -P {} 0 1M", i + 1));
    run_ok(points_.command("backup", {"--quiesce", "no"}));
  }
  fs::rename(points_.vm_folder() + "/0002-incremental", machine_.folder() + "/away");
  const Outcome dry = backup({"--dry-run"});
  EXPECT_THAT(dry.out, HasSubstr("cannot be opened with all that it rests on"));
  EXPECT_THAT(dry.out, HasSubstr("0002-incremental/vda.qcow2: cannot open: No such file"));
  EXPECT_EQ(backup({"--require-incremental"}).status, 3);
  const Outcome outcome = backup();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("vda: a full backup, because vda.qcow2 of the last"));
  points_.remember("0004-full");
  machine_.write(machine_.disks()[0], "write -P 9 1M 1M");
  EXPECT_EQ(type_of(points_.backup({"--require-incremental"})), "incremental");
  points_.check();
}

TEST_F(Chain, WhoseLatestImageIsCutOffIsFollowedByAFullOfThatDisk) {
  points_.backup();
  fs::resize_file(image("0001-full"), 0);
  machine_.write(machine_.disks()[1], "write -P 9 1M 1M");
  const Outcome outcome = backup();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("vda: a full backup, because vda.qcow2 of the last"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("vdb: a full backup")));
  fs::remove(image("0001-full"));
  EXPECT_EQ(
      difference(image("0002-incremental"), "qcow2", machine_.model(machine_.disks()[0]), "raw"),
      "");
}

}  // namespace
}  // namespace nbdelta::testing
