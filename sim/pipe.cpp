#include "sim/pipe.hpp"

#include <deque>

namespace nbdelta::sim {
namespace {

using client::qmp::Channel;
using client::qmp::ChannelLost;

/// What one end has sent and the other has not taken.
struct Flow {
  struct Message {
    Clock::Time arrives;
    std::string bytes;
  };
  std::deque<Message> messages;
  bool closed = false;
  std::shared_ptr<Parked> reader;

  void wake() const {
    if (reader)
      reader->resume();
  }
};

class PipeEnd final : public Channel {
 public:
  PipeEnd(Process& process, std::shared_ptr<Flow> in, std::shared_ptr<Flow> out, std::string name,
          Clock::Duration latency)
      : process_(&process),
        in_(std::move(in)),
        out_(std::move(out)),
        name_(std::move(name)),
        latency_(latency) {}
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
    out_->messages.push_back({process_->clock().now() + latency_, std::move(bytes)});
    out_->wake();
    co_return;
  }

  asio::awaitable<std::string> receive() override {
    while (in_->messages.empty()) {
      if (in_->closed)
        throw ChannelLost(ECONNRESET, name_ + ": the other end has closed the connection");
      in_->reader = std::make_shared<Parked>();
      const auto error = co_await process_->park(in_->reader);
      if (error)
        throw boost::system::system_error(error);
    }
    if (in_->messages.front().arrives > process_->clock().now())
      co_await process_->clock().wait_until(in_->messages.front().arrives);
    std::string bytes;
    while (!in_->messages.empty() && in_->messages.front().arrives <= process_->clock().now()) {
      bytes += in_->messages.front().bytes;
      in_->messages.pop_front();
    }
    co_return bytes;
  }

 private:
  Process* process_;
  std::shared_ptr<Flow> in_;
  std::shared_ptr<Flow> out_;
  std::string name_;
  Clock::Duration latency_;
};

}  // namespace

std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>> make_pipe(Process& one,
                                                                        Process& other,
                                                                        const std::string& name,
                                                                        Clock::Duration latency) {
  const auto there = std::make_shared<Flow>();
  const auto back = std::make_shared<Flow>();
  return {std::make_unique<PipeEnd>(one, back, there, name, latency),
          std::make_unique<PipeEnd>(other, there, back, name, latency)};
}

}  // namespace nbdelta::sim
