#include "tests/support/process.hpp"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <span>
#include <sstream>
#include <utility>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

constexpr std::chrono::milliseconds kTermPatience{5000};

struct Package {
  std::string_view program;
  std::string_view package;
};

constexpr std::array kPackages{
    Package{"certtool", "gnutls-bin"},
    Package{"fusermount3", "fuse3"},
    Package{"mkfs.ext4", "e2fsprogs"},
    Package{"nbdcopy", "libnbd-bin"},
    Package{"nbdfuse", "libnbd-bin"},
    Package{"nbdinfo", "libnbd-bin"},
    Package{"nbdkit", "nbdkit"},
    Package{"psktool", "gnutls-bin"},
    Package{"qemu-img", "qemu-utils"},
    Package{"qemu-io", "qemu-utils"},
    Package{"qemu-nbd", "qemu-utils"},
    Package{"qemu-system-x86_64", "qemu-system-x86"},
    Package{"socat", "socat"},
    Package{"qemu-storage-daemon", "qemu-system-common (Debian 13: qemu-utils)"},
};

FileDescriptor memory_file(std::string_view contents = {}) {
  FileDescriptor fd(::memfd_create("nbdelta-test", MFD_CLOEXEC));
  if (!fd)
    fail_errno("memfd_create");
  const File file(FileDescriptor(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)), "memory file");
  file.write_at(std::as_bytes(std::span(contents)), 0);
  return fd;
}

std::string contents_of(const FileDescriptor& fd) {
  const File file(FileDescriptor(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)), "output of a process");
  std::string contents(file.size(), '\0');
  contents.resize(file.read_at(std::as_writable_bytes(std::span(contents)), 0));
  return contents;
}

/// What is given, what every program gets (English messages, UTF-8 as it is), what we inherited.
std::vector<std::string> merged_environment(const std::vector<std::string>& given) {
  std::vector<std::string> merged = given;
  merged.emplace_back("LC_ALL=C.UTF-8");
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view inherited(*entry);
    const std::string_view name = inherited.substr(0, inherited.find('=') + 1);
    if (std::none_of(merged.begin(), merged.end(),
                     [&](const std::string& known) { return known.starts_with(name); }))
      merged.emplace_back(inherited);
  }
  return merged;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& string : strings)
    result.push_back(string.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

Command joined(Command first, const Command& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos)
    return name;
  const char* path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  std::istringstream folders(std::string(path == nullptr ? "" : path) + ":/usr/sbin:/sbin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string candidate = folder + "/" + name;
    if (!folder.empty() && ::access(candidate.c_str(), X_OK) == 0)
      return candidate;
  }
  const auto* known = std::find_if(kPackages.begin(), kPackages.end(),
                                   [&](const Package& entry) { return entry.program == name; });
  fail(ENOENT, "{}: not found; Debian has it in the package {}; ci/deps installs what tests need",
       name, known == kPackages.end() ? name : known->package);
}

std::string to_string(const Command& command) {
  return fmt::format("{}", fmt::join(command, " "));
}

Background::Background(Command command, const ProcessOptions& options)
    : command_(std::move(command)), out_(memory_file()), err_(memory_file()) {
  const std::string program = find_program(command_.at(0));
  const FileDescriptor in = memory_file(options.input);
  std::vector<std::string> arguments = command_;
  std::vector<std::string> environment = merged_environment(options.environment);
  const std::vector<char*> argv = pointers(arguments);
  const std::vector<char*> envp = pointers(environment);
  const pid_t parent = ::getpid();

  pid_ = ::fork();
  if (pid_ < 0)
    fail_errno("fork");
  if (pid_ == 0) {  // async-signal-safe calls only: other threads may have held locks
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent)
      ::_exit(127);
    ::dup2(in.get(), STDIN_FILENO);
    ::dup2(out_.get(), STDOUT_FILENO);
    ::dup2(err_.get(), STDERR_FILENO);
    if (options.folder.empty() || ::chdir(options.folder.c_str()) == 0)
      ::execve(program.c_str(), argv.data(), envp.data());
    constexpr std::string_view kMessage = "cannot run the program\n";
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, kMessage.data(), kMessage.size());
    ::_exit(127);
  }
  pidfd_ = FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  if (!pidfd_)
    fail_errno("pidfd_open");
}

Background::Background(Background&& other) noexcept
    : command_(std::move(other.command_)),
      pid_(std::exchange(other.pid_, -1)),
      pidfd_(std::move(other.pidfd_)),
      out_(std::move(other.out_)),
      err_(std::move(other.err_)),
      status_(other.status_) {}

Background::~Background() {
  if (pid_ >= 0)
    stop();
}

bool Background::running() {
  return !wait(std::chrono::milliseconds(0));
}

void Background::signal(int number) {
  if (running())
    ::kill(pid_, number);
}

std::optional<Outcome> Background::wait(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!status_) {
    const auto left = std::max(
        std::chrono::milliseconds(0),
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()));
    struct pollfd waiting {
      pidfd_.get(), POLLIN, 0
    };
    const int ready = ::poll(&waiting, 1, static_cast<int>(left.count()));
    if (ready < 0 && errno == EINTR)
      continue;
    if (ready < 0)
      fail_errno("poll");
    if (ready == 0)
      return std::nullopt;
    int status = 0;
    if (::waitpid(pid_, &status, 0) != pid_)
      fail_errno("waitpid");
    status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  return Outcome{*status_, out(), err()};
}

Outcome Background::stop() {
  signal(SIGTERM);
  if (auto outcome = wait(kTermPatience))
    return *outcome;
  signal(SIGKILL);
  if (auto outcome = wait(kDefaultTimeout))
    return *outcome;
  fail(ETIMEDOUT, "{}: SIGKILL does not end it", to_string(command_));
}

std::string Background::out() const {
  return contents_of(out_);
}
std::string Background::err() const {
  return contents_of(err_);
}

Outcome run(const Command& command, const ProcessOptions& options,
            std::chrono::milliseconds timeout) {
  Background process(command, options);
  if (auto outcome = process.wait(timeout))
    return *outcome;
  const Outcome killed = process.stop();
  fail(ETIMEDOUT, "{}: still runs after {} ms; it wrote:\n{}{}", to_string(command),
       timeout.count(), killed.out, killed.err);
}

std::string run_ok(const Command& command, const ProcessOptions& options,
                   std::chrono::milliseconds timeout) {
  Outcome outcome = run(command, options, timeout);
  if (!outcome.ok())
    fail(EIO, "{}: exit status {}; it wrote:\n{}{}", to_string(command), outcome.status,
         outcome.out, outcome.err);
  return std::move(outcome.out);
}

}  // namespace nbdelta::testing
