// The plugin's callbacks: each catches, tells nbdkit, and leaves the work to the image library.
// nbdkit's own documentation of them is nbdkit-plugin(3).

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/packed.hpp"
#include "image/view.hpp"
#include "nbdkit-plugin/exports.hpp"
#include "nbdkit-plugin/options.hpp"
#include "nbdkit-plugin/readahead.hpp"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace nbdelta::plugin {
namespace {

/// Extents of one reply at most, as many as QEMU's server sends; the client asks on from there.
constexpr std::uint64_t kMostExtents = 131'072;

/// nbdkit refuses a longer list (server/exports.c); those left out can be opened by name.
constexpr std::size_t kMostListed = 10'000;

/// Longer than this nobody waits for a packed export to open: its clients have another way, and
/// by default give a silent server up after twice as long.
constexpr std::chrono::seconds kLongestPacking{30};

/// One export, and what its connections share.
class Served {
 public:
  Served(const Export& chosen, std::uint64_t readahead_size)
      : what(chosen), readahead(readahead_size) {}
  const Export& what;
  Readahead readahead;

  /// Kept as long as somebody uses it. Throws Error; at once where it took too long before.
  std::shared_ptr<const image::Packed> packed() {
    const std::lock_guard guard(mutex_);
    std::shared_ptr<const image::Packed> packed = packed_.lock();
    if (packed == nullptr) {
      if (takes_too_long_)
        refuse_packing();
      const auto deadline = std::chrono::steady_clock::now() + kLongestPacking;
      packed = std::make_shared<const image::Packed>(what.view, [&] {
        if (std::chrono::steady_clock::now() > deadline) {
          takes_too_long_ = true;
          refuse_packing();
        }
      });
      packed_ = packed;
    }
    return packed;
  }

 private:
  [[noreturn]] void refuse_packing() const {
    fail(ETIMEDOUT,
         "export '{}{}': its map was not read within {} s; there is the export '{}' without",
         image::Packed::kPrefix, what.name, kLongestPacking.count(), what.name);
  }

