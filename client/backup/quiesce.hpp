#pragma once

#include <memory>
#include <optional>
#include <string>

#include "client/backup/environment.hpp"
#include "client/backup/guardian_commands.hpp"
#include "client/backup/options.hpp"
#include "client/qmp/client.hpp"
#include "client/repository/manifest.hpp"

namespace nbdelta::client::backup {

/// What is known of a guest before it is asked.
enum class Suspicion : std::uint8_t {
  none,
  frozen,  // a session may have left it so
};

/// A session's side of freezing the guest: talks to the guardian, and starts another one where that
/// has died. What went wrong is kept for the manifest rather than thrown, unless a freeze is
/// required.
class Quiescence {
 public:
  Quiescence(Environment& environment, const Options& options)
      : environment_(&environment), options_(&options) {}

  /// Starts the guardian and brings the agent in order. Throws Refused where a freeze is required
  /// and cannot be had.
  asio::awaitable<void> prepare();

  /// Throws Refused where a freeze is required and has failed; a thaw was sent then.
  asio::awaitable<void> freeze(repository::Window& window);

  /// Runs `operation`, between freeze() and thaw(). Where the guardian dies meanwhile, the guest is
  /// thawed at the freeze's deadline by another one. Throws what `operation` throws.
  asio::awaitable<void> during(asio::awaitable<void> operation);

  /// Does not throw: what is left to be done is done by confirm().
  asio::awaitable<void> thaw(repository::Window& window);

  /// Outside of the window: until the agent says that the guest is thawed. Returns what to tell
  /// people where it does not; empty: thawed, or never frozen.
  asio::awaitable<std::string> confirm();

  /// Puts right what an earlier session may have left. Returns the number of file systems that
  /// were thawed. Throws Error where the agent does not answer; the guardian goes on trying only
  /// where the guest is suspected to be frozen.
  asio::awaitable<std::int64_t> release(std::string agent, Suspicion suspicion);

  /// What was reached when all disks had been switched.
  void record(repository::Manifest& manifest) const;
  bool frozen() const { return frozen_ && !thawed_early_; }
  const std::string& failure() const { return failure_; }
  const std::string& thaw_trouble() const { return thaw_trouble_; }

 private:
  void start(const std::string& agent);
  asio::awaitable<void> replace_guardian();
  asio::awaitable<void> stand_in();
  void give_up(const std::string& why);

  Environment* environment_;
  const Options* options_;
  std::unique_ptr<qmp::Client> guardian_;
  guardian::Prepared prepared_;
  std::string failure_;       // why there was no freeze
  std::string thaw_trouble_;  // why the first thaw did not work
  Clock::Time deadline_{};    // of the freeze
  bool sent_ = false;         // a freeze: the guest may be frozen
  bool frozen_ = false;
  bool thawed_early_ = false;
  std::int64_t file_systems_ = 0;
};

}  // namespace nbdelta::client::backup
