// Runs in the test guest and writes to its disks, so that a backup of them can be judged.
//
// Disks without a file system: one thread drives them all, one operation at a time: writes of 4 KiB
// (O_DIRECT, O_DSYNC), and now and then zeroes or discards 64 KiB. Operations are numbered across
// all disks, and every written sector carries its number (stamp.hpp). A line goes to the log port
// before and after each; it is in the host's file before the disk sees what comes next:
//   start SEQUENCE DISK write|zero|discard OFFSET LENGTH
//   done SEQUENCE DISK write|zero|discard OFFSET LENGTH LATENCY_US MONOTONIC_US
//   failed SEQUENCE DISK write|zero|discard OFFSET LENGTH LATENCY_US MONOTONIC_US
// An operation is done when it is on the disk: zeroes and discards are followed by a flush.
//
// Mounted file systems: a thread each overwrites, appends to, truncates and syncs files, so that a
// freeze has something to flush. What they did is not logged, but an operation that took 1 ms or
// more (a freeze makes it wait) is, when it is done:
//   file LATENCY_US MONOTONIC_US
//
// Commands come from the control port, a line each: start, stop, rate N (operations a second of
// each thread, 0: as many as it can), poweroff. The answer is a line: ok, once nothing is being
// written any more in the case of stop and poweroff, or what is wrong.
//
// A static program with nothing but the C++ library.

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/guest/stamp.hpp"

namespace nbdelta::testing {
namespace {

using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC
using std::chrono::microseconds;

/// Messages go to the console; the guest goes off when its writer ends.
[[noreturn]] void give_up(const std::string& what) {
  std::fprintf(stderr, "writer: %s: %s\n", what.c_str(), std::strerror(errno));
  std::_Exit(1);
}

int open_or_give_up(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (fd < 0)
    give_up(path);
  return fd;
}

std::string port_path(const char* name) {
  return std::string("/dev/virtio-ports/") + name;
}

std::uint64_t number(std::string_view text) {
  return std::strtoull(std::string(text).c_str(), nullptr, 10);
}

/// Lets threads write or makes them wait, and keeps each to its rate.
class Gate {
 public:
  Gate(bool open, std::uint64_t rate) : open_(open), rate_(rate) {}

  /// Waits for the gate to be open, and for the time of the thread's next operation. What a stall
  /// kept from being done is not made up for.
  void enter(Clock::time_point& next) {
    std::unique_lock lock(mutex_);
    while (!open_ || (rate_ != 0 && Clock::now() < next)) {
      if (open_)
        changed_.wait_until(lock, next);
      else
        changed_.wait(lock);
    }
    if (rate_ != 0)
      next = std::max(next, Clock::now() - period()) + period();
    ++inside_;
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    --inside_;
    changed_.notify_all();
  }

