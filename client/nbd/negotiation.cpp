// Connection: from the URI to a negotiated export.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/arithmetic.hpp"
#include "client/nbd/connection.hpp"
#include "image/packed.hpp"
#include "image/view.hpp"

namespace nbdelta::client::nbd {
namespace {

// NBD protocol, "Block size constraints": what to keep to where a server does not say.
constexpr std::uint64_t kDefaultMinimumBlock = 512;
constexpr std::uint64_t kPortableMaximumBlock = 32 * kMiB;
constexpr std::uint64_t kLargestMinimumBlock = 64 * kKiB;

constexpr const char* kImageExport = "image";  // ours, docs/extents.md

std::string take_string(char* text) {
  std::string result(text == nullptr ? "" : text);
  ::free(text);  // NOLINT(cppcoreguidelines-no-malloc): libnbd allocates with malloc
  return result;
}

}  // namespace

void Connection::configure() {
  nbd_handle* h = handle_.get();
  const auto need = [&](int result) {
    if (result == -1)
      fail(EINVAL, "{}: {}", name(), libnbd_error());
  };
  need(nbd_set_opt_mode(h, true));
  need(nbd_set_full_info(h, true));
  need(nbd_set_pread_initialize(h, false));
  need(nbd_set_uri_allow_local_file(h, true));
  // The end of a disk need not be aligned; whether it may be read is for the server to say.
  need(nbd_set_strict_mode(
      h, nbd_get_strict_mode(h) & ~static_cast<std::uint32_t>(LIBNBD_STRICT_ALIGN)));
  need(nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION));
  if (!options_.bitmap_context.empty())
    need(nbd_add_meta_context(h, options_.bitmap_context.c_str()));
}

asio::awaitable<void> Connection::connect() {
  configure();
  begin_connecting();
  co_await until_negotiating();
  if (nbd_aio_is_negotiating(handle_.get()) > 0)
    co_await negotiate();
  learn_export();
}

/// libnbd's state after a connection that was refused at once, or a name that is not found, is that
/// after a wrong URI. So all of them count as lost: only who was connected before tries again.
void Connection::begin_connecting() {
  if (nbd_aio_connect_uri(handle_.get(), options_.uri.c_str()) == -1) {
    lose(libnbd_error());
    fail_lost();
  }
}

/// A server of the old style has nothing to negotiate and does not come here.
asio::awaitable<void> Connection::negotiate() {
  if (options_.view == View::whole_disk)
    co_await use_whole_disk();
  else if (options_.view == View::packed)
    use_packed();
  const int error = co_await perform(
      [this](nbd_completion_callback done) { return nbd_aio_opt_go(handle_.get(), done); });
  if (lost())
    fail_lost();
  if (error != 0)
    fail(error, "{}: the server refuses the export \"{}\": {}; nbdinfo --list shows what it offers",
         name(), take_string(nbd_get_export_name(handle_.get())), std::strerror(error));
  co_await until_negotiating();
}

/// Where the export is a changed view of ours, the disk's real allocation is in another export.
asio::awaitable<void> Connection::use_whole_disk() {
  if (!co_await is_changed_view())
    co_return;
  const std::string named = take_string(nbd_get_export_name(handle_.get()));
  nbd_set_export_name(handle_.get(), kImageExport);
  const int error = co_await perform(
      [this](nbd_completion_callback done) { return nbd_aio_opt_info(handle_.get(), done); });
  if (lost())
    fail_lost();
  if (error != 0)
    nbd_set_export_name(handle_.get(), named.c_str());
}

void Connection::use_packed() {
  const std::string packed =
      fmt::format("{}{}", image::Packed::kPrefix, take_string(nbd_get_export_name(handle_.get())));
  if (nbd_set_export_name(handle_.get(), packed.c_str()) == -1)
    fail(ENAMETOOLONG, "{}: {}", name(), libnbd_error());
}

