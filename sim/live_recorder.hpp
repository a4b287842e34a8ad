#pragma once

#include <string>

#include "sim/guest.hpp"
#include "sim/live_qemu.hpp"
#include "sim/run_recorder.hpp"
#include "sim/scenario.hpp"

namespace nbdelta::sim {

/// Writes down the sessions with a live QEMU: each lasts as long as its QMP connection. Those that
/// asked but changed nothing are left away. What they came to nobody here knows, nor what is
/// pulled: nbdkit reads that from the files. For one thread, that of the loop.
class LiveRecorder {
 public:
  /// The file is replaced after each session. All that is passed must outlive this.
  LiveRecorder(asio::io_context& loop, Clock& clock, LiveQemu& qemu, Guest& guest, std::string file,
               const Scenario& scenario);
  LiveRecorder(const LiveRecorder&) = delete;
  LiveRecorder& operator=(const LiveRecorder&) = delete;

  /// QEMU ends: so does the session.
  void end();

 private:
  asio::awaitable<void> watch_overlays(std::uint64_t session);
  std::uint64_t overlay_bytes();

  asio::io_context* loop_;
  Clock* clock_;
  LiveQemu* qemu_;
  std::string file_;
  RunRecorder recorder_;
  std::uint64_t session_ = 0;  // counts them all
};

}  // namespace nbdelta::sim
