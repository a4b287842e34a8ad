#include "client/backup/plan.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/arithmetic.hpp"

namespace nbdelta::client::backup {
namespace {

constexpr const char* kChain = "0123abcd";

qapi::BitmapInfo bitmap(const std::string& name) {
  return {.name = name,
          .count = 65536,
          .granularity = 65536,
          .recording = true,
          .busy = false,
          .persistent = true,
          .inconsistent = std::nullopt};
}

GuestDisk disk(const std::string& name) {
  GuestDisk disk;
  disk.name = name;
  disk.device = "drive-" + name;
  disk.qdev = "qdev-" + name;
  disk.top = "top-" + name;
  disk.base_node = "top-" + name;
  disk.base_path = disk.base_local = "/vm/" + name + ".qcow2";
  disk.size = disk.base_size = kGiB;
  disk.can_keep_bitmaps = true;
  return disk;
}

void make_raw(GuestDisk& disk) {
  disk.base_format = image::Format::raw;
  disk.can_keep_bitmaps = false;
}

StackedOverlay overlay(std::uint32_t number, const std::string& chain = kChain) {
  const SessionId session{chain, number};
  const std::string path = "/vm/" + overlay_file_name(session, "vda");
  return {overlay_node_name(session, 0), path, path, session};
}

repository::DiskEntry entry(const std::string& name) {
  repository::DiskEntry entry;
  entry.origin.path = "/vm/" + name + ".qcow2";
  entry.name = name;
  entry.size = kGiB;
  entry.type = repository::kFull;
  entry.file = name + ".qcow2";
  entry.tracking = repository::kByBitmap;
  return entry;
}

/// A guest with one disk, and a restore point 2 that an incremental can be made to.
Situation usual() {
  Situation situation;
  situation.inventory.disks.push_back(disk("vda"));
  situation.inventory.disks[0].bitmaps = {bitmap("nbdelta-0123abcd-0002")};
  situation.latest.emplace();
  situation.latest->chain = kChain;
  situation.latest->number = 2;
  situation.latest->disks = {entry("vda")};
  situation.highest_number = 2;
  situation.new_chain = "ffff0000";
  situation.previous_file = [](const repository::DiskEntry&) { return PreviousFile(); };
  return situation;
}

struct DiskRow {
  const char* name;
  std::function<void(Situation&, Options&)> change;
  MapSource map;
  const char* reason = "";  // a part of it; empty: there is none
  const char* bitmap = "";
  std::uint32_t number = 3;
};

class PlanOfOneDisk : public ::testing::TestWithParam<DiskRow> {};

TEST_P(PlanOfOneDisk, IsAsExpected) {
  const DiskRow& row = GetParam();
  Situation situation = usual();
  Options options;
  options.qmp = "/run/vm.qmp";
  row.change(situation, options);
  const Plan plan = make_plan(situation, options);
  ASSERT_EQ(plan.disks.size(), 1U);
  EXPECT_EQ(plan.disks[0].map, row.map);
  EXPECT_EQ(plan.disks[0].bitmap, row.bitmap);
  EXPECT_EQ(plan.disks[0].full(), row.map == MapSource::none);
  EXPECT_EQ(plan.type(), row.map == MapSource::none ? repository::kFull : repository::kIncremental);
  const std::string reason = plan.disks[0].reason.value_or("");
  EXPECT_NE(reason.find(row.reason), std::string::npos) << reason;
  EXPECT_EQ(reason.empty(), *row.reason == '\0') << reason;
  if (situation.latest) {
    EXPECT_EQ(plan.id.chain, kChain);
    EXPECT_EQ(plan.id.number, row.number);
  }
}

TEST_P(PlanOfOneDisk, RequireIncrementalRefusesEveryFull) {
  const DiskRow& row = GetParam();
  Situation situation = usual();
  Options options;
  options.qmp = "/run/vm.qmp";
  row.change(situation, options);
  options.require_incremental = true;
  if (row.map != MapSource::none) {
    EXPECT_NO_THROW(make_plan(situation, options));
    return;
  }
  try {
    make_plan(situation, options);
    FAIL();
  } catch (const Refused& error) {
    EXPECT_EQ(error.error_number(), ENOENT);
    EXPECT_NE(std::string(error.what()).find("vda"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(row.reason), std::string::npos) << error.what();
  }
}

constexpr const char* kLast = "nbdelta-0123abcd-0002";

INSTANTIATE_TEST_SUITE_P(
    Rows, PlanOfOneDisk,
    ::testing::Values(
        DiskRow{"first_backup", [](auto& s, auto&) { s.latest.reset(); }, MapSource::none},
        DiskRow{"bitmap_in_the_image", [](auto&, auto&) {}, MapSource::image, "", kLast},
        DiskRow{"bitmap_in_qemu",
            [](auto& s, auto&) {
              make_raw(s.inventory.disks[0]);
              s.inventory.disks[0].bitmaps[0].persistent = false;
            },
            MapSource::qemu, "", kLast},
        DiskRow{"raw_after_a_restart_of_qemu",
            [](auto& s, auto&) {
              make_raw(s.inventory.disks[0]);
              s.inventory.disks[0].bitmaps.clear();
            },
            MapSource::none, "QEMU was restarted"},
        DiskRow{"bitmap_missing", [](auto& s, auto&) { s.inventory.disks[0].bitmaps.clear(); },
            MapSource::none, "nbdelta-0123abcd-0002 is missing"},
        DiskRow{"only_an_older_bitmap",
            [](auto& s, auto&) { s.inventory.disks[0].bitmaps[0].name = "nbdelta-0123abcd-0001"; },
            MapSource::none, "missing"},
        DiskRow{"another_chains_bitmap",
            [](auto& s, auto&) { s.inventory.disks[0].bitmaps[0].name = "nbdelta-0123abce-0002"; },
            MapSource::none, "missing"},
        DiskRow{"bitmap_inconsistent",
            [](auto& s, auto&) { s.inventory.disks[0].bitmaps[0].inconsistent = true; },
            MapSource::none, "inconsistent"},
        DiskRow{"bitmap_said_to_be_consistent",
            [](auto& s, auto&) { s.inventory.disks[0].bitmaps[0].inconsistent = false; },
            MapSource::image, "", kLast},
        DiskRow{"bitmap_busy", [](auto& s, auto&) { s.inventory.disks[0].bitmaps[0].busy = true; },
            MapSource::none, "in use by somebody else"},
        DiskRow{"bitmap_disabled",
            [](auto& s, auto&) { s.inventory.disks[0].bitmaps[0].recording = false; },
            MapSource::none, "disabled"},
        DiskRow{"other_bitmaps_beside",
            [](auto& s, auto&) {
              auto& bitmaps = s.inventory.disks[0].bitmaps;
              bitmaps.insert(bitmaps.begin(), bitmap("somebody-elses"));
              bitmaps[0].inconsistent = true;
            },
            MapSource::image, "", kLast},
        DiskRow{"disk_has_grown", [](auto& s, auto&) { s.inventory.disks[0].size = 2 * kGiB; },
            MapSource::none, "its size was 1.00 GiB and is 2.00 GiB"},
        DiskRow{"disk_has_grown_a_sector", [](auto& s, auto&) { s.inventory.disks[0].size += 512; },
            MapSource::none, "its size was 1073741824 bytes and is 1073742336"},
        DiskRow{"file_gone",
            [](auto& s, auto&) {
              s.previous_file = [](const repository::DiskEntry& e) {
                return PreviousFile{.chain = 1, .trouble = e.name == "vda" ? "it is gone" : ""};
              };
            },
            MapSource::none, "it is gone"},
        DiskRow{"longest_chain",
            [](auto& s, auto&) {
              s.previous_file = [](const auto&) {
                return PreviousFile{.chain = kLongestChain - 1, .trouble = {}};
              };
            },
            MapSource::image, "", kLast},
        DiskRow{"chain_that_is_long_enough",
            [](auto& s, auto&) {
              s.previous_file = [](const auto&) {
                return PreviousFile{.chain = kLongestChain, .trouble = {}};
              };
            },
            MapSource::none, "its chain has 128 restore points"},
        DiskRow{"full_asked_for", [](auto&, auto& o) { o.full = true; }, MapSource::none, "asked for"},
        DiskRow{"external_after_ours", [](auto&, auto& o) { o.external = true; }, MapSource::none,
            "is not external software's"},
        DiskRow{"ours_after_external",
            [](auto& s, auto&) {
              s.latest->external = true;
              s.latest->disks[0].file.reset();
            },
            MapSource::none, "is external software's"},
        DiskRow{"external_after_external",
            [](auto& s, auto& o) {
              s.latest->external = o.external = true;
              s.latest->disks[0].file.reset();
              s.previous_file = [](const auto&) {
                return PreviousFile{.chain = kLongestChain, .trouble = "it is gone"};
              };
            },
            MapSource::image, "", kLast},
        DiskRow{"overlay_of_a_session_that_failed",
            [](auto& s, auto&) { s.inventory.disks[0].overlays = {overlay(2)}; },
            MapSource::absorbed, "", kLast},
        DiskRow{"raw_with_an_overlay_of_a_session_that_failed",
            [](auto& s, auto&) {
              make_raw(s.inventory.disks[0]);
              s.inventory.disks[0].bitmaps[0].persistent = false;
              s.inventory.disks[0].overlays = {overlay(2)};
            },
            MapSource::absorbed, "", kLast},
        DiskRow{"bitmap_that_went_on_in_one_of_a_session_that_failed",
            [](auto& s, auto&) {
              s.inventory.disks[0].overlays = {overlay(3)};
              s.inventory.disks[0].bitmaps[0].recording = false;
              s.inventory.disks[0].bitmaps.push_back(bitmap("nbdelta-0123abcd-0003"));
              s.session_is_open = true;
            },
            MapSource::absorbed, "", kLast, 4},
        DiskRow{"bitmap_that_went_on_in_one_that_is_inconsistent",
            [](auto& s, auto&) {
              s.inventory.disks[0].overlays = {overlay(3)};
              s.inventory.disks[0].bitmaps[0].recording = false;
              s.inventory.disks[0].bitmaps.push_back(bitmap("nbdelta-0123abcd-0003"));
              s.inventory.disks[0].bitmaps[1].inconsistent = true;
              s.session_is_open = true;
            },
            MapSource::none, "disabled", "", 4},
        DiskRow{"bitmap_disabled_alone_below_an_overlay",
            [](auto& s, auto&) {
              s.inventory.disks[0].overlays = {overlay(2)};
              s.inventory.disks[0].bitmaps[0].recording = false;
              s.inventory.disks[0].bitmaps.push_back(bitmap("nbdelta-0123abcd-0001"));
              s.inventory.disks[0].bitmaps.push_back(bitmap("nbdelta-77777777-0003"));
            },
            MapSource::none, "disabled"},
        DiskRow{"bitmap_that_was_removed_for_its_gap",
            [](auto& s, auto&) {
              s.inventory.disks[0].bitmaps.clear();
              s.gaps = {"vda"};
            },
            MapSource::none, "was disabled and has a gap"},
        DiskRow{"overlay_in_place_but_the_bitmap_is_gone",
            [](auto& s, auto&) {
              s.inventory.disks[0].overlays = {overlay(2)};
              s.inventory.disks[0].bitmaps.clear();
            },
            MapSource::none, "missing"},
        DiskRow{"layer_of_the_last_overlay",
            [](auto& s, auto& o) {
              o.tracking = Tracking::overlay;
              s.latest->disks[0].tracking = repository::kByOverlay;
              s.inventory.disks[0].bitmaps.clear();
              s.inventory.disks[0].overlays = {overlay(2)};
            },
            MapSource::layer},
        DiskRow{"layer_below_an_overlay_of_a_session_that_failed",
            [](auto& s, auto& o) {
              o.tracking = Tracking::overlay;
              s.latest->disks[0].tracking = repository::kByOverlay;
              s.inventory.disks[0].overlays = {overlay(2), overlay(2)};
            },
            MapSource::layer},
        DiskRow{"by_overlay_but_the_guest_runs_on_its_base",
            [](auto& s, auto& o) {
              o.tracking = Tracking::overlay;
              s.latest->disks[0].tracking = repository::kByOverlay;
            },
            MapSource::none, "does not run on the overlay of restore point 2"},
        DiskRow{"by_overlay_but_it_is_an_earlier_sessions",
            [](auto& s, auto& o) {
              o.tracking = Tracking::overlay;
              s.latest->disks[0].tracking = repository::kByOverlay;
              s.inventory.disks[0].overlays = {overlay(2), overlay(1)};
            },
            MapSource::none, "lowest overlay is of session 1"},
        DiskRow{"tracking_changes_to_overlay",
            [](auto&, auto& o) { o.tracking = Tracking::overlay; }, MapSource::image, "", kLast},
        DiskRow{"tracking_changes_to_bitmap",
            [](auto& s, auto&) {
              s.latest->disks[0].tracking = repository::kByOverlay;
              s.inventory.disks[0].bitmaps.clear();
              s.inventory.disks[0].overlays = {overlay(2)};
            },
            MapSource::layer},
        DiskRow{"disk_is_new",
            [](auto& s, auto&) {
              s.latest->disks = {entry("vdz")};
              s.inventory.disks[0].bitmaps.clear();
            },
            MapSource::none, "not in the last restore point"}),
    [](const auto& row) { return row.param.name; });

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
