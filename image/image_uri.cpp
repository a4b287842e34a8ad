#include "image/image_uri.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.hpp"
#include "base/percent.hpp"

namespace nbdelta::image {
namespace {

constexpr std::string_view kScheme = "delta:";

bool parse_switch(const std::string& key, const std::string& value) {
  if (value != "on" && value != "off")
    fail(EINVAL, "{}={}: expected on or off", key, value);
  return value == "on";
}

void set(ImageUri& uri, const std::string& key, const std::string& value) {
  if (key == "bitmap" && !value.empty())
    uri.bitmap = value;
  else if (key == "view" && value == "layer")
    uri.layer = true;
  else if (key == "format")
    uri.open.format = parse_format(value, key);
  else if (key == "backing" && !value.empty())
    uri.open.permitted_folders.push_back(std::filesystem::absolute(value).string());
  else if (key == "lock")
    uri.open.locking = parse_switch(key, value) ? Locking::on : Locking::off;
  else if (key == "direct")
    uri.open.caching = parse_switch(key, value) ? Caching::direct : Caching::page_cache;
  else
    fail(EINVAL,
         "'{}={}': expected bitmap=NAME, view=layer, format=qcow2|raw, backing=FOLDER, lock=on|off "
         "or direct=on|off",
         key, value);
}

/// Cuts the part before the separator off, or all there is.
std::string_view take_until(std::string_view& rest, char separator) {
  const std::string_view part = rest.substr(0, rest.find(separator));
  rest.remove_prefix(std::min(part.size() + 1, rest.size()));
  return part;
}

}  // namespace

ImageUri ImageUri::parse(std::string_view text) {
  ImageUri uri;
  std::string_view rest = text.substr(kScheme.size());
  uri.path = percent_decoded(take_until(rest, '?'));
  if (uri.path.empty())
    fail(EINVAL, "{}: which image? Say delta:PATH", text);
  std::set<std::string> keys;
  while (!rest.empty()) {
    std::string_view pair = take_until(rest, '&');
    const std::string key = percent_decoded(take_until(pair, '='));
    if (!keys.insert(key).second && key != "backing")
      fail(EINVAL, "{}: {}= may be given once", text, key);
    set(uri, key, percent_decoded(pair));
  }
  if (uri.layer && !uri.bitmap.empty())
    fail(EINVAL, "{}: bitmap= and view= exclude each other", text);
  return uri;
}

std::string ImageUri::text() const {
  std::string uri = fmt::format("{}{}?format={}", kScheme, percent_encoded(path),
                                open.format == Format::raw ? "raw" : "qcow2");
  for (const std::string& folder : open.permitted_folders)
    uri += "&backing=" + percent_encoded(folder);
  if (open.locking == Locking::off)
    uri += "&lock=off";
  if (open.caching == Caching::direct)
    uri += "&direct=on";
  if (layer)
    uri += "&view=layer";
  if (!bitmap.empty())
    uri += "&bitmap=" + percent_encoded(bitmap);
  return uri;
}

}  // namespace nbdelta::image