  void set_rate(std::uint64_t rate) {
    const std::lock_guard lock(mutex_);
    rate_ = rate;
    changed_.notify_all();
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  /// Returns when no operation is being done.
  void close() {
    std::unique_lock lock(mutex_);
    open_ = false;
    changed_.wait(lock, [&] { return inside_ == 0; });
  }

 private:
  microseconds period() const { return microseconds(1'000'000 / rate_); }

  std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  bool open_;
  std::uint64_t rate_;
  unsigned inside_ = 0;
};

std::string in_us(Clock::duration time) {
  return std::to_string(std::chrono::duration_cast<microseconds>(time).count());
}

/// The port; lines of several threads do not mix.
class Log {
 public:
  void line(std::string text) const {
    text += '\n';
    if (::write(fd_, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      give_up("log port");
  }

 private:
  int fd_ = open_or_give_up(port_path(kLogPort), O_WRONLY);
};

class BlockWriter {
 public:
  BlockWriter(const Log& log, const std::vector<std::string>& disks, std::uint64_t area,
              std::uint64_t seed)
      : log_(log), random_(seed) {
    for (const std::string& path : disks) {
      const int fd = open_or_give_up(path, O_RDWR | O_DIRECT | O_DSYNC);
      std::uint64_t size = 0;
      if (::ioctl(fd, BLKGETSIZE64, &size) != 0)
        give_up(path);
      disks_.push_back({fd, std::min(area, size) / kZeroLength * kZeroLength});
    }
  }

  void run(Gate& gate) {
    for (Clock::time_point next = Clock::now();;) {
      gate.enter(next);
      one_operation();
      gate.leave();
    }
  }

 private:
  struct Disk {
    int fd;
    std::uint64_t area;
    std::uint64_t next_in_sequence = 0;
  };

  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }

  /// Of 32 operations one zeroes, one discards; of the writes half go on where the last one of
  /// them on the disk ended, the others anywhere.
  void one_operation() {
    const std::uint64_t index = below(disks_.size());
    Disk& disk = disks_[index];
    const std::uint64_t draw = below(32);
    if (draw == 0) {
      range_operation(index, "zero", BLKZEROOUT);
    } else if (draw == 1) {
      range_operation(index, "discard", BLKDISCARD);
    } else if (draw < 17) {
      write(index, disk.next_in_sequence);
      disk.next_in_sequence = (disk.next_in_sequence + kWriteLength) % disk.area;
    } else {
      write(index, below(disk.area / kWriteLength) * kWriteLength);
    }
  }

  void write(std::uint64_t index, std::uint64_t offset) {
    for (std::size_t i = 0; i < std::size(buffer_); ++i)
      buffer_[i] = stamped_sector(sequence_, index, offset + i * kSectorSize);
    logged(index, "write", offset, kWriteLength, [&](int fd) {
      return ::pwrite(fd, buffer_, sizeof buffer_, static_cast<off_t>(offset)) == sizeof buffer_;
    });
  }

  void range_operation(std::uint64_t index, const char* name, unsigned long request) {
    const std::uint64_t offset = below(disks_[index].area / kZeroLength) * kZeroLength;
    logged(index, name, offset, kZeroLength, [&](int fd) {
      const std::uint64_t range[] = {offset, kZeroLength};
      return ::ioctl(fd, request, range) == 0 && ::fdatasync(fd) == 0;
    });
  }

  template <class Operation>
  void logged(std::uint64_t index, const char* name, std::uint64_t offset, std::uint64_t length,
              Operation operation) {
    const std::string what = std::to_string(sequence_) + " " + std::to_string(index) + " " + name +
                             " " + std::to_string(offset) + " " + std::to_string(length);
    ++sequence_;
    log_.line("start " + what);
    const Clock::time_point begin = Clock::now();
    const bool ok = operation(disks_[index].fd);
    const Clock::time_point end = Clock::now();
    log_.line((ok ? "done " : "failed ") + what + " " + in_us(end - begin) + " " +
              in_us(end.time_since_epoch()));
  }

  const Log& log_;
  std::mt19937_64 random_;
  std::vector<Disk> disks_;
  std::uint64_t sequence_ = 1;
  alignas(4096) Sector buffer_[kWriteLength / kSectorSize];
};

class FileWriter {
 public:
  FileWriter(const Log& log, std::string folder, std::uint64_t seed)
      : log_(log), folder_(std::move(folder)), random_(seed) {
    buffer_.resize(kMaxWrite);
    for (char& byte : buffer_)
      byte = static_cast<char>(random_());
  }

  void run(Gate& gate) {
    for (Clock::time_point next = Clock::now();;) {
      gate.enter(next);
      const Clock::time_point begin = Clock::now();
      one_operation();
      const Clock::time_point end = Clock::now();
      if (end - begin >= std::chrono::milliseconds(1))
        log_.line("file " + in_us(end - begin) + " " + in_us(end.time_since_epoch()));
      gate.leave();
    }
  }

 private:
  static constexpr std::uint64_t kFiles = 8;
  static constexpr std::uint64_t kMaxFile = 2 * 1024 * 1024;
  static constexpr std::uint64_t kMaxWrite = 32 * 1024;

