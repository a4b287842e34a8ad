#include "sim/session_environment.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "client/backup/commit_guard.hpp"
#include "client/backup/guardian.hpp"
#include "client/backup/names.hpp"
#include "sim/pipe.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
namespace backup = client::backup;
namespace qmp = client::qmp;

constexpr Clock::Duration kStart = 30ms;  // of nbdkit

/// Errors come as a real process's do: nothing that a killed one does has an effect any more.
class SimFiles final : public backup::Files {
 public:
  SimFiles(Host& host, Process& process) : host_(&host), process_(&process) {}

  void create_overlay(const std::string& path, std::uint64_t disk_size, const std::string& backing,
                      image::Format backing_format) override {
    change("create " + path);
    if (exists(path))
      fail(EEXIST, "{}: exists", path);
    MemoryImage& image = store().create_image(path, "qcow2", disk_size / MemoryImage::kGranule);
    image.set_backing({backing, backing_format == image::Format::raw ? "raw" : "qcow2"});
    done("created " + path);
  }

  bool overlay_is_empty(const std::string& path) override {
    look();
    const MemoryImage* image = store().image(path);
    return image != nullptr && image->is_empty();
  }

  std::optional<std::string> backing_of(const std::string& path) override {
    look();
    const MemoryImage* image = store().image(path);
    if (image == nullptr || !image->backing())
      return std::nullopt;
    return image->backing()->path;
  }

  void check_readable(const std::string& path) override {
    look();
    if (!exists(path))
      fail(ENOENT, "{}: No such file or directory", path);
  }
  void check_unused(const std::string& path) override {
    check_readable(path);
    const MemoryImage* image = store().image(path);
    if (image != nullptr && (image->writer || image->readers != 0))
      fail(EAGAIN, "{}: another process has it open", path);
  }
  void sync(const std::string& path) override { change("sync " + path); }
  std::uint64_t allocated(const std::string& path) override {
    check_readable(path);
    const MemoryImage* image = store().image(path);
    return image == nullptr ? 0 : image->allocated();
  }
  std::int64_t modified(const std::string& path) override {
    check_readable(path);
    const MemoryImage* image = store().image(path);
    return image == nullptr ? store().now : image->modified;
  }
  bool exists(const std::string& path) override {
    look();
    return store().files().count(path) != 0 || store().folders().count(path) != 0;
  }
  std::optional<std::string> read_text(const std::string& path) override {
    look();
    const auto found = store().files().find(path);
    if (found == store().files().end())
      return std::nullopt;
    return found->second.text;
  }
  void write_text(const std::string& path, const std::string& text) override {
    change("write " + path);
    if (path.starts_with("/repo/") && host_->strike({FaultKind::repository_full}))
      fail(ENOSPC, "{}: No space left on device", path);
    store().files()[path].text = text;
    done("wrote " + path);
  }
  std::vector<std::string> list(const std::string& folder) override {
    look();
    std::set<std::string> names;
    const auto add = [&](const std::string& path) {
      if (path.size() > folder.size() + 1 && path.starts_with(folder + "/")) {
        const std::string rest = path.substr(folder.size() + 1);
        names.insert(rest.substr(0, rest.find('/')));
      }
    };
    for (const auto& [path, file] : store().files())
      add(path);
    for (const std::string& each : store().folders())
      add(each);
    return {names.begin(), names.end()};
  }
  void make_folder(const std::string& path) override {
    change("make " + path);
    store().folders().insert(path);
  }
  void remove_folder(const std::string& path) override {
    change("remove " + path);
    std::erase_if(store().files(),
                  [&](const auto& file) { return file.first.starts_with(path + "/"); });
    store().folders().erase(path);
    done("removed " + path);
  }
  void remove(const std::string& path) override {
    if (!exists(path))
      return;
    change("remove " + path);
    store().files().erase(path);
    host_->removed(path);
    done("removed " + path);
  }
  std::string canonical(const std::string& path) override { return path; }
  std::uint64_t free_space(const std::string& /*folder*/) override {
    look();
    return host_->free_space();
  }
  std::unique_ptr<backup::Lock> lock(const std::string& path) override {
    change("lock " + path);
    store().files()[path];
    return std::make_unique<backup::Lock>();
  }

