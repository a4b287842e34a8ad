#include "image/disk.hpp"

#include <sys/sysmacros.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/block_cache.hpp"
#include "image/chain.hpp"
#include "image/metadata.hpp"
#include "image/qcow2_layer.hpp"
#include "image/raw_layer.hpp"

namespace nbdelta::image {
namespace {

/// What O_DIRECT asks for on every device in use today; a smaller need is met too.
constexpr std::size_t kDirectAlignment = 4096;

std::size_t largest_cluster(const Chain& chain) {
  std::size_t largest = 512;
  for (const LayerFiles& layer : chain.layers)
    if (layer.header)
      largest = std::max<std::size_t>(largest, layer.header->cluster_size());
  return largest;
}

std::vector<Disk::OpenFile> files_of(const Chain& chain) {
  std::vector<Disk::OpenFile> files;
  for (const LayerFiles& layer : chain.layers)
    for (const File* file : {&layer.image, &layer.data})
      if (*file)
        files.push_back({file->name(), file->status()});
  return files;
}

bool are_in_memory(const Chain& chain) {
  return std::all_of(chain.layers.begin(), chain.layers.end(), [](const LayerFiles& layer) {
    return layer.image.is_in_memory() && (!layer.data || layer.data.is_in_memory());
  });
}

std::uint64_t state_of(const std::vector<Disk::OpenFile>& files) {
  std::vector<std::uint64_t> facts;
  for (const auto& [name, status] : files) {
    if (S_ISBLK(status.st_mode))
      facts.insert(facts.end(), {major(status.st_rdev), minor(status.st_rdev)});
    else
      facts.insert(facts.end(), {status.st_ino, static_cast<std::uint64_t>(status.st_size),
                                 static_cast<std::uint64_t>(status.st_mtim.tv_sec),
                                 static_cast<std::uint64_t>(status.st_mtim.tv_nsec)});
  }
  return XXH3_64bits(facts.data(), facts.size() * sizeof facts[0]);
}

}  // namespace

Format parse_format(std::string_view name, std::string_view what) {
  if (name == "qcow2")
    return Format::qcow2;
  if (name == "raw")
    return Format::raw;
  fail(EINVAL, "{}: '{}' is not supported (qcow2 and raw are)", what, name);
}

class Disk::Caches {
 public:
  explicit Caches(std::size_t cluster_size)
      : metadata(kMetadataCacheMemory, MetadataReader::kBlock),
        decompressed(kDecompressedCacheMemory, cluster_size) {}

