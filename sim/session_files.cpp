#include "sim/session_files.hpp"

#include <set>
#include <string>
#include <utility>
#include <vector>

namespace nbdelta::sim {
namespace {

namespace backup = client::backup;

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

  std::optional<backup::Qcow2Summary> summary_of(const std::string& path) override {
    look();
    const MemoryImage* image = store().image(path);
    if (image == nullptr || image->format() != "qcow2")
      return std::nullopt;
    backup::Qcow2Summary summary;
    summary.size = image->granules() * image->granule_size();
    if (const auto backing = image->backing())
      summary.backing_format = backing->format;
    return summary;  // no disk is made larger here
  }

  void check_readable(const std::string& path) override {
    look();
    if (!exists(path))
      fail(ENOENT, "{}: No such file or directory", path);
  }
  void check_servable(const std::string& path, image::Format /*format*/,
                      const std::vector<std::string>& /*backing*/) override {
    check_readable(path);
  }
  /// Nothing that is shorter than the limit is told apart here.
  std::size_t chain_length(const std::string& path) override {
    if (!exists(path))
      fail(ENOENT, "{}: No such file or directory", path);
    return 1;
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
  std::int64_t modified_below(const std::string& overlay) override {
    return modified(backing_of(overlay).value_or(overlay));
  }
  bool exists(const std::string& path) override {
    look();
    return store().files().count(path) != 0 || store().folders().count(path) != 0;
  }
  bool same(const std::string& path, const std::string& other) override {
    return path == other && exists(path);
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
    if (no_space_for(path))
      fail(ENOSPC, "{}: No space left on device", path);
    store().files()[path].text = text;
    done("wrote " + path);
  }
  void touch(const std::string& /*path*/) override { look(); }  // texts are always of now
  void rename(const std::string& from, const std::string& to) override {
    change("rename " + from);
    const auto found = store().files().find(from);
    if (found == store().files().end())
      fail(ENOENT, "{}: cannot be renamed to {}", from, to);
    store().files()[to] = found->second;
    store().files().erase(from);
    done("renamed " + from);
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
  /// Of marks beside an overlay that has filled its storage.
  bool no_space_for(const std::string& path) {
    constexpr std::string_view kEnd = ".qcow2";
    const std::size_t end = path.rfind(kEnd);
    const bool is_mark = path.starts_with("/vm/nbdelta-") && end != std::string::npos &&
                         end + kEnd.size() != path.size();
    const MemoryImage* overlay =
        is_mark ? store().image(path.substr(0, end + kEnd.size())) : nullptr;
    return overlay != nullptr && overlay->full;
  }
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

}  // namespace

std::unique_ptr<backup::Files> session_files(Host& host, Process& process) {
  return std::make_unique<SimFiles>(host, process);
}

}  // namespace nbdelta::sim
