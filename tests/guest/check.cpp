#include "tests/guest/check.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>

#include "base/error.hpp"
#include "base/file.hpp"
#include "tests/guest/stamp.hpp"
#include "tests/support/process.hpp"

namespace nbdelta::testing {
namespace {

using Kind = LoggedOperation::Kind;

constexpr std::size_t kMaxProblems = 20;  // more do not help a reader

/// What a sector holds.
struct Contents {
  enum class Kind { zeros, stamp, foreign };
  Kind kind = Kind::zeros;
  Stamp stamp;

  bool is_zeros() const { return kind == Kind::zeros; }
  bool is_of(std::uint64_t sequence) const {
    return kind == Kind::stamp && stamp.sequence == sequence;
  }
};

Contents contents_of(std::span<const std::byte> bytes) {
  Sector sector;
  std::memcpy(sector.data(), bytes.data(), sizeof sector);
  const Stamp& first = sector.front();
  if (std::any_of(sector.begin(), sector.end(), [&](const Stamp& s) { return s != first; }))
    return {Contents::Kind::foreign, {}};
  if (first == Stamp{})
    return {};
  return {first.magic == kStampMagic ? Contents::Kind::stamp : Contents::Kind::foreign, first};
}

std::string to_string(const Contents& contents) {
  switch (contents.kind) {
    case Contents::Kind::zeros:
      return "zeros";
    case Contents::Kind::stamp:
      return fmt::format("operation {}", contents.stamp.sequence);
    case Contents::Kind::foreign:
      break;
  }
  return "something that the writer did not write";
}

std::string to_string(const LoggedOperation& operation) {
  const char* kind = operation.kind == Kind::write  ? "write"
                     : operation.kind == Kind::zero ? "zero"
                                                    : "discard";
  return fmt::format("operation {} ({})", operation.sequence, kind);
}

/// Places in the log, both included: at place t its first t lines have happened.
struct Places {
  std::uint64_t from = 0;
  std::uint64_t to = 0;

  bool empty() const { return from > to; }
};

/// The operations on a sector, in their order.
using Operations = std::vector<const LoggedOperation*>;

/// Whether a sector that the first `count` operations have been done to, of which the last one for
/// certain, may hold this.
bool may_hold(const Operations& operations, std::size_t count, const Contents& contents) {
  for (std::size_t i = count; i > 0; --i) {
    const LoggedOperation& operation = *operations[i - 1];
    if (operation.kind == Kind::write ? contents.is_of(operation.sequence) : contents.is_zeros())
      return true;
    const bool may_have_left_it =
        operation.kind == Kind::discard || (i < count && !operation.done.has_value());
    if (!may_have_left_it)
      return false;
  }
  return contents.is_zeros();
}

/// When a sector may have held this; in order, not touching each other.
std::vector<Places> places_of(const Operations& operations, const Contents& contents,
                              std::uint64_t end) {
  std::vector<Places> places;
  std::uint64_t to = end;  // until when the first `count` operations may have been all
  for (std::size_t count = operations.size() + 1; count-- > 0;) {
    const std::uint64_t from = count == 0 ? 0 : operations[count - 1]->started + 1;
    if (may_hold(operations, count, contents) && from <= to) {
      if (!places.empty() && places.back().from <= to + 1)
        places.back().from = from;
      else
        places.push_back({from, to});
    }
    if (count > 0)
      to = std::min(to, operations[count - 1]->done.value_or(end));
  }
  std::reverse(places.begin(), places.end());
  return places;
}

/// Gathers problems; those of neighbouring sectors that read alike become one.
class Problems {
 public:
  void add(std::uint64_t disk, std::uint64_t offset, std::string text) {
    if (!found_.empty() && found_.back().disk == disk && found_.back().end == offset &&
        found_.back().text == text) {
      found_.back().end += kSectorSize;
      return;
    }
    found_.push_back({disk, offset, offset + kSectorSize, std::move(text)});
  }
  bool none() const { return found_.empty(); }

  std::vector<std::string> texts() const {
    std::vector<std::string> result;
    for (const Problem& problem : found_) {
      if (result.size() == kMaxProblems) {
        result.push_back(fmt::format("and {} more", found_.size() - kMaxProblems));
        break;
      }
      result.push_back(fmt::format("disk {}, [{:#x}, {:#x}): {}", problem.disk, problem.offset,
                                   problem.end, problem.text));
    }
    return result;
  }

