#include "client/source_options.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <string_view>

#include "client/seconds.hpp"
#include "client/target/open_target.hpp"
#include "image/image_uri.hpp"
#include "image/status_reply.hpp"

namespace nbdelta::client {
namespace {

constexpr double kLongestTimeout_s = 86'400;
constexpr unsigned kMostRetries = 1000;

std::string check_context(const std::string& context) {
  if (context.starts_with(image::kDirtyBitmapPrefix) &&
      context.size() > image::kDirtyBitmapPrefix.size())
    return {};
  return "must be qemu:dirty-bitmap:NAME; nbdinfo shows the contexts of an export";
}

}  // namespace

void SourceOptions::add_to(CLI::App& app) {
  app.add_option(
         "SOURCE", uri,
         "NBD URI, such as nbd+unix:///dirty:b0?socket=/run/nbd.sock, or an image that this "
         "machine can open: delta:disk.qcow2?bitmap=b0")
      ->required();
  app.add_option("--context", context, "take the changes from this dirty bitmap of the server")
      ->type_name("qemu:dirty-bitmap:NAME")
      ->check(CLI::Validator(check_context, ""));
  app.add_flag("--full", full, "the whole disk, where the source would tell only the changes");
  app.add_option("--timeout", timeout_s, "a server silent for so long counts as lost")
      ->type_name("SECONDS")
      ->check(seconds_between(0.001, kLongestTimeout_s))
      ->capture_default_str();
  app.add_option("--retries", retries, "attempts in a row to get a lost connection back")
      ->type_name("N")
      ->check(CLI::Range(0U, kMostRetries))
      ->capture_default_str();
}

void refuse_for_image(const CLI::App& command, const std::string& source,
                      std::initializer_list<const char*> options) {
  if (!image::ImageUri::is_one(source))
    return;
  for (const char* option : options)
    if (command.count(option) != 0)
      throw target::UsageError(
          EINVAL, fmt::format("{}: is for requests to a server, and {} is none", option, source));
}

nbd::ConnectOptions SourceOptions::connect_options() const {
  const std::chrono::duration<double> timeout(timeout_s);
  return {.uri = uri,
          .view = full ? nbd::View::whole_disk : nbd::View::as_named,
          .bitmap_context = full ? std::string() : context,
          .timeout = std::chrono::duration_cast<std::chrono::milliseconds>(timeout)};
}

nbd::RetryPolicy SourceOptions::retry_policy() const {
  nbd::RetryPolicy policy;
  policy.attempts = retries;
  return policy;
}

}  // namespace nbdelta::client
