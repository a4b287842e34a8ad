#include "client/backup/real/plugin.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/percent.hpp"
#include "client/backup/names.hpp"
#include "client/backup/real/child.hpp"

namespace nbdelta::client::backup {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr Clock::Duration kStart = 30s;  // a map of QEMU's may be large
constexpr Clock::Duration kSocketPoll = 3ms;
// nbdkit waits for its clients, whose connections may hang.
constexpr std::chrono::milliseconds kEnd{2000};
constexpr auto kFuse = 0x6573'5546L;  // FUSE_SUPER_MAGIC of linux/magic.h

std::string folder_of_temporary_files() {
  std::error_code error;
  const fs::path path = fs::temp_directory_path(error);
  return error ? "/tmp" : path.string();
}

/// A folder of our own, gone with the object; found again by the session's name where we are
/// killed.
class PrivateFolder {
 public:
  explicit PrivateFolder(const SessionId& id) {
    std::string pattern = fmt::format("{}/{}-XXXXXX", folder_of_temporary_files(), bitmap_name(id));
    if (::mkdtemp(pattern.data()) == nullptr)
      fail_errno("{}: cannot be made", pattern);
    path_ = pattern;
    lock_ = FileDescriptor(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ::flock(lock_.get(), LOCK_SH);  // see is_abandoned()
  }
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  ~PrivateFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  FileDescriptor lock_;
};

/// Nobody lives who made it, and it is ours.
bool is_abandoned(const std::string& folder) {
  const FileDescriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  struct stat status {};
  return fd && ::fstat(fd.get(), &status) == 0 && status.st_uid == ::geteuid() &&
         ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
}

/// The arguments of a process; none where it has ended.
std::vector<std::string> arguments_of(std::int64_t process_id) {
  std::ifstream file(fmt::format("/proc/{}/cmdline", process_id));
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(file, argument, '\0');)
    arguments.push_back(argument);
  return arguments;
}

/// What stands after an option; empty where that is not given.
std::string value_of(const std::vector<std::string>& arguments, std::string_view option) {
  for (std::size_t i = 0; i + 1 < arguments.size(); ++i)
    if (arguments[i] == option)
      return arguments[i + 1];
  return {};
}

/// One of ours: another program may have the number now.
bool is_our_nbdkit(std::int64_t process_id) {
  const std::string pid_file = value_of(arguments_of(process_id), "--pidfile");
  return session_of(base_name(pid_file)).has_value();
}

/// Does not wait for its clients for long.
void end_process(std::int64_t process_id) {
  const std::string socket = value_of(arguments_of(process_id), "--unix");
  const auto deadline = std::chrono::steady_clock::now() + kEnd;
  if (is_our_nbdkit(process_id))
    ::kill(static_cast<pid_t>(process_id), SIGTERM);
  while (is_our_nbdkit(process_id)) {
    if (std::chrono::steady_clock::now() > deadline)
      ::kill(static_cast<pid_t>(process_id), SIGKILL);
    std::this_thread::sleep_for(kSocketPoll);
  }
  if (!socket.empty())
    ::unlink(socket.c_str());
}

bool is_on_fuse(const std::string& path) {
  struct statfs status {};
  return ::statfs(path.c_str(), &status) == 0 && status.f_type == kFuse;
}

/// Our own pulls are served faster by one thread for each connection than by nbdkit's 16, which
/// wake each other (bench/README.md); nothing waits for the storage, since the plugin announces
/// what comes next. Not so on FUSE, which may read past the page cache: there only reads at the
/// same time help.
bool one_thread_suffices(const ServeRequest& request) {
  return request.lifetime == Lifetime::session && !is_on_fuse(request.image) &&
         std::none_of(request.backing.begin(), request.backing.end(), is_on_fuse);
}

class PluginServer final : public Server {
 public:
  PluginServer(ServeRequest request, const std::string& plugin)
      : folder_(*session_of(request.name)),
        request_(std::move(request)),
        output_(::memfd_create("nbdkit", MFD_CLOEXEC)) {
    if (!output_)
      fail_errno("memfd_create");
    if (request_.listen.socket.empty() && request_.listen.port == 0)
      request_.listen.socket = folder_.path() + "/socket";
    if (!request_.listen.socket.empty())
      ::unlink(request_.listen.socket.c_str());  // of a session that died
    child_.emplace(command(plugin),
                   ChildOptions{.output = output_.get(),
                                .session_leader = request_.lifetime == Lifetime::ended});
  }
  ~PluginServer() override {
    if (request_.lifetime == Lifetime::session)
      stop();
  }

  bool running() override {
    return request_.lifetime == Lifetime::session ? child_->running() : is_our_nbdkit(process_id_);
  }

  std::string uri(std::string_view export_name) const override {
    const Listen& listen = request_.listen;
    const std::string_view tls = listen.tls_certificates.empty() ? "nbd" : "nbds";
    if (listen.socket.empty())
      return fmt::format(
          "{}://{}:{}/{}", tls,
          listen.host.find(':') == std::string::npos ? listen.host : '[' + listen.host + ']',
          listen.port, percent_encoded(export_name));
    return fmt::format("{}+unix:///{}?socket={}", tls, percent_encoded(export_name),
                       percent_encoded(listen.socket));
  }

