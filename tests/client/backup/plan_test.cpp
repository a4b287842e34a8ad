#include "client/backup/plan.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/arithmetic.hpp"
#include "tests/client/backup/usual_situation.hpp"

namespace nbdelta::client::backup {
namespace {

/// What would go, or could not be committed, is seen before anything is touched.
TEST(Plan, ADiskWhoseOverlaysCannotBeCommittedIsRefused) {
  struct Case {
    const char* name;
    std::function<void(Situation&, Options&)> change;
    const char* message;  // a part of it; empty: it is not refused
  };
  const auto by_overlay = [](Situation& s, Options& o) {
    o.tracking = Tracking::overlay;
    s.latest->disks[0].tracking = repository::kByOverlay;
    s.inventory.disks[0].bitmaps.clear();
    s.inventory.disks[0].overlays = {overlay(3), overlay(2)};
  };
  const auto foreign = [](Situation& s) {
    s.inventory.disks[0].bitmaps.push_back(bitmap("theirs"));
    s.inventory.disks[0].bitmaps.back().inconsistent = true;
  };
  const Case kCases[] = {
      {"snapshot_in_one_that_is_committed_first",
       [](Situation& s, Options&) {
         s.inventory.disks[0].overlays = {overlay(2)};
         s.inventory.disks[0].overlays[0].snapshots = {"s1", "s2"};
       },
       "(s1, s2)"},
      {"snapshot_in_the_layer",
       [&](Situation& s, Options& o) {
         by_overlay(s, o);
         s.inventory.disks[0].overlays[1].snapshots = {"s1"};
       },
       "(s1)"},
      {"foreign_bitmap_where_an_overlay_is_to_stay",
       [&](Situation& s, Options& o) {
         o.tracking = Tracking::overlay;
         foreign(s);
       },
       "block-dirty-bitmap-remove, node top-vda"},
      {"foreign_bitmap_below_a_disk_that_has_grown",
       [&](Situation& s, Options&) {
         foreign(s);
         s.inventory.disks[0].overlays = {overlay(2)};
         s.inventory.disks[0].size = 2 * kGiB;
       },
       "'qemu-img bitmap --remove /vm/vda.qcow2 theirs'"},
      {"foreign_bitmap_below_an_overlay",
       [&](Situation& s, Options&) {
         foreign(s);
         s.inventory.disks[0].overlays = {overlay(2)};
       },
       ""},
  };
  for (const Case& each : kCases) {
    Situation situation = usual();
    Options options;
    options.qmp = "/run/vm.qmp";
    each.change(situation, options);
    std::string message;
    try {
      make_plan(situation, options);
    } catch (const Refused& error) {
      message = error.what();
    }
    EXPECT_NE(message.find(each.message), std::string::npos) << each.name << ": " << message;
    EXPECT_EQ(message.empty(), *each.message == '\0') << each.name << ": " << message;
  }
}

TEST(Plan, AFirstBackupBeginsAChain) {
  Situation situation = usual();
  situation.latest.reset();
  situation.highest_number = 0;
  const Plan plan = make_plan(situation, {});
  EXPECT_EQ(plan.id, (SessionId{"ffff0000", 1}));
  EXPECT_EQ(plan.type(), repository::kFull);
  EXPECT_FALSE(plan.disks[0].reason);  // nobody expected anything else
  EXPECT_FALSE(plan.disks[0].previous);
}

/// A bitmap that is newer than the last restore point, though no session is open: another copy of
/// the repository has made it, and will build on it.
TEST(Plan, NothingIsSharedWithACopyOfTheRepository) {
  Situation situation = usual();
  situation.new_chain = "99999999";
  Options options;
  options.disks = {"vda"};
  EXPECT_EQ(make_plan(situation, options).id.chain, situation.latest->chain);
  situation.inventory.disks[0].bitmaps.push_back(
      bitmap(bitmap_name({situation.latest->chain, situation.latest->number + 1})));
  const Plan plan = make_plan(situation, options);
  EXPECT_EQ(plan.id.chain, "99999999");
  EXPECT_TRUE(plan.disks[0].full());
  situation.session_is_open = true;
  EXPECT_EQ(make_plan(situation, options).id.chain, situation.latest->chain);
}

TEST(Plan, NumbersAreNeverUsedAgain) {
  const struct {
    const char* name;
    std::function<void(Situation&)> change;
    std::uint32_t number;
  } kRows[] = {
      {"after_the_latest", [](Situation&) {}, 3},
      {"after_a_folder_of_a_session_that_failed", [](Situation& s) { s.highest_number = 7; }, 8},
      {"folders_were_removed_by_hand", [](Situation& s) { s.highest_number = 0; }, 3},
      {"after_an_overlay", [](Situation& s) { s.inventory.disks[0].overlays = {overlay(5)}; }, 6},
      {"after_the_highest_of_several_overlays",
       [](Situation& s) {
         s.inventory.disks[0].overlays = {overlay(5), overlay(4)};
       },
       6},
      {"after_a_bitmap",
       [](Situation& s) {
         s.inventory.disks[0].bitmaps.push_back(bitmap("nbdelta-0123abcd-0009"));
       },
       10},
      {"after_a_bitmap_of_a_disk_that_is_not_taken",
       [](Situation& s) {
         s.inventory.disks.push_back(disk("vdb"));
         s.inventory.disks[1].bitmaps = {bitmap("nbdelta-0123abcd-0020")};
       },
       21},
      {"other_chains_do_not_count",
       [](Situation& s) {
         s.inventory.disks[0].bitmaps.push_back(bitmap("nbdelta-77777777-0099"));
       },
       3},
      {"a_new_chain_counts_from_the_folders",
       [](Situation& s) {
         s.latest.reset();
         s.highest_number = 4;
       },
       5},
  };
  for (const auto& row : kRows) {
    Situation situation = usual();
    situation.session_is_open = true;
    row.change(situation);
    Options options;
    options.disks = {"vda"};
    EXPECT_EQ(make_plan(situation, options).id.number, row.number) << row.name;
  }
}

Situation three_disks() {
  Situation situation = usual();
  situation.latest.reset();
  situation.inventory.disks = {disk("vda"), disk("vdb"), disk("vdc")};
  situation.inventory.left_out = {{"cd0", "it has no medium", true}};
  return situation;
}

std::vector<std::string> names(const Plan& plan) {
  std::vector<std::string> names;
  for (const DiskPlan& disk : plan.disks)
    names.push_back(disk.disk.name);
  return names;
}

using Names = std::vector<std::string>;

std::string refusal(const Situation& situation, const Options& options, int error_number) {
  try {
    make_plan(situation, options);
  } catch (const Refused& error) {
    EXPECT_EQ(error.error_number(), error_number) << error.what();
    return error.what();
  }
  return "was not refused";
}

TEST(Plan, TakesTheDisksThatWereAskedFor) {
  const Situation situation = three_disks();
  Options options;
  EXPECT_EQ(names(make_plan(situation, options)), (Names{"vda", "vdb", "vdc"}));
  options.disks = {"vdc", "drive-vda"};
  EXPECT_EQ(names(make_plan(situation, options)), (Names{"vda", "vdc"}));  // in the guest's order
  options.exclude = {"qdev-vdc"};
  EXPECT_EQ(names(make_plan(situation, options)), (Names{"vda"}));
  options.disks.clear();
  EXPECT_EQ(names(make_plan(situation, options)), (Names{"vda", "vdb"}));
  options.exclude = {"top-vda", "cd0"};
  EXPECT_EQ(names(make_plan(situation, options)), (Names{"vdb", "vdc"}));
}

TEST(Plan, RefusesNamesThatNoDiskHas) {
  const Situation situation = three_disks();
  Options options;
  options.disks = {"vda", "vdx"};
  const std::string message = refusal(situation, options, ENOENT);
  EXPECT_NE(message.find("--disk vdx"), std::string::npos) << message;
  EXPECT_NE(message.find("vda, vdb, vdc"), std::string::npos) << message;
  options.disks.clear();
  options.exclude = {"vdx"};
  EXPECT_NE(refusal(situation, options, ENOENT).find("--exclude vdx"), std::string::npos);
  options.exclude = {"cd0", "vdx"};  // the first is no mistake
  EXPECT_NE(refusal(situation, options, ENOENT).find("--exclude vdx"), std::string::npos);
  options.exclude = {"vda", "vdb", "vdc"};
  EXPECT_NE(refusal(situation, options, ENOENT).find("no disk"), std::string::npos);
}

TEST(Plan, RefusesToTakeWhatCannotBeTaken) {
  const Situation situation = three_disks();
  Options options;
  options.disks = {"cd0"};
  const std::string message = refusal(situation, options, EINVAL);
  EXPECT_NE(message.find("--disk cd0"), std::string::npos) << message;
  EXPECT_NE(message.find("no medium"), std::string::npos) << message;
}

TEST(Plan, ADiskThatCannotBeTakenMustBeExcluded) {
  Situation situation = three_disks();
  situation.inventory.left_out.push_back({"vdl", "its format is luks", false});
  Options options;
  const std::string message = refusal(situation, options, ENOTSUP);
  EXPECT_NE(message.find("luks"), std::string::npos) << message;
  EXPECT_NE(message.find("--exclude vdl"), std::string::npos) << message;
  options.exclude = {"vdl"};
  EXPECT_EQ(names(make_plan(situation, options)).size(), 3U);
  options.exclude.clear();
  options.disks = {"vda"};
  EXPECT_EQ(names(make_plan(situation, options)), Names{"vda"});
}

TEST(Plan, RefusesAGuestWithoutDisks) {
  Situation situation = usual();
  situation.inventory.disks.clear();
  EXPECT_NE(refusal(situation, {}, ENOENT).find("no disk"), std::string::npos);
}

TEST(Plan, RefusesAnotherChainsOverlay) {
  for (const char* below : {"", kChain}) {
    Situation situation = usual();
    situation.inventory.disks[0].overlays = {overlay(4, "99999999")};
    if (*below != '\0')
      situation.inventory.disks[0].overlays.push_back(overlay(2));
    const std::string message = refusal(situation, {}, EBUSY);
    EXPECT_NE(message.find("nbdelta-99999999-0004-vda.qcow2"), std::string::npos) << message;
    EXPECT_NE(message.find("nbdelta recover"), std::string::npos) << message;
  }
}

TEST(Plan, AnotherChainsOverlayOfADiskThatIsNotTakenIsNoMatter) {
  Situation situation = usual();
  situation.inventory.disks.push_back(disk("vdb"));
  situation.inventory.disks[1].overlays = {overlay(4, "99999999")};
  Options options;
  options.exclude = {"vdb"};
  EXPECT_EQ(names(make_plan(situation, options)), Names{"vda"});
}

TEST(Plan, RefusesAnyOverlayWhenAChainBegins) {
  Situation situation = usual();
  situation.latest.reset();
  situation.inventory.disks[0].overlays = {overlay(2)};
  EXPECT_NE(refusal(situation, {}, EBUSY).find("another backup"), std::string::npos);
}

TEST(Plan, ANewDiskIsAFullBesideIncrementals) {
  Situation situation = usual();
  situation.inventory.disks.push_back(disk("vdb"));
  const Plan plan = make_plan(situation, {});
  ASSERT_EQ(plan.disks.size(), 2U);
  EXPECT_FALSE(plan.disks[0].full());
  EXPECT_TRUE(plan.disks[1].full());
  EXPECT_EQ(plan.disks[1].reason, "it is not in the last restore point");
  EXPECT_FALSE(plan.disks[1].previous);
  EXPECT_EQ(plan.type(), repository::kIncremental);
  EXPECT_TRUE(plan.notes.empty());
}

/// Names may be positions; what is behind them must not be mixed up.
TEST(Plan, DisksThatHaveSwappedTheirNamesAreFulls) {
  Situation situation = usual();
  situation.inventory.disks.push_back(disk("vdb"));
  situation.latest->disks.push_back(entry("vdb"));
  std::swap(situation.inventory.disks[0].base_path, situation.inventory.disks[1].base_path);
  const Plan plan = make_plan(situation, {});
  EXPECT_TRUE(plan.disks[0].full());
  EXPECT_EQ(plan.disks[0].reason, "its image was /vm/vda.qcow2 and is /vm/vdb.qcow2");
  EXPECT_TRUE(plan.disks[1].full());
}

TEST(Plan, ADiskThatIsGoneIsNoted) {
  Situation situation = usual();
  situation.latest->disks.push_back(entry("vdb"));
  const Plan plan = make_plan(situation, {});
  EXPECT_EQ(names(plan), Names{"vda"});
  ASSERT_EQ(plan.notes.size(), 1U);
  EXPECT_NE(plan.notes[0].find("vdb: was in restore point 2"), std::string::npos) << plan.notes[0];
}

TEST(Plan, KeepsWhatIsKnownOfThePreviousPoint) {
  const Plan plan = make_plan(usual(), {});
  ASSERT_TRUE(plan.disks[0].previous);
  EXPECT_EQ(plan.disks[0].previous->file, "vda.qcow2");
}

}  // namespace
}  // namespace nbdelta::client::backup