 private:
  Store& store() { return host_->store(); }
  void look() const {
    if (process_->doomed())
      fail(EINTR, "killed");
  }
  /// Before a change: it may fail, or its process be killed.
  void change(const std::string& what) {
    done(what);
    process_->spend(host_->costs().file_change);
    if (host_->strike({FaultKind::file_error}))
      fail(EIO, "{}: Input/output error", what);
  }
  void done(const std::string& what) {
    look();
    host_->step(what, process_);
    look();
  }

  Host* host_;
  Process* process_;
};

/// The chain below an image, as a plugin opens it.
std::vector<std::string> chain_of(const Store& store, const std::string& path) {
  std::vector<std::string> chain{path};
  while (const MemoryImage* image = store.image(chain.back())) {
    if (!image->backing())
      break;
    chain.push_back(image->backing()->path);
  }
  return chain;
}

WriteNumber read_chain(const Store& store, const std::string& path, std::uint64_t granule) {
  for (const std::string& each : chain_of(store, path)) {
    const MemoryImage* image = store.image(each);
    if (image == nullptr || granule >= image->granules())
      return 0;
    if (image->held(granule) == Held::data)
      return image->read(granule);
    if (image->held(granule) == Held::zero)
      return 0;
  }
  return 0;
}

Plugin* find_plugin(Host& host, const std::string& uri) {
  for (Plugin& plugin : host.plugins())
    if (plugin.alive && uri.starts_with("sim://" + plugin.name + "/"))
      return &plugin;
  return nullptr;
}

bool is_changed(const Store& store, const Plugin& plugin, std::uint64_t granule) {
  if (plugin.layer)
    return store.image(plugin.image)->held(granule) != Held::nothing;
  return granule < plugin.changed.size() && plugin.changed[granule];
}

/// The bitmap of the image that the export names becomes the plugin's map.
void use_map(const Store& store, Plugin& plugin, const std::string& uri) {
  const std::string view = uri.substr(uri.rfind('/') + 1);
  constexpr std::string_view kBitmap = "dirty:";
  if (!view.starts_with(kBitmap))
    return;
  plugin.layer = false;
  const std::string name = view.substr(kBitmap.size());
  for (const StoredBitmap& bitmap : store.image(plugin.image)->bitmaps())
    if (bitmap.name == name && !bitmap.in_use) {
      plugin.changed = bitmap.bits;
      return;
    }
  fail(ENOENT, "nbdkit: {}: there is no bitmap {} that could be used", plugin.image, name);
}

/// One granule of what `uri` shows goes to `target`.
void copy_granule(const Store& store, const Plugin& plugin, const std::string& uri,
                  MemoryImage& target, std::uint64_t granule) {
  const bool whole = uri.ends_with("/image");
  if (!whole && !is_changed(store, plugin, granule))
    return;
  const WriteNumber number = read_chain(store, plugin.image, granule);
  if (number != 0)
    target.write(granule, number);
  else
    target.write_zero(granule);
}

class SimServer final : public backup::Server {
 public:
  SimServer(Host& host, Process& process, Plugin& plugin)
      : host_(&host), process_(&process), plugin_(&plugin) {}
  SimServer(const SimServer&) = delete;
  SimServer& operator=(const SimServer&) = delete;
  ~SimServer() override {
    if (!plugin_->outlives)
      SimServer::stop();
  }

  bool running() override { return plugin_->alive; }
  std::string uri(std::string_view export_name) const override {
    return fmt::format("sim://{}/{}", plugin_->name, export_name);
  }
  void stop() override {
    if (plugin_->alive && !process_->doomed())
      host_->kill_plugin(*plugin_);
  }

 private:
  Host* host_;
  Process* process_;
  Plugin* plugin_;
};

class SimEnvironment final : public backup::Environment {
 public:
  SimEnvironment(Host& host, Process& process)
      : host_(&host), process_(&process), files_(host, process) {}

  Clock& clock() override { return process_->clock(); }
  backup::Files& files() override { return files_; }
  std::int64_t wall_clock() override { return host_->store().now; }
  std::uint64_t random() override { return host_->random().next(); }

  asio::awaitable<std::unique_ptr<qmp::Channel>> connect_qmp(std::string address) override {
    live();
    if (host_->qemu() == nullptr || host_->qemu_process()->doomed())
      fail(ECONNREFUSED, "QMP at {}: Connection refused", address);
    auto [ours, theirs] =
        make_pipe(*process_, *host_->qemu_process(), "QMP at " + address, host_->costs().message);
    host_->qemu_process()->spawn(host_->qemu()->serve(std::move(theirs)));
    co_return std::move(ours);
  }

