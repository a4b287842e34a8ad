#include "sim/pipe.hpp"

namespace nbdelta::sim {
namespace {

using client::qmp::Channel;
using client::qmp::ChannelLost;

/// What one end has sent and the other has not taken.
struct Flow {
  std::string bytes;
  bool closed = false;
  std::shared_ptr<Parked> reader;

  void wake() const {
    if (reader)
      reader->resume();
  }
};

class PipeEnd final : public Channel {
 public:
  PipeEnd(Process& process, std::shared_ptr<Flow> in, std::shared_ptr<Flow> out, std::string name)
      : process_(&process), in_(std::move(in)), out_(std::move(out)), name_(std::move(name)) {}
  PipeEnd(const PipeEnd&) = delete;
  PipeEnd& operator=(const PipeEnd&) = delete;
  ~PipeEnd() override {
    in_->closed = true;
    out_->closed = true;
    out_->wake();
  }

  const std::string& name() const override { return name_; }

  asio::awaitable<void> send(std::string bytes) override {
    if (out_->closed || process_->doomed())
      throw ChannelLost(EPIPE, name_ + ": the other end has closed the connection");
    out_->bytes += bytes;
    out_->wake();
    co_return;
  }

  asio::awaitable<std::string> receive() override {
    while (in_->bytes.empty()) {
      if (in_->closed)
        throw ChannelLost(ECONNRESET, name_ + ": the other end has closed the connection");
      in_->reader = std::make_shared<Parked>();
      const auto error = co_await process_->park(in_->reader);
      if (error)
        throw boost::system::system_error(error);
    }
    co_return std::exchange(in_->bytes, std::string());
  }

 private:
  Process* process_;
  std::shared_ptr<Flow> in_;
  std::shared_ptr<Flow> out_;
  std::string name_;
};

}  // namespace

std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>> make_pipe(Process& one,
                                                                        Process& other,
                                                                        const std::string& name) {
  const auto there = std::make_shared<Flow>();
  const auto back = std::make_shared<Flow>();
  return {std::make_unique<PipeEnd>(one, back, there, name),
          std::make_unique<PipeEnd>(other, there, back, name)};
}

}  // namespace nbdelta::sim
