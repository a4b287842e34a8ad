#include "tests/guest/operation_log.hpp"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <sstream>
#include <string>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

LoggedOperation::Kind parse_kind(const std::string& name) {
  if (name == "write")
    return LoggedOperation::Kind::write;
  if (name == "zero")
    return LoggedOperation::Kind::zero;
  if (name == "discard")
    return LoggedOperation::Kind::discard;
  fail(EINVAL, "'{}' is no operation", name);
}

class Parser {
 public:
  void line(const std::string& text) {
    std::istringstream words(text);
    std::string event;
    std::string kind;
    LoggedOperation operation;
    words >> event;
    if (event == "file") {
      ++lines_;
      return;
    }
    words >> operation.sequence >> operation.disk >> kind >> operation.offset >> operation.length;
    const bool begins = event == "start";
    std::uint64_t latency_us = 0;
    std::uint64_t monotonic_us = 0;
    if (!begins)
      words >> latency_us >> monotonic_us;
    if (!words || !(words >> std::ws).eof() || !(begins || event == "done" || event == "failed"))
      fail(EINVAL, "operation log: line {}: cannot read '{}'", lines_, text);
    operation.kind = parse_kind(kind);
    operation.started = lines_;
    if (begins)
      begin(operation);
    else
      end(operation, event == "failed", latency_us, monotonic_us);
    ++lines_;
  }

  std::vector<LoggedOperation> take() { return std::move(operations_); }

 private:
  void begin(const LoggedOperation& operation) {
    if (!operations_.empty() && operation.sequence <= operations_.back().sequence)
      fail(EINVAL, "operation log: line {}: operation {} begins after {}", lines_,
           operation.sequence, operations_.back().sequence);
    operations_.push_back(operation);
  }

  void end(const LoggedOperation& ended, bool failed, std::uint64_t latency_us,
           std::uint64_t monotonic_us) {
    const auto found = std::lower_bound(
        operations_.begin(), operations_.end(), ended.sequence,
        [](const LoggedOperation& operation, std::uint64_t n) { return operation.sequence < n; });
    if (found == operations_.end() || found->sequence != ended.sequence || found->done ||
        found->failed)
      fail(EINVAL, "operation log: line {}: operation {} ends, but was not in flight", lines_,
           ended.sequence);
    found->failed = failed;
    if (!failed)
      found->done = lines_;
    found->latency = std::chrono::microseconds(latency_us);
    found->ended_at = std::chrono::microseconds(monotonic_us);
  }

  std::uint64_t lines_ = 0;
  std::vector<LoggedOperation> operations_;  // by sequence
};

}  // namespace

std::vector<LoggedOperation> parse_operation_log(std::string_view log) {
  Parser parser;
  for (std::size_t end = log.find('\n'); end != std::string_view::npos; end = log.find('\n')) {
    parser.line(std::string(log.substr(0, end)));
    log.remove_prefix(end + 1);
  }
  return parser.take();
}

std::uint64_t first_not_done(const std::vector<LoggedOperation>& operations) {
  for (const LoggedOperation& operation : operations)
    if (!operation.done)
      return operation.sequence;
  return last_started(operations) + 1;
}

std::uint64_t last_started(const std::vector<LoggedOperation>& operations) {
  return operations.empty() ? 0 : operations.back().sequence;
}

std::chrono::microseconds longest_stall(std::string_view log, std::size_t from) {
  std::chrono::microseconds longest{0};
  std::istringstream lines{std::string(log.substr(std::min(from, log.size())))};
  for (std::string line; std::getline(lines, line) && !lines.eof();) {
    std::istringstream text(line);
    const std::vector<std::string> words{std::istream_iterator<std::string>(text), {}};
    const std::string event = words.empty() ? "" : words.front();
    const std::size_t latency = event == "file" ? 1 : event == "done" ? 6 : 0;
    if (latency != 0)
      longest = std::max(longest, std::chrono::microseconds(std::stoll(words.at(latency))));
  }
  return longest;
}

}  // namespace nbdelta::testing