  std::unique_ptr<qmp::Channel> start_guardian(const std::string& agent_address) override {
    live();
    host_->step("start a guardian", process_);
    live();
    process_->spend(host_->costs().start);
    Process& process = host_->start_guardian_process();
    auto [ours, theirs] = make_pipe(*process_, process, "the guardian", host_->costs().message);
    process.spawn(guard(*host_, process, agent_address, std::move(theirs)));
    return std::move(ours);
  }

  std::unique_ptr<qmp::Channel> start_commit_guard() override {
    live();
    host_->step("start a commit's guard", process_);
    live();
    process_->spend(host_->costs().start);
    Process& process = host_->start_guardian_process();
    auto [ours, theirs] =
        make_pipe(*process_, process, "the commit's guard", host_->costs().message);
    const auto kill_session = [session = process_] { session->doom(); };
    process.spawn(guard_commit(*host_, process, std::move(theirs), kill_session));
    return std::move(ours);
  }

  asio::awaitable<std::unique_ptr<backup::Server>> serve(backup::ServeRequest request) override {
    live();
    host_->step("start nbdkit", process_);
    co_await clock().wait(kStart);
    live();
    if (host_->strike({FaultKind::plugin_refuses}))
      fail(EIO, "nbdkit: it does not start");
    Plugin plugin;
    plugin.name = fmt::format("{}-{}", request.name, host_->plugins().size());
    plugin.image = request.image;
    plugin.outlives = request.lifetime == backup::Lifetime::ended;
    plugin.locked = chain_of(host_->store(), request.image);
    for (const std::string& path : plugin.locked) {
      MemoryImage* image = host_->store().image(path);
      if (image == nullptr)
        fail(ENOENT, "nbdkit: {}: No such file or directory", path);
      if (image->writer)
        fail(EAGAIN, "nbdkit: {}: another process has it open for writing", path);
    }
    plugin.layer = true;  // where no other view is asked for
    if (!request.map.empty()) {
      const std::string name = request.map.substr(std::string("nbd+unix:///").size());
      plugin.changed = bits_of_export(name.substr(0, name.find('?')));
      plugin.layer = false;
    }
    for (const std::string& path : plugin.locked)
      ++host_->store().image(path)->readers;
    host_->plugins().push_back(std::move(plugin));
    auto server = std::make_unique<SimServer>(*host_, *process_, host_->plugins().back());
    host_->step("nbdkit serves", process_);
    live();
    co_return server;
  }

  unsigned end_servers(const std::set<std::string>& images,
                       const std::function<bool(const backup::SessionId&)>& is_ours) override {
    live();
    unsigned ended = 0;
    for (Plugin& plugin : host_->plugins()) {
      const auto session = backup::session_of(plugin.name);
      if (!plugin.alive || images.count(plugin.image) == 0 || !session || !is_ours(*session))
        continue;
      host_->kill_plugin(plugin);
      ++ended;
    }
    return ended;
  }

  asio::awaitable<backup::PullResult> pull(backup::PullRequest request,
                                           client::pull::Counters& /*counters*/) override {
    live();
    Store& store = host_->store();
    store.files()[request.target].text = "unfinished";
    Plugin* plugin = find_plugin(*host_, request.uri);
    if (plugin == nullptr)
      fail(ECONNREFUSED, "{}: no server", request.uri);
    backup::PullResult result;
    try {
      use_map(store, *plugin, request.uri);
      const std::uint64_t granules = store.image(plugin->image)->granules();
      MemoryImage target("qcow2", granules, store.now);
      for (std::uint64_t granule = 0; granule < granules; ++granule) {
        const bool changed = request.uri.ends_with("/image") || is_changed(store, *plugin, granule);
        const Clock::Duration time = host_->pull_time(changed);
        if (time.count() != 0)
          co_await clock().wait(time);
        live();
        if (!plugin->alive)
          fail(ECONNRESET, "{}: the server is gone", request.uri);
        if (host_->interrupted())
          fail(EINTR, "interrupted");
        copy_granule(store, *plugin, request.uri, target, granule);
        host_->step("pulled", process_);
        live();
      }
      if (host_->strike({FaultKind::repository_full}))
        fail(ENOSPC, "{}: No space left on device", request.target);
      put(request.target, request.base, std::move(target));
    } catch (const Error&) {
      if (!process_->doomed())
        store.files().erase(request.target);
      throw;
    }
    host_->step("pulled all", process_);
    live();
    co_return result;
  }

