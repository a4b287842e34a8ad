#include "tests/image/random_image.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "base/units.hpp"
#include "tests/image/layer_plan.hpp"
#include "tests/support/process.hpp"
#include "tests/support/random.hpp"

namespace nbdelta::testing {
namespace {

using image::Format;

class ImageMaker {
 public:
  ImageMaker(std::uint64_t seed, const TempFolder& folder)
      : seed_(seed), random_(seed), folder_(folder) {
    make_pattern_files();
  }

  RandomImage make() {
    std::vector<LayerPlan> layers = plan_layers(seed_, random_);
    for (std::size_t i = layers.size(); i-- > 0;)
      make_layer(layers[i], i == 0);
    for (const LayerPlan& layer : layers)
      image_.layers.push_back(layer.format);
    image_.path = folder_ / layers[0].name;
    image_.format = layers[0].format;
    describe_chain(layers);
    return std::move(image_);
  }

 private:
  void cover(std::string feature) { image_.features.insert(std::move(feature)); }

  void make_layer(LayerPlan& layer, bool is_top) {
    if (layer.format == Format::raw) {
      make_raw(layer, is_top);
      return;
    }
    if (layer.converts)
      convert(layer);
    else
      create(layer);
    // As much as it may grow to.
    touched_.assign(div_round_up(64 * kMiB, layer.cluster()),
                    layer.converts || layer.preallocation != "off");
    compressed_.assign(touched_.size(), layer.converts);
    const std::uint64_t phases = is_top ? 3 : 1;
    for (std::uint64_t phase = 0; phase < phases; ++phase) {
      change_bitmaps(layer, phase);
      if (phase != 0 && layer.resizes)
        resize(layer);
      write(layer);
      if (layer.snapshots > phase)
        run_logged({"qemu-img", "snapshot", "-c", fmt::format("s{}", phase), path(layer)});
    }
    describe_layer(layer, is_top);
  }

  void make_raw(const LayerPlan& layer, bool is_top) {
    std::uint64_t length = layer.size;
    if (random_.chance(50)) {
      length -= random_.between(1, 511);
      cover("raw, length no multiple of 512");
    }
    const File file = File::open(path(layer), O_RDWR | O_CREAT);
    file.resize(length);
    for (std::uint64_t i = random_.between(0, 20); i > 0; --i) {
      std::vector<std::byte> data(random_.between(1, 256 * kKiB));
      random_.fill(data);
      const std::uint64_t offset = random_.below(length);
      data.resize(std::min<std::uint64_t>(data.size(), length - offset));
      file.write_at(data, offset);
    }
    image_.commands.push_back(fmt::format("(raw, {} bytes: {})", length, path(layer)));
    if (is_top)
      cover("raw");
  }

  std::string creation_options(const LayerPlan& layer) const {
    std::string options = fmt::format("compat={},cluster_size={}",
                                      layer.version == 2 ? "0.10" : "1.1", layer.cluster());
    if (layer.version == 2)
      return options;
    options += fmt::format(
        ",refcount_bits={},lazy_refcounts={},preallocation={},extended_l2={},compression_type={}",
        layer.refcount_bits, layer.lazy_refcounts ? "on" : "off", layer.preallocation,
        layer.extended_l2 ? "on" : "off", layer.zstd ? "zstd" : "zlib");
    if (layer.data_file)
      options += fmt::format(",data_file={}.data,data_file_raw={}", path(layer),
                             layer.raw_data_file ? "on" : "off");
    return options;
  }

  void create(const LayerPlan& layer) {
    Command command{"qemu-img", "create", "-q", "-f", "qcow2", "-o", creation_options(layer)};
    if (layer.backing != nullptr) {
      const LayerPlan& backing = *layer.backing;
      command.insert(command.end(),
                     {"-b", backing.name, "-F", backing.format == Format::raw ? "raw" : "qcow2"});
    }
    command.insert(command.end(), {path(layer), std::to_string(layer.size)});
    run_logged(command);
  }

  /// From a raw image with text, noise and holes.
  void convert(const LayerPlan& layer) {
    const std::string source = folder_ / "source";
    {
      const File file = File::open(source, O_RDWR | O_CREAT);
      file.resize(layer.size);
      for (std::uint64_t at = 0; at < layer.size;) {
        std::vector<std::byte> piece(
            std::min<std::uint64_t>(layer.size - at, random_.between(1, 512 * kKiB)));
        if (random_.chance(60)) {
          fill(piece, random_.chance(70));
          file.write_at(piece, at);
        }
        at += piece.size();
      }
    }
    Command command{
        "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", creation_options(layer)};
    if (layer.backing != nullptr) {
      const LayerPlan& backing = *layer.backing;
      // With -B the source is compared with nothing: all of it goes into the overlay.
      command.insert(command.end(),
                     {"-B", path(backing), "-F", backing.format == Format::raw ? "raw" : "qcow2"});
    }
    command.insert(command.end(), {source, path(layer)});
    run_logged(command);
    cover(fmt::format("{}, convert -c", layer.zstd ? "zstd" : "zlib"));
  }

