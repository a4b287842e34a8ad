#include "sim/iolog.hpp"

#include <algorithm>
#include <charconv>
#include <set>

#include "base/error.hpp"

namespace nbdelta::sim {
namespace {

constexpr std::string_view kVersion2 = "fio version 2 iolog";
constexpr std::string_view kVersion3 = "fio version 3 iolog";
constexpr std::uint64_t kLongestTime = 1'000'000ULL * 86400 * 365;  // us
constexpr std::size_t kMostActions = 50'000'000;

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (true) {
    line.remove_prefix(std::min(line.find_first_not_of(" \t\r"), line.size()));
    if (line.empty())
      return words;
    const std::size_t end = std::min(line.find_first_of(" \t\r"), line.size());
    words.push_back(line.substr(0, end));
    line.remove_prefix(end);
  }
}

class IologParser {
 public:
  explicit IologParser(const std::string& name) : name_(name) {}

  void feed(std::string_view line) {
    ++line_;
    std::vector<std::string_view> words = words_of(line);
    if (trace_.version == 0) {
      read_header(line);
      return;
    }
    if (words.empty())
      return;
    if (trace_.version == 3) {
      timestamp(words[0]);
      words.erase(words.begin());
    }
    if (words.size() == 2)
      manage(words[0], words[1]);
    else if (words.size() == 4)
      act(words);
    else
      refuse("expected '{}FILE add|open|close' or '{}FILE ACTION OFFSET LENGTH'", stamp(), stamp());
  }

  Trace finish() {
    if (trace_.version == 0)
      refuse("the file is empty: expected '{}' or '{}'", kVersion2, kVersion3);
    return std::move(trace_);
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(EINVAL, "{}:{}: {}", name_, line_, fmt::format(format, std::forward<Args>(args)...));
  }

  std::string_view stamp() const { return trace_.version == 3 ? "TIMESTAMP " : ""; }

  void read_header(std::string_view line) {
    while (line.ends_with('\r') || line.ends_with(' '))
      line.remove_suffix(1);
    if (line == kVersion2)
      trace_.version = 2;
    else if (line == kVersion3)
      trace_.version = 3;
    else
      refuse("'{}' does not begin a trace: expected '{}' or '{}'", line.substr(0, 60), kVersion2,
             kVersion3);
  }

  std::uint64_t number(std::string_view word, std::string_view what) const {
    std::uint64_t value = 0;
    const auto [end, status] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (status != std::errc() || end != word.data() + word.size())
      refuse("'{}' is no {}: expected a whole number from 0 to {}", word, what, UINT64_MAX);
    return value;
  }

  void advance_to(std::uint64_t time) {
    if (time > kLongestTime)
      refuse("{} us after the beginning: a trace may last a year", time);
    now_ = time;
  }

  /// Microseconds (fio iolog.c, log_io_u: utime_since_now).
  void timestamp(std::string_view word) {
    const std::uint64_t time = number(word, "timestamp");
    if (time < now_)
      refuse("timestamp {} is before the line above, {}", time, now_);
    advance_to(time);
  }

  std::size_t find(std::string_view file) const {
    return static_cast<std::size_t>(std::find(trace_.files.begin(), trace_.files.end(), file) -
                                    trace_.files.begin());
  }

  void manage(std::string_view file, std::string_view action) {
    const std::size_t index = find(file);
    const bool known = index != trace_.files.size();
    if (action == "add") {
      if (!known)
        trace_.files.emplace_back(file);
      return;
    }
    if (action != "open" && action != "close")
      refuse("'{}' is no action on a file: expected add, open or close", action);
    if (!known)
      refuse("{} was not added before", file);
    if (action == "open")
      open_.insert(index);
    else if (open_.erase(index) == 0)
      refuse("{} is not open", file);
  }

  void act(const std::vector<std::string_view>& words) {
    const std::string_view action = words[1];
    const std::uint64_t offset = number(words[2], "offset");
    const std::uint64_t length = number(words[3], "length");
    if (action == "wait") {
      if (trace_.version == 3)
        refuse("there is no 'wait' in version 3: its timestamps say when");
      if (offset >= 100)  // fio passes over shorter ones
        advance_to(offset > kLongestTime ? offset : now_ + offset);
      return;
    }
    const std::size_t file = find(words[0]);
    if (open_.count(file) == 0)
      refuse("{} is not open", words[0]);
    TraceEntry entry{.kind = TraceEntry::Kind::write,
                     .file = file,
                     .offset = offset,
                     .length = length,
                     .at = std::chrono::microseconds(now_),
                     .line = line_};
    if (action == "sync" || action == "datasync" || action == "sync_file_range")
      entry.kind = TraceEntry::Kind::sync;
    else if (action == "trim")
      entry.kind = TraceEntry::Kind::trim;
    else if (action != "write" && action != "read")
      refuse("'{}' is no action: expected read, write, sync, datasync, trim{}", action,
             trace_.version == 2 ? " or wait" : "");
    if (action == "read")
      return;
    if (entry.kind != TraceEntry::Kind::sync && (length == 0 || offset > UINT64_MAX - length))
      refuse("{} of {} bytes at {}: there is no such range", action, length, offset);
    if (trace_.entries.size() == kMostActions)
      refuse("more than {} actions", kMostActions);
    trace_.entries.push_back(entry);
  }

  const std::string& name_;
  Trace trace_;
  std::set<std::size_t> open_;
  std::uint64_t now_ = 0;  // us
  std::uint64_t line_ = 0;
};

}  // namespace

Trace parse_iolog(std::string_view text, const std::string& name) {
  IologParser parser(name);
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    parser.feed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parser.finish();
}

}  // namespace nbdelta::sim
