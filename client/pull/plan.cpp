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

PackedPlan::PackedPlan(const image::ExtentMap& map, const Limits& limits)
    : limits_(limits), zeros_(map.begin()), data_(map.begin()) {
  invariant(limits.request_size != 0 && limits.zero_size != 0, "neither limit is 0");
}

std::optional<Operation> PackedPlan::next() {
  std::optional<Operation> operation = next_zero();
  return operation ? operation : next_read();
}

std::optional<Operation> PackedPlan::next_zero() {
  for (; !zeros_.at_end(); zeros_.next()) {
    const image::Extent& run = zeros_.extent();
    if (!image::reads_zero(run.state) || zeros_from_ >= run.end())
      continue;
    const std::uint64_t from = std::max(zeros_from_, run.offset);
    const std::uint64_t window = (from / limits_.zero_size + 1) * limits_.zero_size;
    zeros_from_ = std::min(run.end(), window);
    return Operation{Operation::Kind::zero, from, zeros_from_ - from, zeros_};
  }
  return std::nullopt;
}

std::optional<Operation> PackedPlan::next_read() {
  std::optional<Operation> operation;
  std::uint64_t left = 0;  // up to the next multiple of the request size
  for (; !data_.at_end(); data_.next()) {
    const image::Extent& run = data_.extent();
    if (run.state != State::data || data_from_ >= run.end())
      continue;
    const std::uint64_t from = std::max(data_from_, run.offset);
    if (!operation) {
      operation = {Operation::Kind::read, from, 0, data_};
      left = limits_.request_size - data_before(*operation) % limits_.request_size;
    }
    const std::uint64_t length = std::min(run.end() - from, left);
    operation->length += length;
    left -= length;
    data_from_ = from + length;
    if (left == 0)
      break;
  }
  return operation;
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
