#include "client/backup/bitmap_parts.hpp"

#include <algorithm>

#include "client/backup/names.hpp"

namespace nbdelta::client::backup {
namespace {

bool is_later_part(const qapi::BitmapInfo& bitmap, const qapi::BitmapInfo& other) {
  const auto session = session_of(bitmap.name);
  const auto later = session_of(other.name);
  return session && later && later->chain == session->chain && later->number > session->number &&
         !other.inconsistent.value_or(false);
}

}  // namespace

std::vector<std::string> later_parts(const qapi::BitmapInfo& bitmap,
                                     const std::vector<qapi::BitmapInfo>& all) {
  std::vector<std::string> names;
  for (const qapi::BitmapInfo& each : all)
    if (is_later_part(bitmap, each))
      names.push_back(each.name);
  return names;
}

bool is_complete(const qapi::BitmapInfo& bitmap, const std::vector<qapi::BitmapInfo>& all) {
  return bitmap.recording || std::any_of(all.begin(), all.end(), [&](const qapi::BitmapInfo& each) {
           return each.recording && is_later_part(bitmap, each);
         });
}

}  // namespace nbdelta::client::backup