 private:
  struct Problem {
    std::uint64_t disk;
    std::uint64_t offset;
    std::uint64_t end;
    std::string text;
  };
  std::vector<Problem> found_;
};

/// What must be at every place in `window` and is not, or is there and can be at none.
std::string explain(const Operations& operations, const Contents& contents, const Places& window) {
  const LoggedOperation* required = nullptr;  // the last that must be there
  const LoggedOperation* holder = nullptr;
  for (const LoggedOperation* operation : operations) {
    if (operation->done && *operation->done < window.from)
      required = operation;
    if (contents.is_of(operation->sequence))
      holder = operation;
  }
  if (holder != nullptr && holder->started >= window.to)
    return fmt::format("holds {}, which had not begun", to_string(*holder));
  if (contents.kind == Contents::Kind::stamp && holder == nullptr)
    return fmt::format("holds {}, which did not write there", to_string(contents));
  if (required != nullptr)
    return fmt::format("holds {}; {}, acknowledged before, is missing", to_string(contents),
                       to_string(*required));
  return fmt::format("holds {}, which nothing left there", to_string(contents));
}

/// Which sequence numbers the log need not have.
enum class Unlogged { none, after_the_last };

class Checker {
 public:
  Checker(const std::vector<LoggedOperation>& operations, Unlogged unlogged)
      : unlogged_(unlogged), last_(last_started(operations)) {
    for (const LoggedOperation& operation : operations) {
      if (operation.disk >= history_.size())
        history_.resize(operation.disk + 1);
      for (std::uint64_t at = 0; at < operation.length; at += kSectorSize)
        history_[operation.disk][operation.offset + at].push_back(&operation);
      end_ = std::max({end_, operation.started + 1, operation.done.value_or(0) + 1});
    }
  }

  /// The place after the log's last line.
  std::uint64_t end() const { return end_; }

  std::vector<std::string> check(const std::vector<std::string>& disks, const Places& window) {
    if (history_.size() > disks.size())
      fail(EINVAL, "the log has operations on {} disks, but there are {} files", history_.size(),
           disks.size());
    for (std::uint64_t disk = 0; disk < disks.size(); ++disk)
      check_disk(disk, disks[disk], window);
    if (problems_.none())
      check_common_place(window);
    return problems_.texts();
  }

 private:
  struct Seen {
    std::uint64_t disk;
    std::uint64_t offset;
    const Operations* operations;
    Contents contents;
    std::vector<Places> places;
  };

  const Operations& operations_on(std::uint64_t disk, std::uint64_t offset) const {
    static const Operations kNone;
    if (disk >= history_.size())
      return kNone;
    const auto found = history_[disk].find(offset);
    return found == history_[disk].end() ? kNone : found->second;
  }

  void check_disk(std::uint64_t disk, const std::string& path, const Places& window) {
    const File file = File::open(path, O_RDONLY);
    const std::uint64_t size = file.size();
    if (disk < history_.size())
      for (const auto& [offset, operations] : history_[disk])
        if (offset + kSectorSize > size)
          fail(EINVAL, "{}: ends at {:#x}, but {} is at {:#x}", path, size,
               to_string(*operations.front()), offset);
    std::vector<std::byte> chunk(1024 * 1024);
    for (std::uint64_t at = 0; at < size; at += chunk.size()) {
      chunk.resize(std::min<std::uint64_t>(chunk.size(), size - at));
      file.read_exactly_at(chunk, at);
      for (std::size_t i = 0; i + kSectorSize <= chunk.size(); i += kSectorSize)
        check_sector(disk, at + i, contents_of(std::span(chunk).subspan(i, kSectorSize)), window);
    }
  }

