#include "client/backup/plan.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/arithmetic.hpp"
#include "tests/client/backup/usual_situation.hpp"

namespace nbdelta::client::backup {
namespace {

void make_raw(GuestDisk& disk) {
  disk.base_format = image::Format::raw;
  disk.can_keep_bitmaps = false;
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

}  // namespace
}  // namespace nbdelta::client::backup