  /// Overwrites or appends; of 16 operations one also syncs. A file that has grown enough is
  /// removed. A full file system is not our concern.
  void one_operation() {
    const std::string path = folder_ + "/file" + std::to_string(random_() % kFiles);
    const int fd = open_or_give_up(path, O_RDWR | O_CREAT);
    struct stat status {};
    if (::fstat(fd, &status) != 0)
      give_up(path);
    const auto size = static_cast<std::uint64_t>(status.st_size);
    const std::uint64_t offset = random_() % 2 == 0 || size == 0 ? size : random_() % size;
    const std::uint64_t length = 1 + random_() % kMaxWrite;
    if (::pwrite(fd, buffer_.data(), length, static_cast<off_t>(offset)) < 0 && errno != ENOSPC)
      give_up(path);
    if (random_() % 16 == 0 && ::fsync(fd) != 0)
      give_up(path);
    ::close(fd);
    if (size > kMaxFile && ::unlink(path.c_str()) != 0)
      give_up(path);
  }

  const Log& log_;
  std::string folder_;
  std::mt19937_64 random_;
  std::vector<char> buffer_;
};

/// Returns when told to switch off.
void obey(Gate& gate) {
  const int port = open_or_give_up(port_path(kControlPort), O_RDWR);
  std::printf("%s\n", kReadyMessage);
  std::fflush(stdout);
  std::string received;
  for (bool off = false; !off;) {
    const std::size_t end = received.find('\n');
    if (end == std::string::npos) {
      char bytes[256];
      const ssize_t count = ::read(port, bytes, sizeof bytes);
      if (count < 0)
        give_up("control port");
      if (count == 0)  // nobody has it open on the host
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      received.append(bytes, static_cast<std::size_t>(count));
      continue;
    }
    const std::string command = received.substr(0, end);
    received.erase(0, end + 1);
    std::string answer = "ok\n";
    if (command == "start") {
      gate.open();
    } else if (command == "stop") {
      gate.close();
    } else if (command.starts_with("rate ")) {
      gate.set_rate(number(std::string_view(command).substr(5)));
    } else if (command == "poweroff") {
      gate.close();
      off = true;
    } else {
      answer = "no such command: " + command + "\n";
    }
    if (::write(port, answer.data(), answer.size()) < 0)
      give_up("control port");
  }
}

[[noreturn]] void run(const std::vector<std::string>& arguments) {
  std::vector<std::string> disks;
  std::vector<std::string> folders;
  std::uint64_t rate = 200;
  std::uint64_t seed = 1;
  std::uint64_t area = 16 * 1024 * 1024;
  bool paused = false;
  for (const std::string& argument : arguments) {
    const std::size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (name == "blocks") {
      disks.push_back(value);
    } else if (name == "files") {
      folders.push_back(value);
    } else if (name == "rate") {
      rate = number(value);
    } else if (name == "seed") {
      seed = number(value);
    } else if (name == "area") {
      area = number(value);
    } else if (name == "paused") {
      paused = value == "1";
    } else {
      errno = EINVAL;
      give_up(argument);
    }
  }

  Gate gate(!paused, rate);
  std::vector<std::unique_ptr<FileWriter>> files;
  std::vector<std::thread> threads;
  const Log log;
  BlockWriter blocks(log, disks, area, seed);
  if (!disks.empty())
    threads.emplace_back([&] { blocks.run(gate); });
  for (const std::string& folder : folders) {
    files.push_back(std::make_unique<FileWriter>(log, folder, seed));
    threads.emplace_back([&gate, writer = files.back().get()] { writer->run(gate); });
  }
  obey(gate);
  std::_Exit(0);  // the threads wait at the gate, which is closed; they never end
}

}  // namespace
}  // namespace nbdelta::testing

int main(int argc, char** argv) {
  nbdelta::testing::run(std::vector<std::string>(argv + 1, argv + argc));
}
