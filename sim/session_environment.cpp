#include "sim/session_environment.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <utility>

#include "client/backup/commit_guard.hpp"
#include "client/backup/guardian.hpp"
#include "client/backup/names.hpp"
#include "sim/pipe.hpp"
#include "sim/session_files.hpp"

namespace nbdelta::sim {
namespace {

using namespace std::chrono_literals;
namespace backup = client::backup;
namespace qmp = client::qmp;

constexpr Clock::Duration kNbdkitStart = 30ms;  // of nbdkit

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

constexpr std::string_view kDirect = "direct://";

/// No process: its URIs name the image, which the pull opens.
class SimDirectServer final : public backup::Server {
 public:
  explicit SimDirectServer(std::string image) : image_(std::move(image)) {}

  bool running() override { return true; }
  std::string uri(std::string_view export_name) const override {
    return fmt::format("{}{}/{}", kDirect, image_, export_name);
  }
  void stop() override {}

 private:
  std::string image_;
};

/// As anybody opens an image to read it: with its locks, which end when it is killed.
Plugin& open_image(Host& host, Plugin plugin) {
  plugin.locked = chain_of(host.store(), plugin.image);
  const std::string_view who = plugin.direct ? "pull" : "nbdkit";
  for (const std::string& path : plugin.locked) {
    const MemoryImage* image = host.store().image(path);
    if (image == nullptr)
      fail(ENOENT, "{}: {}: No such file or directory", who, path);
    if (image->writer)
      fail(EAGAIN, "{}: {}: another process has it open for writing", who, path);
  }
  for (const std::string& path : plugin.locked)
    ++host.store().image(path)->readers;
  host.plugins().push_back(std::move(plugin));
  return host.plugins().back();
}

/// An image that a pull reads without a server, until it ends; where its process is killed, that
/// closes it.
class DirectImage {
 public:
  DirectImage(Host& host, Process& process, const std::string& uri)
      : host_(&host), process_(&process) {
    const std::string_view rest = std::string_view(uri).substr(kDirect.size());
    Plugin plugin;
    plugin.direct = true;
    plugin.layer = true;  // where no other view is asked for
    plugin.image = rest.substr(0, rest.rfind('/'));
    plugin_ = &open_image(host, std::move(plugin));
  }
  DirectImage(const DirectImage&) = delete;
  DirectImage& operator=(const DirectImage&) = delete;
  ~DirectImage() {
    if (!process_->doomed())
      host_->kill_plugin(*plugin_);
  }
  Plugin& plugin() { return *plugin_; }

 private:
  Host* host_;
  Process* process_;
  Plugin* plugin_;
};

class SimEnvironment final : public backup::Environment {
 public:
  SimEnvironment(Host& host, Process& process)
      : host_(&host), process_(&process), files_(session_files(host, process)) {}

  Clock& clock() override { return process_->clock(); }
  backup::Files& files() override { return *files_; }
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
    if (request.direct) {
      invariant(request.map.empty(), "only nbdkit reads maps that QEMU exports");
      co_return std::make_unique<SimDirectServer>(request.image);
    }
    host_->step("start nbdkit", process_);
    co_await clock().wait(kNbdkitStart);
    live();
    if (host_->strike({FaultKind::plugin_refuses}))
      fail(EIO, "nbdkit: it does not start");
    Plugin wanted;
    wanted.name = fmt::format("{}-{}", request.name, host_->plugins().size());
    wanted.image = request.image;
    wanted.outlives = request.lifetime == backup::Lifetime::ended;
    wanted.layer = request.map.empty();  // where no other view is asked for
    if (!request.map.empty()) {
      const std::string name = request.map.substr(std::string("nbd+unix:///").size());
      wanted.changed = bits_of_export(name.substr(0, name.find('?')));
    }
    Plugin& plugin = open_image(*host_, std::move(wanted));
    auto server = std::make_unique<SimServer>(*host_, *process_, plugin);
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
      if (!plugin.alive || plugin.direct || images.count(plugin.image) == 0 || !session ||
          !is_ours(*session))
        continue;
      host_->kill_plugin(plugin);
      ++ended;
    }
    return ended;
  }

  void remove_temporary(const std::function<bool(const backup::SessionId&)>& /*is_ours*/) override {
    live();  // plugins have no files here
  }

  asio::awaitable<backup::PullResult> pull(backup::PullRequest request,
                                           client::pull::Counters& /*counters*/) override {
    live();
    Store& store = host_->store();
    std::optional<DirectImage> direct;
    if (request.uri.starts_with(kDirect))
      direct.emplace(*host_, *process_, request.uri);
    store.files()[request.target].text = "unfinished";
    Plugin* plugin = direct ? &direct->plugin() : find_plugin(*host_, request.uri);
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
        host_->step(direct ? "pulled directly" : "pulled", process_);
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
      host_->step("qemu-img commits", process_);
      live();
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

  void remove_bitmap_offline(const std::string& image, const std::string& bitmap) override {
    fail(ENOTSUP, "qemu-img bitmap --remove {} {}: no disk is made larger here", image, bitmap);
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
    return FakeQemu::exported_bitmap(*found->node, found->bitmaps.front()).second->bits;
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
    // An agent that was busy answers to those before, too: each has numbers of its own.
    const std::int64_t seed = process.clock().now().time_since_epoch().count();
    backup::Guardian guardian(connect, std::move(session), process.clock(), seed);
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
  std::unique_ptr<backup::Files> files_;
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
