#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace nbdelta::qapi {

/// What the guest agent puts before the answer to guest-sync-delimited, and what makes it forget a
/// half command when it is sent (QEMU qga/qapi-schema.json, "guest-sync-delimited"). Never part of
/// UTF-8.
inline constexpr char kDelimiter = '\xff';

/// Cuts a byte stream into messages: one JSON object a line (QEMU docs/interop/qmp-spec.rst,
/// "Sending commands"; a server ends lines with CR LF). For one thread.
///
/// Invariants
/// 1. What is buffered is at most `longest_line` plus what one feed() brought.
/// 2. While skipping, nothing before the next delimiter is returned; and never a part of a line
///    that one stands in, but for what follows it.
class Framer {
 public:
  /// QEMU limits what it takes to 64 MiB; no answer that we ask for is near that.
  static constexpr std::size_t kLongestLine = std::size_t{64} << 20;

  explicit Framer(std::size_t longest_line = kLongestLine) : longest_line_(longest_line) {}

  /// Adds what was received.
  void feed(std::string_view bytes);

  /// The next whole message without its line end; nothing where more bytes are needed. Blank lines
  /// are passed over. Throws Error (EMSGSIZE) for a line that is too long.
  std::optional<std::string> next();

  /// What has come of the next message, after next() has returned nothing; valid until feed().
  std::string_view unfinished() const { return std::string_view(buffer_).substr(start_); }

  /// Drops what is buffered and what comes, up to and with the next delimiter: what stood before it
  /// answers somebody else's question.
  void skip_to_delimiter() { skipping_ = true; }
  bool skipping() const { return skipping_; }

 private:
  std::size_t longest_line_;
  std::string buffer_;
  std::size_t start_ = 0;     // of what was not returned yet
  std::size_t searched_ = 0;  // no line end before this
  bool skipping_ = false;
};

}  // namespace nbdelta::qapi
