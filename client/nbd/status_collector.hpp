#pragma once

#include <libnbd.h>

#include "client/nbd/connection.hpp"

namespace nbdelta::client::nbd {

/// Takes what libnbd reports for one block status request, context by context.
class StatusCollector {
 public:
  /// `bitmap_context` must outlive the collector; empty: none was asked for.
  explicit StatusCollector(std::string_view bitmap_context) : bitmap_context_(bitmap_context) {}

  /// Issues the request; the collector must live until it has completed.
  std::int64_t issue(nbd_handle* handle, std::uint64_t offset, std::uint64_t length,
                     nbd_completion_callback completion);

  StatusReply take() { return std::move(reply_); }

 private:
  template <class Entries>
  void add(std::string_view context, const Entries& entries, std::size_t count);
  static int on_extents32(void* self, const char* context, std::uint64_t offset,
                          std::uint32_t* entries, std::size_t count, int* error);
#ifdef LIBNBD_HAVE_NBD_BLOCK_STATUS_64
  static int on_extents64(void* self, const char* context, std::uint64_t offset,
                          nbd_extent* entries, std::size_t count, int* error);
#endif

  std::string_view bitmap_context_;
  StatusReply reply_;
};

}  // namespace nbdelta::client::nbd
