#include "image/metadata.hpp"

#include <fcntl.h>

#include <algorithm>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::image {

MetadataReader::View MetadataReader::bytes(std::uint64_t offset, std::uint64_t length,
                                           std::string_view table) const {
  const std::uint64_t start = round_down(offset, kBlock);
  auto block = cache_->get({.source = source_, .offset = start}, [&](std::span<std::byte> fresh) {
    return file_->read_at(fresh.first(kBlock), start);
  });
  const std::uint64_t skip = offset - start;
  if (skip >= block->size())
    fail(EIO, "{}: {} at {:#x} is past the end of the file ({:#x})", file_->name(), table, offset,
         file_size_);
  const std::uint64_t usable = std::min<std::uint64_t>(block->size() - skip, length);
  const std::span<const std::byte> view(block->data() + skip, usable);
  return {std::move(block), view};
}

MetadataReader::Entries MetadataReader::entries(std::uint64_t offset, std::uint64_t count,
                                                std::string_view table) const {
  const std::uint64_t wanted = std::min<std::uint64_t>(count, kBlock / sizeof(be64));
  View view = bytes(offset, wanted * sizeof(be64), table);
  if (view.bytes.size() < sizeof(be64))
    fail(EIO, "{}: {} at {:#x} is cut off by the end of the file ({:#x})", file_->name(), table,
         offset, file_size_);
  Entries entries;
  entries.bytes_ = view.bytes.data();
  entries.count_ = view.bytes.size() / sizeof(be64);
  entries.block_ = std::move(view.block);
  return entries;
}

MetadataReader::Entries MetadataReader::entries(std::uint64_t offset, std::uint64_t count,
                                                std::string_view table,
                                                MetadataWindow& window) const {
  if (offset < window.begin_ || offset + sizeof(be64) > window.end_)
    move_window(window, offset, count * sizeof(be64));
  if (offset + sizeof(be64) > window.end_)  // the file may be shorter than it was
    fail(EIO, "{}: {} at {:#x} is cut off by the end of the file ({:#x})", file_->name(), table,
         offset, file_size_);
  Entries entries;
  entries.bytes_ = window.bytes_.data() + (offset - window.begin_);
  entries.count_ = std::min<std::uint64_t>((window.end_ - offset) / sizeof(be64), count);
  return entries;
}

void MetadataReader::will_need(std::uint64_t offset) const noexcept {
  (void)::posix_fadvise(file_->fd(), static_cast<off_t>(round_down(offset, kBlock)), kBlock,
                        POSIX_FADV_WILLNEED);
}

void MetadataReader::move_window(MetadataWindow& window, std::uint64_t offset,
                                 std::uint64_t length) const {
  const std::uint64_t start = round_down(offset, kBlock);
  const bool goes_on = start == window.end_ && start != 0;
  const std::uint64_t most =
      goes_on ? std::min<std::uint64_t>(2 * (start - window.begin_), kLongestRead) : kBlock;
  window.begin_ = window.end_ = 0;  // nothing, where reading fails
  window.bytes_.resize(std::min(most, round_up(offset + length, kBlock) - start));
  window.bytes_.resize(file_->read_at(window.bytes_, start));
  window.begin_ = start;
  window.end_ = start + window.bytes_.size();
}

}  // namespace nbdelta::image
