#pragma once

#include <cstdint>
#include <string>

#include "image/extent_map.hpp"

namespace nbdelta::bench {

/// A disk of `size` bytes in which every `stride`-th block of `block` bytes is in state data, the
/// rest unchanged.
image::ExtentMap striped_map(std::uint64_t size, std::uint64_t block, std::uint64_t stride);

/// A qcow2 image on tmpfs, sparse, removed with the object: the clusters of a map allocated, and a
/// persistent bitmap "b0" (granularity 64 KiB) with the same extents set. Made with this project's
/// writer and qemu-img; the bitmap's bits are then put into the file by hand, because setting
/// millions of them through QEMU takes minutes.
class SyntheticImage {
 public:
  explicit SyntheticImage(const image::ExtentMap& map);
  ~SyntheticImage();
  SyntheticImage(const SyntheticImage&) = delete;
  SyntheticImage& operator=(const SyntheticImage&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace nbdelta::bench
