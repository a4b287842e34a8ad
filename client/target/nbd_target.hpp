#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "client/nbd/connection.hpp"
#include "client/target/target.hpp"

namespace nbdelta::client::target {

/// Another NBD server, written in place. Every pull connection has one of its own there, on the
/// same loop.
class NbdTarget : public Target {
 public:
  NbdTarget(std::string uri, Changes changes, std::chrono::milliseconds timeout);

  const image::ExtentMap& prepare(const Description& description, asio::io_context& loop) override;
  std::unique_ptr<Writer> writer(asio::io_context& loop) override;
  unsigned maximum_writers() const override;
  std::uint64_t zero_size() const override { return 128 * kMiB; }
  void finish() override { finished_ = true; }
  std::string abandon() noexcept override;

 private:
  class NbdWriter;

  nbd::ConnectOptions options_;
  Changes changes_;
  nbd::Export export_;
  image::ExtentMap map_;  // in the server's blocks, where those are larger than the map's
  std::mutex mutex_;      // of first_
  std::shared_ptr<nbd::Connection> first_;  // from prepare(), for the first writer
  std::atomic<bool> started_ = false;
  std::atomic<bool> finished_ = false;
};

}  // namespace nbdelta::client::target