  void stop() override {
    child_->signal(SIGTERM);
    child_->end(kEnd);
    if (request_.lifetime == Lifetime::ended && read_process_id())
      end_process(process_id_);
    if (!request_.listen.socket.empty())
      ::unlink(request_.listen.socket.c_str());
  }

  asio::awaitable<void> wait_until_ready(Clock& clock) {
    const Clock::Time deadline = clock.now() + kStart;
    while (!read_process_id() || is_forking()) {
      const std::optional<int> ended = child_->status();  // asked once: it may end at any moment
      const bool may_end = request_.lifetime == Lifetime::ended && ended == 0;
      if (ended && !may_end)
        fail(EIO, "nbdkit ended instead of serving {}: {}", request_.image, said());
      if (clock.now() > deadline)
        fail(ETIMEDOUT, "nbdkit does not serve {}: {}", request_.image, said());
      co_await clock.wait(kSocketPoll);
    }
  }

 private:
  /// nbdkit writes the file, a line, when it serves.
  bool read_process_id() {
    std::ifstream file(pid_file());
    std::string line;
    if (!std::getline(file, line) || file.eof())
      return false;
    process_id_ = std::atoll(line.c_str());
    return true;
  }

  /// Were we to end before nbdkit's first process has, nbdkit 1.32 would tell that one (SIGTERM),
  /// which would wake the server as if it were to end, for ever, and it would take no connection.
  bool is_forking() { return request_.lifetime == Lifetime::ended && child_->running(); }

  std::string pid_file() const { return fmt::format("{}/{}.pid", folder_.path(), request_.name); }

  std::vector<std::string> command(const std::string& plugin) const {
    const Listen& listen = request_.listen;
    std::vector<std::string> words{"nbdkit", "--pidfile", pid_file()};
    // In the foreground nbdkit 1.32 ends with its parent in any case; otherwise it forks once it
    // serves.
    if (request_.lifetime == Lifetime::session)
      words.insert(words.end(), {"--foreground", "--exit-with-parent"});
    if (one_thread_suffices(request_))
      words.push_back("--threads=1");
    if (listen.socket.empty()) {
      words.insert(words.end(), {"--ipaddr", listen.host, "--port", std::to_string(listen.port)});
    } else {
      words.insert(words.end(), {"--unix", listen.socket});
    }
    if (!listen.tls_certificates.empty())
      words.insert(words.end(), {"--tls=require", "--tls-certificates=" + listen.tls_certificates});
    words.insert(
        words.end(),
        {plugin, "image=" + request_.image,
         request_.format == image::Format::raw ? "format=raw" : "format=qcow2", "packed=on"});
    for (const std::string& folder : request_.backing)
      words.push_back("backing=" + folder);
    if (!request_.map.empty()) {
      words.push_back("map=" + request_.map);
      words.push_back("map-context=" + request_.map_context);
    }
    return words;
  }

  /// What nbdkit wrote, in one line.
  std::string said() const {
    std::string text(4096, '\0');
    const ssize_t n = ::pread(output_.get(), text.data(), text.size(), 0);
    text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    while (text.ends_with('\n'))
      text.pop_back();
    for (char& c : text)
      if (c == '\n')
        c = ';';
    return text.empty() ? "it said nothing" : text;
  }

  PrivateFolder folder_;
  ServeRequest request_;
  FileDescriptor output_;
  std::optional<Child> child_;
  std::int64_t process_id_ = 0;
};

}  // namespace

asio::awaitable<std::unique_ptr<Server>> start_plugin(std::string plugin, ServeRequest request,
                                                      Clock& clock) {
  auto server = std::make_unique<PluginServer>(std::move(request), plugin);
  try {
    co_await server->wait_until_ready(clock);
  } catch (...) {
    server->stop();
    throw;
  }
  co_return server;
}

bool plugin_serves(std::string_view name) {
  const std::string pid_file = fmt::format("{}.pid", name);
  std::error_code error;
  for (fs::directory_iterator it("/proc", error), end; !error && it != end; it.increment(error)) {
    const std::int64_t process_id = std::atoll(it->path().filename().c_str());
    if (process_id > 0 && base_name(value_of(arguments_of(process_id), "--pidfile")) == pid_file)
      return true;
  }
  return false;
}

unsigned end_plugins(const std::set<std::string>& images,
                     const std::function<bool(const SessionId&)>& is_ours) {
  unsigned ended = 0;
  std::error_code error;
  for (fs::directory_iterator it("/proc", error), end; !error && it != end; it.increment(error)) {
    const std::int64_t process_id = std::atoll(it->path().filename().c_str());
    if (process_id <= 0)
      continue;
    const auto session = session_of(base_name(value_of(arguments_of(process_id), "--pidfile")));
    if (!session || !is_ours(*session))
      continue;
    for (const std::string& argument : arguments_of(process_id))
      if (argument.starts_with("image=") && images.count(argument.substr(6)) != 0) {
        end_process(process_id);
        ++ended;
        break;
      }
  }
  return ended;
}

void remove_plugins_folders(const std::function<bool(const SessionId&)>& is_ours) {
  std::error_code error;
  std::error_code ignored;  // another user's stay
  for (fs::directory_iterator it(folder_of_temporary_files(), error), end; !error && it != end;
       it.increment(error)) {
    const auto session = session_of(it->path().filename().string());
    if (session && is_ours(*session) && is_abandoned(it->path()))
      fs::remove_all(it->path(), ignored);
  }
}

}  // namespace nbdelta::client::backup
