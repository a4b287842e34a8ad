#include "client/backup/real/environment.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <random>
#include <stop_token>
#include <thread>

#include "client/backup/overlay_files.hpp"
#include "client/backup/real/child.hpp"
#include "client/backup/real/direct_server.hpp"
#include "client/backup/real/files.hpp"
#include "client/backup/real/plugin.hpp"
#include "client/pull/job.hpp"
#include "client/qmp/socket_channel.hpp"

namespace nbdelta::client::backup {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

constexpr Clock::Duration kConnect = 10s;
constexpr std::chrono::seconds kSignOfCommit{2};

/// A pull in a thread of its own; stopped and joined when the object goes.
class PullThread {
 public:
  PullThread(pull::JobOptions options, pull::Counters& counters, std::stop_token stop)
      : ended_(::eventfd(0, EFD_CLOEXEC)), job_(std::move(options), counters) {
    if (!ended_)
      fail_errno("eventfd");
    stop_with_user_.emplace(std::move(stop), [this] { stop_.request_stop(); });
    thread_ = std::thread([this] {
      try {
        job_.run(stop_);
      } catch (...) {
        error_ = std::current_exception();
      }
      ::eventfd_write(ended_.get(), 1);
    });
  }
  PullThread(const PullThread&) = delete;
  PullThread& operator=(const PullThread&) = delete;
  ~PullThread() {
    stop_.request_stop();
    if (thread_.joinable())
      thread_.join();
  }

  asio::awaitable<pull::JobResult> result() {
    asio::posix::stream_descriptor descriptor(co_await asio::this_coro::executor,
                                              ::dup(ended_.get()));
    co_await descriptor.async_wait(asio::posix::stream_descriptor::wait_read, asio::use_awaitable);
    thread_.join();
    if (error_)
      std::rethrow_exception(error_);
    co_return job_.result();
  }

 private:
  FileDescriptor ended_;
  pull::Job job_;
  std::stop_source stop_;
  std::optional<std::stop_callback<std::function<void()>>> stop_with_user_;
  std::exception_ptr error_;  // read after the join
  std::thread thread_;
};

/// Throws Error with what it said where it fails.
void run_qemu_img(const std::vector<std::string>& words) {
  const FileDescriptor output(::memfd_create("qemu-img", MFD_CLOEXEC));
  Child child(words, {.output = output.get()});
  child.end(std::chrono::hours(24));
  const int status = *child.status();
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return;
  std::string text(4096, '\0');
  const ssize_t n = ::pread(output.get(), text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  fail(EIO, "{}: {}", fmt::join(words, " "), text);
}

class RealEnvironment final : public Environment {
 public:
  RealEnvironment(asio::io_context& loop, RealOptions options, std::stop_token stop)
      : loop_(loop), options_(std::move(options)), stop_(std::move(stop)), files_(real_files()) {}

  Clock& clock() override { return clock_; }
  Files& files() override { return *files_; }
  std::int64_t wall_clock() override {
    return std::chrono::duration_cast<std::chrono::seconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
  std::uint64_t random() override {
    std::random_device device;
    return (std::uint64_t{device()} << 32) | device();
  }

  asio::awaitable<std::unique_ptr<qmp::Channel>> connect_qmp(std::string address) override {
    return qmp::connect(std::move(address), "QMP", clock_, clock_.now() + kConnect);
  }

  std::unique_ptr<qmp::Channel> start_guardian(const std::string& agent_address) override {
    // What goes wrong while the session lasts is said there; after that it lets go of it.
    return start_guard({"/proc/self/exe", "guardian", agent_address}, "the guardian",
                       STDERR_FILENO);
  }

  std::unique_ptr<qmp::Channel> start_commit_guard() override {
    return start_guard({"/proc/self/exe", "commit-guard"}, "the commit's guard", -1);
  }

  asio::awaitable<std::unique_ptr<Server>> serve(ServeRequest request) override {
    if (request.direct)
      co_return direct_server(std::move(request));
    co_return co_await start_plugin(options_.plugin, std::move(request), clock_);
  }

  unsigned end_servers(const std::set<std::string>& images,
                       const std::function<bool(const SessionId&)>& is_ours) override {
    return end_plugins(images, is_ours);
  }

  void remove_temporary(const std::function<bool(const SessionId&)>& is_ours) override {
    remove_plugins_folders(is_ours);
  }

  asio::awaitable<PullResult> pull(PullRequest request, pull::Counters& counters) override {
    pull::JobOptions options;
    options.source.uri = request.uri;
    options.target.name = request.target;
    options.target.base = request.base;
    options.target.format = image::Format::qcow2;
    if (!request.base.empty())
      options.target.base_format = image::Format::qcow2;
    options.settings = options_.pull;
    options.settings.retry = {};
    options.settings.retry.attempts = 2;  // the server is ours: the session starts it again
    PullThread thread(std::move(options), counters, stop_);
    const pull::JobResult result = co_await thread.result();
    co_return PullResult{
        .written = counters.written, .zeroed = counters.zeroed, .extents = result.extents};
  }

  void commit_offline(const std::string& overlay) override {
    const auto give_signs = [&](const std::stop_token& stop) {
      std::mutex mutex;
      std::condition_variable_any over;
      std::unique_lock lock(mutex);
      while (!over.wait_for(lock, stop, kSignOfCommit, [&] { return stop.stop_requested(); }))
        sign_committing(*files_, overlay);
    };
    const std::jthread signs(give_signs);
    // It must not write on when we have died. The overlay is removed next: to empty it (without -d)
    // would need space where it is.
    run_qemu_img({"setpriv", "--pdeathsig", "KILL", "qemu-img", "commit", "-q", "-d", "-f", "qcow2",
                  overlay});
  }

  void remove_bitmap_offline(const std::string& image, const std::string& bitmap) override {
    run_qemu_img({"qemu-img", "bitmap", "--remove", "-f", "qcow2", image, bitmap});
  }

  bool stop_requested() override { return stop_.stop_requested(); }

 private:
  /// Another nbdelta, that is spoken to over its standard input. `errors`: its stderr; -1: none. It
  /// has not our output: who reads that to its end must not wait for a process that outlives us.
  std::unique_ptr<qmp::Channel> start_guard(const std::vector<std::string>& words,
                                            const std::string& name, int errors) {
    const FileDescriptor nowhere(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    if (!nowhere)
      fail_errno("/dev/null");
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      fail_errno("socketpair");
    FileDescriptor ours(ends[0]);
    const FileDescriptor theirs(ends[1]);
    const Child child(
        words,
        {.input = theirs.get(), .output = nowhere.get(), .errors = errors, .session_leader = true});
    return qmp::adopt_socket(loop_.get_executor(), std::move(ours),
                             fmt::format("{} (process {})", name, child.pid()));
  }

  asio::io_context& loop_;
  RealOptions options_;
  std::stop_token stop_;
  RealClock clock_;
  std::unique_ptr<Files> files_;
};

}  // namespace

std::unique_ptr<Environment> real_environment(asio::io_context& loop, RealOptions options,
                                              std::stop_token stop) {
  return std::make_unique<RealEnvironment>(loop, std::move(options), std::move(stop));
}

std::string default_plugin() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  const fs::path built =
      program.parent_path().parent_path() / "nbdkit-plugin" / "nbdkit-delta-plugin.so";
  return !error && fs::exists(built, error) ? built.string() : "delta";
}

}  // namespace nbdelta::client::backup
