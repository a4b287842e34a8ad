#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace nbdelta::testing {

/// A disk of the guest's.
struct SubjectDisk {
  std::string name;
  std::string image;  // its file's name
  std::string format;
  bool by_drive = false;  // -drive, whose nodes QEMU names; otherwise -blockdev
};

/// A QEMU that a script is run with. Images are cut into clusters of kCluster bytes.
class Subject {
 public:
  static constexpr std::uint64_t kCluster = 65536;

  virtual ~Subject() = default;

  /// Where the images are.
  virtual std::string folder() const = 0;
  virtual void create_image(const std::string& name, const std::string& format, std::uint64_t size,
                            const std::optional<SubjectDisk>& backing) = 0;
  virtual void start(const std::vector<SubjectDisk>& disks) = 0;
  virtual void send(std::string bytes) = 0;
  /// The next line of QMP. Throws Error where none comes.
  virtual std::string receive() = 0;
  /// The next line, where one comes by itself soon.
  virtual std::optional<std::string> receive_soon() = 0;
  /// The guest writes; does not wait for it.
  virtual void write(const std::string& disk, std::uint64_t offset, std::uint64_t length,
                     unsigned pattern) = 0;
  /// The guest flushes its disk; not while that holds writes back.
  virtual void flush(const std::string& disk) = 0;
  /// How many writes were carried out since the start.
  virtual std::size_t written() = 0;
  virtual void lock(const std::string& image, bool locked) = 0;
  /// Lets time pass: for what a job does meanwhile.
  virtual void pause(std::chrono::milliseconds time) = 0;
  /// What the file on the storage holds of each cluster, itself: '.', 'z', or the number that was
  /// written; its backing file and bitmaps.
  virtual std::string show(const std::string& image, const std::string& format) = 0;
  virtual void kill() = 0;
  virtual void quit() = 0;
};

/// The QEMU that is installed, or the one that $NBDELTA_QEMU says how to start.
std::unique_ptr<Subject> real_subject();
/// FakeQemu, as that version.
std::unique_ptr<Subject> fake_subject(unsigned major);
/// Of the QEMU that real_subject() starts.
unsigned real_major_version();

}  // namespace nbdelta::testing
