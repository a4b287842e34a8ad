#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.hpp"
#include "image/qcow2_format.hpp"
#include "sim/image.hpp"

namespace nbdelta::sim {

/// The first cluster of a qcow2 file: the header, what QEMU and others have put behind it, and the
/// backing file's name. For one thread.
class Qcow2HeaderFile {
 public:
  /// `file` was checked by read_qcow2_header(). Throws Error for what cannot be written to here.
  explicit Qcow2HeaderFile(const File& file);

  image::qcow2::Header& header() { return header_; }
  const image::qcow2::Header& header() const { return header_; }

  /// The name as it stands there.
  std::optional<BackingFile> backing;
  std::optional<image::qcow2::BitmapsExtension> bitmaps;

  /// Writes all of it. Throws Error (E2BIG) where it does not fit the first cluster.
  void write(const File& file);

 private:
  struct Extension {
    std::uint32_t type;
    std::string data;
  };

  void read_extensions(const File& file, const std::string& cluster);
  std::uint64_t cluster_size() const { return std::uint64_t{1} << header_.cluster_bits; }

  image::qcow2::Header header_{};
  std::string header_rest_;  // what the header has beyond the part that is known here
  std::vector<Extension> others_;
};

}  // namespace nbdelta::sim
