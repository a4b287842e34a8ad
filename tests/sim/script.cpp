#include "tests/sim/script.hpp"

#include <fmt/format.h>

#include <boost/json/parse.hpp>
#include <fstream>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;

/// At spaces, but not within JSON.
std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> words(1);
  unsigned depth = 0;
  bool quoted = false;
  for (const char c : line) {
    if (c == '"')
      quoted = !quoted;
    else if (!quoted && (c == '{' || c == '['))
      ++depth;
    else if (!quoted && (c == '}' || c == ']'))
      --depth;
    if (c == ' ' && depth == 0 && !quoted) {
      if (!words.back().empty())
        words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  if (words.back().empty())
    words.pop_back();
  return words;
}

}  // namespace

std::vector<Step> read_script(const std::string& path) {
  std::ifstream file(path);
  if (!file)
    fail_errno("{}: cannot be opened", path);
  std::vector<Step> steps;
  std::string line;
  for (std::string part; std::getline(file, part);) {
    line += part;
    if (line.ends_with('\\')) {
      line.pop_back();
      continue;
    }
    Step step;
    step.text.swap(line);
    if (step.text.empty() || step.text.starts_with('#'))
      continue;
    const std::size_t space = step.text.find(' ');
    step.verb = step.text.substr(0, space);
    if (step.verb != ">>" && space != std::string::npos)
      step.words = split(step.text.substr(space));
    steps.push_back(std::move(step));
  }
  return steps;
}

json::object arguments_of(const std::vector<std::string>& words, std::size_t first) {
  json::object arguments;
  for (std::size_t i = first; i < words.size(); ++i) {
    const std::size_t equals = words[i].find('=');
    if (equals == std::string::npos)
      fail(EINVAL, "'{}' is not KEY=VALUE", words[i]);
    const std::string value = words[i].substr(equals + 1);
    json::error_code error;
    json::value parsed = json::parse(value, error);
    arguments[words[i].substr(0, equals)] = error ? json::value(value) : std::move(parsed);
  }
  return arguments;
}

}  // namespace nbdelta::testing