  void check_sector(std::uint64_t disk, std::uint64_t offset, const Contents& contents,
                    const Places& window) {
    const Operations& operations = operations_on(disk, offset);
    if (operations.empty() && contents.is_zeros())
      return;
    if (contents.kind == Contents::Kind::stamp) {
      if (contents.stamp.disk != disk || contents.stamp.offset != offset) {
        problems_.add(
            disk, offset,
            fmt::format("holds {} of another place (disk {}, {:#x} from here)", to_string(contents),
                        contents.stamp.disk, contents.stamp.offset - offset));
        return;
      }
      if (unlogged_ == Unlogged::after_the_last && contents.stamp.sequence > last_)
        return;
    }
    std::vector<Places> places = places_of(operations, contents, end_);
    for (Places& some : places)
      some = {std::max(some.from, window.from), std::min(some.to, window.to)};
    std::erase_if(places, [](const Places& some) { return some.empty(); });
    if (places.empty())
      problems_.add(disk, offset, explain(operations, contents, window));
    else if (places.size() > 1 || places[0].from > window.from || places[0].to < window.to)
      seen_.push_back({disk, offset, &operations, contents, std::move(places)});
  }

  /// Every sector by itself is as it was at some place in the window: is there one for all?
  void check_common_place(const Places& window) {
    std::vector<std::int64_t> change(window.to - window.from + 2);
    for (const Seen& seen : seen_) {
      for (const Places& some : seen.places) {
        ++change[some.from - window.from];
        --change[some.to + 1 - window.from];
      }
    }
    std::int64_t count = 0;
    std::int64_t most = -1;
    std::uint64_t best = window.from;
    for (std::uint64_t t = window.from; t <= window.to; ++t) {
      count += change[t - window.from];
      if (count > most) {
        most = count;
        best = t;
      }
    }
    if (most == static_cast<std::int64_t>(seen_.size()))
      return;
    for (const Seen& seen : seen_) {
      const bool fits =
          std::any_of(seen.places.begin(), seen.places.end(),
                      [&](const Places& some) { return some.from <= best && best <= some.to; });
      if (!fits)
        problems_.add(seen.disk, seen.offset,
                      fmt::format("of another instant than the rest (line {} of the log): {}", best,
                                  explain(*seen.operations, seen.contents, {best, best})));
    }
  }

  Unlogged unlogged_;
  std::uint64_t last_;
  std::uint64_t end_ = 0;
  std::vector<std::unordered_map<std::uint64_t, Operations>> history_;  // disk, offset of sector
  std::vector<Seen> seen_;  // sectors that do not fit all of the window
  Problems problems_;
};

}  // namespace

std::vector<std::string> check_instant(const std::vector<std::string>& disks,
                                       const std::vector<LoggedOperation>& operations,
                                       std::uint64_t done_before, std::uint64_t not_after) {
  Checker checker(operations, Unlogged::none);
  Places window{0, checker.end()};
  for (const LoggedOperation& operation : operations) {
    if (operation.done && operation.sequence < done_before)
      window.from = std::max(window.from, *operation.done + 1);
    if (operation.sequence > not_after)
      window.to = std::min(window.to, operation.started);
  }
  if (window.empty())
    fail(EINVAL, "no instant is after all operations below {} and before all above {}", done_before,
         not_after);
  return checker.check(disks, window);
}

std::vector<std::string> check_nothing_lost(const std::vector<std::string>& disks,
                                            const std::vector<LoggedOperation>& operations) {
  Checker checker(operations, Unlogged::after_the_last);
  return checker.check(disks, {checker.end(), checker.end()});
}

std::vector<std::string> check_file_system(const std::string& disk) {
  std::vector<std::string> problems;
  // e2fsck(8): 1 says that errors were corrected.
  if (const Outcome repair = run({"e2fsck", "-fp", disk}); repair.status > 1)
    problems.push_back(fmt::format("e2fsck -fp {}: {}{}", disk, repair.out, repair.err));
  if (const Outcome check = run({"e2fsck", "-fn", disk}); !check.ok())
    problems.push_back(fmt::format("e2fsck -fn {}: {}{}", disk, check.out, check.err));
  return problems;
}

std::vector<std::string> check_frozen_file_system(const std::string& disk) {
  const Outcome check = run({"e2fsck", "-fn", disk});
  // It says so of a journal that it would replay, and may find nothing else.
  if (check.ok() && (check.out + check.err).find("journal recovery") == std::string::npos)
    return {};
  return {fmt::format("e2fsck -fn {}: {}{}", disk, check.out, check.err)};
}

}  // namespace nbdelta::testing