asio::awaitable<bool> Connection::is_changed_view() {
  const int error = co_await perform(
      [this](nbd_completion_callback done) { return nbd_aio_opt_info(handle_.get(), done); });
  if (lost())
    fail_lost();
  if (error != 0)
    co_return false;  // a server need not know this option
  const std::string description = take_string(nbd_get_export_description(handle_.get()));
  co_return description.starts_with(image::kChangedViewDescription);
}

void Connection::learn_export() {
  nbd_handle* h = handle_.get();
  const std::int64_t size = nbd_get_size(h);
  if (size < 0)
    fail(EPROTO, "{}: the server gives no size: {}", name(), libnbd_error());
  export_.size = static_cast<std::uint64_t>(size);
  export_.description = take_string(nbd_get_export_description(h));
  // Who wants the whole disk from a changed view reads the unchanged part too.
  export_.changed_view = options_.view != View::whole_disk &&
                         export_.description.starts_with(image::kChangedViewDescription);
  export_.packed = options_.view == View::packed &&
                   export_.description.starts_with(fmt::format("{}{}", image::Packed::kDescription,
                                                               image::kChangedViewDescription));
  export_.of_our_plugin = export_.packed ||
                          export_.description.starts_with(image::kChangedViewDescription) ||
                          export_.description.starts_with(image::kWholeDiskDescription);
  export_.has_allocation = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
  export_.has_bitmap = !options_.bitmap_context.empty() &&
                       nbd_can_meta_context(h, options_.bitmap_context.c_str()) > 0;
#ifdef LIBNBD_HAVE_NBD_BLOCK_STATUS_64
  export_.long_status = nbd_get_extended_headers_negotiated(h) > 0;
#endif
  export_.multi_conn = nbd_can_multi_conn(h) > 0;
  export_.read_only = nbd_is_read_only(h) > 0;
  export_.can_zero = nbd_can_zero(h) > 0;
  export_.can_flush = nbd_can_flush(h) > 0;
  learn_block_sizes();
  if (!options_.bitmap_context.empty() && !export_.has_bitmap)
    fail(ENOENT,
         "{}: the server does not offer the context \"{}\" for this export; nbdinfo shows those "
         "that it has",
         name(), options_.bitmap_context);
}

void Connection::learn_block_sizes() {
  const auto block_size = [&](int which) {
    return static_cast<std::uint64_t>(
        std::max<std::int64_t>(nbd_get_block_size(handle_.get(), which), 0));
  };
  std::uint64_t minimum = block_size(LIBNBD_SIZE_MINIMUM);
  if (minimum == 0)
    minimum = export_.size % kDefaultMinimumBlock == 0 ? kDefaultMinimumBlock : 1;
  std::uint64_t maximum = block_size(LIBNBD_SIZE_MAXIMUM);
  if (maximum == 0)
    maximum = kPortableMaximumBlock;
  maximum = std::min(maximum, kPortableMaximumBlock);
  if (!is_power_of_two(minimum) || minimum > kLargestMinimumBlock || maximum < minimum)
    fail(EPROTO, "{}: the server asks for blocks of {} to {} bytes", name(), minimum, maximum);
  export_.minimum_block = minimum;
  export_.maximum_block = round_down(maximum, minimum);
}

asio::awaitable<void> Connection::until_negotiating() {
  co_await asio::async_initiate<const asio::use_awaitable_t<>, void(int)>(
      [this](auto handler) {
        connecting_.emplace(std::move(handler));
        last_progress_ = std::chrono::steady_clock::now();
        arm_watchdog();
        // Not from inside the initiation: the coroutine is not fully suspended yet.
        asio::post(loop_, [weak = weak_from_this()] {
          if (const auto self = weak.lock())
            self->after_progress();
        });
      },
      asio::use_awaitable);
  if (lost())
    fail_lost();
}

}  // namespace nbdelta::client::nbd
