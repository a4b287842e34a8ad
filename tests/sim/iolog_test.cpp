#include "sim/iolog.hpp"

#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
using Kind = TraceEntry::Kind;

TEST(Iolog, Version2) {
  const Trace trace = parse_iolog(
      "fio version 2 iolog\n"
      "/dev/a add\n"
      "/dev/b add\n"
      "/dev/a open\n"
      "/dev/b open\n"
      "/dev/a write 4096 8192\n"
      "/dev/a wait 250 0\n"
      "/dev/a wait 99 0\n"
      "/dev/b read 0 4096\n"
      "/dev/b trim 65536 65536\r\n"
      "\n"
      "/dev/b wait 1000 0\n"
      "/dev/b datasync 0 0\n"
      "/dev/a sync 0 0\n"
      "/dev/a close\n",
      "t");
  EXPECT_EQ(trace.version, 2);
  EXPECT_EQ(trace.files, (std::vector<std::string>{"/dev/a", "/dev/b"}));
  EXPECT_EQ(trace.entries, (std::vector<TraceEntry>{{Kind::write, 0, 4096, 8192, 0us, 6},
                                                    {Kind::trim, 1, 65536, 65536, 250us, 10},
                                                    {Kind::sync, 1, 0, 0, 1250us, 13},
                                                    {Kind::sync, 0, 0, 0, 1250us, 14}}));
}

TEST(Iolog, Version3) {
  const Trace trace = parse_iolog(
      "fio version 3 iolog\n"
      "0 /f add\n"
      "5 /f open\n"
      "180 /f write 0 4096\n"
      "180 /f write 4096 4096\n"
      "2000000 /f trim 0 8192\n"
      "2000001 /f close",
      "t");
  EXPECT_EQ(trace.version, 3);
  EXPECT_EQ(trace.entries, (std::vector<TraceEntry>{{Kind::write, 0, 0, 4096, 180us, 4},
                                                    {Kind::write, 0, 4096, 4096, 180us, 5},
                                                    {Kind::trim, 0, 0, 8192, 2000000us, 6}}));
}

TEST(Iolog, BadInput) {
  const std::string two = "fio version 2 iolog\n/f add\n/f open\n";
  const std::string three = "fio version 3 iolog\n0 /f add\n0 /f open\n";
  const struct {
    const char* name;
    std::string text;
    const char* message;
  } kCases[] = {
      {"nothing", "", "t:0: the file is empty: expected 'fio version 2 iolog'"},
      {"an old version", "0, 0, 4096\n", "t:1: '0, 0, 4096' does not begin a trace: expected"},
      {"a new version", "fio version 4 iolog\n", "t:1: 'fio version 4 iolog' does not begin"},
      {"three words", two + "/f write 0\n", "t:4: expected 'FILE add|open|close' or 'FILE ACTION"},
      {"five words", two + "/f write 0 1 2\n", "t:4: expected 'FILE"},
      {"no timestamp", three + "/f write 0 4096\n", "t:4: '/f' is no timestamp: expected a whole"},
      {"time goes back", three + "9 /f write 0 1\n8 /f write 0 1\n",
       "t:5: timestamp 8 is before the line above, 9"},
      {"a wait in version 3", three + "1 /f wait 100 0\n", "t:4: there is no 'wait' in version 3"},
      {"no such action", two + "/f erase 0 1\n", "t:4: 'erase' is no action: expected read, write"},
      {"no such action on a file", two + "/f remove\n", "t:4: 'remove' is no action on a file"},
      {"not added", two + "/g open\n", "t:4: /g was not added before"},
      {"not open", two + "/f close\n/f write 0 1\n", "t:5: /f is not open"},
      {"closed twice", two + "/f close\n/f close\n", "t:5: /f is not open"},
      {"a negative offset", two + "/f write -1 1\n", "t:4: '-1' is no offset"},
      {"a unit", two + "/f write 0 4k\n", "t:4: '4k' is no length"},
      {"beyond 64 bits", two + "/f write 18446744073709551616 1\n", "t:4: '18446744073709551616'"},
      {"no bytes", two + "/f write 0 0\n", "t:4: write of 0 bytes at 0: there is no such range"},
      {"an end beyond 64 bits", two + "/f trim 18446744073709551615 2\n", "there is no such range"},
      {"a wait of centuries", two + "/f wait 18446744073709551615 0\n", "a trace may last a year"},
  };
  for (const auto& each : kCases) {
    SCOPED_TRACE(each.name);
    try {
      parse_iolog(each.text, "t");
      ADD_FAILURE() << "it was taken";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(each.message), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace nbdelta::sim
