#pragma once

#include <libnbd.h>

#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "tests/support/qemu.hpp"

namespace nbdelta::testing {

/// One connection; throws Error where libnbd does.
class NbdClient {
 public:
  explicit NbdClient(const std::string& uri) : handle_(nbd_create()) {
    check(nbd_add_meta_context(nbd(), LIBNBD_CONTEXT_BASE_ALLOCATION));
    check(nbd_connect_uri(nbd(), uri.c_str()));
  }

  nbd_handle* nbd() const { return handle_.get(); }

  std::uint64_t size() const { return static_cast<std::uint64_t>(nbd_get_size(nbd())); }

  std::vector<std::byte> read(std::uint64_t offset, std::size_t length) const {
    std::vector<std::byte> bytes(length);
    check(nbd_pread(nbd(), bytes.data(), length, offset, 0));
    return bytes;
  }

  /// One reply, as the server sends it.
  std::vector<NbdExtent> block_status(std::uint64_t offset, std::uint64_t count,
                                      std::uint32_t flags = 0) const {
    std::vector<NbdExtent> reply;
    const auto take = [](void* user, const char*, std::uint64_t at, std::uint32_t* entries,
                         std::size_t n, int*) {
      for (std::size_t i = 0; i < n; i += 2) {
        static_cast<std::vector<NbdExtent>*>(user)->push_back({at, entries[i], entries[i + 1]});
        at += entries[i];
      }
      return 0;
    };
    check(nbd_block_status(nbd(), count, offset,
                           {.callback = take, .user_data = &reply, .free = nullptr}, flags));
    return reply;
  }

  static void check(std::int64_t result) {
    if (result < 0)
      fail(nbd_get_errno() != 0 ? nbd_get_errno() : EIO, "{}", nbd_get_error());
  }

 private:
  struct Close {
    void operator()(nbd_handle* handle) const { nbd_close(handle); }
  };
  std::unique_ptr<nbd_handle, Close> handle_;
};

}  // namespace nbdelta::testing