  void change_bitmaps(const LayerPlan& layer, std::uint64_t phase) {
    // One that has recorded something is stopped.
    if (phase > 0 && !image_.bitmaps.empty() && random_.chance(50)) {
      auto& bitmap = image_.bitmaps[random_.below(image_.bitmaps.size())];
      if (bitmap.enabled) {
        run_logged({"qemu-img", "bitmap", "--disable", path(layer), bitmap.name});
        bitmap.enabled = false;
        cover("bitmap stopped between writes");
      }
    }
    const std::uint64_t due = std::min(layer.bitmaps, layer.bitmaps * (phase + 1) / 2);
    while (image_.bitmaps.size() < due) {
      const std::uint64_t granularity = std::uint64_t{1}
                                        << (9 + turn(seed_ + 4 * image_.bitmaps.size(), 13));
      RandomImage::Bitmap bitmap{fmt::format("bitmap {}", image_.bitmaps.size()), granularity,
                                 !random_.chance(20)};
      Command command{"qemu-img", "bitmap", "--add", "-g", std::to_string(granularity)};
      if (!bitmap.enabled)
        command.emplace_back("--disable");
      command.insert(command.end(), {path(layer), bitmap.name});
      run_logged(command);
      image_.bitmaps.push_back(std::move(bitmap));
    }
  }

  void resize(LayerPlan& layer) {
    const bool grow = grows_next_;
    grows_next_ = !grows_next_;
    const std::uint64_t by = round_up(random_.between(1, grow ? 4 * kMiB : layer.size / 4), 512);
    layer.size = grow ? layer.size + by : layer.size - by;
    Command command{"qemu-img", "resize", "-q"};
    if (!grow)
      command.emplace_back("--shrink");
    command.insert(command.end(), {"-f", "qcow2", path(layer), std::to_string(layer.size)});
    run_logged(command);
    cover(grow ? "grown" : "shrunk");
  }

  // ---- writes

  /// Those that compress go first: QEMU 7.2 may put the next compressed cluster behind one that was
  /// freed meanwhile, over other data.
  void write(const LayerPlan& layer) {
    std::vector<std::string> lines(random_.between(3, 25));
    for (std::string& line : lines)
      line = one_write(layer);
    std::stable_partition(lines.begin(), lines.end(),
                          [](const std::string& line) { return line.starts_with("write -c"); });
    Command command{"qemu-io", "-f", "qcow2", "-t", "unsafe", "-d", "unmap"};
    for (const std::string& line : lines)
      command.insert(command.end(), {"-c", line});
    command.push_back(path(layer));
    run_logged(command);
  }

  std::string one_write(const LayerPlan& layer) {
    const auto [offset, length] = draw_range(layer);
    const std::uint64_t kind = random_.below(100);
    if (kind < 25 && layer.compresses)
      if (const auto place = untouched_cluster(layer)) {
        cover(fmt::format("{}, write -c", layer.zstd ? "zstd" : "zlib"));
        const std::uint64_t at = *place * layer.cluster();
        compressed_[*place] = true;
        return touch(layer, at, std::min(layer.cluster(), layer.size - at),
                     "write -c " + contents());
      }
    if (kind < 40)
      return touch(layer, offset, length, named("write -z"));
    if (kind < 55)
      return touch(layer, offset, length, named("write -z -u"));
    if (kind < 70)
      return touch(layer, offset, length, named("discard"));
    if (layer.extended_l2 && length < layer.cluster())
      cover("subcluster write");
    if (compressed_[offset >> layer.cluster_bits])
      cover("write over compressed");
    return touch(layer, offset, length, "write " + contents());
  }

  std::string named(std::string command) {
    cover(command);
    return command;
  }

  std::string contents() {
    return random_.chance(30) ? fmt::format("-P {}", random_.between(0, 255))
                              : "-s " + random_.pick(patterns_);
  }

  struct Range {
    std::uint64_t offset;
    std::uint64_t length;
  };

