#include "image/metadata.hpp"

#include <fcntl.h>

#include <algorithm>

#include "base/arithmetic.hpp"
#include "base/error.hpp"

namespace nbdelta::image {

MetadataReader::Entries MetadataReader::entries(std::uint64_t offset, std::uint64_t count,
                                                std::string_view table) const {
  const std::uint64_t start = round_down(offset, kBlock);
  auto block = cache_->get({.source = source_, .offset = start}, [&](std::span<std::byte> fresh) {
    return file_->read_at(fresh.first(kBlock), start);
  });
  const std::uint64_t skip = offset - start;
  if (skip + sizeof(be64) > block->size())
    refuse_past_end(offset, table);
  Entries entries;
  entries.bytes_ = block->data() + skip;
  entries.count_ = std::min<std::uint64_t>((block->size() - skip) / sizeof(be64), count);
  entries.block_ = std::move(block);
  return entries;
}

MetadataReader::Entries MetadataReader::entries(std::uint64_t offset, std::uint64_t count,
                                                std::string_view table,
                                                MetadataWindow& window) const {
  const auto view = bytes(offset, count * sizeof(be64), table, window);
  if (view.size() < sizeof(be64))
    refuse_past_end(offset, table);
  Entries entries;
  entries.bytes_ = view.data();
  entries.count_ = view.size() / sizeof(be64);
  return entries;
}

std::span<const std::byte> MetadataReader::bytes(std::uint64_t offset, std::uint64_t length,
                                                 std::string_view table,
                                                 MetadataWindow& window) const {
  if (offset < window.begin_ || offset >= window.end_)
    move_window(window, offset, length);
  if (offset >= window.end_)  // the file may be shorter than it was
    refuse_past_end(offset, table);
  const std::size_t skip = offset - window.begin_;
  return {window.bytes_.get() + skip, std::min(window.end_ - offset, length)};
}

void MetadataReader::refuse_past_end(std::uint64_t offset, std::string_view table) const {
  fail(EIO, "{}: {} at {:#x} is cut off by the end of the file, which had {:#x} bytes when opened",
       file_->name(), table, offset, file_size_);
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
  const std::size_t wanted = std::min(most, round_up(offset + length, kBlock) - start);
  if (wanted > window.room_) {
    window.bytes_ = std::make_unique_for_overwrite<std::byte[]>(wanted);
    window.room_ = wanted;
  }
  const std::size_t got = file_->read_at({window.bytes_.get(), wanted}, start);
  window.begin_ = start;
  window.end_ = start + got;
}

}  // namespace nbdelta::image
