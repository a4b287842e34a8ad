#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "client/backup/environment.hpp"
#include "client/backup/inventory.hpp"
#include "client/backup/names.hpp"
#include "client/qmp/client.hpp"
#include "image/image_lock.hpp"
#include "qapi/job_commands.hpp"

namespace nbdelta::client::backup {

enum class CommitEnd : std::uint8_t {
  committed,
  not_ready,  // the guest writes faster than the job copies; it was cancelled
};

/// A commit of what the guest writes to.
struct ActiveCommit {
  std::string job;
  std::string top;
  std::string base;
  std::string overlay_local;
  std::string qmp_address;
  Clock::Duration ready_deadline{};
  bool stops_guest = false;  // see must_stop_guest()
};

/// QEMU (7.2, not 10.0) aborts when an active commit into a raw base moves a guest of which a write
/// waits in QEMU: the guest is moved before the file below is open for writing to it. A guest that
/// is stopped sends none.
bool must_stop_guest(std::uint64_t qemu_major, image::Format base);

/// Commits `top`, what is between, and what the guest writes meanwhile, into the base, and moves
/// the guest there. Throws Error with what the job said; the guest is where it was then.
///
/// No crash leaves it open whether overlay or base is right: when all is copied, the job (which
/// QEMU does not finalize by itself) holds the guest's writes back, with the base flushed; then the
/// overlay is marked as committed, then the guest moves. That must not take long, nor depend on
/// this process: a CommitGuard ends the job when we die, and sees to that where we are stopped.
/// Where the guest must be stopped for it, that ends with the same step, and a node named by
/// stop_node_name() says that it was us.
asio::awaitable<CommitEnd> commit_active(qmp::Client& qmp, Environment& environment,
                                         ActiveCommit commit);

/// Ends such a job in whatever state it is in: where it has not moved the guest, the guest stays on
/// the overlay, which is not marked as committed any more. Returns what was done; empty where there
/// was no such job.
asio::awaitable<std::string> end_active(qmp::Client& qmp, Files& files, std::string job,
                                        std::string overlay_local);

/// Whether a session is the one that a job is of.
std::function<bool(const SessionId&)> is_of(const std::string& job);

/// Lets the guest go on where such a commit has stopped it and nobody has let it go on since.
/// Returns what was done; empty where it has not.
asio::awaitable<std::string> resume_guest(qmp::Client& qmp,
                                          std::function<bool(const SessionId&)> is_ours);

/// A commit of what the guest only reads.
struct LowerCommit {
  std::string job;
  std::string active;  // what the guest writes to
  std::string above;   // the overlay over `top`: `active`, or below it
  std::string above_local;
  std::string top;       // this and what is between is committed
  std::string top_path;  // QEMU's
  std::string base;      // into this
  std::string base_path;
  std::string base_local;
  image::Format base_format = image::Format::qcow2;
};

/// An active commit that was cancelled leaves the base writable in QEMU (7.2): a lock that our
/// plugin must not pass over, and a base that a later commit would not flush. So it is opened for
/// reading before anything is read from it, or committed below the guest. Does nothing where it is
/// open as wanted; returns whether it was read-only.
asio::awaitable<bool> reopen_base(qmp::Client& qmp, GuestDisk disk, image::Access access);

/// The base is read-only. On return the base has it all, durably, and `above` calls the base its
/// backing file; until the former holds, it does not do the latter, so that no crash loses
/// anything. Throws Error with what the job said.
asio::awaitable<void> commit_below(qmp::Client& qmp, Files& files, LowerCommit commit);

/// What QEMU and its host have written to the node's image is durable on return.
asio::awaitable<void> flush(qmp::Client& qmp, Files& files, std::string node, std::string local);

/// Has QEMU give a node up. Returns why it does not; empty where it is gone, also before.
asio::awaitable<std::string> remove_node(qmp::Client& qmp, std::string node);

/// Ends each job of ours, under a CommitGuard where the guest's writes wait for it, and lets the
/// guest go on; says what was done. `tops`: by the name of its job, the overlay (local) that a disk
/// runs on.
asio::awaitable<std::vector<std::string>> end_jobs(qmp::Client& qmp, Environment& environment,
                                                   std::string qmp_address,
                                                   std::function<bool(const SessionId&)> is_ours,
                                                   std::map<std::string, std::string> tops);

}  // namespace nbdelta::client::backup