  void commit_offline(const std::string& overlay) override {
    live();
    host_->step("qemu-img commit", process_);
    live();
    Store& store = host_->store();
    MemoryImage* from = store.image(overlay);
    MemoryImage* to =
        from == nullptr || !from->backing() ? nullptr : store.image(from->backing()->path);
    if (to == nullptr)
      fail(EIO, "qemu-img commit {}: there is nothing below it", overlay);
    if (from->writer || to->writer || to->readers != 0)
      fail(EIO, "qemu-img commit {}: Failed to get \"write\" lock", overlay);
    for (std::uint64_t granule = 0; granule < from->granules(); ++granule) {
      if (from->held(granule) == Held::data)
        to->write(granule, from->read(granule));
      else if (from->held(granule) == Held::zero)
        to->write_zero(granule);
      else
        continue;
      mark(*to, granule);
    }
    to->flush();
    host_->step("qemu-img committed", process_);
    live();
  }

  bool stop_requested() override { return host_->interrupted(); }

 private:
  void live() const {
    if (process_->doomed())
      throw qmp::ChannelLost(EINTR, "killed");
  }

  static void mark(MemoryImage& image, std::uint64_t granule) {
    std::vector<StoredBitmap> bitmaps = image.bitmaps();
    for (StoredBitmap& bitmap : bitmaps)
      if (bitmap.recording && !bitmap.in_use)
        bitmap.bits[granule] = true;
    image.set_bitmaps(std::move(bitmaps));
  }

  std::vector<bool> bits_of_export(const std::string& name) const {
    const FakeQemu* qemu = host_->qemu();
    const Export* found = qemu == nullptr ? nullptr : qemu->find_export(name);
    if (found == nullptr)
      fail(ENOENT, "nbdkit: map: there is no export {}", name);
    return found->node->find_bitmap(found->bitmaps.at(0))->bits;
  }

  void put(const std::string& target, const std::string& base, MemoryImage image) {
    image.flush();
    if (!base.empty())
      image.set_backing({std::filesystem::path(backup::folder_of(target) + "/" + base)
                             .lexically_normal()
                             .string(),
                         "qcow2"});
    host_->store().files()[target] = {.text = {},
                                      .image = std::make_shared<MemoryImage>(std::move(image))};
  }

  static asio::awaitable<void> guard(Host& host, Process& process, std::string address,
                                     std::unique_ptr<qmp::Channel> session) {
    const auto connect = [&host, &process,
                          address]() -> asio::awaitable<std::unique_ptr<qmp::Channel>> {
      if (host.qemu() == nullptr || host.qemu_process()->doomed())
        fail(ECONNREFUSED, "the guest agent at {}: Connection refused", address);
      auto [ours, theirs] =
          make_pipe(process, *host.qemu_process(), "the guest agent", host.costs().message);
      host.qemu_process()->spawn(host.agent()->serve(std::move(theirs)));
      co_return std::move(ours);
    };
    backup::Guardian guardian(connect, std::move(session), process.clock(), 1000);
    try {
      co_await guardian.run();
    } catch (const Error&) {  // it says so to nobody here
    }
  }

  static asio::awaitable<void> guard_commit(Host& host, Process& process,
                                            std::unique_ptr<qmp::Channel> session,
                                            std::function<void()> kill_session) {
    SimEnvironment environment(host, process);
    try {
      co_await backup::guard_commit(environment, std::move(session), kill_session);
    } catch (const Error&) {  // it says so to nobody here
    }
  }

  Host* host_;
  Process* process_;
  SimFiles files_;
};

}  // namespace

std::unique_ptr<backup::Environment> session_environment(Host& host, Process& process) {
  return std::make_unique<SimEnvironment>(host, process);
}

void copy_export(Host& host, const std::string& uri, const std::string& target,
                 const std::string& base) {
  Store& store = host.store();
  Plugin* plugin = find_plugin(host, uri);
  if (plugin == nullptr)
    fail(ECONNREFUSED, "{}: no server", uri);
  use_map(store, *plugin, uri);
  const std::uint64_t granules = store.image(plugin->image)->granules();
  MemoryImage& image = store.create_image(target, "qcow2", granules);
  if (!base.empty())
    image.set_backing({base, "qcow2"});
  for (std::uint64_t granule = 0; granule < granules; ++granule)
    copy_granule(store, *plugin, uri, image, granule);
  image.flush();
}

}  // namespace nbdelta::sim
