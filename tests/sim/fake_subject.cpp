#include <fmt/format.h>

#include "sim/fake_qemu.hpp"
#include "sim/pipe.hpp"
#include "sim/store.hpp"
#include "tests/sim/subject.hpp"

namespace nbdelta::testing {
namespace {

using namespace sim;

constexpr const char* kFolder = "/vm";

class FakeSubject final : public Subject {
 public:
  explicit FakeSubject(unsigned major) : major_(major) {}

  std::string folder() const override { return kFolder; }

  void create_image(const std::string& name, const std::string& format, std::uint64_t size,
                    const std::optional<SubjectDisk>& backing) override {
    MemoryImage& image = store_.create_image(path(name), format, size / kCluster);
    if (backing)
      image.set_backing({path(backing->image), backing->format});
  }

  void start(const std::vector<SubjectDisk>& disks) override {
    qemu_ = std::make_unique<Qemu>(time_, store_);
    FakeQemu& fake = qemu_->fake;
    fake.version() = major_ >= 10 ? FakeQemu::Version{10, 0, 0} : FakeQemu::Version{7, 2, 0};
    fake.set_run_state("prelaunch");
    for (const SubjectDisk& disk : disks) {
      NodeOptions options;
      options.driver = disk.format;
      options.path = path(disk.image);
      if (!disk.by_drive) {
        options.name = disk.name;
        options.file_name = disk.name + "-f";
      }
      fake.graph().add_device(disk.by_drive ? disk.name : "", disk.name,
                              fake.graph().open(options));
    }
    auto [mine, theirs] = make_pipe(client_, qemu_->process, "QMP");
    qemu_->process.spawn(fake.serve(std::move(theirs)));
    channels_.push_back(std::move(mine));
    received_.clear();
    client_.spawn(take(*channels_.back(), received_));
    written_ = 0;
  }

  void send(std::string bytes) override { client_.spawn(channels_.back()->send(std::move(bytes))); }

  std::string receive() override {
    auto line = receive_soon();
    if (!line)
      fail(ETIMEDOUT, "the fake says nothing more");
    return std::move(*line);
  }

  std::optional<std::string> receive_soon() override {
    while (true) {
      if (const std::size_t end = received_.find('\n'); end != std::string::npos) {
        std::string line = received_.substr(0, end);
        received_.erase(0, end + 1);
        return line;
      }
      if (!client_.run() && !qemu_->process.run() && !time_.advance())
        return std::nullopt;
    }
  }

  void write(const std::string& disk, std::uint64_t offset, std::uint64_t length,
             unsigned pattern) override {
    for (Device& device : qemu_->fake.graph().devices()) {
      if (device.id != disk)
        continue;
      for (std::uint64_t granule = offset / kCluster; granule < (offset + length) / kCluster;
           ++granule) {
        const bool last = granule + 1 == (offset + length) / kCluster;
        qemu_->fake.write(device, {granule, pattern},
                          [this, last](const std::exception_ptr&) { written_ += last ? 1 : 0; });
      }
    }
  }

  void flush(const std::string& /*disk*/) override {}  // the fake's guest flushes every write

  void pause(std::chrono::milliseconds time) override {
    bool over = false;
    client_.spawn(
        [](Clock& clock, std::chrono::milliseconds how_long, bool& done) -> asio::awaitable<void> {
          co_await clock.wait(how_long);
          done = true;
        }(client_.clock(), time, over));
    while (!over)
      if (!client_.run() && !qemu_->process.run() && !over)
        time_.advance();
  }

  std::size_t written() override { return written_; }

  void lock(const std::string& image, bool locked) override {
    store_.image(path(image))->readers = locked ? 1 : 0;
  }

  std::string show(const std::string& name, const std::string& /*format*/) override {
    MemoryImage image = *store_.image(path(name));
    image.lose_unflushed();
    std::string shown;
    for (std::uint64_t granule = 0; granule < image.granules(); ++granule) {
      const Held held = image.held(granule);
      shown += held == Held::nothing ? " ."
               : held == Held::zero  ? " z"
                                     : fmt::format(" {}", image.read(granule));
    }
    if (const auto backing = image.backing())
      shown += fmt::format(" over {} ({})", backing->path, backing->format);
    for (const StoredBitmap& bitmap : image.bitmaps())
      shown += fmt::format(" {}{}{}", bitmap.name, bitmap.in_use ? " in-use" : "",
                           bitmap.recording ? " auto" : "");
    return shown;
  }

  void kill() override {
    qemu_->process.kill();
    for (const auto& node : qemu_->fake.graph().nodes())
      if (node->is_format() && !node->read_only)
        store_.image(node->path)->lose_unflushed();
    qemu_->fake.die();
    qemu_.reset();
  }

  void quit() override {
    qemu_->process.kill();
    qemu_->fake.graph().shut_down();
    qemu_.reset();
  }

 private:
  struct Qemu {
    Qemu(VirtualTime& time, Store& store)
        : process(time, "QEMU"), fake(process.executor(), process.clock(), store, 1) {}
    Process process;
    FakeQemu fake;
  };

  static asio::awaitable<void> take(client::qmp::Channel& channel, std::string& into) {
    try {
      while (true)
        into += co_await channel.receive();
    } catch (const client::qmp::ChannelLost&) {
    }
  }

  static std::string path(const std::string& name) { return std::string(kFolder) + "/" + name; }

  unsigned major_;
  VirtualTime time_;
  Store store_;
  std::vector<std::unique_ptr<client::qmp::Channel>> channels_;  // one a start
  Process client_{time_, "client"};
  std::unique_ptr<Qemu> qemu_;
  std::string received_;
  std::size_t written_ = 0;
};

}  // namespace

std::unique_ptr<Subject> fake_subject(unsigned major) {
  return std::make_unique<FakeSubject>(major);
}

}  // namespace nbdelta::testing
