#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/process.hpp"

/// A manual page and what the program's --help says.
namespace nbdelta::testing {
namespace {

using ::testing::IsEmpty;
using Names = std::set<std::string>;

/// The option names in a text, where `introduced` comes before each.
Names options_in(const std::string& text, const std::string& introduced) {
  const std::regex option(introduced + "([a-z][a-z-]*)");
  Names names;
  for (std::sregex_iterator it(text.begin(), text.end(), option), end; it != end; ++it)
    names.insert((*it)[1]);
  return names;
}

/// The lines under a heading of --help, up to an empty one.
std::vector<std::string> lines_under(const std::string& help, const std::string& heading) {
  std::istringstream text(help);
  std::string line;
  while (std::getline(text, line) && line != heading)
    continue;
  std::vector<std::string> lines;
  while (std::getline(text, line) && !line.empty())
    lines.push_back(line);
  return lines;
}

/// By subcommand; "" is the program's own.
std::map<std::string, Names> options_by_help(const std::string& program) {
  const std::string own = run_ok({program, "--help"});
  std::map<std::string, std::string> helps{{"", own}};
  for (const std::string& line : lines_under(own, "Subcommands:"))
    if (const std::string name = line.substr(2, line.find(' ', 2) - 2); !name.empty())
      helps[name] = run_ok({program, name, "--help"});
  std::map<std::string, Names> found;
  for (const auto& [command, help] : helps)
    for (const std::string& line : lines_under(help, "Options:"))
      for (const std::string& option : options_in(line, "^  (?:-[a-z],)?--"))
        found[command].insert(option);
  return found;
}

/// A piece of the page: an item of a list of options, or one command's line of the synopsis.
struct Piece {
  Names options;
  std::string about;  // words that say whose options these are
};

/// The synopsis of each command, and each item under OPTIONS with the title of its list.
std::vector<Piece> pieces_of(const std::string& page) {
  std::ifstream file(page);
  std::vector<Piece> pieces;
  std::string section;
  std::string list;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(".Sh ")) {
      section = line.substr(4);
      list.clear();
    } else if (line.starts_with(".Ss ")) {
      list = line.substr(4);
    }
    if (section == "SYNOPSIS" && line.starts_with(".Nm"))
      pieces.push_back({{}, ""});
    else if (section == "OPTIONS" && line.starts_with(".It Fl "))
      pieces.push_back({options_in(line, "Fl -"), list});
    else if (section == "SYNOPSIS" && !pieces.empty())
      pieces.back().options.merge(options_in(line, "Fl -"));
    if ((section == "SYNOPSIS" || section == "OPTIONS") && line.starts_with(".Cm ") &&
        !pieces.empty())
      pieces.back().about += " " + line.substr(4);
  }
  return pieces;
}

bool is_about(const Piece& piece, const std::string& command) {
  return std::regex_search(piece.about, std::regex("(^|[ ,])" + command + "($|[ ,])"));
}

struct Page {
  std::string name;
  std::string program;
};

class Manual : public ::testing::TestWithParam<Page> {
 protected:
  const std::map<std::string, Names> help_ = options_by_help(GetParam().program);
  const std::vector<Piece> page_ =
      pieces_of(std::string(NBDELTA_SOURCE) + "/docs/" + GetParam().name + ".1");

  /// Of no command in particular, where a list's title and an item's text name none.
  bool is_of_all(const Piece& piece) const {
    return std::none_of(help_.begin(), help_.end(), [&](const auto& each) {
      return !each.first.empty() && is_about(piece, each.first);
    });
  }
  bool is_of(const Piece& piece, const std::string& command) const {
    return is_of_all(piece) || is_about(piece, command);
  }
};

TEST_P(Manual, HasEveryOption) {
  EXPECT_GT(help_.size(), 5U);
  std::vector<std::string> missing;
  for (const auto& [command, options] : help_)
    for (const std::string& option : options) {
      const bool found = std::any_of(page_.begin(), page_.end(), [&](const Piece& piece) {
        return piece.options.count(option) != 0 && is_of(piece, command);
      });
      if (!found && option != "help")
        missing.push_back(command + " --" + option);
    }
  EXPECT_THAT(missing, IsEmpty());
}

TEST_P(Manual, HasNoOtherOption) {
  std::vector<std::string> unknown;
  std::size_t seen = 0;
  for (const Piece& piece : page_)
    for (const std::string& option : piece.options) {
      ++seen;
      const bool found = std::any_of(help_.begin(), help_.end(), [&](const auto& each) {
        return each.second.count(option) != 0 && is_of(piece, each.first);
      });
      if (!found)
        unknown.push_back("--" + option + " in '" + piece.about + "'");
    }
  EXPECT_GT(seen, 15U);
  EXPECT_THAT(unknown, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Docs, Manual,
                         ::testing::Values(Page{"nbdelta", NBDELTA_PROGRAM},
                                           Page{"nbdelta-sim", NBDELTA_SIM}),
                         [](const auto& row) {
                           return row.param.name == "nbdelta" ? std::string("Nbdelta")
                                                              : std::string("NbdeltaSim");
                         });

}  // namespace
}  // namespace nbdelta::testing
