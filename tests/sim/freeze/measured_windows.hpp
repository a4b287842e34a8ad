#pragma once

#include <string>
#include <vector>

#include "qapi/fields.hpp"

namespace nbdelta::testing {

/// The guest's file writers: one on each disk, with as many operations a second (guest/writer.cpp).
struct WriterLoad {
  std::int64_t rate = 0;
  std::int64_t disks = 1;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("rate", rate);
    visit("disks", disks);
  }
};

/// What one backup's manifest says of its window.
struct MeasuredWindow {
  std::int64_t freeze_us = 0;
  std::int64_t switch_us = 0;
  std::int64_t thaw_us = 0;
  std::int64_t length_us = 0;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("freeze-us", freeze_us);
    visit("switch-us", switch_us);
    visit("thaw-us", thaw_us);
    visit("length-us", length_us);
  }
};

struct MeasuredLoad {
  WriterLoad load;
  std::vector<MeasuredWindow> windows;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("load", load);
    visit("windows", windows);
  }
};

struct Measurements {
  std::vector<MeasuredLoad> loads;
  template <class Visitor>
  void fields(Visitor& visit) {
    visit("loads", loads);
  }
};

/// Boots the test guest under TCG with that load and backs it up `count` times, with the real
/// nbdelta; the first backup, a full one, does not count.
MeasuredLoad measure(const WriterLoad& load, unsigned count);

}  // namespace nbdelta::testing
