#include "sim/window_watch.hpp"

#include <algorithm>

#include "qapi/agent_commands.hpp"
#include "qapi/snapshot_commands.hpp"

namespace nbdelta::sim {

namespace agent = qapi::agent;

void WindowWatch::agent_answered(std::string_view command, Clock::Time begun, Clock::Time now) {
  const bool freeze = command == agent::GuestFsfreezeFreeze::kName ||
                      command == agent::GuestFsfreezeFreezeList::kName;
  if (!open_since_) {
    if (!freeze)
      return;
    open_since_ = begun;
    now_.agent = now - begun;
  } else if (command == agent::GuestFsfreezeThaw::kName) {
    now_.agent += now - begun;
    now_.length = now - *open_since_;
    window_ = std::exchange(now_, {});
    open_since_.reset();
    switched_ = false;
  } else {
    now_.besides.emplace_back(command);
  }
}

void WindowWatch::qemu_answered(std::string_view command, Clock::Time begun, Clock::Time now) {
  if (!open_since_)
    return;
  if (command == qapi::Transaction::kName && !switched_) {
    switched_ = true;
    now_.qemu = now - begun;
  } else {
    now_.besides.emplace_back(command);
  }
}

void WindowWatch::did(const std::string& what) {
  if (open_since_)
    now_.besides.push_back(what);
}

void WindowWatch::frozen(bool frozen, Clock::Time now) {
  longest_freeze_ = longest_freeze(now);
  frozen_since_ = frozen ? std::optional(now) : std::nullopt;
}

Clock::Duration WindowWatch::longest_freeze(Clock::Time now) const {
  return frozen_since_ ? std::max(longest_freeze_, now - *frozen_since_) : longest_freeze_;
}

}  // namespace nbdelta::sim
