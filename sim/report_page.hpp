#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "sim/run_file.hpp"

namespace nbdelta::sim {

/// A file of the report.
struct ReportFile {
  std::string name;
  std::string text;
};

/// The page, "report.html", which needs nothing else, and its pictures as files of their own. At
/// most `details` sessions are shown in detail; all count in the tables. Throws Error, where there
/// is no session, and where gnuplot fails.
std::vector<ReportFile> make_report(const std::vector<Run>& runs, std::size_t details);

/// Whether a picture of some report is called so.
bool is_picture_of_report(const std::string& file);

}  // namespace nbdelta::sim
