#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {

/// An NBD server that does exactly what a test says, right or wrong: fixed newstyle, structured
/// replies, meta contexts. One thread a connection. The data of every disk is disk_byte().
class ScriptedServer {
 public:
  /// NBD protocol, "Request types".
  enum class Type : std::uint16_t {
    read = 0,
    write = 1,
    disconnect = 2,
    flush = 3,
    zero = 6,
    block_status = 7
  };

  struct Request {
    Type type = Type::read;
    std::uint64_t cookie = 0;
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
    unsigned connection = 0;  // 0 for the first that was made
    unsigned number = 0;      // of the request on its connection, from 0 on
  };

  struct Entry {
    std::uint32_t length = 0;
    std::uint32_t flags = 0;
  };

  /// One connection, for a script to answer on. All throw once the client is gone.
  class Session {
   public:
    void reply_data(const Request& request) const;
    /// Only a part of what was asked for, and yet "done".
    void reply_part(const Request& request, std::uint32_t length) const;
    /// The beginning of the right answer, `sent` bytes of it.
    void reply_cut(const Request& request, std::size_t sent) const;
    void reply_error(const Request& request, std::uint32_t error) const;
    /// `context` is an index into Script::contexts.
    void reply_status(const Request& request, std::size_t context,
                      const std::vector<Entry>& entries, bool done = true) const;
    /// Any structured chunk.
    void chunk(const Request& request, std::uint16_t flags, std::uint16_t type,
               std::string_view payload) const;
    void send(std::string_view bytes) const;

   private:
    friend class ScriptedServer;
    explicit Session(int fd) : fd_(fd) {}
    void receive(void* out, std::size_t length) const;
    int fd_;
  };

  enum class Next : std::uint8_t {
    usual,    // the server answers as it should
    handled,  // the script has answered, or wants no answer
    close,    // the connection is closed
  };

  struct Script {
    std::function<std::uint64_t(unsigned connection)> size = [](unsigned) { return 1U << 20; };
    std::string description;
    std::vector<std::string> contexts{"base:allocation"};
    bool read_only = true;
    /// Before the usual answer to a request.
    std::function<Next(const Session&, const Request&)> on_request = [](auto&, auto&) {
      return Next::usual;
    };
    /// The connection is accepted, and then nothing is said.
    std::function<bool(unsigned connection)> mute = [](unsigned) { return false; };
  };

  explicit ScriptedServer(Script script);
  ~ScriptedServer();
  ScriptedServer(const ScriptedServer&) = delete;
  ScriptedServer& operator=(const ScriptedServer&) = delete;

  std::string uri() const { return "nbd+unix:///?socket=" + socket_path_; }
  unsigned connections() const { return connections_; }

  static std::byte disk_byte(std::uint64_t offset) {
    return static_cast<std::byte>((offset >> 9U) * 31U + offset);
  }

 private:
  void accept_all();
  void serve(int fd, unsigned connection) const;
  bool negotiate(const Session& session, unsigned connection) const;
  void transmit(const Session& session, unsigned connection) const;

  Script script_;
  TempFolder folder_;
  std::string socket_path_;
  FileDescriptor listener_;
  std::atomic<unsigned> connections_ = 0;
  std::mutex mutex_;  // of the two below
  std::vector<int> sockets_;
  std::vector<std::jthread> sessions_;
  std::jthread acceptor_;
};

}  // namespace nbdelta::testing
