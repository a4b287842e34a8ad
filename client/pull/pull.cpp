#include "client/pull/pull.hpp"

#include <algorithm>
#include <functional>
#include <vector>

#include "client/pull/threads.hpp"
#include "client/pull/worker.hpp"

namespace nbdelta::client::pull {
namespace {

// What a connection has on its way, by itself, or two requests where that is more: a link of
// 1 Gbit/s and 16 ms holds two of these.
constexpr std::uint64_t kInFlight = kMiB;
constexpr std::uint64_t kLeastDepth = 2;
constexpr std::uint64_t kMostDepth = 64;
// Our plugin serves long requests faster. Others may be much slower with them, as qemu-nbd is.
constexpr std::uint64_t kLongRequest = kMiB;
constexpr std::uint64_t kRequest = 256 * kKiB;

class Pull {
 public:
  Pull(nbd::Source& source, target::Target& target, const image::ExtentMap& map,
       const Settings& settings, Counters& counters, std::stop_source& stop)
      : first_(source),
        known_(source.known()),
        target_(target),
        map_(map),
        settings_(settings),
        counters_(counters),
        stop_(stop),
        request_size_(settings.request_size != 0 ? settings.request_size
                      : suits_long_requests()    ? kLongRequest
                                                 : kRequest),
        work_(map, limits(), known_.packed.has_value(), settings.rate) {
    counters_.total += bytes_to_settle(map);
  }

  void run() {
    target_.lay_out(stop_.get_token());
    std::vector<std::function<void()>> bodies{[this] { run_first(); }};
    bodies.resize(connections(), [this] { run_further(); });
    run_threads(bodies, stop_);
  }

 private:
  /// Where runs are short, each buffer of many would take a long one's memory.
  bool suits_long_requests() const {
    return known_.packed || (known_.exported->of_our_plugin && mean_run() >= kLongRequest);
  }

  std::uint64_t mean_run() const {
    return map_.bytes(image::State::data) /
           std::max<std::uint64_t>(map_.extents(image::State::data), 1);
  }

  /// No more than can be kept busy: a server complains of one that leaves as soon as it has come.
  unsigned connections() const {
    const std::uint64_t reads =
        std::max(work_.is_packed() ? 0 : map_.extents(image::State::data),
                 div_round_up(map_.bytes(image::State::data), request_size_));
    const std::uint64_t useful = std::max<std::uint64_t>(div_round_up(reads, depth()), 1);
    const unsigned allowed =
        std::max(1U, std::min(settings_.connections, target_.maximum_writers()));
    return static_cast<unsigned>(std::min<std::uint64_t>(useful, allowed));
  }

  /// Short requests need more of them.
  unsigned depth() const {
    if (settings_.depth != 0)
      return settings_.depth;
    const std::uint64_t length =
        work_.is_packed() ? request_size_ : std::clamp(mean_run(), std::uint64_t{1}, request_size_);
    return static_cast<unsigned>(std::clamp(kInFlight / length, kLeastDepth, kMostDepth));
  }

  Limits limits() const {
    const nbd::Export& exported = *known_.exported;
    const std::uint64_t block = exported.minimum_block;
    const std::uint64_t request = std::min(request_size_, exported.maximum_block);
    return {.request_size = std::max(round_down(request, block), block),
            .zero_size = target_.zero_size(),
            .minimum_block = block,
            .bridge = settings_.bridge};
  }

  void run_first() {
    ++counters_.connections;
    Worker(first_, target_, work_, counters_, depth()).run(stop_.get_token());
  }

  /// One more connection is welcome, but no pull fails for want of it: a server may allow just one,
  /// silently or in so many words. One that shows another disk is no server to pull from.
  void run_further() {
    nbd::Source source(known_, settings_.retry, stop_.get_token());
    try {
      source.connect(work_.exhausted());
    } catch (const nbd::OtherExport&) {
      throw;
    } catch (const Error&) {
      return;
    }
    ++counters_.connections;
    Worker(source, target_, work_, counters_, depth()).run(stop_.get_token());
  }

  nbd::Source& first_;
  const nbd::Source::Known known_;  // what the first knew at the start
  target::Target& target_;
  const image::ExtentMap& map_;
  const Settings& settings_;
  Counters& counters_;
  std::stop_source& stop_;
  const std::uint64_t request_size_;
  Work work_;
};

}  // namespace

void run_pull(nbd::Source& source, target::Target& target, const image::ExtentMap& map,
              const Settings& settings, Counters& counters, std::stop_source& stop) {
  Pull(source, target, map, settings, counters, stop).run();
}

}  // namespace nbdelta::client::pull