  BlockCache metadata;
  BlockCache decompressed;
};

Disk::Disk() = default;
Disk::Disk(Disk&&) noexcept = default;
Disk& Disk::operator=(Disk&&) noexcept = default;
Disk::~Disk() = default;

Disk Disk::open(const std::string& path, const OpenOptions& options) {
  Chain chain = open_chain(path, options);
  const std::size_t alignment = options.caching == Caching::direct ? kDirectAlignment : 0;
  Disk disk;
  disk.missing_backing_ = std::move(chain.missing_backing);
  disk.files_ = files_of(chain);
  disk.state_ = state_of(disk.files_);
  disk.in_memory_ = are_in_memory(chain);
  disk.caches_ = std::make_unique<Caches>(largest_cluster(chain));
  for (LayerFiles& files : chain.layers) {
    if (files.header) {
      disk.layers_.push_back(std::make_unique<Qcow2Layer>(
          Qcow2Layer::Files{std::move(files.image), std::move(files.data), alignment},
          std::move(*files.header), disk.caches_->metadata, disk.caches_->decompressed,
          disk.layers_.size()));
    } else {
      disk.layers_.push_back(
          std::make_unique<RawLayer>(std::move(files.image), std::move(files.data), alignment));
    }
  }
  return disk;
}

std::uint64_t Disk::size() const {
  return layers_.front()->size();
}

const std::string& Disk::name() const {
  return layers_.front()->name();
}

const std::string& Disk::missing_backing() const {
  return missing_backing_;
}

const Qcow2Layer* Disk::qcow2() const {
  return dynamic_cast<const Qcow2Layer*>(layers_.front().get());
}

void Disk::read(std::span<std::byte> out, std::uint64_t offset) const {
  read_layer(0, out, offset, [this](std::size_t depth, auto... range) {
    return layers_[depth]->run_to_read_at(range...);
  });
}

Disk::Walk Disk::new_walk(const KnownRuns* known) const {
  Walk walk(layers_.size());
  walk.front().known = known;
  return walk;
}

void Disk::read(std::span<std::byte> out, std::uint64_t offset, Walk& walk) const {
  read_layer(0, out, offset, [&](std::size_t depth, auto... range) {
    return layers_[depth]->run_to_read_at(range..., walk[depth]);
  });
}

template <class RunAt>
void Disk::read_layer(std::size_t depth, std::span<std::byte> out, std::uint64_t offset,
                      const RunAt& run_at) const {
  if (depth == layers_.size()) {
    if (!missing_backing_.empty())
      fail(EACCES, "guest offset {:#x} is in a backing file: {}", offset, missing_backing_);
    std::memset(out.data(), 0, out.size());
    return;
  }
  const Layer& layer = *layers_[depth];
  while (!out.empty() && offset < layer.size()) {
    const std::uint64_t limit = std::min<std::uint64_t>(out.size(), layer.size() - offset);
    const Run run = run_at(depth, offset, limit);
    const std::span<std::byte> part = out.first(run.length);
    switch (run.allocation) {
      case Allocation::unallocated:
        read_layer(depth + 1, part, offset, run_at);
        break;
      case Allocation::zero:
        std::memset(part.data(), 0, part.size());
        break;
      case Allocation::data:
      case Allocation::compressed:
        layer.read(part, offset, run);
        break;
    }
    out = out.subspan(run.length);
    offset += run.length;
  }
  // A backing file that is shorter than what is over it.
  if (!out.empty())
    std::memset(out.data(), 0, out.size());
}

Disk::Place Disk::place_at(std::uint64_t offset, std::uint64_t limit, Walk& walk) const {
  for (std::size_t depth = 0; depth < layers_.size(); ++depth) {
    const Layer& layer = *layers_[depth];
    if (offset >= layer.size())
      return {.length = limit};  // a backing file that is shorter than what is over it
    const Run run =
        layer.run_to_read_at(offset, std::min(limit, layer.size() - offset), walk[depth]);
    limit = run.length;
    if (run.allocation == Allocation::data)
      return {&layer.data_file(), run.host_offset, run.length};
    if (run.allocation != Allocation::unallocated)
      return {.length = limit};
  }
  return {.length = limit};
}

void Disk::for_each_extent(std::uint64_t offset, std::uint64_t length,
                           const ExtentSink& sink) const {
  Walk walks = new_walk();
  for_each_extent(offset, length, walks, sink);
}

void Disk::for_each_extent(std::uint64_t offset, std::uint64_t length, Walk& walks,
                           const ExtentSink& sink) const {
  invariant(missing_backing_.empty(), "allocation is asked of a complete chain only");
  walk(0, offset, length, walks, sink);
}

/// Returns false where the sink ended the walk.
bool Disk::walk(std::size_t depth, std::uint64_t offset, std::uint64_t length, Walk& walks,
                const ExtentSink& sink) const {
  const std::uint64_t end = offset + length;
  const std::uint64_t layer_end = depth < layers_.size() ? layers_[depth]->size() : 0;
  while (offset < std::min(end, layer_end)) {
    const Run run = layers_[depth]->run_at(offset, std::min(end, layer_end) - offset, walks[depth]);
    const bool go_on =
        run.allocation == Allocation::unallocated
            ? walk(depth + 1, offset, run.length, walks, sink)
            : sink({.offset = offset,
                    .length = run.length,
                    .state = run.allocation == Allocation::zero ? State::zero : State::data});
    if (!go_on)
      return false;
    offset += run.length;
  }
  return offset >= end || sink({.offset = offset, .length = end - offset, .state = State::hole});
}

void Disk::will_need(std::uint64_t offset, std::uint64_t length, Walk& walk) const {
  will_need_of_layer(0, offset, offset + length, walk);
}

void Disk::will_need_of_layer(std::size_t depth, std::uint64_t offset, std::uint64_t end,
                              Walk& walk) const {
  if (depth == layers_.size())
    return;
  const Layer& layer = *layers_[depth];
  end = std::min(end, layer.size());
  while (offset < end) {
    const Run run = layer.run_to_read_at(offset, end - offset, walk[depth]);
    if (run.allocation == Allocation::unallocated)
      will_need_of_layer(depth + 1, offset, offset + run.length, walk);
    else
      layer.will_need(run);
    offset += run.length;
  }
}

}  // namespace nbdelta::image
