#include "sim/record.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <utility>

#include "base/error.hpp"
#include "sim/stamp.hpp"

namespace nbdelta::sim {
namespace {

constexpr std::string_view kFirstLine = "nbdelta-sim record 1";
constexpr std::string_view kDisk = "disk ";

/// Why a line makes no sense; its place is said where the line was read.
struct Senseless {
  std::string why;
};

template <class... Args>
[[noreturn]] void refuse_line(fmt::format_string<Args...> format, Args&&... args) {
  throw Senseless{fmt::format(format, std::forward<Args>(args)...)};
}

/// Words of a line, one after the other.
class Words {
 public:
  explicit Words(std::string_view line) : left_(line) {}

  bool at_end() const { return left_.empty(); }
  std::string_view next() {
    const std::size_t space = left_.find(' ');
    const std::string_view word = left_.substr(0, space);
    left_ = space == std::string_view::npos ? std::string_view() : left_.substr(space + 1);
    return word;
  }
  std::string_view rest() { return std::exchange(left_, {}); }
  std::uint64_t number(std::uint64_t limit) {
    const std::string_view word = next();
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size() || value >= limit)
      refuse_line("'{}' is no number below {}", word, limit);
    return value;
  }

 private:
  std::string_view left_;
};

std::string head_of(const std::vector<RecordedDisk>& disks) {
  std::string head = fmt::format("{}\n", kFirstLine);
  for (const RecordedDisk& disk : disks)
    head += fmt::format("{}{} {} {} {}\n", kDisk, disk.name, disk.format, disk.granules, disk.path);
  return head;
}

}  // namespace

void check_record(const std::string& path, const std::vector<RecordedDisk>& disks) {
  const File file = File::open(path, O_RDONLY);
  if (file.size() == 0)
    fail(EINVAL,
         "{}: is empty: it does not say what the guest's disks must hold; without it the guest "
         "starts with what there is",
         path);
  const std::string head = head_of(disks);
  std::string there(head.size() + kDisk.size(), '\0');  // up to where one more disk would be told
  there.resize(file.read_at(std::as_writable_bytes(std::span(there)), 0));
  if (!there.starts_with(kFirstLine))
    fail(EINVAL, "{}: is no record of nbdelta-sim", path);
  if (!there.starts_with(head) || there.ends_with(kDisk))
    fail(EEXIST, "{}: is the record of other disks: use a new folder", path);
}

Record::Record(const std::string& path, const std::vector<RecordedDisk>& disks,
               client::Clock& clock)
    : clock_(&clock) {
  const std::string head = head_of(disks);
  file_ = File::open(path, O_RDWR | O_CREAT | O_APPEND);
  if (file_.size() == 0)
    file_.write_at(std::as_bytes(std::span(head)), 0);
  else
    check_record(path, disks);
  std::string last(1, '\n');  // a line that a crash has cut off does not count
  while (file_.size() > head.size()) {
    file_.read_at(std::as_writable_bytes(std::span(last)), file_.size() - 1);
    if (last == "\n")
      break;
    file_.resize(file_.size() - 1);
  }
}

void Record::add(std::string_view what) {
  const auto now = clock_->now().time_since_epoch();
  const std::string line = fmt::format(
      "{} {}\n", std::chrono::duration_cast<std::chrono::microseconds>(now).count(), what);
  const ssize_t written = ::write(file_.fd(), line.data(), line.size());
  if (written < 0)
    fail_errno("{}: cannot add a line", file_.name());
  if (written != static_cast<ssize_t>(line.size()))
    fail(ENOSPC, "{}: cannot add a line: no space is left", file_.name());
}

void Record::found(std::size_t disk, std::uint64_t granule, std::uint64_t content) {
  add(fmt::format("found {} {} {}", disk, granule, content));
}

void Record::write(std::size_t disk, std::uint64_t granule, std::uint64_t count,
                   WriteNumber number) {
  add(fmt::format("write {} {} {} {}", disk, granule, count, number));
}

void Record::zero(std::size_t disk, std::uint64_t granule, std::uint64_t count) {
  add(fmt::format("zero {} {} {}", disk, granule, count));
}

void Record::flush(std::size_t disk) {
  add(fmt::format("flush {}", disk));
}

void Record::switched(const std::vector<std::string>& overlays) {
  add(fmt::format("switch {}", fmt::join(overlays, " ")));
}

void Replay::run(const std::string& path) {
  std::ifstream in(path);
  if (!in)
    fail_errno("{}: cannot open", path);
  std::string line;
  for (std::size_t number = 1; std::getline(in, line) && !in.eof(); ++number) {
    try {
      if (number > 1)
        take(line);
      else if (line != kFirstLine)
        refuse_line("is no record of nbdelta-sim");
    } catch (const Senseless& line_is) {
      fail(EINVAL, "{}:{}: {}", path, number, line_is.why);
    }
  }
  if (in.bad())
    fail(EIO, "{}: cannot be read", path);
}

void Replay::take(std::string_view line) {
  if (!line.starts_with(kDisk)) {
    take_event(line);
    return;
  }
  Words words(line.substr(kDisk.size()));
  RecordedDisk disk;
  disk.name = words.next();
  disk.format = words.next();
  disk.granules = words.number(std::uint64_t{1} << 40);
  disk.path = words.rest();
  contents.emplace_back(disk.granules);
  unflushed.emplace_back();
  disks.push_back(std::move(disk));
}

void Replay::take_event(std::string_view line) {
  Words words(line);
  words.next();  // the time
  const std::string_view what = words.next();
  if (what == "start") {
    started = true;
    on_disks();
  } else if (what == "switch") {
    std::vector<std::string> overlays;
    while (!words.at_end())
      overlays.emplace_back(words.next());
    on_switch(overlays);
  } else if (what == "end") {
    for (auto& disk : unflushed)
      disk.clear();
  } else {
    const std::size_t disk = words.number(disks.size());
    if (what == "flush") {
      unflushed[disk].clear();
      return;
    }
    const std::uint64_t granule = words.number(disks[disk].granules);
    if (what == "found") {
      const std::uint64_t content = words.number(UINT64_MAX);
      set(disk, granule, content);
      if ((content & kForeignContent) == 0)
        last_write = std::max(last_write, static_cast<WriteNumber>(content));
      return;
    }
    const std::uint64_t count = words.number(disks[disk].granules - granule + 1);
    WriteNumber number = 0;
    if (what == "write")
      number = static_cast<WriteNumber>(words.number(ForeignGranules::kFirst));
    else if (what != "zero")
      refuse_line("'{}' is not known", what);
    last_write = std::max(last_write, number);
    for (std::uint64_t i = granule; i < granule + count; ++i) {
      unflushed[disk][i].push_back(contents[disk][i]);
      set(disk, i, number);
    }
  }
}

bool Replay::may_hold(std::size_t disk, std::uint64_t granule, std::uint64_t content) const {
  if (contents[disk][granule] == content)
    return true;
  const auto found = unflushed[disk].find(granule);
  return found != unflushed[disk].end() &&
         std::find(found->second.begin(), found->second.end(), content) != found->second.end();
}

void Replay::set(std::size_t disk, std::uint64_t granule, std::uint64_t content) {
  const std::uint64_t before = std::exchange(contents[disk][granule], content);
  if (before != content)
    on_change(disk, granule, before);
}

}  // namespace nbdelta::sim
