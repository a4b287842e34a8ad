#include "qapi/framing.hpp"

#include "base/error.hpp"

namespace nbdelta::qapi {

void Framer::feed(std::string_view bytes) {
  if (skipping_) {
    buffer_.erase(0, start_);
    start_ = searched_ = 0;
    buffer_ += bytes;
    const std::size_t delimiter = buffer_.find(kDelimiter);
    if (delimiter == std::string::npos) {
      buffer_.clear();
      return;
    }
    buffer_.erase(0, delimiter + 1);
    skipping_ = false;
    return;
  }
  if (start_ != 0) {
    buffer_.erase(0, start_);
    searched_ -= start_;
    start_ = 0;
  }
  buffer_ += bytes;
}

std::optional<std::string> Framer::next() {
  if (skipping_)
    feed({});  // the delimiter may have come already
  while (!skipping_) {
    const std::size_t end = buffer_.find('\n', searched_);
    const std::size_t length = (end == std::string::npos ? buffer_.size() : end) - start_;
    if (length > longest_line_)
      fail(EMSGSIZE, "a message of more than {} bytes", longest_line_);
    if (end == std::string::npos) {
      searched_ = buffer_.size();
      return std::nullopt;
    }
    std::string line = buffer_.substr(start_, length);
    start_ = searched_ = end + 1;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' '))
      line.pop_back();
    line.erase(0, line.rfind(kDelimiter) + 1);  // what stands before it was never finished
    if (!line.empty())
      return line;
  }
  return std::nullopt;
}

}  // namespace nbdelta::qapi
