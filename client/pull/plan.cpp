#include "client/pull/plan.hpp"

#include <algorithm>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::client::pull {

using image::State;

ReadRange read_range(const Operation& operation, const Limits& limits, std::uint64_t disk_size) {
  const std::uint64_t begin = round_down(operation.offset, limits.minimum_block);
  const std::uint64_t end = std::min(round_up(operation.end(), limits.minimum_block), disk_size);
  return {begin, end - begin};
}

Plan::Plan(const image::ExtentMap& map, const Limits& limits)
    : limits_(limits), cursor_(map.begin()) {
  invariant(is_power_of_two(limits.minimum_block), "the minimum block is a power of two");
  invariant(limits.request_size != 0 && limits.request_size % limits.minimum_block == 0,
            "the request size is a multiple of the minimum block");
  invariant(limits.zero_size != 0, "the zero size is not 0");
  // Two reads of one block would transfer it twice.
  limits_.bridge = std::max(limits.bridge, limits.minimum_block - 1);
}

std::optional<Operation> Plan::next() {
  while (!cursor_.at_end()) {
    const image::Extent& run = cursor_.extent();
    if (position_ < run.end() && run.state == State::data)
      return next_read();
    if (position_ < run.end() && image::reads_zero(run.state))
      return next_zero();
    position_ = run.end();
    cursor_.next();
  }
  return std::nullopt;
}

Operation Plan::next_zero() {
  const std::uint64_t window = (position_ / limits_.zero_size + 1) * limits_.zero_size;
  const std::uint64_t end = std::min(cursor_.extent().end(), window);
  const Operation operation{Operation::Kind::zero, position_, end - position_, cursor_};
  position_ = end;
  return operation;
}

Operation Plan::next_read() {
  Operation operation{Operation::Kind::read, position_, 0, cursor_};
  const std::uint64_t window = (position_ / limits_.request_size + 1) * limits_.request_size;
  std::uint64_t end = std::min(cursor_.extent().end(), window);
  auto ahead = cursor_;
  for (ahead.next(); end < window && !ahead.at_end(); ahead.next()) {
    const image::Extent& run = ahead.extent();
    if (run.offset >= window || run.offset - end > limits_.bridge)
      break;
    if (run.state != State::data)
      continue;
    end = std::min(run.end(), window);
    cursor_ = ahead;
  }
  operation.length = end - operation.offset;
  position_ = end;
  return operation;
}

}  // namespace nbdelta::client::pull
