#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <optional>
#include <string>

#include "tests/client/session/qmp_tap.hpp"
#include "tests/client/session/session_test.hpp"

namespace nbdelta::testing {

/// `nbdelta NAME`, with each of its commands shown to `before` before QEMU gets it. That is in
/// another thread, which has the machine for itself meanwhile.
inline Outcome watched(
    Machine& machine, Points& points, const std::string& name, const Command& more,
    const std::function<void(QmpTap& tap, const boost::json::object& command)>& before) {
  std::optional<QmpTap> tap;
  tap.emplace(machine.folder() + "/tap", machine.qmp(),
              [&](const std::string& line) { before(*tap, boost::json::parse(line).as_object()); });
  points.connect_to(tap->path());
  const Outcome outcome = run(points.command(name, more));
  points.connect_to(machine.qmp());
  return outcome;
}

/// Says so at the command of this index, and whether there was one.
class Nth {
 public:
  explicit Nth(int index) : left_(index) {}
  bool operator()() { return left_-- == 0; }
  bool was_there() const { return left_ < 0; }

 private:
  int left_;
};

}  // namespace nbdelta::testing
