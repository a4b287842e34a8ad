#pragma once

#include <boost/json/object.hpp>
#include <map>
#include <string>
#include <vector>

namespace nbdelta::testing {

/// What was said to a QEMU and what it said, so that two can be compared.
///
/// What is left out, since nbdelta does not read it:
/// - members of answers that no structure in qapi/ has;
/// - the times of events;
/// - sizes of files ("actual-size", "virtual-size" of protocol nodes, "amount-exceeded"): the fake
///   has no metadata and no refcounts; QEMU's depend on the host's file system too;
/// - nodes that a running job puts above others (commit_top, mirror_top), and a job's own bitmap,
///   which has no name.
/// Names that QEMU makes up are numbered in the order of their appearance, and the images' folder
/// is called $DIR.
class Transcript {
 public:
  explicit Transcript(std::string folder) : folder_(std::move(folder)) {}

  void note(const std::string& line);
  /// A line of QMP; `command`: what was asked.
  void message(const std::string& command, const boost::json::object& message);

  const std::vector<std::string>& lines() const { return lines_; }

 private:
  boost::json::value tidy(const boost::json::value& value);
  std::string tidy(std::string text);
  /// QEMU has a job rest whenever it drains a node, and then go on as before.
  bool is_rest_of_job(const boost::json::object& message);

  std::string folder_;
  std::map<std::string, std::string> names_;
  std::map<std::string, std::string> job_status_;
  std::vector<std::string> lines_;
};

/// "" where both are equal, otherwise the lines of both from a little above the first difference.
std::string difference(const std::vector<std::string>& real, const std::vector<std::string>& fake);

}  // namespace nbdelta::testing
