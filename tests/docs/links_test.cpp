#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <vector>

#include "tests/support/process.hpp"
#include "tests/support/temp_folder.hpp"

/// What the documents lead to, here and where they are installed.
namespace nbdelta::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::IsEmpty;

/// The files that a document's links and pictures name.
std::vector<std::string> links_in(const fs::path& document) {
  std::ifstream file(document);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::regex link(R"(\]\(([^)#\s]+)[^)]*\))");
  std::vector<std::string> links;
  for (std::sregex_iterator it(text.begin(), text.end(), link), end; it != end; ++it)
    if (const std::string to = (*it)[1]; to.find("://") == std::string::npos)
      links.push_back(to);
  return links;
}

/// Those that lead nowhere; `seen` counts all.
std::vector<std::string> dead_links(const std::vector<fs::path>& documents, std::size_t& seen) {
  std::vector<std::string> dead;
  for (const fs::path& document : documents)
    for (const std::string& link : links_in(document)) {
      ++seen;
      if (!fs::exists(document.parent_path() / link))
        dead.push_back(document.string() + ": " + link);
    }
  return dead;
}

TEST(Links, LeadSomewhere) {
  const fs::path source = NBDELTA_SOURCE;
  std::vector<fs::path> documents{source / "README.md", source / "bench/README.md"};
  for (const auto& entry : fs::directory_iterator(source / "docs"))
    if (entry.path().extension() == ".md")
      documents.push_back(entry.path());
  std::size_t seen = 0;
  EXPECT_THAT(dead_links(documents, seen), IsEmpty());
  EXPECT_GT(seen, 20U);
}

TEST(Links, LeadSomewhereWhereTheyAreInstalled) {
  const TempFolder folder;
  run_ok({NBDELTA_CMAKE, "--install", NBDELTA_BUILD, "--component", "documents"},
         {.input = {}, .environment = {"DESTDIR=" + folder.path()}, .folder = {}});
  std::vector<fs::path> documents;
  for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
    if (entry.path().extension() == ".md")
      documents.push_back(entry.path());
  std::size_t seen = 0;
  EXPECT_THAT(dead_links(documents, seen), IsEmpty());
  EXPECT_GT(seen, 20U);
}

}  // namespace
}  // namespace nbdelta::testing
