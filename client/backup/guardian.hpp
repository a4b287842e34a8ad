#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "client/backup/guardian_commands.hpp"
#include "client/clock.hpp"
#include "client/qmp/agent.hpp"
#include "client/qmp/channel.hpp"
#include "client/qmp/line_reader.hpp"

namespace nbdelta::client::backup {

/// Owns the channel of the guest agent for a session, and sees to it that the guest is thawed: when
/// asked, at the deadline, when the session's end of `session` closes (its process died), and
/// after a freeze that failed or was not answered (it may have frozen the guest all the same). It
/// tries until the agent says `thawed`, or the session is gone and nobody has listened at the
/// agent's address for a minute: then the guest is gone.
///
/// Runs in a process of its own, so that nothing that befalls the session befalls it.
///
/// Invariant: frozen_ is true from before a freeze is sent until the agent has said `thawed`, or
/// the session that it need not be thawed.
class Guardian {
 public:
  /// Opens the agent's channel; it may be called again when the channel was lost.
  using Connect = std::function<asio::awaitable<std::unique_ptr<qmp::Channel>>()>;

  /// `seed` makes the numbers by which answers are told apart from those to somebody else.
  /// `session_is_gone` is called once, before what is left to be done is done.
  Guardian(
      Connect connect, std::unique_ptr<qmp::Channel> session, Clock& clock, std::int64_t seed,
      std::function<void()> session_is_gone = [] {});

  /// Until the session is gone and the guest is thawed. Throws Error where the agent is gone and
  /// the guest may be frozen.
  asio::awaitable<void> run();

 private:
  asio::awaitable<std::optional<std::string>> next_line();
  asio::awaitable<void> serve(std::string line);
  asio::awaitable<qapi::json::value> carry_out(qapi::Command command);
  asio::awaitable<guardian::Prepared> prepare(guardian::Prepare command);
  asio::awaitable<std::string> presync();
  asio::awaitable<guardian::Frozen> freeze(guardian::Freeze command);
  asio::awaitable<guardian::Thawed> thaw();
  asio::awaitable<void> confirm();
  asio::awaitable<void> try_to_thaw(Clock::Time deadline);
  asio::awaitable<void> ask_status(Clock::Time deadline);
  asio::awaitable<void> ensure_agent(Clock::Time deadline);
  asio::awaitable<void> last_thaw();
  std::int64_t microseconds() const;

  Connect connect_;
  std::unique_ptr<qmp::Channel> session_;
  qmp::LineReader lines_{*session_};
  Clock* clock_;
  std::int64_t last_id_;
  std::function<void()> session_is_gone_;
  std::unique_ptr<qmp::Agent> agent_;
  bool in_step_ = false;  // the agent's next answer is to our next command
  bool frozen_ = false;
  Clock::Time deadline_{};
  static constexpr std::chrono::milliseconds kFirstPause{50};
  Clock::Duration pause_ = kFirstPause;  // before the next attempt to thaw
  std::optional<guardian::Thawed> thawed_;
};

}  // namespace nbdelta::client::backup