  /// Clusters, subclusters, sectors and odd bytes; often at the end of the disk.
  Range draw_range(const LayerPlan& layer) {
    const std::array<std::uint64_t, 5> units{layer.cluster(), layer.cluster(),
                                             std::max<std::uint64_t>(512, layer.cluster() / 32),
                                             512, 1};
    const std::uint64_t unit = random_.pick(units);
    const std::uint64_t longest = std::min<std::uint64_t>(layer.size, kMiB);
    std::uint64_t length =
        std::max(round_down(random_.between(1, longest) >> random_.below(16), unit), unit);
    length = std::min(length, layer.size);
    std::uint64_t offset = round_down(random_.below(layer.size), unit);
    if (random_.chance(15))
      offset = layer.size - length;
    return {offset, std::min(length, layer.size - offset)};
  }

  /// Compressed data cannot be written over anything (QEMU: "Input/output error").
  std::optional<std::uint64_t> untouched_cluster(const LayerPlan& layer) {
    const std::uint64_t clusters = div_round_up(layer.size, layer.cluster());
    for (int i = 0; i < 20; ++i)
      if (const std::uint64_t place = random_.below(clusters); !touched_[place])
        return place;
    return std::nullopt;
  }

  std::string touch(const LayerPlan& layer, std::uint64_t offset, std::uint64_t length,
                    std::string_view command) {
    for (std::uint64_t i = offset >> layer.cluster_bits;
         i <= (offset + length - 1) >> layer.cluster_bits; ++i)
      touched_[i] = true;
    return fmt::format("{} {} {}", command, offset, length);
  }

  /// What "write -s" repeats: some of it compresses, some does not, and no two places look alike.
  void make_pattern_files() {
    for (int i = 0; i < 3; ++i) {
      std::vector<std::byte> bytes(random_.between(1, 128 * kKiB));
      fill(bytes, i != 0);
      patterns_.push_back(folder_ / fmt::format("pattern{}", i));
      File::open(patterns_.back(), O_RDWR | O_CREAT).write_at(bytes, 0);
    }
  }

  void fill(std::vector<std::byte>& bytes, bool compressible) {
    random_.fill(bytes);
    for (std::size_t i = 0; compressible && i < bytes.size(); ++i)
      bytes[i] &= i % 8 < 2 ? std::byte{0x0f} : std::byte{0};
  }

  // ---- which features it has

  void describe_layer(const LayerPlan& layer, bool is_top) {
    if (layer.extended_l2)
      cover("extended L2");
    if (layer.size % layer.cluster() != 0)
      cover("size no multiple of the cluster");
    cover(fmt::format("version {}", layer.version));
    cover("cluster " + format_size(layer.cluster()));
    if (!is_top)
      return;
    cover("preallocation " + layer.preallocation);
    if (layer.lazy_refcounts)
      cover("lazy refcounts");
    if (layer.data_file)
      cover(layer.raw_data_file ? "raw external data file" : "external data file");
    if (layer.snapshots > 0)
      cover("snapshots");
    if (layer.version == 3)
      cover(fmt::format("refcount_bits {}", layer.refcount_bits));
    if (image_.bitmaps.empty())
      cover("no bitmap");
    if (image_.bitmaps.size() > 1)
      cover("several bitmaps");
    for (const auto& bitmap : image_.bitmaps) {
      cover(bitmap.enabled ? "bitmap enabled" : "bitmap disabled");
      cover("granularity " + format_size(bitmap.granularity));
    }
  }

  void describe_chain(const std::vector<LayerPlan>& layers) {
    cover(fmt::format("{} backing files", layers.size() - 1));
    for (std::size_t i = 1; i < layers.size(); ++i) {
      cover(layers[i].format == Format::raw ? "raw backing file" : "qcow2 backing file");
      if (layers[i].size < layers[i - 1].size)
        cover("backing file shorter");
      if (layers[i].size > layers[i - 1].size)
        cover("backing file longer");
    }
  }

  std::string path(const LayerPlan& layer) const { return folder_ / layer.name; }

  void run_logged(const Command& command) {
    image_.commands.push_back(to_string(command));
    run_ok(command);
  }

  const std::uint64_t seed_;
  Random random_;
  const TempFolder& folder_;
  RandomImage image_;
  std::vector<bool> touched_;     // clusters of this layer that cannot be compressed any more
  std::vector<bool> compressed_;  // clusters of this layer that are compressed, or were
  std::vector<std::string> patterns_;
  bool grows_next_ = turn(seed_ / 16, 2) == 0;
};

}  // namespace

RandomImage draw_image(std::uint64_t seed, const TempFolder& folder) {
  return ImageMaker(seed, folder).make();
}

}  // namespace nbdelta::testing
