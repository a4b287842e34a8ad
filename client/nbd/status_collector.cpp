#include "client/nbd/status_collector.hpp"

#include <new>

namespace nbdelta::client::nbd {
namespace {

/// libnbd hands 32-bit extents over as a flat array of length, flags, length, flags.
struct Flat {
  const std::uint32_t* numbers;
  image::StatusEntry operator[](std::size_t i) const {
    return {numbers[2 * i], numbers[2 * i + 1]};
  }
};

}  // namespace

template <class Entries>
void StatusCollector::add(std::string_view context, const Entries& entries, std::size_t count) {
  std::vector<image::StatusEntry>* list = nullptr;
  if (context == image::kBaseAllocation)
    list = &reply_.allocation;
  else if (!bitmap_context_.empty() && context == bitmap_context_)
    list = &reply_.bitmap;
  if (list == nullptr)
    return;
  if (!list->empty() || count > image::kMostStatusEntries) {
    reply_.damaged = true;
    return;
  }
  list->reserve(count);
  for (std::size_t i = 0; i < count; ++i)
    list->push_back({entries[i].length, entries[i].flags});
}

int StatusCollector::on_extents32(void* self, const char* context, std::uint64_t /*offset*/,
                                  std::uint32_t* entries, std::size_t count, int* error) {
  try {
    static_cast<StatusCollector*>(self)->add(context, Flat{entries}, count / 2);
    return 0;
  } catch (const std::bad_alloc&) {
    *error = ENOMEM;
    return -1;
  }
}

#ifdef LIBNBD_HAVE_NBD_BLOCK_STATUS_64

int StatusCollector::on_extents64(void* self, const char* context, std::uint64_t /*offset*/,
                                  nbd_extent* entries, std::size_t count, int* error) {
  try {
    static_cast<StatusCollector*>(self)->add(context, entries, count);
    return 0;
  } catch (const std::bad_alloc&) {
    *error = ENOMEM;
    return -1;
  }
}

std::int64_t StatusCollector::issue(nbd_handle* handle, std::uint64_t offset, std::uint64_t length,
                                    nbd_completion_callback completion) {
  const nbd_extent64_callback extents{.callback = on_extents64, .user_data = this, .free = nullptr};
  return nbd_aio_block_status_64(handle, length, offset, extents, completion, 0);
}

#else

std::int64_t StatusCollector::issue(nbd_handle* handle, std::uint64_t offset, std::uint64_t length,
                                    nbd_completion_callback completion) {
  const nbd_extent_callback extents{.callback = on_extents32, .user_data = this, .free = nullptr};
  return nbd_aio_block_status(handle, length, offset, extents, completion, 0);
}

#endif

}  // namespace nbdelta::client::nbd
