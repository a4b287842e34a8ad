#include "image/data_file.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::image {
namespace {

constexpr std::size_t kBounceBytes = std::size_t{1} << 20;

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};

/// One a thread, made when it first reads with O_DIRECT.
std::byte* bounce_buffer(std::size_t alignment) {
  thread_local std::unique_ptr<std::byte, Free> buffer;
  thread_local std::size_t buffer_alignment = 0;
  if (buffer == nullptr || buffer_alignment < alignment) {
    buffer.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, kBounceBytes)));
    if (buffer == nullptr)
      fail(ENOMEM, "no memory for a buffer of {} bytes", kBounceBytes);
    buffer_alignment = alignment;
  }
  return buffer.get();
}

// Linux reads of one announcement no more than the device's read_ahead_kb, or max_sectors_kb where
// that is more; this is the default of the first.
constexpr std::uint64_t kAnnounced = 128 * kKiB;

}  // namespace

std::size_t DataFile::read_direct(std::span<std::byte> out, std::uint64_t offset) const {
  std::byte* const bounce = bounce_buffer(alignment_);
  std::size_t done = 0;
  while (done < out.size()) {
    const std::uint64_t start = round_down(offset + done, alignment_);
    const std::uint64_t skip = offset + done - start;
    const std::size_t wanted = static_cast<std::size_t>(
        std::min<std::uint64_t>(round_up(skip + out.size() - done, alignment_), kBounceBytes));
    const std::size_t got = file_->read_at({bounce, wanted}, start);
    if (got <= skip)
      break;
    const std::size_t usable = std::min<std::size_t>(got - skip, out.size() - done);
    std::memcpy(out.data() + done, bounce + skip, usable);
    done += usable;
    if (got < wanted)
      break;
  }
  return done;
}

std::size_t DataFile::read_up_to(std::span<std::byte> out, HostOffset offset) const {
  return alignment_ != 0 ? read_direct(out, raw(offset)) : file_->read_at(out, raw(offset));
}

void DataFile::read(std::span<std::byte> out, HostOffset offset) const {
  const std::size_t got = read_up_to(out, offset);
  if (got < out.size())
    fail(EIO, "{}: {} bytes of data at {:#x} are past the end of the file ({:#x})", file_->name(),
         out.size(), raw(offset), raw(offset) + got);
}

void DataFile::will_need(HostOffset offset, std::uint64_t length) const {
  if (alignment_ != 0)
    return;
  const std::uint64_t end = raw(offset) + length;
  for (std::uint64_t at = raw(offset); at < end; at += kAnnounced)
    (void)::posix_fadvise(file_->fd(), static_cast<off_t>(at),
                          static_cast<off_t>(std::min(end - at, kAnnounced)), POSIX_FADV_WILLNEED);
}

}  // namespace nbdelta::image
