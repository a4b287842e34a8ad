#include "sim/load.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>
#include <utility>

#include "base/error.hpp"

namespace nbdelta::sim {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kIdleRate = 20U << 10;  // bytes a second, where no other is given
// A database's transaction: pages that it changes, and the share of the area that is its log.
constexpr std::uint64_t kPagesOfATransaction = 4;
constexpr std::uint64_t kLogShare = 16;
constexpr std::uint64_t kMostFilesOfABurst = 8;

/// Spreads ranks over places, so that those of many draws are not neighbours: a bijection of
/// 0 to count - 1.
class Scatter {
 public:
  explicit Scatter(std::uint64_t count) : count_(count), stride_(count / 8 * 5 + 1) {
    while (std::gcd(stride_, count_) != 1)
      ++stride_;
  }
  std::uint64_t operator()(std::uint64_t rank) const {
    return static_cast<std::uint64_t>(static_cast<unsigned __int128>(rank) * stride_ % count_);
  }

 private:
  std::uint64_t count_;
  std::uint64_t stride_;
};

/// Makes requests in groups that have one time; `fill` makes a group.
class GroupLoad : public Load {
 public:
  GroupLoad(const LoadSetup& setup, std::uint64_t disk_size, std::uint64_t seed)
      : random(seed),
        setup_(setup),
        area_(setup.area == 0 ? disk_size : std::min(setup.area, disk_size)) {}

  std::optional<Request> next() final {
    if (group_.empty()) {
      fill();
      group_.front().gap = draw_gap();
    }
    const Request request = group_.front();
    group_.pop_front();
    return request;
  }

 protected:
  virtual void fill() = 0;

  const LoadSetup& setup() const { return setup_; }
  std::uint64_t area() const { return area_; }
  std::uint64_t request() const { return std::min(setup_.request, area_); }
  /// Whole requests that fit.
  std::uint64_t places() const { return std::max<std::uint64_t>(1, area_ / request()); }

  void add(Request::Kind kind, std::uint64_t offset, std::uint64_t length) {
    group_.push_back({kind, offset, length, {}});
  }
  /// A write, or by its share something else.
  void add_change(std::uint64_t offset, std::uint64_t length) {
    const double draw = random.fraction();
    const Request::Kind kind = draw < setup_.zero_share ? Request::Kind::zero
                               : draw < setup_.zero_share + setup_.discard_share
                                   ? Request::Kind::discard
                                   : Request::Kind::write;
    add(kind, offset, length);
  }

  Random random;

 private:
  /// Exponential, so that requests come as those of many independent users.
  Clock::Duration draw_gap() {
    if (!setup_.rate)
      return {};
    std::uint64_t bytes = 0;
    for (const Request& request : group_)
      bytes += request.kind == Request::Kind::sync ? 0 : request.length;
    const double mean = static_cast<double>(bytes) * static_cast<double>(setup_.programs) /
                        static_cast<double>(*setup_.rate);
    return std::chrono::duration_cast<Clock::Duration>(
        std::chrono::duration<double>(mean * -std::log(1 - random.fraction())));
  }

  LoadSetup setup_;
  std::uint64_t area_;
  std::deque<Request> group_;
};

/// One request after the other, with a sync after so many.
class PlainLoad final : public GroupLoad {
 public:
  PlainLoad(const LoadSetup& setup, std::uint64_t disk_size, std::uint64_t seed)
      : GroupLoad(setup, disk_size, seed),
        zipf_(places(), setup.pattern == Pattern::zipf ? setup.skew : 0),
        spread_(places()) {
    if (setup.pattern == Pattern::sequential && setup.programs > 1)
      next_place_ = random.below(places());  // each where it has come to
  }

 private:
  void fill() override {
    const std::uint64_t place = draw_place();
    add_change(place * request(), request());
    if (setup().sync_every == 0 || ++requests_ % setup().sync_every != 0)
      return;
    const std::uint64_t file = (places() + setup().files - 1) / setup().files * request();
    add(Request::Kind::sync, place * request() / file * file, file);
  }

  std::uint64_t draw_place() {
    switch (setup().pattern) {
      case Pattern::sequential:
        return next_place_++ % places();
      case Pattern::zipf:
        return spread_(zipf_.draw(random));
      default:
        return random.below(places());
    }
  }

