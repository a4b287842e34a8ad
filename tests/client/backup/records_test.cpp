// The journal and the manifest: what one nbdelta writes, another reads.

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <functional>
#include <string>

#include "client/backup/journal.hpp"
#include "client/backup/real/files.hpp"
#include "client/json_text.hpp"
#include "tests/support/patch_file.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::client::backup {
namespace {

using nbdelta::testing::TempFolder;
using qapi::json::object;
using qapi::json::value;
using repository::Manifest;

Manifest full_manifest() {
  Manifest manifest;
  manifest.vm = "vm \"1\"";
  manifest.chain = "0123abcd";
  manifest.number = 3;
  manifest.type = repository::kIncremental;
  manifest.created = "2026-01-02T03:04:05Z";
  manifest.consistency = "application";
  manifest.frozen_file_systems = 2;
  manifest.mountpoints = {"/", "/home"};
  manifest.freeze_failure = "line 1\nline 2";
  manifest.presync = "done";
  manifest.agent_version = "7.2.0";
  manifest.qemu_version = "7.2.22";
  manifest.nbdelta_version = "1.0";
  manifest.window = {.freeze_sent_us = 1'000,
                     .freeze_answered_us = 51'000,
                     .switch_sent_us = 51'100,
                     .switch_answered_us = 54'100,
                     .thaw_sent_us = 54'300,
                     .thaw_answered_us = 64'300};
  repository::DiskEntry disk;
  disk.name = "vda";
  disk.size = std::uint64_t{16} << 40;
  disk.type = repository::kIncremental;
  disk.reason = "why";
  disk.file = "vda.qcow2";
  disk.base = "../0002-full/vda.qcow2";
  disk.tracking = repository::kByBitmap;
  disk.written = 1;
  disk.zeroed = 2;
  disk.extents = 3;
  disk.origin = {"/vm/a.qcow2", "qcow2", "#block1", "drive0", "vda"};
  manifest.disks = {disk, disk};
  manifest.disks[1].name = "vdb";
  return manifest;
}

Journal full_journal() {
  Journal journal;
  journal.vm = "vm1";
  journal.chain = "0123abcd";
  journal.number = 3;
  journal.phase = phase::kExport;
  journal.external = true;
  journal.qmp = "/run/q.sock";
  journal.agent = "/run/a.sock";
  journal.started = "2026-01-02T03:04:05Z";
  journal.since = 1'700'000'000;
  journal.tracking = repository::kByOverlay;
  journal.point = "0003-incremental";
  JournalDisk disk;
  disk.name = "vda";
  disk.index = 4;
  disk.base_node = "#block1";
  disk.base_path = "/vm/a.qcow2";
  disk.base_local = "/mnt/a.qcow2";
  disk.base_format = "raw";
  disk.overlay_node = "nbdelta-0123abcd-0003-4";
  disk.overlay_path = "/vm/o.qcow2";
  disk.overlay_local = "/mnt/o.qcow2";
  disk.persistent = true;
  disk.socket = "/run/nbdelta-0123abcd-0003-vda.sock";
  journal.disks = {disk};
  journal.nbd_server = true;
  journal.manifest = full_manifest();
  return journal;
}

template <class T>
T from_text(const std::string& text) {
  T out;
  from_json_text(text, out, "there");
  return out;
}

TEST(Records, ComeBackAsTheyWere) {
  const std::string manifest = to_json_text(full_manifest());
  EXPECT_EQ(to_json_text(from_text<Manifest>(manifest)), manifest);
  const std::string journal = to_json_text(full_journal());
  EXPECT_EQ(to_json_text(from_text<Journal>(journal)), journal);
}

TEST(Records, ComeBackMemberByMember) {
  const auto manifest = from_text<Manifest>(to_json_text(full_manifest()));
  EXPECT_EQ(manifest.vm, "vm \"1\"");
  EXPECT_EQ(manifest.number, 3U);
  EXPECT_EQ(manifest.freeze_failure, "line 1\nline 2");
  EXPECT_EQ(manifest.mountpoints, (std::vector<std::string>{"/", "/home"}));
  EXPECT_EQ(manifest.window.length_us(), 63'300);
  ASSERT_EQ(manifest.disks.size(), 2U);
  EXPECT_EQ(manifest.disks[0].size, std::uint64_t{16} << 40);
  EXPECT_EQ(manifest.disks[0].origin.node_name, "#block1");
  ASSERT_NE(manifest.find("vdb"), nullptr);
  EXPECT_EQ(manifest.find("vdb")->name, "vdb");
  EXPECT_EQ(manifest.find("vdc"), nullptr);

  const auto journal = from_text<Journal>(to_json_text(full_journal()));
  EXPECT_EQ(journal.id(), (SessionId{"0123abcd", 3}));
  EXPECT_EQ(journal.since, 1'700'000'000);
  ASSERT_EQ(journal.disks.size(), 1U);
  EXPECT_TRUE(journal.disks[0].persistent);
  EXPECT_EQ(journal.disks[0].socket, "/run/nbdelta-0123abcd-0003-vda.sock");
  EXPECT_EQ(journal.disks[0].index, 4U);
  ASSERT_TRUE(journal.manifest);
  EXPECT_EQ(journal.manifest->chain, "0123abcd");
}

TEST(Records, MembersThatAreAbsentStayAbsent) {
  Manifest manifest;
  manifest.disks.emplace_back();
  const std::string text = to_json_text(manifest);
  for (const char* name : {"mountpoints", "freeze-failure", "presync", "agent-version", "reason",
                           "\"file\"", "\"base\"", "written", "freeze-sent-us"})
    EXPECT_EQ(text.find(name), std::string::npos) << name;
  const auto read = from_text<Manifest>(text);
  EXPECT_FALSE(read.mountpoints);
  EXPECT_FALSE(read.disks[0].file);
  EXPECT_EQ(read.manifest_version, Manifest::kVersion);
  Journal journal;
  EXPECT_FALSE(from_text<Journal>(to_json_text(journal)).agent);
  EXPECT_FALSE(from_text<Journal>(to_json_text(journal)).manifest);
}

TEST(Records, MembersThatAreNotKnownArePassedOver) {
  object manifest = qapi::to_json(full_manifest()).as_object();
  manifest["from-the-future"] = {1, "two", nullptr};
  manifest["window"].as_object()["more"] = true;
  manifest["disks"].at(0).as_object()["origin"].as_object()["uuid"] = "x";
  EXPECT_EQ(to_json_text(from_text<Manifest>(pretty(manifest))), to_json_text(full_manifest()));
  object journal = qapi::to_json(full_journal()).as_object();
  journal["from-the-future"] = nullptr;
  journal["disks"].at(0).as_object()["more"] = 7;
  EXPECT_EQ(to_json_text(from_text<Journal>(pretty(journal))), to_json_text(full_journal()));
}

struct Damage {
  const char* name;
  std::function<void(object&)> hit;
  const char* message;  // a part of it
};

template <class T>
void expect_refused(const T& whole, const std::vector<Damage>& rows) {
  for (const Damage& row : rows) {
    object damaged = qapi::to_json(whole).as_object();
    row.hit(damaged);
    try {
      from_text<T>(pretty(damaged));
      ADD_FAILURE() << row.name << ": was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EPROTO) << row.name;
      EXPECT_NE(std::string(error.what()).find(row.message), std::string::npos)
          << row.name << ": " << error.what();
    }
  }
}

TEST(Records, DamagedManifestsAreRefusedWithThePlace) {
  expect_refused(
      full_manifest(),
      {
          {"no_chain", [](object& m) { m.erase("chain"); }, "there.chain is missing"},
          {"no_disks", [](object& m) { m.erase("disks"); }, "there.disks is missing"},
          {"disks_object", [](object& m) { m["disks"] = object(); }, "there.disks is not an array"},
          {"disk_number", [](object& m) { m["disks"].at(1) = 3; }, "there.disks[1] is not an obj"},
          {"size_text", [](object& m) { m["disks"].at(0).as_object()["size"] = "1"; },
           "there.disks[0].size is not a number"},
          {"size_negative", [](object& m) { m["disks"].at(0).as_object()["size"] = -1; },
           "there.disks[0].size is not a number"},
          {"size_fraction", [](object& m) { m["disks"].at(0).as_object()["size"] = 1.5; },
           "there.disks[0].size is not a number"},
          {"number_too_large", [](object& m) { m["number"] = std::int64_t{1} << 32; },
           "there.number is not a number"},
          {"external_text", [](object& m) { m["external"] = "no"; }, "there.external is not true"},
          {"chain_null", [](object& m) { m["chain"] = nullptr; }, "there.chain is not a string"},
          {"window_array", [](object& m) { m["window"] = qapi::json::array(); },
           "there.window is not an object"},
          {"mountpoint_number", [](object& m) { m["mountpoints"] = {1}; },
           "there.mountpoints[0] is not a string"},
      });
}

TEST(Records, DamagedJournalsAreRefusedWithThePlace) {
  expect_refused(
      full_journal(),
      {
          {"no_phase", [](object& j) { j.erase("phase"); }, "there.phase is missing"},
          {"index_negative", [](object& j) { j["disks"].at(0).as_object()["index"] = -1; },
           "there.disks[0].index is not a number"},
          {"persistent_number", [](object& j) { j["disks"].at(0).as_object()["persistent"] = 1; },
           "there.disks[0].persistent is not true"},
          {"manifest_damaged", [](object& j) { j["manifest"].as_object().erase("vm"); },
           "there.manifest.vm is missing"},
      });
}

TEST(Records, WhatIsNoJsonIsRefused) {
  const std::string whole = to_json_text(full_journal());
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("\0\0\0\0", 4), std::string("[]"),
        std::string("nbdelta"), whole.substr(0, whole.size() / 2), whole + whole,
        std::string(100'000, '[')}) {
    try {
      from_text<Journal>(text);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), EPROTO);
      EXPECT_NE(std::string(error.what()).find("there"), std::string::npos) << error.what();
    }
  }
}

TEST(Records, TheJournalIsFoundInTheRepository) {
  const TempFolder folder;
  const auto files = real_files();
  EXPECT_EQ(journal_path("/r/vm"), "/r/vm/nbdelta-session.json");
  EXPECT_FALSE(read_journal(*files, folder.path()));
  files->write_text(journal_path(folder.path()), to_json_text(full_journal()));
  const auto journal = read_journal(*files, folder.path());
  ASSERT_TRUE(journal);
  EXPECT_EQ(to_json_text(*journal), to_json_text(full_journal()));
  files->write_text(journal_path(folder.path()), "");
  try {
    read_journal(*files, folder.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(journal_path(folder.path())), std::string::npos);
  }
}

TEST(Records, TheWindowIsSplitIntoItsParts) {
  const repository::Window frozen = full_manifest().window;
  EXPECT_EQ(frozen.length_us(), 63'300);
  EXPECT_EQ(frozen.agent_us(), 50'000 + 10'000);
  EXPECT_EQ(frozen.switch_us(), 3'000);
  EXPECT_EQ(frozen.own_us(), 300);
  const repository::Window not_frozen{.freeze_sent_us = std::nullopt,
                                      .freeze_answered_us = std::nullopt,
                                      .switch_sent_us = 100,
                                      .switch_answered_us = 150,
                                      .thaw_sent_us = std::nullopt,
                                      .thaw_answered_us = std::nullopt};
  EXPECT_EQ(not_frozen.length_us(), 50);
  EXPECT_EQ(not_frozen.agent_us(), 0);
  EXPECT_EQ(not_frozen.own_us(), 0);
}

}  // namespace
}  // namespace nbdelta::client::backup