  std::mutex mutex_;  // guards packed_
  std::weak_ptr<const image::Packed> packed_;
  std::atomic<bool> takes_too_long_ = false;  // set by any thread that reads the map
};

/// One connection's handle.
struct Connection {
  Served& served;
  std::shared_ptr<const image::Packed> packed;  // none: the disk itself is served
  std::string description;
};

Options options;
std::unique_ptr<Exports> exports;
std::list<Served> served;  // one for each of exports->all(), in that order

/// Every callback's body goes through here: an exception becomes nbdkit's error.
template <class Result, class Body>
Result guarded(Result on_error, Body body) noexcept {
  try {
    return body();
  } catch (const Error& error) {
    nbdkit_error("%s", error.what());
    nbdkit_set_error(error.error_number());
  } catch (const std::exception& error) {
    nbdkit_error("unexpected: %s", error.what());
    nbdkit_set_error(ENOMEM);
  }
  return on_error;
}

Connection& connection_of(void* handle) {
  return *static_cast<Connection*>(handle);
}

const image::View& view_of(void* handle) {
  return connection_of(handle).served.what.view;
}

void unload() {
  served.clear();
  exports.reset();
}

void dump_plugin() {
  std::printf("delta_formats=qcow2 raw\n");
  std::printf("delta_cache_bytes=%zu\n", image::Disk::kCacheMemory);
}

int config(const char* key, const char* value) {
  return guarded(-1, [&] {
    options.set(key, value);
    return 0;
  });
}

int config_complete() {
  return guarded(-1, [] {
    options.check();
    return 0;
  });
}

/// Before nbdkit goes to the background, so that errors are seen.
int get_ready() {
  return guarded(-1, [] {
    exports = std::make_unique<Exports>(options);
    for (const std::string& warning : exports->warnings())
      std::fprintf(stderr, "nbdkit: delta: warning: %s\n", warning.c_str());
    for (const Export& each : exports->all())
      served.emplace_back(each, options.readahead);
    return 0;
  });
}

int list_exports(int /*readonly*/, int /*is_tls*/, nbdkit_exports* list) {
  return guarded(-1, [&] {
    const std::vector<Export>& all = exports->all();
    for (const Export& each : std::span(all).first(std::min(all.size(), kMostListed)))
      if (nbdkit_add_export(list, each.name.c_str(), each.description.c_str()) != 0)
        return -1;
    return 0;
  });
}

void* open(int /*readonly*/) {
  return guarded(static_cast<void*>(nullptr), []() -> void* {
    std::string_view name = nbdkit_export_name();
    const bool is_packed = options.packed && name.starts_with(image::Packed::kPrefix);
    if (is_packed)
      name.remove_prefix(image::Packed::kPrefix.size());
    const Export& wanted = exports->find(name);
    Served& chosen = *std::find_if(served.begin(), served.end(),
                                   [&](const Served& each) { return &each.what == &wanted; });
    if (!is_packed)
      return new Connection{chosen, nullptr, wanted.description};
    return new Connection{chosen, chosen.packed(),
                          std::string(image::Packed::kDescription) + wanted.description};
  });
}

void close(void* handle) {
  delete &connection_of(handle);
}

const char* export_description(void* handle) {
  return connection_of(handle).description.c_str();
}

std::int64_t get_size(void* handle) {
  const auto& packed = connection_of(handle).packed;
  return static_cast<std::int64_t>(packed == nullptr ? view_of(handle).disk().size()
                                                     : packed->layout().size());
}

int can_multi_conn(void* /*handle*/) {
  return 1;
}

/// A packed export says what there is to say in its first bytes.
int can_extents(void* handle) {
  return connection_of(handle).packed == nullptr ? 1 : 0;
}

int block_size(void* /*handle*/, std::uint32_t* minimum, std::uint32_t* preferred,
               std::uint32_t* maximum) {
  *minimum = 1;
  *preferred = 64 * kKiB;
  *maximum = 64 * kMiB;  // nbdkit limit
  return 0;
}

int pread(void* handle, void* buffer, std::uint32_t count, std::uint64_t offset,
          std::uint32_t /*flags*/) {
  return guarded(-1, [&] {
    const Connection& connection = connection_of(handle);
    const image::Disk& disk = connection.served.what.view.disk();
    Readahead& readahead = connection.served.readahead;
    const std::span<std::byte> out(static_cast<std::byte*>(buffer), count);
    if (connection.packed == nullptr) {
      const image::View& view = view_of(handle);
      readahead.before_read(
          disk, [&view](const auto&... walk) { view.for_each_extent(walk...); }, offset, count);
      disk.read(out, offset);
      return 0;
    }
    const image::ExtentMap& map = connection.packed->map();
    if (const std::uint64_t data = connection.packed->layout().data(); offset >= data) {
      const auto run = map.at_data(offset - data);
      readahead.before_read(disk, std::bind_front(&image::ExtentMap::for_each, std::cref(map)),
                            run.extent().offset + (offset - data - run.data_before()), count);
    }
    connection.packed->read(out, offset);
    return 0;
  });
}

/// Never passes offset + count: nbdkit 1.32 ends with an assertion when an extent does that near
/// 4 GiB.
int extents(void* handle, std::uint32_t count, std::uint64_t offset, std::uint32_t flags,
            nbdkit_extents* list) {
  return guarded(-1, [&] {
    const bool only_one = (flags & NBDKIT_FLAG_REQ_ONE) != 0;
    image::Extent pending{.offset = offset, .length = 0, .state = image::State::data};
    std::uint64_t added = 0;
    bool failed = false;
    const auto add_pending = [&] {
      failed =
          pending.length != 0 && nbdkit_add_extent(list, pending.offset, pending.length,
                                                   static_cast<std::uint32_t>(pending.state)) != 0;
      return !failed && ++added < (only_one ? 1 : kMostExtents);
    };
    bool more = true;
    view_of(handle).for_each_extent(offset, count, [&](const image::Extent& extent) {
      if (pending.length != 0 && extent.state == pending.state) {
        pending.length += extent.length;
        return true;
      }
      more = pending.length == 0 || add_pending();
      if (more)
        pending = extent;
      return more;
    });
    if (more)
      add_pending();
    return failed ? -1 : 0;
  });
}

nbdkit_plugin plugin = [] {
  nbdkit_plugin table{};
  table.name = "delta";
  table.longname = "nbdelta: changed blocks of a frozen disk image";
  table.version = NBDELTA_VERSION;
  table.description =
      "Serves a qcow2 or raw image that nobody writes to; block status says which extents changed.";
  table.unload = unload;
  table.dump_plugin = dump_plugin;
  table.config = config;
  table.config_complete = config_complete;
  table.config_help = Options::help();
  table.magic_config_key = "image";
  table.get_ready = get_ready;
  table.list_exports = list_exports;
  table.open = open;
  table.close = close;
  table.export_description = export_description;
  table.get_size = get_size;
  table.can_multi_conn = can_multi_conn;
  table.can_extents = can_extents;
  table.block_size = block_size;
  table.pread = pread;
  table.extents = extents;
  return table;
}();

}  // namespace
}  // namespace nbdelta::plugin

using nbdelta::plugin::plugin;
NBDKIT_REGISTER_PLUGIN(plugin)