  Zipf zipf_;
  Scatter spread_;
  std::uint64_t next_place_ = 0;
  std::uint64_t requests_ = 0;
};

/// Pages are changed in memory; then the log of that is written and synced (write-ahead logging).
class DatabaseLoad final : public GroupLoad {
 public:
  DatabaseLoad(const LoadSetup& setup, std::uint64_t disk_size, std::uint64_t seed)
      : GroupLoad(setup, disk_size, seed),
        log_places_(std::max<std::uint64_t>(1, places() / kLogShare)),
        pages_(std::max<std::uint64_t>(1, places() - log_places_)),
        zipf_(pages_, setup.skew),
        spread_(pages_) {}

 private:
  void fill() override {
    for (std::uint64_t i = 0; i < kPagesOfATransaction; ++i) {
      const std::uint64_t place = (log_places_ + spread_(zipf_.draw(random))) % places();
      add_change(place * request(), request());
    }
    const std::uint64_t log = next_log_++ % log_places_ * request();
    add(Request::Kind::write, log, request());
    add(Request::Kind::sync, log, request());
  }

  std::uint64_t log_places_;
  std::uint64_t pages_;
  Zipf zipf_;
  Scatter spread_;
  std::uint64_t next_log_ = 0;
};

class IdleLoad final : public GroupLoad {
 public:
  using GroupLoad::GroupLoad;

 private:
  void fill() override {
    const std::uint64_t files = random.between(1, kMostFilesOfABurst);
    for (std::uint64_t i = 0; i < files; ++i) {
      const std::uint64_t length = std::min(
          area(), kPage * random.between(1, std::max<std::uint64_t>(1, request() / kPage)));
      const std::uint64_t offset = random.below((area() - length) / kPage + 1) * kPage;
      add_change(offset, length);
    }
    add(Request::Kind::sync, 0, area());
  }
};

class TraceLoad final : public Load {
 public:
  TraceLoad(std::vector<TraceEntry> entries, std::uint64_t disk_size)
      : entries_(std::move(entries)), disk_size_(disk_size) {}

  std::optional<Request> next() override {
    if (next_ == entries_.size())
      return std::nullopt;
    const TraceEntry& entry = entries_[next_++];
    const Clock::Duration gap = entry.at - std::exchange(last_, entry.at);
    if (entry.kind == TraceEntry::Kind::sync)
      return Request{Request::Kind::sync, 0, disk_size_, gap};
    invariant(entry.offset + entry.length <= disk_size_, "a trace stays within its disk");
    return Request{
        entry.kind == TraceEntry::Kind::trim ? Request::Kind::discard : Request::Kind::write,
        entry.offset, entry.length, gap};
  }

 private:
  std::vector<TraceEntry> entries_;
  std::uint64_t disk_size_;
  std::size_t next_ = 0;
  std::chrono::microseconds last_{};
};

}  // namespace

const std::vector<std::string_view>& pattern_names() {
  static const std::vector<std::string_view> names{"sequential", "uniform", "zipf",
                                                   "database",   "idle",    "trace"};
  return names;
}

std::unique_ptr<Load> make_load(const LoadSetup& setup, std::uint64_t disk_size,
                                std::uint64_t seed) {
  switch (setup.pattern) {
    case Pattern::database:
      return std::make_unique<DatabaseLoad>(setup, disk_size, seed);
    case Pattern::idle: {
      LoadSetup paced = setup;
      if (!paced.rate)
        paced.rate = kIdleRate;
      return std::make_unique<IdleLoad>(paced, disk_size, seed);
    }
    case Pattern::trace:
      return std::make_unique<TraceLoad>(setup.trace, disk_size);
    default:
      return std::make_unique<PlainLoad>(setup, disk_size, seed);
  }
}

// ---- Zipf ----

Zipf::Zipf(std::uint64_t count, double skew)
    : count_(count),
      skew_(skew),
      first_(integral(1.5) - 1),
      last_(integral(static_cast<double>(count) + 0.5)) {}

/// Of x^-skew, from 1 on.
double Zipf::integral(double x) const {
  const double exponent = 1 - skew_;
  return std::abs(exponent) < 1e-9 ? std::log(x) : (std::pow(x, exponent) - 1) / exponent;
}

double Zipf::inverse(double y) const {
  const double exponent = 1 - skew_;
  return std::abs(exponent) < 1e-9 ? std::exp(y) : std::pow(1 + y * exponent, 1 / exponent);
}

std::uint64_t Zipf::draw(Random& random) const {
  while (true) {
    const double y = first_ + random.fraction() * (last_ - first_);
    const double nearest = std::round(inverse(y));
    const double value = std::clamp(nearest, 1.0, static_cast<double>(count_));
    // The value's share of the area under the curve is a little too large: the rest is refused.
    if (y >= integral(value + 0.5) - std::pow(value, -skew_))
      return static_cast<std::uint64_t>(value) - 1;
  }
}

}  // namespace nbdelta::sim
