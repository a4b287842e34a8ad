#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "base/file.hpp"
#include "client/target/local_target.hpp"

namespace nbdelta::client::target {

/// An existing raw image or block device that is written in place.
///
/// While that is going on a regular file has FILE.nbdelta-unfinished beside it, which holds the
/// source's URI: until the same source was applied to its end the image is no instant of the disk.
class ApplyTarget : public LocalTarget {
 public:
  /// Whether a mark left by another source's pull, the look of a qcow2 image, or a file that is
  /// larger than the disk is in the way.
  enum class Doubts : std::uint8_t { refuse, ignore };

  /// Throws TargetRefused where the file does not exist or is neither of both kinds.
  ApplyTarget(const std::string& path, Doubts doubts, Changes changes);

  const image::ExtentMap& prepare(const Description& description, asio::io_context& loop) override;
  void finish() override;
  std::string abandon() noexcept override;

 protected:
  void write_at(std::span<const std::byte> data, std::uint64_t offset) override;
  bool copy_at(const File& from, std::uint64_t from_offset, std::uint64_t length,
               std::uint64_t offset) override;
  void zero_at(std::uint64_t offset, std::uint64_t length) override;
  void drop_cached() noexcept override { file_.drop_cached(); }

 private:
  void check_writable() const;
  void check_mark(const std::string& source) const;
  void check_look() const;
  void check_size(std::uint64_t size, std::uint64_t disk_size) const;
  void mark(const std::string& source);

  std::string path_;
  std::string mark_path_;
  Doubts doubts_;
  Changes changes_;
  bool block_device_ = false;
  File file_;
  std::atomic<bool> started_ = false;
  std::atomic<bool> finished_ = false;
};

}  // namespace nbdelta::client::target
